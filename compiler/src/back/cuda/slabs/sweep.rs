//! A nest of a track: the columns of one slab, for one row of the batch or several.
//!
//! A block has `COLUMNS` threads for each stretch of pre neurons. In a nest over a matrix a thread runs down its
//! column from the first pre neuron of its stretch to the last, several at a time: first it reads all that it needs
//! for them, so that many numbers are on their way at once, then it computes and stores. What belongs to no row of
//! the batch (parameters) is read once for all rows that the block has. Sums over pre go through shared memory,
//! where the stretches of a column are added; sums over post stay within the neighbouring threads of a stretch.
//!
//! Over a vector, and where sums over pre are added, a row of the batch belongs to the stretch of its number.

use super::super::nest::{Bundle, Kernel, Writer};
use super::super::text::Text;
use super::super::values::{Loop, Variable, element};
use crate::loops::{Access, BUNDLE, Base, Cut, Effect, Extent, Nest, SlabSum, padded, slab_sums};

/// How a block takes the nests of a track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hold {
    pub(super) cut: Cut,
    /// Rows of the batch that a block takes together.
    pub(super) rows: usize,
}

/// Numbers that a thread reads before it computes, at most: with these it takes no more registers than it has.
const UNDER_WAY: usize = 24;

/// Registers for indices and what is computed.
const COMPUTING: usize = 14;

/// Floats of shared memory that sums of slabs take, if they can do with so few: 16 KiB.
const SLAB_SUMS: usize = 4 * 1024;

/// Terms of sums over post that a thread keeps, at most.
const TERMS: usize = 32;

/// Pre neurons that are taken at a time.
pub(super) fn points(nest: &Nest, rows: usize) -> usize {
    let count = |a: Access| match a {
        Access::Matrix(p) | Access::Pre(p) => {
            if p.base == Base::Params {
                1
            } else {
                rows
            }
        }
        Access::Post(_) | Access::Scalar(_) => 0,
    };
    let added = nest.effects.iter().filter(|e| matches!(e, Effect::Add(..))).count();
    let loads = nest.body.loads().map(count).sum::<usize>() + rows * added;
    let posts = nest.effects.iter().filter(|e| matches!(e, Effect::SumPost(..))).count();
    let most = (UNDER_WAY / loads.max(1)).min(TERMS / (posts * rows).max(1)).clamp(1, BUNDLE);
    1 << most.ilog2()
}

/// Registers that a thread takes, roughly: what it has read, sums, terms and vectors for all its rows, two for the
/// address of every matrix, and some to compute with.
pub(super) fn registers(nest: &Nest, rows: usize) -> usize {
    let (mut read, mut matrices, mut kept) = (0, 0, 0);
    for access in nest.body.loads() {
        let times = if access.place().base == Base::Params { 1 } else { rows };
        match access {
            Access::Matrix(_) | Access::Pre(_) => read += times,
            Access::Post(_) | Access::Scalar(_) => kept += times,
        }
        matrices += usize::from(matches!(access, Access::Matrix(_)));
    }
    for effect in &nest.effects {
        match effect {
            Effect::Add(..) => (read, matrices) = (read + rows, matrices + 1),
            Effect::Store(..) => matrices += 1,
            Effect::SumPost(..) => read += rows,
            Effect::SumPre(..) => kept += rows,
            Effect::SumAll(..) | Effect::MaxAll(..) => {}
        }
    }
    read * points(nest, rows) + 2 * matrices + kept + COMPUTING
}

/// Writes a nest; returns the floats of shared memory that it takes.
pub(super) fn write(kernel: &Kernel<'_>, nest: &Nest, hold: Hold, text: &mut Text) -> usize {
    match nest.extent {
        Extent::Matrix { post, pre } | Extent::Log { post, pre } => {
            let shape = Shape { post, pre, points: points(nest, hold.rows), hold };
            matrix(kernel, nest, shape, text)
        }
        Extent::Scalar => unreachable!("scalars are no columns"),
        Extent::Vector(n) => match slab_sums(nest, hold.cut).filter(|_| hold.cut.stretches > 1) {
            Some(sums) => slabs(kernel, nest, &sums, hold, text),
            None => {
                vector(kernel, nest, n, hold, text);
                0
            }
        },
    }
}

