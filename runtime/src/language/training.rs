//! One update of a language model: all rows forward through a window, the softmax, all rows back.

use super::corpus::Split;
use super::head::{Gradients, Head, Scratch};
use super::options::{NextWord, Text};
use super::windows::{Window, Windows};
use crate::engine::{Bound, Engine, Room, RowState, Tape};
use crate::parallel;
use crate::params::ParamStore;
use crate::rng::{Address, Domain};
use crate::rollout::{NonFinite, Place};
use crate::timings::{self, Phase, Timings};
use crate::wiring::Wiring;
use compiler::ir::InputId;
use std::collections::BTreeMap;

/// What a trainer of language models keeps from update to update.
pub struct Memory {
    /// Where the updates read.
    pub windows: Windows,
    /// Validation losses by epoch, in nats per word.
    pub history: Vec<f64>,
    tapes: Vec<Tape>,
    /// Of every thread, by the size of the team.
    rooms: Vec<Rooms>,
    features: Vec<f32>,
    features_bar: Vec<f32>,
    inputs_bar: Vec<f32>,
    softmax: Scratch,
    /// Gradients of the update before, to be written over.
    spare: Vec<Vec<f32>>,
}

type Rooms = BTreeMap<usize, Room>;

/// A validation pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Validation {
    /// The epoch that ended, counted from one.
    pub epoch: u32,
    /// Nats per word.
    pub loss: f64,
    /// Whether it is the best so far.
    pub best: bool,
}

impl Memory {
    /// At the beginning of a run.
    pub fn new(windows: Windows) -> Memory {
        Memory {
            windows,
            history: vec![],
            tapes: vec![],
            rooms: vec![],
            features: vec![],
            features_bar: vec![],
            inputs_bar: vec![],
            softmax: Scratch::default(),
            spare: vec![],
        }
    }

    /// Takes memory back.
    pub fn give_back(&mut self, gradients: Vec<Vec<f32>>) {
        self.spare = gradients;
    }
}

/// Embedding and decoder among the parameters.
#[derive(Clone, Copy)]
pub(super) struct Tables<'a> {
    pub(super) embedding: &'a [f32],
    pub(super) head: Head<'a>,
    /// Their first place among the parameters.
    first: usize,
    tied: bool,
}

impl<'a> Tables<'a> {
    /// They follow the parameters of the spec, of which there are `first`.
    pub(super) fn of(params: &'a ParamStore, first: usize) -> Tables<'a> {
        let raw = &params.raw[first..];
        let tied = raw.len() == 2;
        let weight: &[f32] = if tied { &raw[0] } else { &raw[1] };
        let bias = raw.last().map_or(&[][..], Vec::as_slice);
        Tables { embedding: &raw[0], head: Head { weight, bias }, first, tied }
    }
}

/// What an update is made of.
pub(crate) struct Update<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) bound: &'a Bound<'a>,
    pub(crate) wiring: &'a Wiring,
    pub(crate) text: &'a Text,
    pub(crate) learner: &'a NextWord,
    pub(crate) params: &'a ParamStore,
    pub(crate) carried: &'a [RowState],
    pub(crate) window: Window,
    pub(crate) seed: u64,
    pub(crate) update: u64,
    pub(crate) batch: usize,
    pub(crate) threads: usize,
}

/// What an update found.
pub(crate) struct Found {
    /// Nats per word, by row.
    pub(crate) losses: Vec<f64>,
    /// Sums of penalties over the steps, by row.
    pub(crate) penalties: Vec<f64>,
    /// The states at the end, by row.
    pub(crate) states: Vec<RowState>,
    /// By parameter.
    pub(crate) gradients: Vec<Vec<f32>>,
}

