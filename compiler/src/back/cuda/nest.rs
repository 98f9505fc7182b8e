//! A nest as loops over the threads of a block.
//!
//! A thread takes a column: an element of a vector, or a post neuron with all its synapses. What it needs
//! of other threads goes through shared memory between two barriers. The orders of sums are those of the
//! loop IR: see [`super`].

use super::names::Names;
use super::origins::Origins;
use super::sequence::Homes;
use super::text::Text;
use super::values::{Loop, Values, element};
use crate::loops::body::Id;
use crate::loops::{Access, Effect, Extent, LANES, Nest, PARTIALS, padded};

/// Floats of shared memory that stretches of rows may take, if they can do with so little: 40 KiB.
const SHARED: usize = 10 * 1024;

/// What all nests of a kernel share.
pub(super) struct Kernel<'k> {
    pub(super) names: &'k Names,
    pub(super) origins: &'k Origins<'k>,
    pub(super) backward: bool,
    /// Threads of a block: whole warps.
    pub(super) threads: usize,
    /// Where regions lie in a kernel that takes a whole sequence.
    pub(super) homes: Option<&'k Homes>,
    /// What a thread takes at a time.
    pub(super) bundle: Bundle,
}

impl Kernel<'_> {
    /// The number of a thread at the beginning of a nest. In a loop over time it is read anew, so that nothing that
    /// follows from it is held in registers.
    fn thread(&self) -> &'static str {
        if self.homes.is_some() { "this_thread()" } else { "threadIdx.x" }
    }
}

/// What a thread takes at a time, beside one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bundle {
    /// Rows of the batch, whose regions follow each other: `r`, if there are several.
    pub(super) rows: usize,
    /// Pre neurons, `u`, if there are several; all that is read from memory for them is read first. `None`
    /// outside of nests that do so.
    pub(super) points: Option<usize>,
}

impl Bundle {
    /// One row, one element.
    pub(super) const ONE: Bundle = Bundle { rows: 1, points: None };

    /// What follows the name of a value that is kept for each row, or for all.
    pub(super) fn of_row(self, is_batched: bool) -> &'static str {
        if is_batched && self.rows > 1 { "[r]" } else { "" }
    }

    /// What follows the name of a value that was read for each pre neuron, and for each row or for all.
    pub(super) fn of_point(self, is_batched: bool) -> String {
        let point = if self.points.is_some_and(|n| n > 1) { "[u]" } else { "" };
        format!("{point}{}", self.of_row(is_batched))
    }
}

/// A nest on its way to text.
pub(super) struct Writer<'w> {
    pub(super) kernel: &'w Kernel<'w>,
    pub(super) nest: &'w Nest,
    pub(super) values: Values,
    /// The lines of the spec that the effects come from.
    pub(super) lines: Vec<Option<usize>>,
    pub(super) text: &'w mut Text,
    /// Floats of shared memory that are taken.
    pub(super) shared: usize,
}

/// What lies in shared memory for a sum over columns.
#[derive(Clone)]
struct Term {
    /// The pointer to it.
    name: String,
    value: Id,
    /// Whether the largest is looked for.
    is_max: bool,
    /// Whether it has a row for every pre neuron of a stretch, or is the same for all.
    by_row: bool,
}

/// Writes a nest; returns the floats of shared memory that it takes.
pub(super) fn write(kernel: &Kernel<'_>, nest: &Nest, text: &mut Text) -> usize {
    let mut writer = Writer::new(kernel, nest, text);
    writer.remark();
    match nest.extent {
        Extent::Scalar => writer.scalar(),
        Extent::Vector(n) => writer.vector(n),
        Extent::Matrix { post, pre } | Extent::Log { post, pre } => writer.matrix(post, pre),
    }
    writer.text.close();
    writer.shared
}

