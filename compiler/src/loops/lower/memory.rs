//! The regions of a program, and who has which place in them.

use crate::ir::{Axis, Function, Shape, Sizes, StateId, Value};
use crate::loops::*;
use crate::model::Model;

/// Where a scalar or vector lives, relative to its own step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loc {
    pub(super) region: Region,
    pub(super) shift: i8,
    pub(super) offset: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Region {
    Frame,
    Adjoint,
    Params,
    Scratch,
}

/// A region under layout.
#[derive(Default)]
pub(super) struct Area {
    pub(super) slots: Vec<Slot>,
    pub(super) len: usize,
}

impl Area {
    /// Room for `len` elements. The slack of one register takes the overhang of a store that ends
    /// at an offset which is no multiple of the lanes.
    pub(super) fn take(&mut self, name: String, len: usize) -> usize {
        let offset = self.len;
        self.slots.push(Slot { name, offset, len });
        self.len += padded(len) + LANES;
        offset
    }
}

/// The layout of all regions.
pub(super) struct Memory {
    pub(super) frame: Area,
    pub(super) adjoint: Area,
    pub(super) matrices: Vec<Option<MatrixSlot>>,
    pub(super) matrices_len: usize,
    /// By state.
    pub(super) logs: Vec<Option<LogSlot>>,
    pub(super) log_axis: Option<Axis>,
    pub(super) log_len: usize,
    pub(super) log_bar_len: usize,
    pub(super) params: Vec<Bound>,
    pub(super) params_len: usize,
    pub(super) grads: Vec<GradSlot>,
    pub(super) grads_len: usize,
    pub(super) inputs: Vec<usize>,
    pub(super) outputs: Vec<usize>,
    pub(super) output_bars: Vec<usize>,
    pub(super) states: Vec<Option<usize>>,
    pub(super) state_bars: Vec<Option<usize>>,
    pub(super) input_bars: Vec<Option<usize>>,
    pub(super) penalties: Vec<usize>,
}

impl Memory {
    pub(super) fn new(model: &Model, sizes: &Sizes) -> Memory {
        let mut frame = Area::default();
        let mut adjoint = Area::default();
        let count = |shape| sizes.count(shape);
        let inputs = model.inputs.iter().map(|i| frame.take(i.name.clone(), count(i.shape))).collect();
        let (mut states, mut state_bars, mut matrices_len) = (vec![], vec![], 0);
        let mut matrices: Vec<Option<MatrixSlot>> = vec![];
        let is_log = |k: usize| model.events.as_ref().is_some_and(|e| e.logs.contains(&StateId(k as u32)));
        for (k, s) in model.states.iter().enumerate() {
            match s.shape {
                Shape::Matrix { .. } if is_log(k) => {
                    matrices.push(None);
                    states.push(None);
                    state_bars.push(None);
                }
                Shape::Matrix { post, pre } => {
                    let (post, pre) = (sizes.of(post), sizes.of(pre));
                    let len = Tiles::packed_len(post, pre);
                    let number = matrices.iter().flatten().count();
                    let offset = apart(matrices_len, len, number, 0);
                    matrices.push(Some(MatrixSlot { name: s.name.clone(), offset, post, pre }));
                    matrices_len = offset + len;
                    states.push(None);
                    state_bars.push(None);
                }
                Shape::Scalar | Shape::Vector(_) => {
                    matrices.push(None);
                    states.push(Some(frame.take(format!("{}'", s.name), count(s.shape))));
                    state_bars.push(Some(adjoint.take(format!("bar {}", s.name), count(s.shape))));
                }
            }
        }
        let bars = |o: &crate::model::Output| (format!("bar {}", o.name), count(o.shape));
        let output_bars = model.outputs.iter().map(|o| frame.take(bars(o).0, bars(o).1)).collect();
        let (logs, log_len, log_bar_len) = log_slots(model, sizes, &mut adjoint);
        Memory {
            frame,
            adjoint,
            matrices,
            matrices_len: repeated(matrices_len),
            logs,
            log_axis: model.events.as_ref().map(|e| e.axis),
            log_len,
            log_bar_len,
            params: vec![],
            params_len: 0,
            grads: vec![],
            grads_len: 0,
            inputs,
            outputs: vec![],
            output_bars,
            states,
            state_bars,
            input_bars: vec![None; model.inputs.len()],
            penalties: vec![],
        }
    }