/// Adds up the results of the slabs: all stretches of a column take their share, then the shares are added. Returns the
/// floats of shared memory that it takes.
fn slabs(kernel: &Kernel<'_>, nest: &Nest, sums: &[SlabSum], hold: Hold, text: &mut Text) -> usize {
    let (stretches, threads) = (hold.cut.stretches, hold.cut.stretches * hold.cut.columns);
    let kernel = Kernel { bundle: Bundle { rows: hold.rows, points: None }, ..*kernel };
    let mut writer = Writer::new(&kernel, nest, text);
    writer.remark();
    let place = |p: crate::loops::Place| element(Access::Post(p), nest.extent, &kernel);
    // As many sums at a time as there is room for.
    let at_once = (SLAB_SUMS / threads).max(1);
    let jobs: Vec<(usize, usize)> =
        (0..sums.len()).flat_map(|k| (0..hold.rows).map(move |r| (k, r))).collect();
    for (turn, jobs) in jobs.chunks(at_once).enumerate() {
        if turn > 0 {
            writer.text.line("__syncthreads();");
        }
        for (n, (k, r)) in jobs.iter().enumerate() {
            let SlabSum { parts, slabs, pre, .. } = sums[*k];
            writer.text.open(&format!("if (const int j = slab * COLUMNS + column; j < {pre}) {{"));
            if hold.rows > 1 {
                writer.text.line(&format!("constexpr int r = {r};"));
            }
            let from = place(parts);
            let part = |s: &str| from.replace(" + j]", &format!(" + {s} * {} + j]", padded(pre)));
            writer.text.line(&format!("float sum = stretch < {slabs} ? {} : 0.0f;", part("stretch")));
            writer.text.line("#pragma unroll 4");
            writer.text.line(&format!(
                "for (int s = stretch + {stretches}; s < {slabs}; s += {stretches}) sum = sum + {};",
                part("s")
            ));
            writer.text.line(&format!("shared[{} + threadIdx.x] = sum;", n * threads));
            writer.text.close();
        }
        writer.text.line("__syncthreads();");
        for (n, (k, r)) in jobs.iter().enumerate() {
            let SlabSum { slabs, pre, total, .. } = sums[*k];
            // A row of the batch belongs to the stretch of its number.
            let mine = r % stretches;
            writer.text.open(&format!(
                "if (const int j = slab * COLUMNS + column; stretch == {mine} && j < {pre}) {{"
            ));
            if hold.rows > 1 {
                writer.text.line(&format!("constexpr int r = {r};"));
            }
            writer.text.line(&format!("float total = shared[{} + column];", n * threads));
            let used = stretches.min(slabs);
            if used > 1 {
                writer.text.line("#pragma unroll");
                writer.text.line(&format!(
                    "for (int s = 1; s < {used}; ++s) total = total + shared[{} + s * COLUMNS + column];",
                    n * threads
                ));
            }
            let line = writer.lines[*k];
            let target = place(total);
            writer.text.from(line, &format!("{target} = total;"));
            writer.text.close();
        }
    }
    writer.text.close();
    at_once.min(jobs.len()) * threads
}

fn vector(kernel: &Kernel<'_>, nest: &Nest, n: usize, hold: Hold, text: &mut Text) {
    let kernel = Kernel { bundle: Bundle { rows: hold.rows, points: None }, ..*kernel };
    let mut writer = Writer::new(&kernel, nest, text);
    writer.remark();
    open_rows(writer.text, hold);
    writer.text.open(&format!("if (const int j = slab * COLUMNS + column; j < {n}) {{"));
    writer.variables(Loop::Nest);
    writer.variables(Loop::Column);
    writer.point_effects();
    writer.text.close();
    writer.text.close();
    writer.text.close();
}

/// A loop over the rows of this stretch.
fn open_rows(text: &mut Text, hold: Hold) {
    match hold.rows {
        1 => text.open("if (stretch == 0) {"),
        rows => text.open(&format!("for (int r = stretch; r < {rows}; r += {}) {{", hold.cut.stretches)),
    }
}

#[derive(Clone, Copy)]
struct Shape {
    post: usize,
    pre: usize,
    points: usize,
    hold: Hold,
}

fn matrix(kernel: &Kernel<'_>, nest: &Nest, shape: Shape, text: &mut Text) -> usize {
    let rows = shape.hold.rows;
    let at_once = Kernel { bundle: Bundle { rows, points: Some(shape.points) }, ..*kernel };
    let one = Kernel { bundle: Bundle { rows, points: Some(1) }, ..*kernel };
    let mut sweep = Sweep::new(&at_once, nest, shape, text);
    sweep.begin();
    sweep.several();
    let is_even = shape.pre.is_multiple_of(shape.points);
    drop(sweep);
    let mut sweep = Sweep::new(&one, nest, Shape { points: 1, ..shape }, text);
    if !is_even {
        sweep.rest(shape.points);
    }
    sweep.finish()
}

