//! The loop over time around the routines.

use super::super::names::{Names, pointer};
use super::super::nest::{self, Bundle, Kernel};
use super::super::origins::Origins;
use super::super::text::Text;
use super::homes::{Held, Home, Homes, Shape};
use super::waits::{Wait, Waits};
use super::{Launch, Mapping, sweep};
use crate::loops::{Base, Program, Routine, padded};
use std::collections::BTreeSet;

/// A direction of a program.
pub(super) struct Subject<'s> {
    pub(super) program: &'s Program,
    pub(super) names: &'s Names,
    pub(super) origins: &'s Origins<'s>,
    pub(super) backward: bool,
}

/// A kernel on its way to text.
pub(super) struct Writer<'w> {
    pub(super) subject: &'w Subject<'w>,
    pub(super) mapping: &'w Mapping,
    pub(super) homes: &'w Homes,
    pub(super) text: &'w mut Text,
}

/// Writes the kernel of a direction.
pub(super) fn write(text: &mut Text, subject: &Subject<'_>, mapping: &Mapping) -> Launch {
    let name = if subject.backward { "backward_sequence" } else { "forward_sequence" };
    let mut writer = Writer { subject, mapping, homes: &mapping.homes, text };
    writer.schedule();
    writer.head(name);
    match subject.backward {
        false => writer.forward(),
        true => writer.backward(),
    }
    writer.text.close();
    writer.text.line("");
    Launch {
        name: name.to_owned(),
        threads: mapping.threads(),
        cluster: mapping.cluster(),
        shared_bytes: mapping.shared_bytes(),
        registers: mapping.registers,
    }
}