    /// The place of an unbatched value of the step function.
    pub(super) fn bind(&mut self, step: &Function, sizes: &Sizes, value: Value) -> usize {
        if let Some(bound) = self.params.iter().find(|b| b.value == value) {
            return bound.offset;
        }
        let shape = step.ty(value).shape;
        let (matrix, room) = packed(shape, sizes);
        let number = self.params.iter().filter(|p| p.matrix.is_some()).count();
        let offset = apart(self.params_len, if matrix.is_some() { room } else { 0 }, number, 1);
        self.params.push(Bound { value, offset, matrix, len: sizes.count(shape) });
        self.params_len = offset + room;
        offset
    }

    /// The place of the gradient of an unbatched value.
    pub(super) fn gradient(&mut self, shape: Shape, sizes: &Sizes, value: Value) -> usize {
        if let Some(slot) = self.grads.iter().find(|g| g.value == value) {
            return slot.offset;
        }
        let (matrix, room) = packed(shape, sizes);
        // They are written beside the carried matrices, so they count on from these.
        let number = self.matrices.iter().flatten().count();
        let number = number + self.grads.iter().filter(|g| g.matrix.is_some()).count();
        let offset = apart(self.grads_len, if matrix.is_some() { room } else { 0 }, number, 0);
        self.grads.push(GradSlot { value, offset, matrix, len: sizes.count(shape) });
        self.grads_len = offset + room;
        offset
    }
}

/// The logs by state, and the lengths of their regions. Those of rows are known later.
fn log_slots(model: &Model, sizes: &Sizes, adjoint: &mut Area) -> (Vec<Option<LogSlot>>, usize, usize) {
    let mut slots: Vec<Option<LogSlot>> = vec![None; model.states.len()];
    let (mut end, mut bar_end) = (0, 0);
    let Some(events) = &model.events else { return (slots, end, bar_end) };
    for (number, s) in events.logs.iter().enumerate() {
        let state = &model.states[s.index()];
        let dims = sizes.dims(state.shape);
        let room = Tiles::packed_len(dims[0], dims[1]);
        let offset = apart(end, room, number, 0);
        let bar = apart(bar_end, room, events.logs.len() + number, 0);
        (end, bar_end) = (offset + room, bar + room);
        let row_bar = adjoint.take(format!("bar row {}", state.name), dims[1]);
        slots[s.index()] = Some(LogSlot {
            name: state.name.clone(),
            state: s.index(),
            offset,
            bar,
            events: dims[0],
            len: dims[1],
            row: 0,
            row_bar,
        });
    }
    (slots, end, bar_end)
}

/// Elements of a page of memory. A load whose address agrees with that of an earlier store, still
/// under way, in all bits that count within a page waits for it as if it were the same address.
const PAGE: usize = 1024;

/// Elements of a cache line.
const LINE: usize = 16;

/// Elements of the smallest matrix that is worth moving away from the others.
const LARGE: usize = 4 * PAGE;

/// Where a matrix of a region begins, at or after `end`.
///
/// Sweeps walk through all their matrices at one pace, so two that begin at nearby places of a page
/// would make each other's loads wait ([`PAGE`]). The beginnings of large ones are spread over a page
/// by the golden ratio; `number` counts the matrices of a region, and `shift` tells regions apart
/// that are only read.
pub(super) fn apart(end: usize, len: usize, number: usize, shift: usize) -> usize {
    if len < LARGE {
        return end;
    }
    let golden = 0.618_033_988_749_895;
    let within = ((number as f64 * golden).fract() * (PAGE / LINE) as f64) as usize * LINE + shift * LINE;
    let ahead = (within % PAGE + PAGE - end % PAGE) % PAGE;
    end + ahead
}

/// Regions that repeat with large matrices in them take whole pages and five cache lines: the same
/// row of successive regions, which a replay of several steps stores together, would otherwise
/// compete for the same few lines of the cache.
pub(super) fn repeated(len: usize) -> usize {
    if len < LARGE { len } else { len.next_multiple_of(PAGE) + 5 * LINE }
}

pub(super) fn packed(shape: Shape, sizes: &Sizes) -> (Option<(usize, usize)>, usize) {
    match shape {
        Shape::Matrix { post, pre } => {
            let (post, pre) = (sizes.of(post), sizes.of(pre));
            (Some((post, pre)), Tiles::packed_len(post, pre))
        }
        other => (None, padded(sizes.count(other)) + LANES),
    }
}
