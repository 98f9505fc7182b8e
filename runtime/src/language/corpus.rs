//! Texts as numbers: a vocabulary, and three splits.
//!
//! | corpus | files in its folder | a token is |
//! |---|---|---|
//! | `ptb` | `ptb.train.txt`, `ptb.valid.txt`, `ptb.test.txt`, with known checksums | a word, or `<eos>` at the end of a line |
//! | `words` | `train.txt`, `valid.txt`, `test.txt` | the same |
//! | `characters` | the same, or `input.txt` alone: its last tenth is split into `valid` and `test` | a character |
//! | `generated` | none: made from the seed of the text | a word, or `<eos>` |
//!
//! The vocabulary is that of the training split, in the order of first appearance.

use super::generated;
use crate::{Error, files};
use md5::{Digest, Md5};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The end of a line.
pub const END: &str = "<eos>";

/// Parts of a corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// What is learned from.
    Train,
    /// What decides which parameters are kept.
    Valid,
    /// What is reported.
    Test,
}

impl Split {
    /// All of them.
    pub const ALL: [Split; 3] = [Split::Train, Split::Valid, Split::Test];

    /// Its name in files and on the command line.
    pub fn name(self) -> &'static str {
        ["train", "valid", "test"][self as usize]
    }
}

/// Where a corpus comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Penn Treebank, prepared by Mikolov.
    PennTreebank,
    /// Any text, by words.
    Words,
    /// Any text, by characters.
    Characters,
    /// Made by bpm.
    Generated,
}

impl Source {
    /// The names, in the order of the type.
    pub const NAMES: [&str; 4] = ["ptb", "words", "characters", "generated"];
    const ALL: [Source; 4] = [Source::PennTreebank, Source::Words, Source::Characters, Source::Generated];

    /// The source of an index of [`Source::NAMES`].
    pub fn of(index: usize) -> Source {
        Source::ALL[index.min(3)]
    }
}

/// The MD5 sums of Mikolov's Penn Treebank.
const PENN_TREEBANK: [&str; 3] = [
    "f26c4b92c5fdc7b3f8c7cdcb991d8420",
    "aa0affc06ff7c36e977d7cd49e3839bf",
    "8b80168b89c18661a38ef683c0dc3721",
];

/// The tokens that a text may consist of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vocabulary {
    words: Vec<String>,
    index: HashMap<String, u32>,
}

impl Vocabulary {
    fn number(&mut self, word: &str) -> u32 {
        if let Some(n) = self.index.get(word) {
            return *n;
        }
        let n = self.words.len() as u32;
        self.words.push(word.to_string());
        self.index.insert(word.to_string(), n);
        n
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The number of a token.
    pub fn find(&self, word: &str) -> Option<u32> {
        self.index.get(word).copied()
    }

    /// A token.
    pub fn word(&self, number: u32) -> &str {
        self.words.get(number as usize).map_or("", String::as_str)
    }

    /// One token per line; a line feed is written as `\n`, a backslash as `\\`.
    pub fn text(&self) -> String {
        self.words.iter().map(|w| w.replace('\\', "\\\\").replace('\n', "\\n") + "\n").collect()
    }

    /// The first line in which the text of another vocabulary differs, with both.
    pub fn difference(&self, text: &str) -> Option<(usize, String, String)> {
        let own = self.text();
        let (mut a, mut b) = (own.lines(), text.lines());
        let mut line = 1;
        loop {
            match (a.next(), b.next()) {
                (None, None) => return None,
                (x, y) if x == y => line += 1,
                (x, y) => return Some((line, x.unwrap_or("").into(), y.unwrap_or("").into())),
            }
        }
    }
}

/// A text in numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Corpus {
    /// The tokens.
    pub vocabulary: Vocabulary,
    /// The splits, in the order of [`Split::ALL`].
    pub splits: [Vec<u32>; 3],
    /// Whether tokens are characters, to be printed without spaces.
    pub characters: bool,
}

impl Corpus {
    /// The tokens of a split.
    pub fn split(&self, split: Split) -> &[u32] {
        &self.splits[split as usize]
    }

    /// A text of the user's in numbers; the end of a line if there is none.
    ///
    /// # Errors
    /// If a word is not in the vocabulary.
    pub fn read(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut all = vec![];
        let mut put = |_: usize, word: &str| {
            let number = self.vocabulary.find(word);
            all.push(number.ok_or_else(|| {
                let error = Error::usage(format!("the prompt's word `{word}` is not in the vocabulary"));
                let near =
                    grammar::diag::did_you_mean(word, self.vocabulary.words.iter().map(String::as_str));
                match near {
                    Some(near) => error.help(format!("did you mean `{near}`?")),
                    None => error.help("the vocabulary is in the run's vocabulary.txt, one word per line"),
                }
            })?);
            Ok(())
        };
        each_token(text, self.characters, &mut put)?;
        if !self.characters && !text.is_empty() {
            all.pop();
        }
        if all.is_empty() {
            let end = self.vocabulary.find(if self.characters { "\n" } else { END });
            all.push(end.unwrap_or(0));
        }
        Ok(all)
    }