/// A nest over a matrix on its way to text.
struct Sweep<'w> {
    writer: Writer<'w>,
    shape: Shape,
    /// Effects that are sums over pre, and their variables.
    columns: Vec<(usize, String)>,
    /// Effects that are sums over post, and their variables.
    rows: Vec<(usize, String)>,
    /// Effects that add to memory, and what was there.
    old: Vec<(usize, String)>,
}

impl<'w> Sweep<'w> {
    fn new(kernel: &'w Kernel<'w>, nest: &'w Nest, shape: Shape, text: &'w mut Text) -> Self {
        let mut writer = Writer::new(kernel, nest, text);
        let (mut columns, mut rows, mut old) = (vec![], vec![], vec![]);
        for (k, effect) in nest.effects.iter().enumerate() {
            match effect {
                Effect::SumPre(..) => columns.push((k, writer.values.fresh("sum"))),
                Effect::SumPost(..) => rows.push((k, writer.values.fresh("row_sum"))),
                Effect::Add(access, ..) => {
                    let word = writer.values.fresh("old");
                    let target = element(*access, nest.extent, kernel);
                    writer.values.variables.push(Variable {
                        text: format!("const float {word} = {target};"),
                        parts: ("float", word.clone(), target),
                        at: Loop::Point,
                        effect: k,
                        is_load: true,
                        is_batched: true,
                    });
                    old.push((k, format!("{word}{}", kernel.bundle.of_point(true))));
                }
                Effect::Store(..) | Effect::SumAll(..) | Effect::MaxAll(..) => {}
            }
        }
        Sweep { writer, shape, columns, rows, old }
    }
}

