//! The options of language models: the text, and what is learned of it.

use super::corpus::{Corpus, Source, Split};
use super::windows::Windows;
use crate::options::Options;
use crate::params::{About, ParamStore};
use crate::rng::{Address, Purpose, Stream};
use crate::task::{Episode, Goal, Task};
use std::path::PathBuf;

/// The task: a text, and how it is read.
pub struct Text {
    /// The text.
    pub corpus: Corpus,
    /// Where it was read.
    pub folder: PathBuf,
    /// Steps of a window.
    pub window: usize,
    /// Whether windows vary in length.
    pub vary: bool,
    /// Epochs of the whole run.
    pub epochs: u32,
    /// Rows of a validation pass.
    pub valid_batch: usize,
}

impl Text {
    /// Reads the options and the text.
    pub fn new(o: &mut Options) -> Self {
        let source = o.choice("corpus", 3, &Source::NAMES, "which text; docs/language-models.md");
        let folder = o.folder("data", "its folder; also --data");
        let unknown =
            o.text("unknown", "", "the word for words that the training split lacks; empty: they are errors");
        let corpus = Corpus::load(Source::of(source), &folder, &unknown).unwrap_or_else(|e| {
            o.problem("data", e.message, Some(e.help.join("; ")));
            Corpus::default()
        });
        Text {
            corpus,
            folder,
            window: o.size("window", 20, 1..=1 << 16, "steps of truncated backpropagation"),
            vary: o.flag("vary", false, "let window lengths vary, as the AWD-LSTM does"),
            epochs: o.integer("epochs", 13, 1..=1 << 20, "epochs of the whole run") as u32,
            valid_batch: o.size("valid_batch", 10, 1..=1 << 16, "rows of a validation pass"),
        }
    }

    /// The windows of a batch over the training split.
    pub fn windows(&self, batch: usize, seed: u64) -> Windows {
        Windows::new(self.corpus.split(Split::Train).len() / batch.max(1), self.window, self.vary, seed)
    }
}

impl Task for Text {
    fn steps(&self) -> usize {
        self.window
    }

    fn axes(&self) -> Vec<(&'static str, usize)> {
        vec![]
    }

    fn inputs(&self) -> usize {
        0
    }

    fn goal(&self) -> Goal {
        Goal::Continue
    }

    fn scores(&self) -> &'static [&'static str] {
        &["cross_entropy"]
    }

    fn episode(&self, _: Address) -> Box<dyn Episode + '_> {
        unreachable!("a text is read in windows, not in episodes")
    }

    fn text(&self) -> Option<&Text> {
        Some(self)
    }
}

/// The learner: an embedding, a softmax over all words, cross-entropy.
#[derive(Clone, Debug, PartialEq)]
pub struct NextWord {
    /// Numbers per embedded word.
    pub embedding: usize,
    /// Whether the decoder's matrix is the embedding.
    pub tied: bool,
    /// Embedding and decoder start uniform in ± this.
    pub start: f64,
    /// Probability that all occurrences of a word in a window are left out.
    pub word_dropout: f64,
    /// Whether losses are summed over the steps of a window, not averaged.
    pub sum_steps: bool,
}

impl NextWord {
    /// Reads the options.
    pub fn new(o: &mut Options) -> Self {
        NextWord {
            embedding: o.size("embedding", 200, 1..=1 << 20, "numbers per embedded word"),
            tied: o.flag("tied", false, "use the embedding as the decoder's matrix"),
            start: o.number(
                "start",
                0.1,
                0.0..=1e3,
                "embedding and decoder start uniform in plus or minus this",
            ),
            word_dropout: o.number("word_dropout", 0.0, 0.0..=0.99, "share of words left out of a window"),
            sum_steps: o.choice(
                "steps",
                0,
                &["mean", "sum"],
                "losses over the steps of a window: their mean, or their sum",
            ) == 1,
        }
    }

    /// The factor of a word's embedding in the window of an update.
    pub fn keep(&self, seed: u64, update: u64, word: u32) -> f32 {
        if self.word_dropout == 0.0 {
            return 1.0;
        }
        let at = Address { seed, domain: crate::rng::Domain::Train, episode: update as u32, row: 0 };
        match at.stream(Purpose::Words, word).chance(self.word_dropout) {
            true => 0.0,
            false => (1.0 / (1.0 - self.word_dropout)) as f32,
        }
    }

    /// Adds embedding, decoder and its bias behind the parameters of a spec with so many features.
    pub fn add_parameters(&self, params: &mut ParamStore, words: usize, features: usize, seed: u64) {
        let mut add = |name: &str, dims: Vec<usize>, start: f64| {
            let mut stream = Stream::named(seed, Purpose::Parameters, name);
            let draw = |_| (start * (2.0 * stream.uniform() - 1.0)) as f32;
            params.raw.push((0..dims.iter().product::<usize>()).map(draw).collect());
            params.about.push(About::other(name.to_string(), dims));
        };
        add("embedding", vec![words, self.embedding], self.start);
        if !self.tied {
            add("decoder", vec![words, features], self.start);
        }
        add("decoder_bias", vec![words], 0.0);
    }
}