impl Update<'_> {
    fn row_length(&self) -> usize {
        self.text.corpus.split(Split::Train).len() / self.batch
    }

    /// The words of a row's window and the one behind it.
    fn words(&self, row: usize) -> &[u32] {
        let start = row * self.row_length() + self.window.start;
        &self.text.corpus.split(Split::Train)[start..=start + self.window.steps]
    }

    /// Runs the update.
    ///
    /// # Errors
    /// The first feature that is not finite.
    pub(crate) fn run(
        &self,
        memory: &mut Memory,
        timings: &mut Option<Timings>,
    ) -> Result<Found, (usize, NonFinite)> {
        let (steps, model) = (self.window.steps, self.engine.model());
        let tables = Tables::of(self.params, model.params.len());
        let features = self.engine.sizes().count(model.outputs[self.wiring.output.index()].shape);
        let (tokens, width) = (self.batch * steps, self.learner.embedding);
        if memory.tapes.is_empty() {
            let longest = memory.windows.longest();
            let tape = |rows| self.engine.waiting_tape(longest, rows);
            memory.tapes = self.engine.teams(self.batch).into_iter().map(tape).collect();
            memory.rooms.resize_with(self.threads.max(1), Rooms::new);
        }
        memory.features.resize(tokens * features, 0.0);
        memory.features_bar.resize(tokens * features, 0.0);
        memory.inputs_bar.resize(tokens * width, 0.0);
        let rows = self.forward(memory, &tables, features)?;
        timings::lap(timings, Phase::Forward);

        let targets: Vec<u32> =
            (0..self.batch).flat_map(|row| self.words(row)[1..].iter().copied()).collect();
        let share = if self.learner.sum_steps { 1.0 / self.batch as f64 } else { 1.0 / tokens as f64 };
        let mut spare = std::mem::take(&mut memory.spare);
        let take = |spare: &mut Vec<Vec<f32>>, len: usize| {
            let found = spare.iter().position(|s| s.len() == len);
            found.map_or_else(|| vec![0.0; len], |k| spare.swap_remove(k))
        };
        let mut weight = take(&mut spare, tables.head.weight.len());
        let mut bias = take(&mut spare, tables.head.bias.len());
        let mut embedding = if tables.tied { vec![] } else { take(&mut spare, tables.embedding.len()) };
        let into = Gradients { features: &mut memory.features_bar, weight: &mut weight, bias: &mut bias };
        let given = (memory.features.as_slice(), targets.as_slice());
        let losses = tables.head.gradients(self.threads, given, share as f32, &mut memory.softmax, into);
        timings::lap(timings, Phase::Losses);

        let mut gradients = self.backward(memory, features, share as f32, spare);
        timings::lap(timings, Phase::Backward);
        embedding.fill(0.0);
        let sums = if tables.tied { &mut weight } else { &mut embedding };
        for row in 0..self.batch {
            for (t, word) in self.words(row)[..steps].iter().enumerate() {
                let keep = self.learner.keep(self.seed, self.update, *word);
                let bar = &memory.inputs_bar[(row * steps + t) * width..][..width];
                let sum = &mut sums[*word as usize * width..][..width];
                sum.iter_mut().zip(bar).for_each(|(s, x)| *s += keep * x);
            }
        }
        gradients.truncate(tables.first);
        if !tables.tied {
            gradients.push(embedding);
        }
        gradients.extend([weight, bias]);
        timings::lap(timings, Phase::Gradient);
        let losses = losses.chunks(steps).map(|l| l.iter().sum::<f64>() / steps as f64).collect();
        let (penalties, states) = rows.into_iter().unzip();
        Ok(Found { losses, penalties, states, gradients })
    }

    fn forward(
        &self,
        memory: &mut Memory,
        tables: &Tables<'_>,
        features: usize,
    ) -> Result<Vec<(f64, RowState)>, (usize, NonFinite)> {
        let steps = self.window.steps;
        let jobs = self.teams(&mut memory.tapes, &mut memory.features, steps * features);
        let work = |_: &mut (), Team { first, tape, numbers: outputs }: Team<'_>| {
            let rows = self.bound.rows(tape);
            let carried = |row: usize| {
                if self.window.start == 0 { None } else { self.carried.get(first + row) }
            };
            let at = Address {
                seed: self.seed,
                domain: Domain::Train,
                episode: self.update as u32,
                row: first as u32,
            };
            self.bound.begin_team(tape, &(0..rows).map(carried).collect::<Vec<_>>());
            read(self.bound, self.wiring, tape, at, steps, &mut |row, t, x| {
                let word = self.words(first + row)[t];
                let keep = self.learner.keep(self.seed, self.update, word);
                embed(tables, word, x);
                if keep != 1.0 {
                    x.iter_mut().for_each(|x| *x *= keep);
                }
            });
            let mut found = vec![];
            for (row, outputs) in outputs.chunks_mut(steps * features).enumerate() {
                self.bound.select(tape, row);
                for (t, to) in outputs.chunks_mut(features).enumerate() {
                    to.copy_from_slice(self.bound.output(tape, t, self.wiring.output));
                    if to.iter().any(|x| !x.is_finite()) {
                        let at = Place::Output(self.wiring.output);
                        return Err((first + row, NonFinite { step: t, at }));
                    }
                }
                let state = self.bound.state(tape);
                let penalty = (0..steps).map(|t| f64::from(self.bound.penalty(tape, t))).sum();
                found.push((penalty, state));
            }
            Ok(found)
        };
        let found: Result<Vec<Vec<_>>, _> =
            parallel::run(&mut vec![(); self.threads], jobs, work).into_iter().collect();
        Ok(found?.into_iter().flatten().collect())
    }

    /// A job for each team, with its part of an array of so many numbers per row.
    fn teams<'t>(&self, tapes: &'t mut [Tape], mut numbers: &'t mut [f32], each: usize) -> Vec<Team<'t>> {
        let (mut jobs, mut first) = (vec![], 0);
        for tape in tapes {
            let rows = self.bound.rows(tape);
            let (own, rest) = numbers.split_at_mut(rows * each);
            numbers = rest;
            jobs.push(Team { first, tape, numbers: own });
            first += rows;
        }
        jobs
    }

    /// The gradients of the spec's parameters; those of inputs are left in the memory.
    fn backward(
        &self,
        memory: &mut Memory,
        features: usize,
        share: f32,
        mut spare: Vec<Vec<f32>>,
    ) -> Vec<Vec<f32>> {
        let (steps, width) = (self.window.steps, self.learner.embedding);
        let longest = memory.windows.longest();
        let sums = self.engine.sums();
        let jobs = self.teams(&mut memory.tapes, &mut memory.inputs_bar, steps * width);
        let bars: &[f32] = &memory.features_bar;
        let chunks = chunks(jobs);
        let work = |rooms: &mut Rooms, (number, teams): (usize, Vec<Team<'_>>)| {
            let mut grads = sums.zeros_without_products();
            for Team { first, tape, numbers: inputs } in teams {
                for row in 0..self.bound.rows(tape) {
                    self.bound.select(tape, row);
                    for t in 0..steps {
                        let bar = &bars[((first + row) * steps + t) * features..][..features];
                        self.bound.output_bar_mut(tape, t, self.wiring.output).copy_from_slice(bar);
                    }
                }
                let rows = self.bound.rows(tape);
                let room = rooms.entry(rows).or_insert_with(|| self.engine.room(longest, rows));
                tape.exchange(room);
                self.bound.backward(tape, &mut grads, share, None);
                tape.exchange(room);
                for (row, inputs) in inputs.chunks_mut(steps * width).enumerate() {
                    self.bound.select(tape, row);
                    for (t, to) in inputs.chunks_mut(width).enumerate() {
                        match self.bound.input_bar(tape, t, self.wiring.input) {
                            Some(bar) => to.copy_from_slice(bar),
                            None => to.fill(0.0),
                        }
                    }
                }
            }
            sums.add(number, grads);
        };
        parallel::run(&mut memory.rooms, chunks, work);
        sums.products(self.bound, &memory.tapes, self.threads, &mut spare);
        sums.finish(self.bound)
    }
}