    /// Tokens as text; `after` says whether something stands before them in the line.
    pub fn write(&self, tokens: &[u32], after: bool) -> String {
        let words = tokens.iter().map(|t| self.vocabulary.word(*t));
        if self.characters {
            return words.collect();
        }
        let (mut text, mut fresh) = (String::new(), !after);
        for word in words {
            if word == END {
                text.push('\n');
            } else {
                text += if fresh { "" } else { " " };
                text += word;
            }
            fresh = word == END;
        }
        text
    }

    /// Loads a corpus. `unknown` is the word for words that the training split lacks; empty if they
    /// are errors.
    ///
    /// # Errors
    /// If a file is missing, empty, no text or has a wrong checksum, or a word is unknown.
    pub fn load(source: Source, folder: &Path, unknown: &str) -> Result<Corpus, Error> {
        if source == Source::Generated {
            return from_texts(&generated::texts(), &Reading { paths: &[], unknown, characters: false });
        }
        if folder.as_os_str().is_empty() {
            return Err(Error::usage("this task reads a text, but no folder is given").help(match source {
                Source::PennTreebank => {
                    "bpm train RECIPE --data FOLDER, with ptb.train.txt, ptb.valid.txt and ptb.test.txt in it"
                }
                _ => "bpm train RECIPE --data FOLDER, with train.txt, valid.txt and test.txt in it",
            }));
        }
        let (paths, texts) = read_all(source, folder)?;
        let characters = source == Source::Characters;
        from_texts(&texts, &Reading { paths: &paths, unknown, characters })
    }
}

type Files = (Vec<PathBuf>, [String; 3]);

fn read_all(source: Source, folder: &Path) -> Result<Files, Error> {
    let whole = folder.join("input.txt");
    if source == Source::Characters && whole.is_file() && !folder.join("train.txt").exists() {
        let text = read_text(&whole)?;
        let cut = |part: usize| {
            let mut at = text.len() * part / 20;
            while !text.is_char_boundary(at) {
                at += 1;
            }
            at
        };
        let (a, b) = (cut(18), cut(19));
        let texts = [text[..a].to_string(), text[a..b].to_string(), text[b..].to_string()];
        return Ok((vec![whole; 3], texts));
    }
    let prefix = if source == Source::PennTreebank { "ptb." } else { "" };
    let paths: Vec<PathBuf> =
        Split::ALL.iter().map(|s| folder.join(format!("{prefix}{}.txt", s.name()))).collect();
    let mut texts = [const { String::new() }; 3];
    for (k, path) in paths.iter().enumerate() {
        texts[k] = read_text(path)?;
        if source == Source::PennTreebank {
            check_sum(path, &texts[k], PENN_TREEBANK[k])?;
        }
    }
    Ok((paths, texts))
}

fn read_text(path: &Path) -> Result<String, Error> {
    let text = files::read_text(path).map_err(|e| {
        e.help("--data names the folder with the text; docs/language-models.md says where to get the corpora")
    })?;
    match text.trim().is_empty() {
        true => Err(Error::usage(format!("`{}` is empty", path.display()))
            .help("every split needs at least one line of text")),
        false => Ok(text),
    }
}

fn check_sum(path: &Path, text: &str, wanted: &str) -> Result<(), Error> {
    let found: String = Md5::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    if found == wanted {
        return Ok(());
    }
    let first = text.lines().next().unwrap_or("").chars().take(40).collect::<String>();
    Err(Error::usage(format!(
        "`{}` is not the file of Mikolov's Penn Treebank: its MD5 sum is {found}, expected {wanted} (line 1: `{first}`)",
        path.display()
    ))
    .help("get the file again; line ends must be as published")
    .help("for another text: --set task.corpus=words, with train.txt, valid.txt and test.txt"))
}

/// How texts are read.
struct Reading<'a> {
    paths: &'a [PathBuf],
    unknown: &'a str,
    characters: bool,
}

fn from_texts(texts: &[String; 3], reading: &Reading<'_>) -> Result<Corpus, Error> {
    let mut corpus = Corpus { characters: reading.characters, ..Corpus::default() };
    let mut train = vec![];
    each_token(&texts[0], reading.characters, |_, word| {
        train.push(corpus.vocabulary.number(word));
        Ok(())
    })?;
    if !reading.unknown.is_empty() {
        corpus.vocabulary.number(reading.unknown);
    }
    corpus.splits[0] = train;
    for k in [1, 2] {
        let vocabulary = &corpus.vocabulary;
        let mut tokens = vec![];
        each_token(&texts[k], reading.characters, |line, word| {
            let number = vocabulary.find(word).or_else(|| vocabulary.find(reading.unknown));
            tokens.push(number.ok_or_else(|| unknown_word(reading, k, line, word))?);
            Ok(())
        })?;
        corpus.splits[k] = tokens;
    }
    Ok(corpus)
}