impl<'w> Writer<'w> {
    /// A nest whose values are decided, and none of whose text is written.
    pub(super) fn new(kernel: &'w Kernel<'w>, nest: &'w Nest, text: &'w mut Text) -> Self {
        let lines = nest.effects.iter().map(|e| kernel.origins.line(e, kernel.backward)).collect();
        Writer { kernel, nest, values: Values::new(nest, kernel), lines, text, shared: 0 }
    }
}

impl Writer<'_> {
    /// What the nest does, in the words of the spec, and the opening of its block.
    pub(super) fn remark(&mut self) {
        let shape = match self.nest.extent {
            Extent::Scalar => String::new(),
            Extent::Vector(n) => format!("[{n}] "),
            Extent::Matrix { post, pre } => format!("[{post},{pre}] "),
            Extent::Log { post, pre } => format!("[{post},{pre}] of a log: "),
        };
        let remark = format!("// {shape}{}", self.nest.label);
        self.text.line(remark.trim_end());
        let mut lines: Vec<usize> = self.lines.iter().flatten().copied().collect();
        lines.sort_unstable();
        lines.dedup();
        let of = if self.kernel.backward { "adjoint of " } else { "" };
        for line in lines {
            let remark = format!("//   {of}{}", self.kernel.origins.text(line));
            self.text.line(&remark);
        }
        self.text.open("{");
    }

    fn scalar(&mut self) {
        self.text.open("if (threadIdx.x == 0) {");
        self.variables(Loop::Nest);
        self.point_effects();
        self.text.close();
    }

    // ----------------------------------------------------------------- vectors

    fn vector(&mut self, n: usize) {
        self.variables(Loop::Nest);
        let terms = self.terms();
        if terms.is_empty() {
            self.column_loop(n);
            self.variables(Loop::Column);
            self.point_effects();
            self.text.close();
            return;
        }
        self.place_terms(&terms, 1);
        let totals = self.totals();
        let several = n > self.kernel.threads;
        self.stretches(n);
        self.text.open(&format!("if (j < {n}) {{"));
        self.variables(Loop::Column);
        self.point_effects();
        self.keep_terms(&terms, "");
        self.text.close();
        self.clear_padding(n, &terms);
        self.text.line("__syncthreads();");
        self.add_terms(n, &terms, &totals);
        if several {
            self.text.line("__syncthreads();");
        }
        self.text.close();
        self.finish_totals(&totals);
    }

    /// A loop of every thread over its columns, without barriers.
    fn column_loop(&mut self, n: usize) {
        let thread = self.kernel.thread();
        match n > self.kernel.threads {
            true => self.text.open(&format!("for (int j = {thread}; j < {n}; j += THREADS) {{")),
            false => self.text.open(&format!("if (const int j = {thread}; j < {n}) {{")),
        }
    }

    /// A loop of all threads over stretches of one column for each thread, with barriers.
    fn stretches(&mut self, n: usize) {
        match n > self.kernel.threads {
            true => self.text.open(&format!("for (int first = 0; first < {n}; first += THREADS) {{")),
            false => self.text.open("{"),
        }
        let first = if n > self.kernel.threads { "first + " } else { "" };
        self.text.line(&format!("const int j = {first}{};", self.kernel.thread()));
    }

    // ---------------------------------------------------------------- matrices

    fn matrix(&mut self, post: usize, pre: usize) {
        self.variables(Loop::Nest);
        let best = self.best_columns();
        match sums_rows(self.nest) {
            true => self.matrix_with_row_sums(post, pre, &best),
            false => self.columns(post, pre, &best),
        }
        self.whole_maxima(&best);
    }

    /// Every thread runs down its columns.
    fn columns(&mut self, post: usize, pre: usize, best: &[(usize, String)]) {
        self.column_loop(post);
        self.variables(Loop::Column);
        let sums = self.column_sums();
        self.text.open(&format!("for (int i = 0; i < {pre}; ++i) {{"));
        self.variables(Loop::Point);
        self.point_effects();
        self.add_to_columns(&sums, best);
        self.text.close();
        self.store_columns(&sums);
        self.text.close();
    }

    /// All threads take a stretch of pre neurons together, column by column, and then add it up row by row,
    /// a thread for every row and lane.
    fn matrix_with_row_sums(&mut self, post: usize, pre: usize, best: &[(usize, String)]) {
        let several = post > self.kernel.threads;
        let terms = self.terms();
        let rows = self.rows(&terms);
        self.place_terms(&terms, rows);
        self.stretches(post);
        let sums = self.column_sums();
        self.text.open(&format!("for (int top = 0; top < {pre}; top += {rows}) {{"));
        self.text.open(&format!("if (j < {post}) {{"));
        self.variables(Loop::Column);
        self.keep_terms_of(&terms, false, "");
        self.text.open(&format!("for (int r = 0; r < {rows} && top + r < {pre}; ++r) {{"));
        self.text.line("const int i = top + r;");
        self.variables(Loop::Point);
        self.point_effects();
        self.keep_terms_of(&terms, true, "r * (THREADS + 8) + ");
        self.add_to_columns(&sums, best);
        self.text.close();
        self.text.close();
        self.clear_padding_of_rows(post, rows, &terms);
        self.text.line("__syncthreads();");
        self.add_rows(post, pre, rows, &terms, several);
        self.text.line("__syncthreads();");
        self.text.close();
        if !sums.is_empty() {
            self.text.open(&format!("if (j < {post}) {{"));
            self.store_columns(&sums);
            self.text.close();
        }
        self.text.close();
    }

    /// How many pre neurons a stretch has: a power of two, for which there are threads and shared memory.
    fn rows(&self, terms: &[Term]) -> usize {
        let threads = self.kernel.threads;
        let by_row = terms.iter().filter(|t| t.by_row).count().max(1);
        let whole = terms.len() - terms.iter().filter(|t| t.by_row).count();
        let room = SHARED.saturating_sub(whole * (threads + 8)) / (by_row * (threads + 8));
        let most = room.clamp(1, threads / LANES);
        1 << most.ilog2()
    }

    /// A thread's row and lane: adds its share of the columns and stores the sum of the lanes.
    fn add_rows(&mut self, post: usize, pre: usize, rows: usize, terms: &[Term], several: bool) {
        self.text.line("const int r = threadIdx.x / 8, i = top + r;");
        self.text.line(&format!("const bool is_row = r < {rows} && i < {pre};"));
        let first = if several { " - first" } else { "" };
        let count = match several {
            true => format!("min(THREADS, {}{first})", padded(post)),
            false => padded(post).to_string(),
        };
        let effects: Vec<(usize, Effect)> = self.nest.effects.iter().cloned().enumerate().collect();
        let sums = effects.into_iter().filter_map(|(k, e)| match e {
            Effect::SumPost(place, v, w) => Some((k, place, v, w)),
            _ => None,
        });
        for (number, (k, place, v, w)) in sums.enumerate() {
            let sum = self.values.fresh("row_sum");
            let partial = format!("scratch[{} + i * 8 + threadIdx.x % 8]", PARTIALS + number * pre * LANES);
            let start =
                if several { format!("is_row && first > 0 ? {partial} : 0.0f") } else { "0.0f".into() };
            self.text.line(&format!("float {sum} = {start};"));
            let operands = self.operands(terms, (v, w), false, " + r * (THREADS + 8)");
            let line = self.lines[k];
            self.text.from(line, &format!("if (is_row) {sum} = chain({sum}, {operands}, {count});"));
            if several {
                self.text.line(&format!("if (is_row) {partial} = {sum};"));
            }
            self.text.line(&format!("{sum} = sum_lanes({sum});"));
            let target = element(Access::Pre(place), self.nest.extent, self.kernel);
            self.text.from(line, &format!("if (is_row && threadIdx.x % 8 == 0) {target} = {sum};"));
        }
    }

    /// The pointers to the terms of a sum: `v` or `v, w`.
    fn operands(&self, terms: &[Term], (v, w): (Id, Option<Id>), is_max: bool, row: &str) -> String {
        let of = |id: Id| {
            let term = terms.iter().find(|t| t.value == id && t.is_max == is_max);
            let term = term.expect("every operand of a sum is a term");
            format!("{}{}", term.name, if term.by_row { row } else { "" })
        };
        std::iter::once(v).chain(w).map(of).collect::<Vec<String>>().join(", ")
    }

    /// Variables for the sums of this thread's columns: the number of the effect, and the variable.
    fn column_sums(&mut self) -> Vec<(usize, String)> {
        let is_sum = |e: &Effect| matches!(e, Effect::SumPre(..));
        let found: Vec<usize> =
            (0..self.nest.effects.len()).filter(|k| is_sum(&self.nest.effects[*k])).collect();
        let sums: Vec<(usize, String)> = found.into_iter().map(|k| (k, self.values.fresh("sum"))).collect();
        for (_, sum) in &sums {
            self.text.line(&format!("float {sum} = 0.0f;"));
        }
        sums
    }

    /// Variables for the largest values of this thread's columns.
    fn best_columns(&mut self) -> Vec<(usize, String)> {
        let is_max = |e: &Effect| matches!(e, Effect::MaxAll(..));
        let found: Vec<usize> =
            (0..self.nest.effects.len()).filter(|k| is_max(&self.nest.effects[*k])).collect();
        let best: Vec<(usize, String)> = found.into_iter().map(|k| (k, self.values.fresh("best"))).collect();
        for (_, best) in &best {
            self.text.line(&format!("float {best} = -infinity();"));
        }
        best
    }

    fn add_to_columns(&mut self, sums: &[(usize, String)], best: &[(usize, String)]) {
        for (k, sum) in sums {
            let Effect::SumPre(_, v, w) = self.nest.effects[*k] else { continue };
            let line = self.sum(sum, v, w);
            self.text.from(self.lines[*k], &line);
        }
        for (k, best) in best {
            let Effect::MaxAll(_, v) = self.nest.effects[*k] else { continue };
            let v = self.values.text(v).to_owned();
            self.text.from(self.lines[*k], &format!("{best} = greater({v}, {best});"));
        }
    }

    /// `sum = sum + v;` or `sum = fmaf(v, w, sum);`
    pub(super) fn sum(&self, sum: &str, v: Id, w: Option<Id>) -> String {
        format!("{sum} = {}", self.sum_of(sum, v, w))
    }

    /// `old + v;` or `fmaf(v, w, old);`
    pub(super) fn sum_of(&self, old: &str, v: Id, w: Option<Id>) -> String {
        match w {
            Some(w) => format!("fmaf({}, {}, {old});", self.values.text(v), self.values.text(w)),
            None => format!("{old} + {};", self.values.addend(v)),
        }
    }

    fn store_columns(&mut self, sums: &[(usize, String)]) {
        for (k, sum) in sums {
            let target = self.target(Access::Post(self.nest.effects[*k].place()));
            self.text.from(self.lines[*k], &format!("{target} = {sum};"));
        }
    }

    pub(super) fn target(&self, access: Access) -> String {
        element(access, self.nest.extent, self.kernel)
    }

    // ---------------------------------------------------------- values, effects

    /// The variables that are computed in a loop. In a nest over scalars there is but one.
    pub(super) fn variables(&mut self, at: Loop) {
        for v in self.values.variables.clone().into_iter().filter(|v| v.at == at) {
            let line = self.lines.get(v.effect).copied().flatten();
            self.text.from(line, &v.text);
        }
    }

    /// The effects that happen point by point.
    pub(super) fn point_effects(&mut self) {
        for k in 0..self.nest.effects.len() {
            if let Some(statement) = self.statement(k) {
                self.text.from(self.lines[k], &statement);
            }
        }
    }

    /// What an effect does at a point, if it is no sum.
    pub(super) fn statement(&self, k: usize) -> Option<String> {
        match &self.nest.effects[k] {
            Effect::Store(access, v) => Some(format!("{} = {};", self.target(*access), self.values.text(*v))),
            Effect::Add(access, v, Some(w)) => {
                let target = self.target(*access);
                let (v, w) = (self.values.text(*v), self.values.text(*w));
                Some(format!("{target} = fmaf({v}, {w}, {target});"))
            }
            Effect::Add(access, v, None) => {
                let target = self.target(*access);
                Some(format!("{target} = {target} + {};", self.values.addend(*v)))
            }
            Effect::SumPre(..) | Effect::SumPost(..) | Effect::SumAll(..) | Effect::MaxAll(..) => None,
        }
    }

    // ---------------------------------------------------------- sums over columns

    /// What sums over columns need of every thread.
    fn terms(&mut self) -> Vec<Term> {
        let mut found: Vec<(Id, bool)> = vec![];
        for effect in &self.nest.effects {
            let (wanted, is_max) = match (effect, self.nest.extent) {
                (Effect::SumPost(_, v, w), _) => (vec![Some(*v), *w], false),
                (Effect::SumAll(_, v, w), Extent::Vector(_)) => (vec![Some(*v), *w], false),
                (Effect::MaxAll(_, v), Extent::Vector(_)) => (vec![Some(*v)], true),
                _ => continue,
            };
            for id in wanted.into_iter().flatten() {
                if !found.contains(&(id, is_max)) {
                    found.push((id, is_max));
                }
            }
        }
        let named = found.into_iter().map(|(value, is_max)| Term {
            name: self.values.fresh("term"),
            value,
            is_max,
            by_row: self.values.place(value) == Loop::Point,
        });
        named.collect()
    }

    /// Takes shared memory for the terms.
    fn place_terms(&mut self, terms: &[Term], rows: usize) {
        for term in terms {
            let count = if term.by_row { rows } else { 1 };
            let shape =
                if term.by_row { format!("[{rows}][THREADS + 8]") } else { "[THREADS + 8]".to_owned() };
            let (name, at) = (&term.name, self.shared);
            self.text.line(&format!("float *const {name} = shared + {at};  // {shape}"));
            self.shared += count * (self.kernel.threads + 8);
        }
    }

    fn keep_terms(&mut self, terms: &[Term], row: &str) {
        let thread = self.kernel.thread();
        for term in terms {
            let v = self.values.text(term.value).to_owned();
            self.text.line(&format!("{}[{row}{thread}] = {v};", term.name));
        }
    }

    fn keep_terms_of(&mut self, terms: &[Term], by_row: bool, row: &str) {
        let chosen: Vec<Term> = terms.iter().filter(|t| t.by_row == by_row).cloned().collect();
        self.keep_terms(&chosen, row);
    }

    /// Lanes behind the last column add zero.
    fn clear_padding(&mut self, n: usize, terms: &[Term]) {
        let thread = self.kernel.thread();
        if n.is_multiple_of(LANES) {
            return;
        }
        self.text.open(&format!("if (j >= {n} && j < {}) {{", padded(n)));
        for term in terms {
            let value = if term.is_max { "-infinity()" } else { "0.0f" };
            self.text.line(&format!("{}[{thread}] = {value};", term.name));
        }
        self.text.close();
    }

    fn clear_padding_of_rows(&mut self, post: usize, rows: usize, terms: &[Term]) {
        let thread = self.kernel.thread();
        if post.is_multiple_of(LANES) {
            return;
        }
        self.text.open(&format!("if (j >= {post} && j < {}) {{", padded(post)));
        for term in terms.iter().filter(|t| !t.by_row) {
            self.text.line(&format!("{}[{thread}] = 0.0f;", term.name));
        }
        if terms.iter().any(|t| t.by_row) {
            self.text.open(&format!("for (int r = 0; r < {rows}; ++r) {{"));
            for term in terms.iter().filter(|t| t.by_row) {
                self.text.line(&format!("{}[r * (THREADS + 8) + {thread}] = 0.0f;", term.name));
            }
            self.text.close();
        }
        self.text.close();
    }

    /// Variables for the sums over a whole vector.
    fn totals(&mut self) -> Vec<(usize, String)> {
        let mut totals = vec![];
        for (k, effect) in self.nest.effects.iter().enumerate() {
            let start = match effect {
                Effect::SumAll(..) => "0.0f",
                Effect::MaxAll(..) => "-infinity()",
                Effect::Store(..) | Effect::Add(..) | Effect::SumPre(..) | Effect::SumPost(..) => continue,
            };
            let total = self.values.fresh("total");
            self.text.line(&format!("float {total} = {start};"));
            totals.push((k, total));
        }
        totals
    }

    /// Eight threads add up for each sum.
    fn add_terms(&mut self, n: usize, terms: &[Term], totals: &[(usize, String)]) {
        let thread = self.kernel.thread();
        let count = match n > self.kernel.threads {
            true => format!("min(THREADS, {} - first)", padded(n)),
            false => padded(n).to_string(),
        };
        for (number, (k, total)) in totals.iter().enumerate() {
            let (f, v, w) = match self.nest.effects[*k] {
                Effect::SumAll(_, v, w) => ("chain", v, w),
                Effect::MaxAll(_, v) => ("chain_max", v, None),
                _ => continue,
            };
            let operands = self.operands(terms, (v, w), f == "chain_max", "");
            let group = group(number, self.kernel.threads);
            self.text.from(
                self.lines[*k],
                &format!("if ({thread} / 8 == {group}) {total} = {f}({total}, {operands}, {count});"),
            );
        }
    }

    fn finish_totals(&mut self, totals: &[(usize, String)]) {
        let thread = self.kernel.thread();
        for (number, (k, total)) in totals.iter().enumerate() {
            let lanes = match self.nest.effects[*k] {
                Effect::MaxAll(..) => "max_lanes",
                _ => "sum_lanes",
            };
            let target = self.target(Access::Scalar(self.nest.effects[*k].place()));
            let first = group(number, self.kernel.threads) * LANES;
            self.text.line(&format!("{total} = {lanes}({total});"));
            self.text.from(self.lines[*k], &format!("if ({thread} == {first}) {target} = {total};"));
        }
    }

    /// The largest value of a matrix is the largest of its threads' columns.
    fn whole_maxima(&mut self, best: &[(usize, String)]) {
        for (k, best) in best {
            self.shared = self.shared.max(self.kernel.threads);
            let target = self.target(Access::Scalar(self.nest.effects[*k].place()));
            self.text.line("__syncthreads();");
            self.text.line(&format!("shared[threadIdx.x] = {best};"));
            self.text.line("__syncthreads();");
            self.text.line(&format!("{best} = max_lanes(chain_max(-infinity(), shared, THREADS));"));
            self.text.from(self.lines[*k], &format!("if (threadIdx.x == 0) {target} = {best};"));
        }
    }
}

/// Whether there are more columns than threads, so that threads take them in several stretches.
pub(super) fn is_in_stretches(nest: &Nest, threads: usize) -> bool {
    match nest.extent {
        Extent::Scalar => false,
        Extent::Vector(n) => n > threads,
        Extent::Matrix { post, .. } | Extent::Log { post, .. } => post > threads,
    }
}

/// Which eight threads take a sum over a vector, by its number in the nest.
pub(super) fn group(number: usize, threads: usize) -> usize {
    number % (threads / LANES)
}

/// Whether a nest has sums over post.
pub(super) fn sums_rows(nest: &Nest) -> bool {
    nest.effects.iter().any(|e| matches!(e, Effect::SumPost(..)))
}

/// Whether a nest puts terms of sums into shared memory.
pub(super) fn has_terms(nest: &Nest) -> bool {
    let is_vector = matches!(nest.extent, Extent::Vector(_));
    let whole = |e: &Effect| matches!(e, Effect::SumAll(..) | Effect::MaxAll(..));
    sums_rows(nest) || is_vector && nest.effects.iter().any(whole)
}
