//! What a language model has learned: cross-entropy and perplexity of a split, and text drawn from it.

use super::corpus::Split;
use super::head::Scratch;
use super::options::Text;
use super::training::{Tables, embed, read};
use crate::Error;
use crate::engine::{Mode, RowState, Tape};
use crate::parallel;
use crate::params::ParamStore;
use crate::rng::{Address, Domain, Purpose};
use crate::train::Trainer;
use compiler::ir::OutputId;
use grammar::ast::StateKind;
use serde_json::{Map, Value};

/// Which states survive the border between two windows of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carry {
    /// All of them, through the whole split: plasticity learns while it reads.
    All,
    /// All but plastic states and traces, which start anew with every window.
    AllButPlastic,
    /// None.
    None,
}

/// How a split is read.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// The split.
    pub split: Split,
    /// Rows.
    pub batch: usize,
    /// Steps of a window; matters only where states do not survive it.
    pub window: usize,
    /// What survives.
    pub carry: Carry,
}

/// What reading a split gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// Nats per predicted word.
    pub loss: f64,
    /// Predicted words.
    pub words: usize,
}

impl Fit {
    /// exp of the loss.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// Reads a split with given parameters. The words of every row but its first are predicted; words behind
/// the last whole row are left out.
///
/// # Errors
/// If the split is too short, or a loss is not finite.
pub fn read_split(
    trainer: &Trainer,
    params: &ParamStore,
    text: &Text,
    how: Reading,
    threads: usize,
) -> Result<Fit, Error> {
    let model = trainer.engine.model();
    let tables = Tables::of(params, model.params.len());
    let bound = trainer.engine.bind(&params.values_of(model.params.len()))?;
    let all = text.corpus.split(how.split);
    let length = all.len() / how.batch;
    if length < 2 {
        let (name, words, batch) = (how.split.name(), all.len(), how.batch);
        return Err(Error::usage(format!("the {name} split has {words} words, too few for {batch} rows"))
            .help("take fewer rows: --batch 1, or task.valid_batch in the recipe"));
    }
    let output = trainer.wiring.output;
    let features = trainer.engine.sizes().count(model.outputs[output.index()].shape);
    // On a device or libtorch all rows are one team.
    let teams = if trainer.engine.is_side_by_side() { vec![how.batch] } else { vec![1; how.batch] };
    let mut teams: Vec<(Tape, Vec<Option<RowState>>)> = teams
        .into_iter()
        .map(|rows| (trainer.engine.team_tape(how.window, Mode::Forward, rows), vec![None; rows]))
        .collect();
    let (mut outputs, mut scratch) = (vec![], Scratch::default());
    let (mut sum, mut words, mut start) = (0.0, 0, 0);
    while start + 1 < length {
        let steps = how.window.min(length - 1 - start);
        outputs.resize(how.batch * steps * features, 0.0);
        let (mut jobs, mut first, mut rest) = (vec![], 0, outputs.as_mut_slice());
        for (tape, states) in &mut teams {
            let (own, behind) = rest.split_at_mut(states.len() * steps * features);
            jobs.push((first, tape, states.as_mut_slice(), own));
            (first, rest) = (first + jobs.last().map_or(0, |j| j.2.len()), behind);
        }
        type Job<'j> = (usize, &'j mut Tape, &'j mut [Option<RowState>], &'j mut [f32]);
        parallel::run(&mut vec![(); threads.max(1)], jobs, |_, (first, tape, states, to): Job<'_>| {
            let at = Address {
                seed: trainer.recipe.schedule.seed,
                domain: Domain::Eval,
                episode: (start / how.window) as u32,
                row: first as u32,
            };
            bound.begin_team(tape, &states.iter().map(Option::as_ref).collect::<Vec<_>>());
            let tokens = |row: usize| &all[(first + row) * length + start..][..steps];
            read(&bound, &trainer.wiring, tape, at, steps, &mut |row, t, x| {
                embed(&tables, tokens(row)[t], x)
            });
            for (row, (to, state)) in to.chunks_mut(steps * features).zip(states).enumerate() {
                bound.select(tape, row);
                for (t, to) in to.chunks_mut(features).enumerate() {
                    to.copy_from_slice(bound.output(tape, t, output));
                }
                *state = survive(trainer, how.carry, bound.state(tape));
            }
        });
        trainer.engine.check()?;
        let targets: Vec<u32> =
            (0..how.batch).flat_map(|r| all[r * length + start + 1..][..steps].iter().copied()).collect();
        let losses = tables.head.losses(threads, &outputs, &targets, &mut scratch);
        sum += losses.iter().sum::<f64>();
        words += losses.len();
        start += steps;
        if !sum.is_finite() {
            let (split, end) = (how.split.name(), start);
            return Err(Error::diverged(format!(
                "the loss on the {split} split is not finite within the first {end} words of a row"
            ))
            .help("bound plastic states with `clip` or decay; lower `optimiser.rate`"));
        }
    }
    Ok(Fit { loss: sum / words as f64, words })
}

fn survive(trainer: &Trainer, carry: Carry, mut state: RowState) -> Option<RowState> {
    match carry {
        Carry::All => Some(state),
        Carry::None => None,
        Carry::AllButPlastic => {
            for (k, s) in trainer.engine.model().states.iter().enumerate() {
                if s.kind != StateKind::State {
                    state.states[k].clear();
                }
            }
            Some(state)
        }
    }
}

