//! Where the regions of a row lie within a kernel of a whole sequence, and what stands for them in the source.

use crate::loops::{Access, Base, Effect, Extent, Nest, Place};

/// How the elements of a matrix are shared out among the threads of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Receiving neurons.
    pub(crate) post: usize,
    /// Sending neurons.
    pub(crate) pre: usize,
    /// Columns of a block: 8, 16, or whole warps.
    pub(crate) columns: usize,
    /// Row groups: threads of a column.
    pub(crate) groups: usize,
    /// Rows of a thread.
    pub(crate) rows: usize,
}

impl Shape {
    /// The sharing out among so many threads of each block of a cluster, if there are enough.
    pub(crate) fn new(post: usize, pre: usize, threads: usize, cluster: usize) -> Option<Shape> {
        let own = post.div_ceil(cluster);
        let columns = if own <= 32 { own.next_power_of_two().max(8) } else { own.next_multiple_of(32) };
        let groups = threads / columns;
        (groups > 0).then(|| Shape { post, pre, columns, groups, rows: pre.div_ceil(groups) })
    }

    /// Threads that have elements.
    pub(crate) fn threads(&self) -> usize {
        self.columns * self.groups
    }

    /// Warps side by side over the columns.
    pub(crate) fn column_warps(&self) -> usize {
        self.columns.div_ceil(32)
    }

    /// Parts of a sum over pre after butterflies within warps.
    pub(crate) fn row_parts(&self, threads: usize) -> usize {
        if self.columns < 32 { threads / 32 } else { self.groups }
    }

    /// Elements of a block, those that fill up included.
    pub(crate) fn len(&self) -> usize {
        self.threads() * self.rows
    }
}

/// Where a matrix lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// In registers: an array of this name.
    Registers(String),
    /// In shared memory, at this float.
    Shared(usize),
    /// In the device's memory.
    Memory,
    /// In registers while a few rows of a thread are under way: an array of this name, by `lane_row`.
    Local(String),
}

/// A matrix of which a thread owns its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// Of which region: carry, gradients, parameters, states that adjoints read.
    pub(crate) place: Place,
    /// How it is called.
    pub(crate) word: String,
    /// Who owns what.
    pub(crate) shape: Shape,
    /// Reads and writes of an element in a step.
    pub(crate) traffic: usize,
    /// Where it lies.
    pub(crate) home: Home,
}

/// Where everything lies.
#[derive(Clone, Debug)]
pub(crate) struct Homes {
    /// Threads of a block.
    pub(crate) threads: usize,
    /// Blocks of a row.
    pub(crate) cluster: usize,
    /// Matrices.
    pub(crate) held: Vec<Held>,
    /// Gradients of vectors and scalars: offset, elements, float in `sums`.
    pub(crate) sums: Vec<(usize, usize, usize)>,
    /// Where the part of scratch begins that is kept.
    pub(crate) scratch_first: usize,
}

impl Homes {
    /// The matrix that a place belongs to.
    pub(crate) fn find(&self, place: Place) -> Option<&Held> {
        self.held.iter().find(|h| h.place == place)
    }

    /// How the elements of a nest are shared out.
    pub(crate) fn shape(&self, extent: Extent) -> Option<Shape> {
        let Extent::Matrix { post, pre } = extent else { return None };
        Shape::new(post, pre, self.threads, self.cluster)
    }

    /// Words that nests must not use for other things.
    pub(crate) fn words(&self) -> impl Iterator<Item = &str> {
        self.held.iter().filter_map(|h| match &h.home {
            Home::Registers(name) | Home::Local(name) => Some(name.as_str()),
            Home::Shared(_) | Home::Memory => None,
        })
    }

    /// Whether a nest touches registers, so that its loops must be unrolled.
    pub(crate) fn in_registers(&self, nest: &Nest) -> bool {
        let stored = nest.effects.iter().filter_map(|e| match e {
            Effect::Store(Access::Matrix(p), _) | Effect::Add(Access::Matrix(p), ..) => Some(*p),
            _ => None,
        });
        let loaded = nest.body.loads().filter(|a| matches!(a, Access::Matrix(_))).map(Access::place);
        loaded.chain(stored).any(|p| self.find(p).is_some_and(|h| matches!(h.home, Home::Registers(_))))
    }

    /// An operand that does not lie in the region that its pointer leads to.
    pub(crate) fn element(&self, access: Access) -> Option<String> {
        let place = access.place();
        if let Access::Matrix(_) = access {
            let held = self.find(place)?;
            return match &held.home {
                Home::Registers(name) => Some(format!("{name}[r]")),
                Home::Shared(_) => {
                    Some(format!("held[held_at::{} + r * {} + thread]", held.word, held.shape.threads()))
                }
                Home::Memory => None,
                Home::Local(name) => Some(format!("{name}[lane_row]")),
            };
        }
        let index = match access {
            Access::Scalar(_) => "",
            Access::Pre(_) => " + i",
            _ => " + j",
        };
        match place.base {
            Base::Grads => {
                let (offset, _, at) = self.sums.iter().rev().find(|(o, ..)| *o <= place.offset)?;
                let from = place.offset - offset + at;
                Some(format!("sums[{from}{index}]"))
            }
            Base::Scratch => Some(format!("scratch[{}{index}]", place.offset - self.scratch_first)),
            _ => None,
        }
    }
}