impl Writer<'_> {
    pub(super) fn line(&mut self, line: &str) {
        self.text.line(line);
    }

    fn slots(&self, which: usize) -> i64 {
        let (low, high) = self.mapping.window[which];
        high - low + 3
    }

    // -------------------------------------------------------------------- head

    fn head(&mut self, name: &str) {
        let backward = self.subject.backward;
        let Homes { threads, cluster, .. } = *self.homes;
        let (bytes, foreseen) = (self.mapping.shared_bytes(), self.mapping.registers);
        self.line(match backward {
            false => "// All steps of a stretch, the plastic state on the chip.",
            true => "// The adjoints of all steps of a stretch, from the last to the first.",
        });
        self.line(&format!(
            "// launch {name}: blocks = {cluster} * rows, cluster = {cluster}, threads = {threads}, dynamic shared bytes = {bytes}, arguments = (Tape, Span), registers foreseen = {foreseen}"
        ));
        let of = if cluster > 1 { format!("__cluster_dims__({cluster}, 1, 1) ") } else { String::new() };
        self.text.open(&format!(
            "extern \"C\" __global__ void {of}__launch_bounds__({threads}, 1) {name}(const Tape tape, const Span span) {{"
        ));
        self.line(&format!("constexpr int THREADS = {threads}, CLUSTER = {cluster};"));
        self.line("const int rank = blockIdx.x % CLUSTER;");
        self.line("const RowOf row_of = {blockIdx.x / CLUSTER, gridDim.x / CLUSTER};");
        self.line("float *const memory = dynamic_shared();");
        for (what, _) in self.mapping.parts.clone() {
            let word = if what == "terms" { "shared" } else { what };
            let at = self.mapping.part(what);
            self.line(&format!("float *const {word} = memory + {at};"));
        }
        self.line("const float *const params = tape.params;");
        self.line(
            "float *const carry = row_of(tape.carry, 0, CARRY_OF_ROW);"
                .replace("CARRY_OF_ROW", self.carry())
                .as_str(),
        );
        if backward {
            self.line("float *const ends = row_of(tape.ends, 0, MATRICES);");
            self.line("float *const grads = row_of(tape.grads, 0, GRADS);");
        }
        self.held_places();
        for held in self.homes.held.clone() {
            match held.place.base {
                Base::Snapshot(_) => self.declare(&held),
                _ => self.load(&held),
            }
        }
        let sums = self.homes.sums.clone();
        for (offset, len, at) in sums {
            self.line(&format!(
                "for (int k = threadIdx.x; k < {len}; k += THREADS) sums[{at} + k] = grads[{offset} + k];"
            ));
        }
    }

    fn carry(&self) -> &'static str {
        if self.subject.backward { "CARRY" } else { "MATRICES" }
    }

    /// Where matrices lie in shared memory, by name.
    fn held_places(&mut self) {
        let places = self.homes.held.iter().filter_map(|h| match h.home {
            Home::Shared(at) => Some((h.word.clone(), at)),
            _ => None,
        });
        let places: Vec<(String, usize)> = places.collect();
        if places.is_empty() {
            return;
        }
        self.text.open("struct held_at {");
        self.text.open("enum : int {");
        for (word, at) in places {
            self.line(&format!("{word} = {at},"));
        }
        self.text.close_with("};");
        self.text.close_with("};");
    }

    /// The region that a matrix comes from.
    fn source(&self, held: &Held) -> String {
        let base = match held.place.base {
            Base::Carry => "carry",
            Base::Grads => "grads",
            _ => "params",
        };
        format!(
            "{base}[{}",
            self.subject.names.offset(held.place.base, held.place.offset, self.subject.backward)
        )
    }

    /// What stands for a thread's element `r`.
    pub(super) fn own(held: &Held) -> String {
        match &held.home {
            Home::Registers(name) => format!("{name}[r]"),
            _ => format!("held[held_at::{} + r * {} + thread]", held.word, held.shape.threads()),
        }
    }

    /// A loop over a thread's elements of a matrix; `{i}` and `{j}` are known in it.
    pub(super) fn each(&mut self, held: &Held, statement: &str, is_write: bool) {
        let Shape { post, pre, columns, groups, rows } = held.shape;
        self.text.open("{");
        let first = if self.homes.cluster > 1 { format!("rank * {columns} + ") } else { String::new() };
        self.line("const int thread = this_thread();");
        self.line(&format!("const int j = {first}thread % {columns};"));
        if matches!(held.home, Home::Registers(_)) {
            self.line("#pragma unroll");
        }
        self.text.open(&format!("for (int r = 0; r < {rows}; ++r) {{"));
        self.line(&format!("const int i = r * {groups} + thread / {columns};"));
        let is_here = format!("thread / {columns} < {groups} && i < {pre} && j < {post}");
        match is_write {
            true => self.line(&format!("if ({is_here}) {statement}")),
            false => {
                self.line(&format!("const bool is_here = {is_here};"));
                let own = match held.home {
                    Home::Shared(_) => format!("if (thread < {}) {statement}", held.shape.threads()),
                    _ => statement.to_owned(),
                };
                self.line(&own);
            }
        }
        self.text.close();
        self.text.close();
    }

    fn declare(&mut self, held: &Held) {
        if let Home::Registers(name) = &held.home {
            self.line(&format!("float {name}[{}];", held.shape.rows));
        }
    }

    fn load(&mut self, held: &Held) {
        if held.home == Home::Memory {
            return;
        }
        let is_given =
            held.place.base != Base::Carry || !self.subject.backward || self.subject.program.carries_states;
        self.declare(held);
        let from = match is_given {
            true => format!("is_here ? {} + i * {} + j] : 0.0f", self.source(held), padded(held.shape.post)),
            false => "0.0f".to_owned(),
        };
        self.each(held, &format!("{} = {from};", Self::own(held)), false);
    }

    /// Writes a matrix to a region of memory.
    fn store(&mut self, held: &Held, to: &str) {
        if held.home != Home::Memory {
            let target = format!("{to} + i * {} + j]", padded(held.shape.post));
            self.each(held, &format!("{target} = {};", Self::own(held)), true);
        }
    }

    // ----------------------------------------------------------------- routines

    /// A routine for the step `when`, in its block.
    fn routine(&mut self, routine: &Routine) {
        let kernel = Kernel {
            names: self.subject.names,
            origins: self.subject.origins,
            backward: self.subject.backward,
            threads: self.homes.threads,
            homes: Some(self.homes),
            bundle: Bundle::ONE,
        };
        self.pointers(routine);
        let mut waits = Waits::default();
        for nest in &routine.nests {
            self.line("");
            match waits.before(nest, self.homes) {
                Wait::None => {}
                Wait::Block => self.line("__syncthreads();"),
                Wait::Cluster => self.line("cluster_barrier();"),
            }
            match sweep::shape(nest, self.homes) {
                Some(shape) => sweep::write(&kernel, self.homes, nest, shape, self.text),
                None => {
                    nest::write(&kernel, nest, self.text);
                }
            }
        }
    }

    /// The frames that a routine looks at, in their rings, and snapshots in memory.
    fn pointers(&mut self, routine: &Routine) {
        let mut bases = BTreeSet::new();
        for nest in &routine.nests {
            bases.extend(nest.body.loads().map(|a| a.place().base));
            bases.extend(nest.effects.iter().map(|e| e.place().base));
        }
        for base in bases {
            let (word, _) = pointer(base, self.subject.backward);
            let ring = |what: &str, slots: i64, shift: i8, len: &str| {
                format!("{what} + in_ring<{slots}>(when + {shift}) * {len}")
            };
            let value = match base {
                Base::Frame(k) => ring("frames", self.slots(0), k, "FRAME"),
                Base::Adjoint(k) => ring("bars", self.slots(1), k, "ADJOINT"),
                Base::Snapshot(k) if self.slots_of_states().is_none() => {
                    format!("row_of(tape.snapshots, when - begin + {k}, MATRICES)")
                }
                _ => continue,
            };
            self.line(&format!("float *const {word} = {value};"));
        }
    }

    fn barrier(&mut self) {
        let call = if self.homes.cluster > 1 { "cluster_barrier();" } else { "__syncthreads();" };
        self.line(call);
    }

    /// Fetches a frame, by its number from the first step on, if there is one.
    fn fetch(&mut self, number: &str) {
        let slots = self.slots(0);
        self.line(&format!(
            "if ({number} >= -1 && {number} < span.steps) fetch(frames + in_ring<{slots}>({number}) * FRAME, row_of(tape.frames, span.frame + {number}, FRAME), FRAME);"
        ));
    }

    fn fetch_bar(&mut self, number: &str) {
        let slots = self.slots(1);
        self.line(&format!(
            "if ({number} >= 0 && {number} <= span.steps) fetch(bars + in_ring<{slots}>({number}) * ADJOINT, row_of(tape.adjoints, span.adjoint + {number}, ADJOINT), ADJOINT);"
        ));
    }

    /// Everything that was fetched is there, and a step has ended.
    fn end_step(&mut self) {
        self.line("wait_for_copies();");
        self.barrier();
    }

    fn put(&mut self, number: &str) {
        let slots = self.slots(0);
        self.line(&format!(
            "if ({number} >= 0 && {number} < span.steps) put(row_of(tape.frames, span.frame + {number}, FRAME), frames + in_ring<{slots}>({number}) * FRAME, FRAME, rank, CLUSTER);"
        ));
    }

    fn put_bar(&mut self, number: &str) {
        let slots = self.slots(1);
        self.line(&format!(
            "if ({number} >= 0 && {number} < span.steps) put(row_of(tape.adjoints, span.adjoint + {number}, ADJOINT), bars + in_ring<{slots}>({number}) * ADJOINT, ADJOINT, rank, CLUSTER);"
        ));
    }

    // ------------------------------------------------------------------ forward

    fn forward(&mut self) {
        let program = self.subject.program;
        let joined = program.merged.0;
        let (low, high) = self.mapping.window[0];
        for k in low..=high {
            self.fetch(&format!("({k})"));
        }
        self.end_step();
        let steps = &program.forward;
        self.line("");
        if joined {
            self.text.open("if (const int when = 0; span.steps > 0) {");
            self.forward_step(&steps.first);
            self.text.close();
            self.text.open("for (int when = 1; when < span.steps; ++when) {");
            self.forward_step(&steps.step);
            self.text.close();
            self.text.open("{");
            self.line("const int when = span.steps;");
            self.routine(&steps.flush);
            self.text.close();
            self.barrier();
        } else {
            self.text.open("for (int when = 0; when < span.steps; ++when) {");
            self.forward_step(&steps.first);
            self.text.close();
        }
        // Frames that are still in the ring.
        for k in low..=high {
            self.put(&format!("span.steps + ({k})"));
        }
        self.store_states("carry");
    }

    fn forward_step(&mut self, routine: &Routine) {
        let joined = self.subject.program.merged.0;
        let (low, high) = self.mapping.window[0];
        self.fetch(&format!("when + {}", high + 1));
        if !joined {
            self.checkpoint();
        }
        self.routine(routine);
        self.line("");
        if joined {
            self.checkpoint();
        }
        self.end_step();
        self.put(&format!("when + ({low})"));
    }

    fn checkpoint(&mut self) {
        if self.subject.program.matrices_len == 0 {
            return;
        }
        self.text.open("if (span.checkpoints && (span.done + when) % span.interval == 0) {");
        self.line(
            "float *const saved = row_of(span.checkpoints, (span.done + when) / span.interval, MATRICES);",
        );
        self.store_states("saved");
        self.text.close();
    }

    fn store_states(&mut self, to: &str) {
        for held in self.homes.held.clone().iter().filter(|h| h.place.base == Base::Carry) {
            let offset = self.subject.names.offset(Base::Carry, held.place.offset, self.subject.backward);
            self.store(held, &format!("{to}[{offset}"));
        }
    }

    // ----------------------------------------------------------------- backward

    fn backward(&mut self) {
        let program = self.subject.program;
        let joined = program.merged.1;
        let (low, high) = self.mapping.window[0];
        let (bar_low, bar_high) = self.mapping.window[1];
        for k in low..=high {
            self.fetch(&format!("span.steps - 1 + ({k})"));
        }
        for k in bar_low..=bar_high {
            self.fetch_bar(&format!("span.steps - 1 + ({k})"));
        }
        self.end_step();
        self.line("");
        self.line("int end = span.steps;");
        self.text.open(
            "for (int begin = (span.steps - 1) / span.interval * span.interval; begin >= 0; begin -= span.interval) {",
        );
        self.begin_segment();
        self.line("");
        self.text.open("for (int when = end - 1; when >= begin; --when) {");
        let steps = &program.backward;
        self.fetch(&format!("when - 1 + ({low})"));
        self.fetch_bar(&format!("when - 1 + ({bar_low})"));
        self.rebuild();
        if joined {
            self.text.open("if (when + 1 == span.steps) {");
            self.routine(&steps.first);
            self.text.close_with("} else {");
            self.text.deepen();
            self.routine(&steps.step);
            self.text.close();
        } else {
            self.routine(&steps.first);
        }
        self.line("");
        self.end_step();
        self.put_bar(&format!("when + ({bar_high})"));
        self.text.close();
        self.line("end = begin;");
        self.text.close();
        if joined {
            self.text.open("if (span.steps > 0) {");
            self.line("const int when = -1, begin = 0;");
            self.line("(void)when, (void)begin;");
            self.states_at_the_start();
            self.routine(&steps.flush);
            self.text.close();
            self.barrier();
        }
        for k in bar_low..=bar_high {
            self.put_bar(&format!("-1 + ({k})"));
        }
        if program.carries_states {
            self.store_states("carry");
        }
        for held in self.homes.held.clone().iter().filter(|h| h.place.base == Base::Grads) {
            let offset = self.subject.names.offset(Base::Grads, held.place.offset, true);
            self.store(held, &format!("grads[{offset}"));
        }
        let sums = self.homes.sums.clone();
        if !sums.is_empty() {
            self.text.open("if (rank == 0) {");
            for (offset, len, at) in sums {
                self.line(&format!(
                    "for (int k = threadIdx.x; k < {len}; k += THREADS) grads[{offset} + k] = sums[{at} + k];"
                ));
            }
            self.text.close();
        }
    }
}
