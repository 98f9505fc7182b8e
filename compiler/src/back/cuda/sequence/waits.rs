//! Where a kernel of a whole sequence needs a barrier between two nests, and for whom.
//!
//! Within a block the rules are those of [`super::super::barriers`]. A sweep's operands are vectors that any
//! thread reads; matrices belong to one thread each and need none. In a cluster, the sums of a sweep are
//! handed to all blocks: a barrier of the cluster stands before whoever reads them, and before they are
//! handed out if another block may still read, or write, what they replace.

use super::super::barriers::{Thread, Touch, Touches, touches};
use super::homes::Homes;
use crate::loops::{Access, Effect, Extent, Nest, padded};

/// Who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wait {
    /// Nobody.
    None,
    /// The threads of a block.
    Block,
    /// The blocks of a cluster.
    Cluster,
}

/// What has happened since the last barriers.
#[derive(Default)]
pub(super) struct Waits {
    /// Since the last barrier of any kind.
    local: Vec<Touch>,
    /// Whether shared memory for sums may still be read.
    shared: bool,
    /// Since the last barrier of the cluster.
    since: Vec<Touch>,
    /// Sums that were handed to other blocks since then.
    handed: Vec<Touch>,
    /// Whether parts of sums over post that others have handed to this block may still be read.
    ranks: bool,
}

/// What a nest touches, and what it hands to other blocks.
struct Deeds {
    own: Touches,
    handed: Vec<Touch>,
    /// Whether it has sums over post in a cluster: these contain a barrier of the cluster.
    ranks: bool,
}

impl Waits {
    /// Who has to wait before this nest; then the nest is the last that has happened.
    pub(super) fn before(&mut self, nest: &Nest, homes: &Homes) -> Wait {
        let deeds = deeds(nest, homes);
        let all = || deeds.own.early.iter().chain(&deeds.own.late);
        let is_read_here = all().any(|t| self.handed.iter().any(|h| h.overlaps(t)));
        // Sums are handed out behind all that the nest itself touches early.
        let replaces =
            deeds.handed.iter().any(|h| self.since.iter().chain(&self.handed).any(|t| t.overlaps(h)));
        let cluster = is_read_here || replaces || self.ranks && deeds.ranks;
        let after = if deeds.own.has_barrier { &[][..] } else { &deeds.own.late[..] };
        let mut now = deeds.own.early.iter().chain(after);
        let block =
            now.any(|t| self.local.iter().any(|p| p.conflicts(t))) || self.shared && deeds.own.uses_shared;
        let wait = if cluster {
            Wait::Cluster
        } else if block {
            Wait::Block
        } else {
            Wait::None
        };
        self.has_happened(deeds, wait);
        wait
    }

    fn has_happened(&mut self, deeds: Deeds, wait: Wait) {
        if wait >= Wait::Block || deeds.own.has_barrier {
            self.local.clear();
            self.shared = false;
        }
        if wait == Wait::Cluster || deeds.ranks {
            self.since.clear();
            self.handed.clear();
            self.ranks = false;
        }
        if !deeds.own.has_barrier {
            self.local.extend(deeds.own.early.iter().cloned());
        }
        if !deeds.ranks {
            self.since.extend(deeds.own.early);
        }
        self.local.extend(deeds.own.late.iter().cloned());
        self.since.extend(deeds.own.late);
        self.shared |= deeds.own.leaves_shared;
        if deeds.ranks {
            // The nest's own barrier of the cluster stands behind what it hands out.
            self.ranks = true;
        } else {
            self.handed.extend(deeds.handed);
        }
    }
}

fn deeds(nest: &Nest, homes: &Homes) -> Deeds {
    let (Extent::Matrix { post, pre }, Some(shape)) = (nest.extent, homes.shape(nest.extent)) else {
        return Deeds { own: touches(nest, homes.threads), handed: vec![], ranks: false };
    };
    let mut own = Touches::default();
    let mut handed = vec![];
    for access in nest.body.loads() {
        let len = match access {
            Access::Matrix(_) => continue,
            Access::Scalar(_) => 1,
            Access::Post(_) => post,
            Access::Pre(_) => pre,
        };
        own.early.push(Touch::new(access.place(), len, Thread::Any, false));
    }
    let mut parts = false;
    let mut rows = false;
    for effect in &nest.effects {
        match effect {
            Effect::SumPre(p, ..) => {
                parts |= shape.row_parts(homes.threads) > 1;
                let sums = Touch::new(*p, padded(post), Thread::Column(0), true);
                if homes.cluster > 1 { handed.push(sums) } else { own.late.push(sums) }
            }
            Effect::SumPost(p, ..) => {
                rows = true;
                own.late.push(Touch::new(*p, pre, Thread::Column(0), true));
            }
            _ => {}
        }
    }
    own.has_barrier = parts || rows;
    own.uses_shared = parts || rows;
    own.leaves_shared = parts || rows;
    Deeds { own, handed, ranks: rows && homes.cluster > 1 }
}
