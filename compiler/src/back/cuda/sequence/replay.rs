//! The text that rebuilds matrix states going backward: see [`super::rebuild`].

use super::super::names::pointer;
use super::super::nest::{self, Bundle, Kernel};
use super::super::values::Loop;
use super::homes::{Held, Home, Homes, Shape};
use super::kernel::Writer;
use super::rebuild::{Group, ROWS, Rebuild, Schedule, in_place, only};
use super::sweep;
use crate::loops::{Base, Effect, Nest, Place, padded};
use std::collections::BTreeSet;

impl Writer<'_> {
    /// Whether states are rebuilt on the chip, and with how many slots.
    pub(super) fn slots_of_states(&self) -> Option<usize> {
        match self.mapping.rebuild {
            Some(Rebuild::Chip(slots)) => Some(slots),
            Some(Rebuild::Memory(_)) | None => None,
        }
    }

    /// The table of the schedule, before the kernel.
    pub(super) fn schedule(&mut self) {
        if let Some(slots) = self.slots_of_states().filter(|s| 0 < *s && !self.mapping.groups.is_empty()) {
            Schedule::new(slots).source().iter().for_each(|line| self.line(line));
            self.line("");
        }
    }

    /// What is known of slots when a segment begins.
    pub(super) fn begin_segment(&mut self) {
        let Some(slots) = self.slots_of_states() else { return self.through_memory() };
        if self.mapping.groups.is_empty() {
            return;
        }
        for slot in 1..=slots {
            self.line(&format!(
                "int saved_{slot} = -1;  // the step before which slot {slot} is, if it is used"
            ));
        }
    }

    // -------------------------------------------------------------- on the chip

    /// The states before step `when`, and after it where an adjoint reads them.
    pub(super) fn rebuild(&mut self) {
        let Some(slots) = self.slots_of_states() else { return };
        let groups = self.mapping.groups.clone();
        if groups.is_empty() {
            return;
        }
        self.line("// The states of this step, from the nearest that is saved.");
        self.text.open("{");
        for slot in 1..=slots {
            self.line(&format!("if (saved_{slot} > when) saved_{slot} = -1;"));
        }
        let nearest = |of: &dyn Fn(usize) -> String, otherwise: &str| {
            let slots = (1..=slots).rev().map(|slot| format!("saved_{slot} >= 0 ? {} : ", of(slot)));
            slots.collect::<String>() + otherwise
        };
        self.line(&format!("const int from = {};", nearest(&|slot| slot.to_string(), "0")));
        self.line(&format!("const int start = {};", nearest(&|slot| format!("saved_{slot}"), "begin")));
        if 0 < slots {
            self.line("int last = start;");
        }
        for slot in 1..=slots {
            let free = slots - slot + 1;
            self.line(&format!(
                "if (from < {slot} && last < when) last = saved_{slot} = last + split({free}, when - last + 1);"
            ));
        }
        self.line(
            "const float *const checkpoint = row_of(span.checkpoints, begin / span.interval, MATRICES);",
        );
        let (mut at, slot_len) = (0, self.slot_len());
        for group in &groups {
            self.group(group, slots, (at, slot_len));
            at += group.slot(self.homes.threads, self.homes.cluster);
        }
        self.text.close();
        self.line("");
    }

    fn slot_len(&self) -> usize {
        let Homes { threads, cluster, .. } = *self.homes;
        self.mapping.groups.iter().map(|g| g.slot(threads, cluster)).sum()
    }

    /// The word of a matrix state.
    fn state(&self, offset: usize) -> String {
        let word = self.subject.names.word(Base::Snapshot(0), offset, true);
        word.unwrap_or_else(|| format!("m{offset}"))
    }

    /// Matrices of one shape. `at` is where they lie in a slot, and `slot_len` how long a slot is.
    fn group(&mut self, group: &Group, slots: usize, (at, slot_len): (usize, usize)) {
        let (post, pre) = group.extent;
        let Homes { threads, cluster, .. } = *self.homes;
        let Some(shape) = Shape::new(post, pre, threads, cluster) else { return };
        self.text.open("{");
        sweep::who(self.text, shape, cluster);
        let is_unrolled = group.versions.iter().any(|(k, offset)| {
            let place = Place { base: Base::Snapshot(*k), offset: *offset };
            self.homes.find(place).is_some_and(|h| matches!(h.home, Home::Registers(_)))
        });
        if is_unrolled {
            self.line("#pragma unroll");
        }
        self.text.open(&format!("for (int top = 0; top < {}; top += {ROWS}) {{", shape.rows));
        let walk = |w: &Self, offset: usize| format!("walk_{}", w.state(offset));
        let arrays: Vec<String> =
            group.offsets.iter().map(|o| format!("{}[{ROWS}]", walk(self, *o))).collect();
        self.line(&format!("float {};", arrays.join(", ")));
        let in_slot = |slot: &str, k: usize| {
            let first = at + k * shape.len();
            format!("slots[{slot} * {slot_len} + {first} + r * {} + thread]", shape.threads())
        };
        // From where the walk begins.
        if 0 < slots {
            self.text.open("if (from > 0) {");
            self.each_of_eight(shape, |w| {
                for (k, offset) in group.offsets.iter().enumerate() {
                    let name = walk(w, *offset);
                    w.line(&format!("{name}[lane_row] = is_here ? {} : 0.0f;", in_slot("(from - 1)", k)));
                }
            });
            self.text.close_with("} else {");
            self.text.deepen();
        } else {
            self.text.open("{");
        }
        self.each_of_eight(shape, |w| {
            for offset in &group.offsets {
                let (name, from) =
                    (walk(w, *offset), w.subject.names.offset(Base::Snapshot(0), *offset, true));
                let stride = padded(post);
                w.line(&format!(
                    "{name}[lane_row] = is_here ? checkpoint[{from} + i * {stride} + j] : 0.0f;"
                ));
            }
        });
        self.text.close();
        // The walk, and the slots that are filled on it.
        self.text.open("for (int step = start; step < when; ++step) {");
        for slot in 1..=slots {
            self.text.open(&format!("if (step == saved_{slot} && step > start) {{"));
            self.each_of_eight(shape, |w| {
                for (k, offset) in group.offsets.iter().enumerate() {
                    let (name, to) = (walk(w, *offset), in_slot(&(slot - 1).to_string(), k));
                    w.line(&format!("if (is_here) {to} = {name}[lane_row];"));
                }
            });
            self.text.close();
        }
        let walking = self.walking(group, shape);
        let nests: Vec<Nest> = group.nests.iter().map(in_place).collect();
        self.writes(&nests, &walking, shape, "step");
        self.text.close();
        self.arrive(group, shape, &walking);
        self.text.close();
        self.text.close();
    }

    /// What adjoints read goes where they read it.
    fn arrive(&mut self, group: &Group, shape: Shape, walking: &Homes) {
        let here: Vec<usize> = group.versions.iter().filter(|(k, _)| *k == 0).map(|(_, o)| *o).collect();
        if !here.is_empty() {
            self.each_of_eight(shape, |w| {
                for offset in &here {
                    let place = Place { base: Base::Snapshot(0), offset: *offset };
                    if let Some(held) = w.homes.find(place) {
                        let (to, name) = (Writer::own(held), w.state(*offset));
                        w.line(&format!("if (is_here) {to} = walk_{name}[lane_row];"));
                    }
                }
            });
        }
        if group.reads_after() {
            let mut nests: Vec<Nest> = group.nests.iter().map(|n| only(n, &group.versions)).collect();
            nests.retain(|n| !n.effects.is_empty());
            self.writes(&nests, walking, shape, "when");
        }
    }

    /// Where replays find everything: states in the eight rows under way, what they lead to where adjoints read it.
    fn walking(&self, group: &Group, shape: Shape) -> Homes {
        let state = |offset: &usize| Held {
            place: Place { base: Base::Snapshot(0), offset: *offset },
            word: self.state(*offset),
            shape,
            traffic: 0,
            home: Home::Local(format!("walk_{}", self.state(*offset))),
        };
        let kept =
            self.homes.held.iter().filter(|h| matches!(h.place.base, Base::Params | Base::Snapshot(1)));
        let held = group.offsets.iter().map(state).chain(kept.cloned()).collect();
        Homes { held, ..self.homes.clone() }
    }

    /// A loop over eight rows of a thread; `r`, `i`, `j` and `is_here` are known in it.
    fn each_of_eight(&mut self, shape: Shape, inside: impl FnOnce(&mut Self)) {
        let Shape { groups, .. } = shape;
        self.line("#pragma unroll");
        self.text.open(&format!("for (int lane_row = 0; lane_row < {ROWS}; ++lane_row) {{"));
        self.line(&format!("const int r = top + lane_row, i = r * {groups} + row_group;"));
        let is_here = here(shape, self.homes.threads);
        self.line(&format!("const bool is_here = {is_here};"));
        inside(self);
        self.text.close();
    }

    /// Writes of a step, for eight rows.
    fn writes(&mut self, nests: &[Nest], homes: &Homes, shape: Shape, step: &str) {
        let kernel = Kernel {
            names: self.subject.names,
            origins: self.subject.origins,
            backward: true,
            threads: self.homes.threads,
            homes: Some(homes),
            bundle: Bundle::ONE,
        };
        self.text.open("{");
        self.frames_of(nests, step);
        for nest in nests {
            let mut writer = nest::Writer::new(&kernel, nest, self.text);
            writer.remark();
            writer.variables(Loop::Nest);
            writer.variables(Loop::Column);
            writer.text.line("#pragma unroll");
            writer.text.open(&format!("for (int lane_row = 0; lane_row < {ROWS}; ++lane_row) {{"));
            let groups = shape.groups;
            writer.text.line(&format!("const int r = top + lane_row, i = r * {groups} + row_group;"));
            writer.text.open(&format!("if ({}) {{", here(shape, self.homes.threads)));
            writer.variables(Loop::Point);
            for k in 0..nest.effects.len() {
                if let Some(statement) = writer.statement(k) {
                    writer.text.from(writer.lines[k], &statement);
                }
            }
            writer.text.close();
            writer.text.close();
            writer.text.close();
        }
        self.text.close();
    }

    /// The frames that writes read, where they lie in memory.
    fn frames_of(&mut self, nests: &[Nest], step: &str) {
        let bases: BTreeSet<Base> =
            nests.iter().flat_map(|n| n.body.loads()).map(|a| a.place().base).collect();
        for base in bases {
            if let Base::Frame(k) = base {
                let (word, _) = pointer(base, true);
                self.line(&format!(
                    "const float *const {word} = row_of(tape.frames, span.frame + {step} + {k}, FRAME);"
                ));
            }
        }
    }

    /// What the flush reads: the states before the first step.
    pub(super) fn states_at_the_start(&mut self) {
        if self.slots_of_states().is_none() {
            return;
        }
        for group in self.mapping.groups.clone() {
            for (_, offset) in group.versions.iter().filter(|(k, _)| *k == 1) {
                let place = Place { base: Base::Snapshot(1), offset: *offset };
                let Some(held) = self.homes.find(place).cloned() else { continue };
                let from = self.subject.names.offset(Base::Snapshot(0), *offset, true);
                let stride = padded(held.shape.post);
                let own = Writer::own(&held);
                self.each(
                    &held,
                    &format!(
                        "{own} = is_here ? row_of(span.checkpoints, 0, MATRICES)[{from} + i * {stride} + j] : 0.0f;"
                    ),
                    false,
                );
            }
        }
    }

    // ----------------------------------------------------------- through memory

    /// Rebuilds the states of a segment in memory. Every thread does so for its elements alone.
    fn through_memory(&mut self) {
        let program = self.subject.program;
        if program.matrices_len == 0 {
            return;
        }
        self.line("// The states of the segment. Those after the first step of the segment behind are kept.");
        let matrices: Vec<(usize, usize, usize)> =
            program.matrices.iter().flatten().map(|m| (m.offset, m.post, m.pre)).collect();
        for (offset, post, pre) in matrices {
            let Some(shape) = Shape::new(post, pre, self.homes.threads, self.homes.cluster) else { continue };
            let place = Place { base: Base::Snapshot(0), offset };
            let held = Held { place, word: String::new(), shape, traffic: 0, home: Home::Memory };
            let at = |what: &str| format!("{what}[{offset} + i * {} + j]", padded(post));
            let whole = at("row_of(tape.snapshots, end - begin + 1, MATRICES)");
            let kept = at("row_of(tape.snapshots, 1, MATRICES)");
            let first = at("row_of(tape.snapshots, 0, MATRICES)");
            let saved = at("row_of(span.checkpoints, begin / span.interval, MATRICES)");
            self.each(
                &held,
                &format!("{{ if (end < span.steps) {whole} = {kept}; {first} = {saved}; }}"),
                true,
            );
        }
        self.text.open("for (int when = begin; when < end; ++when) {");
        let params = self.homes.held.iter().filter(|h| h.place.base == Base::Params).cloned().collect();
        let replay = Homes { held: params, ..self.homes.clone() };
        let kernel = Kernel {
            names: self.subject.names,
            origins: self.subject.origins,
            backward: true,
            threads: self.homes.threads,
            homes: Some(&replay),
            bundle: Bundle::ONE,
        };
        let mut bases = BTreeSet::new();
        for nest in &program.replay.nests {
            bases.extend(nest.body.loads().map(|a| a.place().base));
            bases.extend(nest.effects.iter().map(Effect::place).map(|p| p.base));
        }
        for base in bases {
            let (word, _) = pointer(base, true);
            let value = match base {
                Base::Frame(k) => format!("row_of(tape.frames, span.frame + when + {k}, FRAME)"),
                Base::Snapshot(k) => format!("row_of(tape.snapshots, when - begin + {k}, MATRICES)"),
                _ => continue,
            };
            self.line(&format!("float *const {word} = {value};"));
        }
        for nest in &program.replay.nests {
            if let Some(shape) = sweep::shape(nest, &replay) {
                sweep::write(&kernel, &replay, nest, shape, self.text);
            }
        }
        self.text.close();
    }
}

/// Whether a row is one of this thread's.
fn here(shape: Shape, threads: usize) -> String {
    let Shape { pre, groups, rows, .. } = shape;
    let mut conditions = vec![];
    if !rows.is_multiple_of(ROWS) {
        conditions.push(format!("r < {rows}"));
    }
    if shape.threads() != threads {
        conditions.push(format!("row_group < {groups}"));
    }
    if rows * groups != pre {
        conditions.push(format!("i < {pre}"));
    }
    if conditions.is_empty() { "true".to_owned() } else { conditions.join(" && ") }
}