/// Perplexities of splits.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    batch: usize,
    window: usize,
    /// By split: states carried; all but plastic ones carried; none carried.
    splits: Vec<(Split, [Fit; 3])>,
    plastic: bool,
}

impl Report {
    /// Reads splits with the trainer's parameters, which are those to be evaluated.
    ///
    /// # Errors
    /// As for [`read_split`].
    pub fn new(
        trainer: &Trainer,
        text: &Text,
        splits: &[Split],
        batch: usize,
        threads: usize,
    ) -> Result<Report, Error> {
        let states = &trainer.engine.model().states;
        let plastic = states.iter().any(|s| s.kind != StateKind::State);
        let window = text.window;
        let read = |split: Split| {
            let with = |carry| {
                read_split(trainer, &trainer.params, text, Reading { split, batch, window, carry }, threads)
            };
            let all = with(Carry::All)?;
            let plain = if plastic { with(Carry::AllButPlastic)? } else { all };
            Ok((split, [all, plain, with(Carry::None)?]))
        };
        let splits = splits.iter().map(|s| read(*s)).collect::<Result<_, Error>>()?;
        Ok(Report { batch, window, splits, plastic })
    }

    /// The perplexity of the last split, all states carried.
    pub fn perplexity(&self) -> f64 {
        self.splits.last().map_or(f64::NAN, |(_, fits)| fits[0].perplexity())
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{:<6} {:>8} {:>12} {:>16} {:>12}\n",
            "split", "words", "perplexity", "plastic reset", "all reset"
        );
        for (split, [all, plain, none]) in &self.splits {
            let plain = if self.plastic { format!("{:.3}", plain.perplexity()) } else { "-".into() };
            text += &format!(
                "{:<6} {:>8} {:>12.3} {:>16} {:>12.3}\n",
                split.name(),
                all.words,
                all.perplexity(),
                plain,
                none.perplexity()
            );
        }
        let (rows, window) = (self.batch, self.window);
        text + &format!(
            "batch {rows}; the states of the last columns start anew after every {window} words\n"
        )
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let mut all = Map::new();
        all.insert("schema".into(), 1.into());
        all.insert("batch".into(), self.batch.into());
        for (split, [carried, plain, none]) in &self.splits {
            let name = split.name();
            all.insert(format!("{name}_words"), carried.words.into());
            all.insert(format!("{name}_loss"), carried.loss.into());
            all.insert(format!("{name}_ppl"), carried.perplexity().into());
            if self.plastic {
                all.insert(format!("{name}_ppl_plastic_reset"), plain.perplexity().into());
            }
            all.insert(format!("{name}_ppl_all_reset"), none.perplexity().into());
        }
        Value::Object(all)
    }
}

/// How text is drawn.
#[derive(Clone, Debug)]
pub struct Drawing {
    /// What is read first.
    pub prompt: Vec<u32>,
    /// How many tokens are drawn.
    pub tokens: usize,
    /// Logits are divided by it; at 0 the likeliest token is taken.
    pub temperature: f64,
    /// The seed.
    pub seed: u64,
}

/// Draws text: each token is read before the next one is drawn.
///
/// # Errors
/// If a logit is not finite.
pub fn draw(trainer: &Trainer, params: &ParamStore, how: &Drawing) -> Result<Vec<u32>, Error> {
    let model = trainer.engine.model();
    let tables = Tables::of(params, model.params.len());
    let bound = trainer.engine.bind(&params.values_of(model.params.len()))?;
    let mut tape = trainer.engine.tape(1, Mode::Infer);
    bound.begin(&mut tape, None);
    let output: OutputId = trainer.wiring.output;
    let mut logits = vec![0.0; tables.head.bias.len()];
    let mut drawn = vec![];
    let at = Address { seed: how.seed, domain: Domain::Eval, episode: 0, row: 0 };
    let mut next = how.prompt.first().copied();
    for t in 0..how.prompt.len() + how.tokens {
        let Some(word) = next else { break };
        embed(&tables, word, bound.input_mut(&mut tape, trainer.wiring.input));
        trainer.wiring.draw_noise(trainer.engine.sizes(), at, t, |id, noise| {
            let to = bound.input_mut(&mut tape, id);
            to.iter_mut().zip(noise).for_each(|(x, n)| *x = n as f32);
        });
        bound.step(&mut tape);
        if let Some(word) = how.prompt.get(t + 1) {
            next = Some(*word);
            continue;
        }
        tables.head.logits(bound.output(&tape, t, output), &mut logits);
        if logits.iter().any(|z| !z.is_finite()) {
            return Err(Error::diverged(format!("a logit is not finite after {t} tokens")));
        }
        if drawn.len() == how.tokens {
            break;
        }
        let chosen = choose(&logits, how.temperature, at, t);
        drawn.push(chosen);
        next = Some(chosen);
    }
    Ok(drawn)
}

fn choose(logits: &[f32], temperature: f64, at: Address, t: usize) -> u32 {
    let top = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    if temperature == 0.0 {
        return logits.iter().position(|&z| z == top).unwrap_or(0) as u32;
    }
    let weights: Vec<f64> = logits.iter().map(|z| (f64::from(z - top) / temperature).exp()).collect();
    at.stream(Purpose::Action, t as u32).categorical(&weights) as u32
}
