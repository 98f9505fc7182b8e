//! What the kernels of an episode are told: where everything lies, and how long it is.

use super::super::code::{Buffer, Code, Plain};
use super::super::{Address, Fault};
use super::{Aim, Loss, Plan, RESULTS, Update, VERDICT};
use crate::engine::Engine;
use std::ffi::c_int;

/// `Lesson` in the source.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Lesson {
    update: Address,
    frames: Address,
    penalties: Address,
    ints: Address,
    floats: Address,
    doubles: Address,
    row_ints: Address,
    row_floats: Address,
    actions: Address,
    rewards: Address,
    returns: Address,
    terms: Address,
    logs: Address,
    results: Address,
    gamma: f64,
    value_weight: f64,
    entropy_weight: f64,
    /// Of a step of a row.
    pub(super) share: f64,
    frame_length: i64,
    first_frame: c_int,
    rows: c_int,
    steps: c_int,
    int_count: c_int,
    float_count: c_int,
    input: c_int,
    inputs: c_int,
    label: c_int,
    labels: c_int,
    reward: c_int,
    output: c_int,
    outputs: c_int,
    value: c_int,
    output_bar: c_int,
    value_bar: c_int,
    penalty_count: c_int,
    shared_baseline: c_int,
    loss: c_int,
}

impl Plain for Lesson {}

/// Terms of the loss of a step.
const TERMS: usize = 4;

/// Bytes of what an episode keeps beside the tape: what does not change, then by row, by row and step, and once.
pub(super) fn bytes(engine: &Engine, plan: &Plan<'_>) -> [usize; 13] {
    let (world, rows) = (&plan.world, plan.rows);
    let steps = rows.saturating_mul(plan.steps);
    let acting = if matches!(plan.aim, Aim::Act { .. }) { steps } else { 0 };
    let classes = match plan.aim {
        Aim::Match { output, loss: Loss::Categorical | Loss::Binary, .. } => count(engine, output),
        Aim::Act { .. } | Aim::Match { .. } => 0,
    };
    [
        4 * engine.program.penalties.len(),
        size_of_val(world.ints),
        size_of_val(world.floats),
        size_of_val(world.doubles),
        (4 * world.row_ints).saturating_mul(rows),
        (4 * world.row_floats).saturating_mul(rows),
        acting.saturating_mul(4),
        acting.saturating_mul(4),
        acting.saturating_mul(8),
        steps.saturating_mul(8 * TERMS),
        steps.saturating_mul(16 * classes),
        8 * (VERDICT + RESULTS * rows),
        size_of::<Lesson>() + size_of::<Update>(),
    ]
}

/// Elements of an output.
pub(super) fn count(engine: &Engine, output: compiler::ir::OutputId) -> usize {
    engine.sizes().count(engine.model().outputs[output.index()].shape)
}

impl Lesson {
    /// Takes the memory of an episode, and says what is where. `update` and `results` lie elsewhere.
    pub(super) fn new(
        engine: &Engine,
        code: &Code,
        plan: &Plan<'_>,
        (update, results): (Address, Address),
    ) -> Result<(Lesson, Vec<Buffer>), Fault> {
        let p = &engine.program;
        let world = &plan.world;
        let place = |n: usize| n as c_int;
        let penalties: Vec<c_int> = p.penalties.iter().map(|n| place(*n)).collect();
        let told = [
            Buffer::of(&code.device, &penalties)?,
            Buffer::of(&code.device, world.ints)?,
            Buffer::of(&code.device, world.floats)?,
            Buffer::of(&code.device, world.doubles)?,
        ];
        let room: Result<Vec<Buffer>, Fault> =
            bytes(engine, plan)[4..11].iter().map(|n| Buffer::new(&code.device, *n)).collect();
        let room = room?;
        let lesson = Lesson {
            update,
            frames: 0,
            penalties: told[0].at(),
            ints: told[1].at(),
            floats: told[2].at(),
            doubles: told[3].at(),
            row_ints: room[0].at(),
            row_floats: room[1].at(),
            actions: room[2].at(),
            rewards: room[3].at(),
            returns: room[4].at(),
            terms: room[5].at(),
            logs: room[6].at(),
            results,
            share: 1.0 / (plan.rows as f64 * plan.steps as f64),
            frame_length: p.frame_len as i64,
            rows: place(plan.rows),
            steps: place(plan.steps),
            int_count: place(world.row_ints),
            float_count: place(world.row_floats),
            input: place(p.inputs[plan.input.index()]),
            inputs: place(engine.sizes().count(engine.model().inputs[plan.input.index()].shape)),
            penalty_count: place(penalties.len()),
            ..Lesson::aiming(engine, &plan.aim)
        };
        Ok((lesson, told.into_iter().chain(room).collect()))
    }

    /// What follows from the aim of an episode.
    fn aiming(engine: &Engine, aim: &Aim) -> Lesson {
        let p = &engine.program;
        let place = |n: usize| n as c_int;
        let (Aim::Act { policy: output, .. } | Aim::Match { output, .. }) = *aim;
        let common = Lesson {
            label: -1,
            reward: -1,
            output: place(p.outputs[output.index()]),
            outputs: place(count(engine, output)),
            output_bar: place(p.output_bars[output.index()]),
            ..Lesson::default()
        };
        match *aim {
            Aim::Act { reward, value, weights, .. } => Lesson {
                gamma: weights.gamma,
                value_weight: weights.value,
                entropy_weight: weights.entropy,
                reward: reward.map_or(-1, |id| place(p.inputs[id.index()])),
                value: place(p.outputs[value.index()]),
                value_bar: place(p.output_bars[value.index()]),
                shared_baseline: c_int::from(weights.shared_baseline),
                ..common
            },
            Aim::Match { label, loss, .. } => {
                let labels = |id: compiler::ir::InputId| engine.model().inputs[id.index()].shape;
                Lesson {
                    label: label.map_or(-1, |id| place(p.inputs[id.index()])),
                    labels: label.map_or(0, |id| place(engine.sizes().count(labels(id)))),
                    loss: loss as c_int,
                    ..common
                }
            }
        }
    }

    /// The same with the frames of a tape.
    pub(super) fn at(self, frames: Address, first_frame: c_int) -> Lesson {
        Lesson { frames, first_frame, ..self }
    }

    /// Numbers that are seen at a step.
    pub(super) fn seen(&self) -> usize {
        (self.inputs + self.labels) as usize
    }

    /// Numbers of the output that a loss is made of.
    pub(super) fn outputs(&self) -> usize {
        self.outputs as usize
    }
}
