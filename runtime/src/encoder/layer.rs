//! One layer: a convolution without padding, or a dense one, which is a convolution over the whole map.
//!
//! ```text
//! z[n,r,c,o] = b[o] + Σ_{i,j,k} w[o,i,j,k] x[n, s r + i, s c + j, k]        y = f(z)
//! ```
//!
//! With the patches of all positions as rows of a matrix P, `z = P wᵀ + b`, `w̄ = z̄ᵀ P` and `P̄ = z̄ w`, which
//! is added back to where the patches came from.

use super::tanh::tanh;
use crate::options::Options;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// The size of an image or of features in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Numbers per place.
    pub channels: usize,
}

impl Map {
    /// How many numbers it has.
    pub fn count(self) -> usize {
        self.height * self.width * self.channels
    }
}

/// What is applied to every number of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Hyperbolic tangent.
    Tanh,
    /// `max(0, z)`; its slope at 0 is 0.
    Relu,
    /// Nothing.
    None,
}

/// A layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// What goes in.
    pub input: Map,
    /// Channels that come out.
    pub channels: usize,
    /// Rows and columns of a patch.
    pub kernel: (usize, usize),
    /// From patch to patch.
    pub stride: usize,
    /// What is applied at the end.
    pub activation: Activation,
}

impl Activation {
    fn apply(self, z: &mut [f32]) {
        match self {
            Activation::Tanh => tanh(z),
            Activation::Relu => z.iter_mut().for_each(|z| *z = if *z < 0.0 { 0.0 } else { *z }),
            Activation::None => {}
        }
    }

    /// From the cotangent of `y = f(z)` to that of `z`.
    pub(super) fn pull_back(self, y: &[f32], bar: &mut [f32]) {
        match self {
            Activation::Tanh => bar.iter_mut().zip(y).for_each(|(b, y)| *b *= 1.0 - y * y),
            Activation::Relu => {
                bar.iter_mut().zip(y).for_each(|(b, y)| *b = if *y > 0.0 { *b } else { 0.0 });
            }
            Activation::None => {}
        }
    }
}

impl Layer {
    /// Reads a layer. What does not fit is told while `fits`.
    pub(super) fn new(o: &mut Options, input: Map, fits: &mut bool) -> Layer {
        let dense = o.choice("kind", 0, &["convolution", "dense"], "patches, or the whole map") == 1;
        let channels = o.size("channels", 64, 1..=1 << 16, "features of a patch");
        let (kernel, stride) = match dense {
            true => ((input.height, input.width), 1),
            false => {
                let size = o.size("size", 3, 1..=1 << 10, "edge of a patch");
                let stride = o.size("stride", 1, 1..=1 << 10, "from patch to patch");
                if *fits && size > input.height.min(input.width) {
                    let (h, w) = (input.height, input.width);
                    let message = format!("patches of {size} by {size} do not fit into a map of {h} by {w}");
                    o.problem("size", message, Some("use fewer layers, or smaller sizes and strides".into()));
                    *fits = false;
                }
                ((size.min(input.height), size.min(input.width)), stride)
            }
        };
        let activations = ["tanh", "relu", "none"];
        let activation = [Activation::Tanh, Activation::Relu, Activation::None]
            [o.choice("activation", 0, &activations, "what is applied to the features")];
        Layer { input, channels, kernel, stride, activation }
    }

    /// What comes out.
    pub fn output(&self) -> Map {
        let along = |n: usize, kernel: usize| (n - kernel) / self.stride + 1;
        Map {
            height: along(self.input.height, self.kernel.0),
            width: along(self.input.width, self.kernel.1),
            channels: self.channels,
        }
    }

    /// Numbers of a patch.
    pub(super) fn patch(&self) -> usize {
        self.kernel.0 * self.kernel.1 * self.input.channels
    }

    /// Patches of an image.
    pub(super) fn positions(&self) -> usize {
        let out = self.output();
        out.height * out.width
    }

    /// The places of the rows of patches: of each, where it starts in the images and in P. The length is that
    /// of a row of a patch.
    fn strips(&self, count: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let (out, x) = (self.output(), self.input);
        let strip = self.kernel.1 * x.channels;
        let places = move |n: usize, r: usize, c: usize| {
            let first = (n * out.height + r) * out.width + c;
            (0..self.kernel.0).map(move |i| {
                let row = (n * x.height + self.stride * r + i) * x.width + self.stride * c;
                (row * x.channels, first * self.patch() + i * strip)
            })
        };
        (0..count * out.height * out.width)
            .flat_map(move |k| places(k / out.width / out.height, k / out.width % out.height, k % out.width))
    }

    /// P [count · positions, patch].
    fn patches(&self, x: &[f32], count: usize) -> Vec<f32> {
        let mut p = vec![0.0; count * self.positions() * self.patch()];
        let strip = self.kernel.1 * self.input.channels;
        for (from, to) in self.strips(count) {
            p[to..to + strip].copy_from_slice(&x[from..from + strip]);
        }
        p
    }

    /// y [count, out].
    pub(super) fn forward(&self, weight: &[f32], bias: &[f32], x: &[f32], count: usize) -> Vec<f32> {
        let rows = count * self.positions();
        let p = self.patches(x, count);
        let mut y = bias.repeat(rows);
        matmul(
            MatMut::from_row_major_slice_mut(&mut y, rows, self.channels),
            Accum::Add,
            MatRef::from_row_major_slice(&p, rows, self.patch()),
            MatRef::from_row_major_slice(weight, self.channels, self.patch()).transpose(),
            1.0,
            Par::Seq,
        );
        self.activation.apply(&mut y);
        y
    }

    /// Adds w̄ and b̄, given z̄ [count, out].
    pub(super) fn weights_bar(&self, x: &[f32], count: usize, bar: &[f32], w: &mut [f32], b: &mut [f32]) {
        let rows = count * self.positions();
        let p = self.patches(x, count);
        matmul(
            MatMut::from_row_major_slice_mut(w, self.channels, self.patch()),
            Accum::Add,
            MatRef::from_row_major_slice(bar, rows, self.channels).transpose(),
            MatRef::from_row_major_slice(&p, rows, self.patch()),
            1.0,
            Par::Seq,
        );
        for bar in bar.chunks(self.channels) {
            b.iter_mut().zip(bar).for_each(|(b, z)| *b += z);
        }
    }

    /// x̄ [count, in], given z̄ [count, out].
    pub(super) fn input_bar(&self, weight: &[f32], count: usize, bar: &[f32]) -> Vec<f32> {
        let rows = count * self.positions();
        let mut p = vec![0.0; rows * self.patch()];
        matmul(
            MatMut::from_row_major_slice_mut(&mut p, rows, self.patch()),
            Accum::Replace,
            MatRef::from_row_major_slice(bar, rows, self.channels),
            MatRef::from_row_major_slice(weight, self.channels, self.patch()),
            1.0,
            Par::Seq,
        );
        let mut x = vec![0.0; count * self.input.count()];
        let strip = self.kernel.1 * self.input.channels;
        for (to, from) in self.strips(count) {
            x[to..to + strip].iter_mut().zip(&p[from..from + strip]).for_each(|(x, p)| *x += p);
        }
        x
    }
}
