//! A nest over a matrix, every element in the hands of the thread that owns it.

use super::super::nest::{Kernel, Writer};
use super::super::text::Text;
use super::super::values::Loop;
use super::homes::{Homes, Shape};
use crate::loops::{Access, Effect, Extent, Nest};

/// A nest on its way to text.
struct Sweep<'w> {
    writer: Writer<'w>,
    homes: &'w Homes,
    shape: Shape,
    /// Effects that are sums over pre, and their variables.
    columns: Vec<(usize, String)>,
    /// Effects that are sums over post, and their variables.
    rows: Vec<(usize, String)>,
}

/// Writes a nest over a matrix.
pub(super) fn write(kernel: &Kernel<'_>, homes: &Homes, nest: &Nest, shape: Shape, text: &mut Text) {
    let mut writer = Writer::new(kernel, nest, text);
    let (mut columns, mut rows) = (vec![], vec![]);
    for (k, effect) in nest.effects.iter().enumerate() {
        match effect {
            Effect::SumPre(..) => columns.push((k, writer.values.fresh("sum"))),
            Effect::SumPost(..) => rows.push((k, writer.values.fresh("row_sum"))),
            _ => {}
        }
    }
    Sweep { writer, homes, shape, columns, rows }.write();
}

impl Sweep<'_> {
    fn line(&mut self, line: &str) {
        self.writer.text.line(line);
    }

    fn write(&mut self) {
        self.writer.remark();
        who(self.writer.text, self.shape, self.homes.cluster);
        self.writer.variables(Loop::Nest);
        self.writer.variables(Loop::Column);
        for (_, sum) in self.columns.clone() {
            self.line(&format!("float {sum} = 0.0f;"));
        }
        match self.rows.is_empty() {
            true => self.plain_rows(),
            false => self.rows_by_eights(),
        }
        self.finish();
        self.writer.text.close();
    }

    /// Whether a thread's row may lie behind the last one.
    fn is_ragged(&self) -> bool {
        let Shape { pre, groups, rows, .. } = self.shape;
        rows * groups != pre || self.shape.threads() != self.homes.threads
    }

    fn unroll(&mut self, count: usize) {
        match self.homes.in_registers(self.writer.nest) {
            true => self.line("#pragma unroll"),
            false => self.line(&format!("#pragma unroll {count}")),
        }
    }

    fn plain_rows(&mut self) {
        let Shape { groups, rows, .. } = self.shape;
        self.unroll(4);
        self.writer.text.open(&format!("for (int r = 0; r < {rows}; ++r) {{"));
        self.line(&format!("const int i = r * {groups} + row_group;"));
        if self.is_ragged() {
            let guard = self.guard("");
            self.writer.text.open(&format!("if ({guard}) {{"));
        }
        self.point();
        if self.is_ragged() {
            self.writer.text.close();
        }
        if self.homes.in_registers(self.writer.nest) && rows > 8 {
            self.line("if (r % 8 == 7) pause();");
        }
        self.writer.text.close();
    }

    fn guard(&self, before: &str) -> String {
        let Shape { pre, groups, .. } = self.shape;
        match self.shape.threads() != self.homes.threads {
            true => format!("{before}row_group < {groups} && i < {pre}"),
            false => format!("{before}i < {pre}"),
        }
    }

    fn rows_by_eights(&mut self) {
        let Shape { groups, rows, pre, .. } = self.shape;
        self.unroll(1);
        self.writer.text.open(&format!("for (int top = 0; top < {rows}; top += 8) {{"));
        for (_, sum) in self.rows.clone() {
            self.line(&format!("float {sum}[8];"));
        }
        self.line("#pragma unroll");
        self.writer.text.open("for (int lane_row = 0; lane_row < 8; ++lane_row) {");
        self.line(&format!("const int r = top + lane_row, i = r * {groups} + row_group;"));
        for (_, sum) in self.rows.clone() {
            self.line(&format!("{sum}[lane_row] = 0.0f;"));
        }
        let before = if rows.is_multiple_of(8) { String::new() } else { format!("r < {rows} && ") };
        let has_guard = self.is_ragged() || !before.is_empty();
        if has_guard {
            let guard = self.guard(&before);
            self.writer.text.open(&format!("if ({guard}) {{"));
        }
        self.point();
        for (k, sum) in self.rows.clone() {
            let Effect::SumPost(_, v, w) = self.writer.nest.effects[k] else { continue };
            let value = match w {
                Some(w) => format!("{} * {}", self.factor(v), self.factor(w)),
                None => self.writer.values.text(v).to_owned(),
            };
            let line = self.writer.lines[k];
            self.writer.text.from(line, &format!("if (is_column) {sum}[lane_row] = {value};"));
        }
        if has_guard {
            self.writer.text.close();
        }
        self.writer.text.close();
        // Eight lanes have a row each.
        let lanes = self.shape.columns.min(32);
        self.line(&format!("const int r = top + thread % 8, i = r * {groups} + row_group;"));
        let guard = self.guard(&format!("own_column % {lanes} < 8 && r < {rows} && "));
        let start = self.rows_start();
        let warps = self.shape.column_warps();
        for (number, (_, sum)) in self.rows.clone().into_iter().enumerate() {
            let (whole, at) = (format!("{sum}_of_lane"), start + number * warps * pre);
            self.line(&format!("const float {whole} = lane_row_sum<{lanes}>({sum});"));
            let warp = if warps > 1 { format!("own_column / 32 * {pre} + ") } else { String::new() };
            self.line(&format!("if ({guard}) shared[{at} + {warp}i] = {whole};"));
        }
        if self.homes.in_registers(self.writer.nest) && rows > 8 {
            self.line("pause();");
        }
        self.writer.text.close();
    }

    fn factor(&self, id: crate::loops::body::Id) -> String {
        format!("({})", self.writer.values.text(id))
    }

    /// What happens at a point, but sums over post.
    fn point(&mut self) {
        self.writer.variables(Loop::Point);
        for k in 0..self.writer.nest.effects.len() {
            let line = self.writer.lines[k];
            if let Some(statement) = self.writer.statement(k) {
                let guard = if self.is_shared_out(k) { "" } else { "if (is_column) " };
                self.writer.text.from(line, &format!("{guard}{statement}"));
            }
        }
        for (k, sum) in self.columns.clone() {
            let Effect::SumPre(_, v, w) = self.writer.nest.effects[k] else { continue };
            let (line, statement) = (self.writer.lines[k], self.writer.sum(&sum, v, w));
            self.writer.text.from(line, &statement);
        }
    }

    /// Whether an effect goes where a thread without a column does no harm.
    fn is_shared_out(&self, k: usize) -> bool {
        let Shape { post, columns, .. } = self.shape;
        let place = self.writer.nest.effects[k].place();
        let lies_on_chip =
            self.homes.find(place).is_some_and(|h| !matches!(h.home, super::homes::Home::Memory));
        lies_on_chip || post == columns * self.homes.cluster
    }

    /// Where the parts of sums over post begin in shared memory: behind those over pre.
    fn rows_start(&self) -> usize {
        let parts = self.shape.row_parts(self.homes.threads);
        if parts > 1 { self.columns.len() * parts * self.shape.columns } else { 0 }
    }

    /// Puts the parts of all sums together.
    fn finish(&mut self) {
        let Shape { columns, .. } = self.shape;
        let parts = self.shape.row_parts(self.homes.threads);
        for (number, (_, sum)) in self.columns.clone().into_iter().enumerate() {
            for step in [8, 16].into_iter().filter(|s| columns <= *s) {
                self.line(&format!("{sum} = {sum} + __shfl_xor_sync(0xffffffffu, {sum}, {step});"));
            }
            if parts > 1 {
                let part = if columns < 32 { "thread / 32" } else { "row_group" };
                let guard = match (columns < 32, self.shape.threads() != self.homes.threads) {
                    (true, _) => format!("if (thread % 32 < {columns}) "),
                    (false, true) => format!("if (row_group < {}) ", self.shape.groups),
                    (false, false) => String::new(),
                };
                let at = number * parts * columns;
                self.line(&format!("{guard}shared[{at} + {part} * {columns} + own_column] = {sum};"));
            }
        }
        if !self.rows.is_empty() || parts > 1 && !self.columns.is_empty() {
            self.line("__syncthreads();");
        }
        self.finish_columns(parts);
        self.finish_rows();
    }

    fn finish_columns(&mut self, parts: usize) {
        if self.columns.is_empty() {
            return;
        }
        let columns = self.shape.columns;
        self.writer.text.open(&format!("if (thread < {columns} && is_column) {{"));
        for (number, (k, sum)) in self.columns.clone().into_iter().enumerate() {
            let at = number * parts * columns;
            if parts > 1 {
                self.line(&format!("{sum} = shared[{at} + own_column];"));
                self.line("#pragma unroll 4");
                self.line(&format!(
                    "for (int part = 1; part < {parts}; ++part) {sum} = {sum} + shared[{at} + part * {columns} + own_column];"
                ));
            }
            let target = self.writer.target(Access::Post(self.writer.nest.effects[k].place()));
            let line = self.writer.lines[k];
            if self.homes.cluster > 1 {
                self.line("#pragma unroll 1");
            }
            let statement = match self.homes.cluster {
                1 => format!("{target} = {sum};"),
                c => format!("for (int to = 0; to < {c}; ++to) *of_block(&{target}, to) = {sum};"),
            };
            self.writer.text.from(line, &statement);
        }
        self.writer.text.close();
    }

    fn finish_rows(&mut self) {
        if self.rows.is_empty() {
            return;
        }
        let (pre, warps, start) = (self.shape.pre, self.shape.column_warps(), self.rows_start());
        let cluster = self.homes.cluster;
        self.writer.text.open(&format!("for (int i = thread; i < {pre}; i += THREADS) {{"));
        for (number, (k, _)) in self.rows.clone().into_iter().enumerate() {
            let at = start + number * warps * pre;
            let total = format!("total_{number}");
            self.line(&format!("float {total} = shared[{at} + i];"));
            if warps > 1 {
                self.line(&format!(
                    "for (int warp = 1; warp < {warps}; ++warp) {total} = {total} + shared[{at} + warp * {pre} + i];"
                ));
            }
            let line = self.writer.lines[k];
            let target = self.writer.target(Access::Pre(self.writer.nest.effects[k].place()));
            if cluster == 1 {
                self.writer.text.from(line, &format!("{target} = {total};"));
            } else {
                let part = number * cluster * pre;
                self.line("#pragma unroll 1");
                self.line(&format!(
                    "for (int to = 0; to < {cluster}; ++to) *of_block(&ranks[{part} + rank * {pre} + i], to) = {total};"
                ));
            }
        }
        self.writer.text.close();
        if cluster > 1 {
            self.finish_ranks();
        }
    }

    /// The sums of all blocks, in ascending order, by every block for itself.
    fn finish_ranks(&mut self) {
        let (pre, cluster) = (self.shape.pre, self.homes.cluster);
        self.line("cluster_barrier();");
        self.writer.text.open(&format!("for (int i = thread; i < {pre}; i += THREADS) {{"));
        for (number, (k, _)) in self.rows.clone().into_iter().enumerate() {
            let (part, total) = (number * cluster * pre, format!("total_{number}"));
            self.line(&format!("float {total} = ranks[{part} + i];"));
            self.line("#pragma unroll 1");
            self.line(&format!(
                "for (int of = 1; of < {cluster}; ++of) {total} = {total} + ranks[{part} + of * {pre} + i];"
            ));
            let target = self.writer.target(Access::Pre(self.writer.nest.effects[k].place()));
            self.writer.text.from(self.writer.lines[k], &format!("{target} = {total};"));
        }
        self.writer.text.close();
    }
}

/// Which elements this thread has.
pub(super) fn who(text: &mut Text, shape: Shape, cluster: usize) {
    let Shape { post, columns, .. } = shape;
    text.line(&format!(
        "const int thread = this_thread(), own_column = thread % {columns}, row_group = thread / {columns};"
    ));
    let first = if cluster > 1 { format!("rank * {columns} + ") } else { String::new() };
    text.line(&format!("const bool is_column = {first}own_column < {post};"));
    // A thread without a column does what the last column's does, and keeps it to itself.
    text.line(&format!("const int j = is_column ? {first}own_column : {};", post - 1));
}

/// Whether a nest is a sweep over a matrix.
pub(super) fn shape(nest: &Nest, homes: &Homes) -> Option<Shape> {
    match nest.extent {
        Extent::Matrix { .. } => homes.shape(nest.extent),
        _ => None,
    }
}