impl Sweep<'_> {
    fn line(&mut self, line: &str) {
        self.writer.text.line(line);
    }

    fn open(&mut self, line: &str) {
        self.writer.text.open(line);
    }

    fn close(&mut self) {
        self.writer.text.close();
    }

    fn bundle(&self) -> Bundle {
        self.writer.kernel.bundle
    }

    /// Whether some threads of the last slab have no column.
    fn is_ragged(&self) -> bool {
        !self.shape.post.is_multiple_of(self.shape.hold.cut.columns)
    }

    /// A loop over the rows of the batch, if there are several.
    fn open_each_row(&mut self) {
        if self.bundle().rows > 1 {
            self.line("#pragma unroll");
            self.open(&format!("for (int r = 0; r < {}; ++r) {{", self.bundle().rows));
        }
    }

    fn close_each_row(&mut self) {
        if self.bundle().rows > 1 {
            self.close();
        }
    }

    /// Which elements this thread has, and what does not change on its way.
    fn begin(&mut self) {
        self.writer.remark();
        let Shape { post, pre, hold, .. } = self.shape;
        match self.is_ragged() {
            true => {
                self.line(&format!("const bool is_column = slab * COLUMNS + column < {post};"));
                // A thread without a column does what the last column's does, and keeps it to itself.
                self.line(&format!("const int j = is_column ? slab * COLUMNS + column : {};", post - 1));
            }
            false => self.line("const int j = slab * COLUMNS + column;"),
        }
        let stretch = hold.cut.rows(pre);
        self.line(&format!("const int begin = stretch * {stretch}, end = min(begin + {stretch}, {pre});"));
        self.variables(&[Loop::Nest, Loop::Column], true);
        for (_, sum) in self.columns.clone() {
            match hold.rows {
                1 => self.line(&format!("float {sum} = 0.0f;")),
                rows => self.line(&format!("float {sum}[{rows}] = {{}};")),
            }
        }
    }

    /// The variables of some loops that are read from memory, or that are not, or all: arrays for what is kept of
    /// several pre neurons or rows.
    fn variables(&mut self, at: &[Loop], loads: bool) {
        let is_point = at.contains(&Loop::Point);
        let chosen = self.writer.values.variables.iter();
        let chosen = chosen.filter(|v| at.contains(&v.at) && (!is_point || v.is_load == loads));
        let chosen: Vec<Variable> = chosen.cloned().collect();
        let Bundle { rows, points } = self.bundle();
        let points = points.filter(|n| is_point && *n > 1);
        let count = |v: &Variable| {
            let point = points.map_or(String::new(), |n| format!("[{n}]"));
            if v.is_batched && rows > 1 { format!("{point}[{rows}]") } else { point }
        };
        let (plain, arrays): (Vec<&Variable>, Vec<&Variable>) =
            chosen.iter().partition(|v| count(v).is_empty());
        for v in &arrays {
            let (kind, word, _) = &v.parts;
            self.line(&format!("{kind} {word}{};", count(v)));
        }
        if points.is_none() {
            plain.iter().for_each(|v| self.definition(v, None));
        }
        if arrays.is_empty() {
            return;
        }
        if let Some(n) = points {
            self.line("#pragma unroll");
            self.open(&format!("for (int u = 0; u < {n}; ++u) {{"));
            self.line("const int i = top + u;");
        }
        let index = if points.is_some() { "[u]" } else { "" };
        let (each, once): (Vec<&Variable>, Vec<&Variable>) =
            arrays.into_iter().partition(|v| v.is_batched && rows > 1);
        once.iter().for_each(|v| self.definition(v, Some(index)));
        if !each.is_empty() {
            self.open_each_row();
            each.iter().for_each(|v| self.definition(v, Some(&format!("{index}[r]"))));
            self.close_each_row();
        }
        if points.is_some() {
            self.close();
        }
    }

    /// `const float x = …;`, or `x[u][r] = …;`
    fn definition(&mut self, v: &Variable, index: Option<&str>) {
        let line = self.writer.lines.get(v.effect).copied().flatten();
        let (_, word, value) = &v.parts;
        match index {
            None => self.writer.text.from(line, &v.text),
            Some(index) => self.writer.text.from(line, &format!("{word}{index} = {value};")),
        }
    }

    /// The pre neurons of the stretch, several at a time.
    fn several(&mut self) {
        self.line("#pragma unroll 1");
        match self.shape.points {
            1 => {
                self.open("for (int i = begin; i < end; ++i) {");
                self.one();
            }
            n => {
                self.open(&format!("for (int top = begin; top + {n} <= end; top += {n}) {{"));
                self.variables(&[Loop::Point], true);
                self.row_sums();
                self.line("#pragma unroll");
                self.open(&format!("for (int u = 0; u < {n}; ++u) {{"));
                self.line("const int i = top + u;");
                self.point();
                self.close();
                self.store_rows();
            }
        }
        self.close();
    }

    /// Those that are left.
    fn rest(&mut self, before: usize) {
        self.line("#pragma unroll 1");
        self.open(&format!("for (int i = end - (end - begin) % {before}; i < end; ++i) {{"));
        self.one();
        self.close();
    }

    fn one(&mut self) {
        self.variables(&[Loop::Point], true);
        self.row_sums();
        self.point();
        self.store_rows();
    }

    /// Variables for the terms of the sums over post.
    fn row_sums(&mut self) {
        let Bundle { rows, points } = self.bundle();
        let row = if rows > 1 { format!("[{rows}]") } else { String::new() };
        for (_, sum) in self.rows.clone() {
            self.line(&format!("float {sum}{row}[{}];", points.unwrap_or(1)));
        }
    }

    /// What happens at a point, in every row.
    fn point(&mut self) {
        self.open_each_row();
        let Bundle { rows, points } = self.bundle();
        // What is read for one pre neuron and several rows has been read; what is not read is computed here.
        let here = self.writer.values.variables.iter().filter(|v| v.at == Loop::Point && !v.is_load);
        let here: Vec<Variable> = here.cloned().collect();
        here.iter().for_each(|v| self.definition(v, None));
        debug_assert!(rows >= 1 && points.is_some(), "points are taken in bundles");
        self.effects();
        self.column_sums();
        self.sums_of_rows();
        self.close_each_row();
    }

    /// Point by point.
    fn effects(&mut self) {
        let count = self.writer.nest.effects.len();
        let statements: Vec<(usize, String)> =
            (0..count).filter_map(|k| self.statement(k).map(|s| (k, s))).collect();
        if statements.is_empty() {
            return;
        }
        if self.is_ragged() {
            self.open("if (is_column) {");
        }
        for (k, statement) in statements {
            self.writer.text.from(self.writer.lines[k], &statement);
        }
        if self.is_ragged() {
            self.close();
        }
    }

    fn statement(&self, k: usize) -> Option<String> {
        let old = self.old.iter().find(|(n, _)| *n == k);
        let (Effect::Add(access, v, w), Some((_, old))) = (&self.writer.nest.effects[k], old) else {
            return self.writer.statement(k);
        };
        let target = self.writer.target(*access);
        Some(format!("{target} = {}", self.writer.sum_of(old, *v, *w)))
    }

    fn column_sums(&mut self) {
        let index = self.bundle().of_row(true);
        for (k, sum) in self.columns.clone() {
            let Effect::SumPre(_, v, w) = self.writer.nest.effects[k] else { continue };
            let line = self.writer.sum(&format!("{sum}{index}"), v, w);
            self.writer.text.from(self.writer.lines[k], &line);
        }
    }

    /// The terms of this thread's column.
    fn sums_of_rows(&mut self) {
        let index = self.bundle().of_row(true);
        let point = if self.bundle().points.is_some_and(|n| n > 1) { "u" } else { "0" };
        for (k, sum) in self.rows.clone() {
            let Effect::SumPost(_, v, w) = self.writer.nest.effects[k] else { continue };
            let term = match w {
                Some(w) => {
                    format!("{} * {}", self.writer.values.addend(v), self.writer.values.factor(w))
                }
                None => self.writer.values.text(v).to_owned(),
            };
            let term = if self.is_ragged() { format!("is_column ? {term} : 0.0f") } else { term };
            self.writer.text.from(self.writer.lines[k], &format!("{sum}{index}[{point}] = {term};"));
        }
    }

    /// Sums over the threads of a stretch, and where they go.
    fn store_rows(&mut self) {
        let Shape { post, pre, hold, .. } = self.shape;
        let (index, points) = (self.bundle().of_row(true), self.bundle().points.unwrap_or(1));
        if self.rows.is_empty() {
            return;
        }
        // Neighbours have the same sum.
        let alike = hold.cut.columns / points;
        let (who, at) = match points {
            1 => ("column == 0".to_owned(), "i".to_owned()),
            _ if alike == 1 => ("true".to_owned(), "top + column".to_owned()),
            _ => (format!("column % {alike} == 0"), format!("top + column / {alike}")),
        };
        self.open_each_row();
        for (k, sum) in self.rows.clone() {
            let Effect::SumPost(place, ..) = self.writer.nest.effects[k] else { continue };
            let whole = self.writer.values.fresh("whole");
            self.line(&format!("const float {whole} = sum_halves<COLUMNS>({sum}{index});"));
            let target = element(Access::Pre(place), self.writer.nest.extent, self.writer.kernel);
            let slab =
                if hold.cut.slabs(post) > 1 { format!("slab * {} + ", padded(pre)) } else { String::new() };
            let target = target.replace(" + i]", &format!(" + {slab}{at}]"));
            self.writer.text.from(self.writer.lines[k], &format!("if ({who}) {target} = {whole};"));
        }
        self.close_each_row();
    }

    /// The stretches of every column are added; returns the floats of shared memory.
    fn finish(mut self) -> usize {
        let Shape { pre, hold, .. } = self.shape;
        let (index, stretches) = (self.bundle().of_row(true), hold.cut.stretches);
        let each = stretches * hold.cut.columns;
        if !self.columns.is_empty() && stretches > 1 {
            let parts: Vec<String> = self.columns.iter().map(|_| self.writer.values.fresh("part")).collect();
            for (n, part) in parts.iter().enumerate() {
                let at = n * hold.rows * each;
                self.line(&format!(
                    "float *const {part} = shared + {at};  // [{}][{stretches}][COLUMNS]",
                    hold.rows
                ));
            }
            self.open_each_row();
            let row = if hold.rows > 1 { format!("r * {each} + ") } else { String::new() };
            for (part, (_, sum)) in parts.iter().zip(self.columns.clone()) {
                self.line(&format!("{part}[{row}threadIdx.x] = {sum}{index};"));
            }
            self.close_each_row();
            self.line("__syncthreads();");
            open_rows(self.writer.text, hold);
            for (part, (k, _)) in parts.iter().zip(self.columns.clone()) {
                let total = self.writer.values.fresh("total");
                self.line(&format!("float {total} = {part}[{row}column];"));
                if hold.cut.used(pre) > 1 {
                    let next = format!("{part}[{row}s * COLUMNS + column]");
                    let used = hold.cut.used(pre);
                    self.line(&format!("for (int s = 1; s < {used}; ++s) {total} = {total} + {next};"));
                }
                self.store_column(k, &total);
            }
            self.close();
            self.close();
            return parts.len() * hold.rows * each;
        }
        if !self.columns.is_empty() {
            self.open_each_row();
            for (k, sum) in self.columns.clone() {
                self.store_column(k, &format!("{sum}{index}"));
            }
            self.close_each_row();
        }
        self.close();
        0
    }

    fn store_column(&mut self, k: usize, value: &str) {
        let target = self.writer.target(Access::Post(self.writer.nest.effects[k].place()));
        let guard = if self.is_ragged() { "if (is_column) " } else { "" };
        self.writer.text.from(self.writer.lines[k], &format!("{guard}{target} = {value};"));
    }
}