fn unknown_word(reading: &Reading<'_>, split: usize, line: usize, word: &str) -> Error {
    let what = if reading.characters { "character" } else { "word" };
    let place = reading.paths.get(split).map_or(String::new(), |p| format!("{}:{line}: ", p.display()));
    Error::usage(format!("{place}the {what} `{}` does not occur in the training split", word.escape_debug()))
        .help(format!(
            "replace it, or let one {what} stand for all unknown ones: --set task.unknown=\"<unk>\""
        ))
}

/// Calls back for every token with its line.
fn each_token(
    text: &str,
    characters: bool,
    mut put: impl FnMut(usize, &str) -> Result<(), Error>,
) -> Result<(), Error> {
    if characters {
        let mut line = 1;
        for (at, c) in text.char_indices() {
            put(line, &text[at..at + c.len_utf8()])?;
            line += usize::from(c == '\n');
        }
        return Ok(());
    }
    for (k, line) in text.lines().enumerate() {
        for word in line.split_whitespace() {
            put(k + 1, word)?;
        }
        put(k + 1, END)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(texts: [&str; 3]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("folder");
        for (split, text) in Split::ALL.iter().zip(texts) {
            std::fs::write(folder.path().join(format!("{}.txt", split.name())), text).expect("write");
        }
        folder
    }

    #[test]
    fn words_and_ends_of_lines() {
        let f = folder(["a b a\nc\n", " b  c \n", "a\n"]);
        let corpus = Corpus::load(Source::Words, f.path(), "").expect("corpus");
        assert_eq!(corpus.vocabulary.text(), "a\nb\n<eos>\nc\n");
        assert_eq!(corpus.splits, [vec![0, 1, 0, 2, 3, 2], vec![1, 3, 2], vec![0, 2]]);
        assert_eq!(corpus.vocabulary.difference("a\nb\n<eos>\nc\n"), None);
        assert_eq!(corpus.vocabulary.difference("a\nx\n"), Some((2, "b".into(), "x".into())));
    }

    #[test]
    fn unknown_words_have_a_place() {
        let f = folder(["a b\n", "a\na zebra\n", "b\n"]);
        let error = Corpus::load(Source::Words, f.path(), "").expect_err("unknown");
        assert!(error.message.contains("valid.txt:2: the word `zebra`"), "{}", error.message);
        assert!(error.help[0].contains("task.unknown"));
        let corpus = Corpus::load(Source::Words, f.path(), "<unk>").expect("corpus");
        assert_eq!(corpus.vocabulary.word(corpus.split(Split::Valid)[3]), "<unk>");
    }

    #[test]
    fn wrong_files_are_refused() {
        let f = folder(["a\n", "", "a\n"]);
        let error = Corpus::load(Source::Words, f.path(), "").expect_err("empty");
        assert!(
            error.message.contains("valid.txt") && error.message.contains("is empty"),
            "{}",
            error.message
        );
        std::fs::write(f.path().join("ptb.train.txt"), "a b c\n").expect("write");
        let error = Corpus::load(Source::PennTreebank, f.path(), "").expect_err("checksum");
        assert!(
            error.message.contains("f26c4b92") && error.message.contains("ptb.train.txt"),
            "{}",
            error.message
        );
        let error = Corpus::load(Source::Words, Path::new("nowhere"), "").expect_err("missing");
        assert!(error.message.contains("train.txt"), "{}", error.message);
        assert!(Corpus::load(Source::Words, Path::new(""), "").expect_err("none").help[0].contains("--data"));
    }

    #[test]
    fn characters() {
        let f = tempfile::tempdir().expect("folder");
        std::fs::write(f.path().join("input.txt"), "abä\n".repeat(20)).expect("write");
        let corpus = Corpus::load(Source::Characters, f.path(), "").expect("corpus");
        assert_eq!(corpus.vocabulary.text(), "a\nb\nä\n\\n\n");
        assert_eq!(corpus.splits.iter().map(Vec::len).sum::<usize>(), 80);
        assert_eq!(corpus.splits[1].len(), 4);
    }

    #[test]
    fn the_generated_text_is_always_the_same() {
        let corpus = Corpus::load(Source::Generated, Path::new(""), "").expect("corpus");
        assert_eq!(corpus, Corpus::load(Source::Generated, Path::new(""), "").expect("corpus"));
        assert!((100..400).contains(&corpus.vocabulary.len()), "{}", corpus.vocabulary.len());
        assert!(corpus.splits.iter().map(Vec::len).ge([20_000, 2_000, 2_000]));
    }
}
