//! Encoders: layers of convolutions between the images of a task and the input of a spec.
//!
//! A spec describes a network whose connections change while it runs; the layers that turn an image into the
//! features it sees are ordinary ones, and the same at every step. They are kept outside of the spec, as the
//! embedding of words is: their weights follow the spec's parameters, and are trained, saved and resumed with
//! them. The kernels give the cotangents of the spec's input, and the encoder takes them on.
//!
//! ```toml
//! [encoder]
//! layers = [
//!   { channels = 64, size = 3, stride = 2 },                        # a convolution; tanh
//!   { kind = "dense", channels = 32, activation = "relu" },
//! ]
//! ```
//!
//! A layer is a product of a matrix of patches (im2col) and the weights, so that nearly all of the time is
//! spent in the library that multiplies matrices for language models, too: with it, three dozen lines here
//! are a convolution and its gradient. Libraries with convolutions of their own bring a second autodiff and
//! their own threads.
//!
//! All images of an episode go through a product together, and episodes are shared by threads. So a row
//! depends neither on the other rows nor on the number of threads; a product over several episodes may sum in
//! another order, and would break that.
//!
//! Images and features are `[image, row, column, channel]`, weights `[out, row, column, in]`.

mod layer;
mod tanh;

use crate::options::Options;
use crate::params::{About, ParamStore};
use crate::rng::{Purpose, Stream};
pub use layer::{Activation, Layer, Map};

/// Layers with their sizes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Encoder {
    /// The layers, from the image on; none: the spec sees the image.
    pub layers: Vec<Layer>,
}

/// What every layer gave, from the first on; what the backward pass reads.
pub type Activations = Vec<Vec<f32>>;

/// An encoder and its weights: weight and bias of every layer in turn.
#[derive(Clone, Copy)]
pub struct Bound<'a> {
    /// The layers.
    pub encoder: &'a Encoder,
    /// [out, row, column, in] and [out], layer by layer.
    pub weights: &'a [Vec<f32>],
}

impl Encoder {
    /// Reads the list of layers for images of a task. Without an image there can be no layer.
    pub fn new(o: &mut Options, image: Option<Map>) -> Self {
        let sections = o.tables("layers", "what images go through: convolutions and dense layers");
        let Some(mut map) = image else {
            if !sections.is_empty() {
                o.problem("layers", "this task shows no images, so it has nothing to encode", None);
            }
            o.close_tables("layers", sections);
            return Encoder::default();
        };
        let (mut layers, mut read, mut fits) = (vec![], vec![], true);
        for mut section in sections {
            // One mistake is told once: behind a layer that does not fit, sizes are unknown.
            let layer = Layer::new(&mut section, map, &mut fits);
            map = layer.output();
            layers.push(layer);
            read.push(section);
        }
        o.close_tables("layers", read);
        Encoder { layers }
    }

    /// The number of features, if there are layers.
    pub fn features(&self) -> Option<usize> {
        self.layers.last().map(|l| l.output().count())
    }

    /// Adds weights and biases behind the parameters of the spec: uniform in ±1/√(inputs of a neuron).
    pub fn add_parameters(&self, params: &mut ParamStore, seed: u64) {
        for (k, layer) in self.layers.iter().enumerate() {
            let bound = 1.0 / (layer.patch() as f64).sqrt();
            let weight = vec![layer.channels, layer.kernel.0, layer.kernel.1, layer.input.channels];
            for (part, dims) in [("weight", weight), ("bias", vec![layer.channels])] {
                let name = format!("encoder.{k}.{part}");
                let mut stream = Stream::named(seed, Purpose::Parameters, &name);
                let draw = |_| (bound * (2.0 * stream.uniform() - 1.0)) as f32;
                params.raw.push((0..dims.iter().product::<usize>()).map(draw).collect());
                params.about.push(About::other(name, dims));
            }
        }
    }

    /// Zeros for the gradients of [`Bound::weights`].
    pub fn zeros(&self) -> Vec<Vec<f32>> {
        let sizes = self.layers.iter().flat_map(|l| [l.channels * l.patch(), l.channels]);
        sizes.map(|n| vec![0.0; n]).collect()
    }

    /// Bytes that a thread needs for so many images.
    pub fn memory(&self, images: usize) -> u64 {
        let per_image = |l: &Layer| 2 * l.output().count() + 2 * l.positions() * l.patch();
        let weights: usize = self.layers.iter().map(|l| l.channels * (l.patch() + 1)).sum();
        let most = self.layers.iter().map(per_image).sum::<usize>();
        4 * (weights as u64 + images as u64 * most as u64)
    }
}

impl Bound<'_> {
    /// The activations of all layers. `images` [count, row, column, channel].
    pub fn forward(&self, images: &[f32], count: usize) -> Activations {
        let mut all: Activations = vec![];
        for (k, layer) in self.encoder.layers.iter().enumerate() {
            let input = all.last().map_or(images, Vec::as_slice);
            let output = layer.forward(&self.weights[2 * k], &self.weights[2 * k + 1], input, count);
            all.push(output);
        }
        all
    }

    /// Adds the gradients of the weights, given the cotangents of the features [count, features].
    pub fn backward(
        &self,
        images: &[f32],
        count: usize,
        activations: &Activations,
        features_bar: Vec<f32>,
        gradients: &mut [Vec<f32>],
    ) {
        let mut bar = features_bar;
        for (k, layer) in self.encoder.layers.iter().enumerate().rev() {
            let input = if k == 0 { images } else { activations[k - 1].as_slice() };
            layer.activation.pull_back(&activations[k], &mut bar);
            let (weight_bar, bias_bar) = gradients[2 * k..2 * k + 2].split_at_mut(1);
            layer.weights_bar(input, count, &bar, &mut weight_bar[0], &mut bias_bar[0]);
            if k > 0 {
                bar = layer.input_bar(&self.weights[2 * k], count, &bar);
            }
        }
    }
}

#[cfg(test)]
mod tests;
