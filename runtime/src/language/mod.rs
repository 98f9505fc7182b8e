//! Language models: the next word, learned over a long text by truncated backpropagation through time.
//!
//! ```text
//! words → embedding → [spec: u → y] → decoder → softmax → cross-entropy
//!         └ V × I ┘                   └ V × E, V ┘
//! ```
//!
//! A spec says what happens between an embedded word and the features from which the next word is
//! predicted. The embedding and the decoder are the runtime's: large dense products that a library does
//! over many rows and steps at once. They are parameters like any other: `embedding` [V, I], `decoder`
//! [V, E] (absent if it is tied to the embedding) and `decoder_bias` [V].
//!
//! # Rows, windows, epochs
//!
//! The text is cut into as many pieces of equal length as the batch has rows, the rest is dropped; a row
//! reads its piece from its first word to its last. An update takes the next window of all rows. States
//! are carried from window to window, without gradient, and start anew with every epoch. Where a window
//! lies is a function of seed and update, so a run that goes on needs no record of its place.
//!
//! # Loss
//!
//! The mean over the words of a window and over rows of −ln p(next word), or its sum over the steps of a
//! window and mean over rows; plus the spec's penalties, averaged over steps and rows.
//!
//! # Order of sums
//!
//! Rows are independent up to their features. The head takes blocks of words of a fixed size, each
//! product on one thread; so nothing depends on the number of threads.

pub mod corpus;
pub mod head;
pub mod options;
pub mod report;
pub mod training;
pub mod windows;

mod generated;
mod softmax;

pub use corpus::{Corpus, Split};
pub use options::{NextWord, Text};
pub use training::{Memory, Validation};