/// Rows that step together.
struct Team<'t> {
    /// The first of its rows.
    first: usize,
    tape: &'t mut Tape,
    /// Its part of an array.
    numbers: &'t mut [f32],
}

/// Teams whose gradients are summed together: at most 16 sums, by a rule that knows no threads.
fn chunks(teams: Vec<Team<'_>>) -> Vec<(usize, Vec<Team<'_>>)> {
    let sizes: Vec<usize> = parallel::chunks(teams.len()).iter().map(|r| r.len()).collect();
    let mut teams = teams.into_iter();
    sizes.into_iter().map(|n| teams.by_ref().take(n).collect()).enumerate().collect()
}

/// Copies a word's embedding.
pub(super) fn embed(tables: &Tables<'_>, word: u32, x: &mut [f32]) {
    x.copy_from_slice(&tables.embedding[word as usize * x.len()..][..x.len()]);
}

/// Runs the steps of a window of a team whose first row has this address; `input` fills the embedded word of a
/// row and step.
pub(super) fn read(
    bound: &Bound<'_>,
    wiring: &Wiring,
    tape: &mut Tape,
    first: Address,
    steps: usize,
    input: &mut dyn FnMut(usize, usize, &mut [f32]),
) {
    let sizes = bound.engine().sizes();
    let mut noise: Vec<(InputId, Vec<f64>)> = vec![];
    let mut drawn = None;
    bound.forward_team(tape, steps, &mut |row, t, id, x| {
        if id == wiring.input {
            return input(row, t, x);
        }
        if drawn != Some((row, t)) {
            drawn = Some((row, t));
            noise.clear();
            let at = Address { row: first.row + row as u32, ..first };
            wiring.draw_noise(sizes, at, t, |id, x| noise.push((id, x)));
        }
        if let Some((_, from)) = noise.iter().find(|(known, _)| *known == id) {
            x.iter_mut().zip(from).for_each(|(x, n)| *x = *n as f32);
        }
    });
}
