//! What a value of a nest varies with, which is how often it must be computed.

use crate::loops::body::{Body, BodyOp};
use crate::loops::{Access, Effect};

/// What a value varies with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// Nothing: computed once per nest.
    Once,
    /// The pre axis: once per row.
    Row,
    /// The post axis: once per tile.
    Tile,
    /// Both.
    Point,
}

impl Level {
    fn join(self, other: Level) -> Level {
        match (self, other) {
            (Level::Once, x) | (x, Level::Once) => x,
            (x, y) if x == y => x,
            _ => Level::Point,
        }
    }
}

/// The level of every operation.
pub(super) fn levels(body: &Body) -> Vec<Level> {
    let mut levels: Vec<Level> = vec![];
    for op in &body.ops {
        levels.push(match op {
            BodyOp::Const(_) => Level::Once,
            BodyOp::Load(Access::Scalar(_)) => Level::Once,
            BodyOp::Load(Access::Pre(_)) => Level::Row,
            BodyOp::Load(Access::Post(_)) => Level::Tile,
            BodyOp::Load(Access::Matrix(_)) => Level::Point,
            op => op.operands().iter().map(|o| levels[o.index()]).fold(Level::Once, Level::join),
        });
    }
    levels
}

impl Effect {
    /// Whether lanes of the padding must not count.
    pub(super) fn sums_over_post(&self) -> bool {
        matches!(self, Effect::SumPost(..) | Effect::SumAll(..) | Effect::MaxAll(..))
    }
}
