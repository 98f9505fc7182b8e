//! A small text made by a grammar: sentences about people who own things, in which what was said once
//! comes again. It needs no files, and has something to remember beyond the last words.
//!
//! Every paragraph chooses a few people and gives each of them one thing and one place; later sentences
//! of the paragraph repeat these facts. A model without memory can learn the grammar; only one that
//! remembers who has what can predict the last word of a repeated fact.

use crate::rng::{Address, Domain, Purpose, Stream};

/// Sentences per split.
const SENTENCES: [usize; 3] = [6000, 600, 600];
/// Sentences per paragraph.
const PARAGRAPH: usize = 12;
const PEOPLE: usize = 60;
const THINGS: usize = 60;
const PLACES: usize = 40;

/// The texts of the three splits.
pub(super) fn texts() -> [String; 3] {
    let text = |split: usize| {
        let at = Address { seed: 0, domain: Domain::Train, episode: split as u32, row: 0 };
        let mut stream = at.stream(Purpose::World, 0);
        (0..SENTENCES[split] / PARAGRAPH).map(|_| paragraph(&mut stream)).collect()
    };
    [text(0), text(1), text(2)]
}

/// A name of two syllables; different for every number of a kind.
fn name(kind: usize, number: usize) -> String {
    const FIRST: [&str; 10] = ["ba", "do", "fe", "gu", "ki", "la", "mo", "ne", "ru", "si"];
    const LAST: [[&str; 6]; 3] = [
        ["ra", "lin", "mon", "ta", "vi", "zo"],
        ["ck", "ft", "lk", "mp", "nd", "rt"],
        ["ham", "ton", "wick", "ford", "by", "ley"],
    ];
    let (a, b) = (number % FIRST.len(), number / FIRST.len());
    format!("{}{}", FIRST[a], LAST[kind][b])
}

fn paragraph(stream: &mut Stream) -> String {
    let people = stream.permutation(PEOPLE);
    let facts: Vec<[String; 3]> = (0..3)
        .map(|k| [name(0, people[k]), name(1, stream.below(THINGS)), name(2, stream.below(PLACES))])
        .collect();
    let mut text = String::new();
    for _ in 0..PARAGRAPH {
        let [who, what, place] = &facts[stream.below(facts.len())];
        text += &match stream.below(5) {
            0 => format!("{who} has the {what}\n"),
            1 => format!("the {what} of {who} is in {place}\n"),
            2 => format!("{who} went to {place}\n"),
            3 => format!("did {who} take the {what} to {place} ?\n"),
            _ => format!("we saw {who} with the {what}\n"),
        };
    }
    text
}
