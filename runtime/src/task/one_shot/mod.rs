//! One-shot classification of characters (Miconi, Stanley, Clune 2018, §4.4; Lake, Salakhutdinov, Tenenbaum
//! 2015 for the data).
//!
//! An episode draws `ways` characters and turns each by a multiple of 90° of its own, for this episode. `shots`
//! drawings of every character are shown with their labels, one per step, in random order; then one more
//! drawing, made by another hand, of one of them, without a label. The network says which one it is. Classes
//! are numbered anew in every episode, so that only what was shown in the episode can tell.
//!
//! Some characters are held out: training never shows them, evaluation shows only them. Characters come from
//! the Omniglot data set, or are [generated].
//!
//! ```text
//! step          0        1      …  ways·shots − 1    ways·shots
//! input u       image    image     image             image of a character that was shown
//! label         class    class     class             0
//! target                                             class
//! ```

mod archive;
mod characters;
mod generated;

use super::{DeviceTask, Episode, Goal, Task, hot, likeliest};
use crate::encoder::Map;
use crate::options::Options;
use crate::rng::{Address, Domain, Purpose, Stream};
use characters::Characters;
use std::path::Path;
use std::sync::OnceLock;

/// The task.
pub struct OneShot {
    ways: usize,
    shots: usize,
    side: usize,
    rotations: usize,
    split_seed: u64,
    /// How many characters are generated, if they are.
    generated: usize,
    read: OnceLock<Characters>,
    /// Characters of training, then those held out.
    order: Vec<usize>,
    held_out: usize,
}

impl OneShot {
    /// Reads the options, and the characters if there is a folder of them.
    pub fn new(o: &mut Options) -> Self {
        let folder =
            o.folder("data", "folder of Omniglot's images_*.zip; empty: generated characters; also --data");
        let generated = o.size("characters", 300, 2..=1 << 16, "how many are generated, without data");
        let held_out = o.size("held_out", 100, 1..=1 << 16, "characters that only evaluation shows");
        let seed =
            o.integer("split_seed", 0, 0..=i64::MAX, "seed of which are held out, and of generated ones");
        let mut task = OneShot {
            ways: o.size("ways", 5, 2..=1 << 10, "characters of an episode"),
            shots: o.size("shots", 1, 1..=generated::DRAWINGS - 1, "labelled drawings of each"),
            side: o.size("side", 31, 5..=105, "edge of an image; drawings are reduced by averaging"),
            rotations: if o.flag("rotations", true, "turn every character by a multiple of 90 degrees") {
                4
            } else {
                1
            },
            split_seed: seed as u64,
            generated,
            read: OnceLock::new(),
            order: vec![],
            held_out,
        };
        let count = if folder.as_os_str().is_empty() { generated } else { task.load(o, &folder) };
        task.split(o, count);
        task
    }

    /// Reads a data set; gives the number of its characters.
    fn load(&mut self, o: &mut Options, folder: &Path) -> usize {
        let found = archive::read(folder, self.side).and_then(|c| c.check(self.shots + 1).map(|()| c));
        match found {
            Ok(characters) => {
                let count = characters.all.len();
                self.read = OnceLock::from(characters);
                count
            }
            Err(e) => {
                o.problem("data", e.message, Some(e.help.join("; ")));
                self.generated
            }
        }
    }

    fn split(&mut self, o: &mut Options, count: usize) {
        let (ways, held_out) = (self.ways, self.held_out);
        if held_out < ways || count < held_out + ways {
            let message = format!(
                "of {count} characters, {held_out} are held out; an episode needs {ways}, from those or from the others"
            );
            let help = match count < 2 * ways {
                true => "give more characters, or fewer `ways`".to_string(),
                false => format!("hold out {ways} to {}", count - ways),
            };
            o.problem("held_out", message, Some(help));
            self.held_out = 0;
        }
        self.order = Stream::named(self.split_seed, Purpose::Characters, "split").permutation(count);
    }

    fn characters(&self) -> &Characters {
        self.read.get_or_init(|| generated::draw(self.generated, self.side, self.split_seed))
    }

    /// The characters that a domain shows.
    fn pool(&self, domain: Domain) -> &[usize] {
        let (training, held_out) = self.order.split_at(self.order.len() - self.held_out);
        match domain {
            Domain::Train => training,
            Domain::Eval => held_out,
        }
    }
}

impl Task for OneShot {
    fn steps(&self) -> usize {
        self.ways * self.shots + 1
    }

    fn axes(&self) -> Vec<(&'static str, usize)> {
        vec![("I", self.inputs()), ("O", self.ways)]
    }

    fn inputs(&self) -> usize {
        self.side * self.side
    }

    fn image(&self) -> Option<Map> {
        Some(Map { height: self.side, width: self.side, channels: 1 })
    }

    fn labels(&self) -> usize {
        self.ways
    }

    fn goal(&self) -> Goal {
        Goal::Classify(self.ways)
    }

    fn scores(&self) -> &'static [&'static str] {
        &["accuracy"]
    }

    fn episode(&self, address: Address) -> Box<dyn Episode + '_> {
        let mut stream = address.stream(Purpose::World, 0);
        let pool = self.pool(address.domain);
        let places = distinct(&mut stream, pool.len(), self.ways);
        let tested = stream.below(self.ways);
        let mut shown = vec![];
        let mut test = None;
        for (class, place) in places.into_iter().enumerate() {
            let character = pool[place];
            let turns = stream.below(self.rotations);
            let drawings =
                distinct(&mut stream, self.characters().all[character].drawings.len(), self.shots + 1);
            let mut views = drawings.into_iter().map(|drawing| View { class, character, drawing, turns });
            test = if class == tested { views.next() } else { test };
            shown.extend(views.take(self.shots));
        }
        stream.shuffle(&mut shown);
        shown.extend(test);
        let target = (0..self.ways).map(|k| f32::from(u8::from(k == tested))).collect();
        Box::new(Run { task: self, views: shown, target })
    }

    fn device(&self) -> Option<DeviceTask> {
        let pool = self.pool(Domain::Train);
        let sizes = [self.side, self.ways, self.shots, self.rotations, pool.len()];
        let mut ints: Vec<i32> = sizes.map(|n| n as i32).into();
        let (mut drawn, mut pixels) = (0, vec![]);
        for character in pool {
            let drawings = &self.characters().all[*character].drawings;
            ints.extend([drawn, drawings.len() as i32]);
            drawn += drawings.len() as i32;
            drawings.iter().for_each(|drawing| pixels.extend_from_slice(drawing));
        }
        pixels.resize(pixels.len().next_multiple_of(4), 0);
        ints.extend(pixels.as_chunks().0.iter().map(|four| i32::from_le_bytes(*four)));
        Some(DeviceTask {
            source: include_str!("one_shot.cu"),
            ints,
            floats: vec![],
            doubles: vec![],
            row_ints: 1 + 3 * self.steps() + self.ways + self.shots + 1 + 2 * self.ways.max(self.shots + 1),
            row_floats: 0,
        })
    }
}

/// So many different numbers below `n`, in random order. `n` is at least `count`.
fn distinct(stream: &mut Stream, n: usize, count: usize) -> Vec<usize> {
    // A shuffle that stops early, over the places that it touched.
    let mut moved = std::collections::BTreeMap::new();
    let mut draw = |k: usize| {
        let at = k + stream.below(n - k);
        let found = moved.get(&at).copied().unwrap_or(at);
        let own = moved.get(&k).copied().unwrap_or(k);
        moved.insert(at, own);
        found
    };
    (0..count).map(&mut draw).collect()
}

/// A drawing as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct View {
    class: usize,
    character: usize,
    drawing: usize,
    /// Quarters of a turn.
    turns: usize,
}

/// An episode.
struct Run<'a> {
    task: &'a OneShot,
    /// By step.
    views: Vec<View>,
    target: Vec<f32>,
}

impl Episode for Run<'_> {
    fn observe(&mut self, step: usize, input: &mut [f32]) {
        let view = self.views[step];
        let pixels = &self.task.characters().all[view.character].drawings[view.drawing];
        turned(pixels, self.task.side, view.turns, input);
    }

    fn label(&self, step: usize, label: &mut [f32]) {
        if step + 1 < self.views.len() {
            label[self.views[step].class] = 1.0;
        }
    }

    fn target(&self, step: usize) -> Option<&[f32]> {
        (step + 1 == self.views.len()).then_some(&self.target)
    }

    fn scores(&self, output: &[f32], _: f64) -> Vec<f64> {
        vec![f64::from(u8::from(likeliest(output) == hot(&self.target)))]
    }
}

/// Writes a square image, turned to the left by so many quarters, as numbers from 0 to 1.
fn turned(pixels: &[u8], side: usize, turns: usize, image: &mut [f32]) {
    let end = side - 1;
    for (k, slot) in image.iter_mut().enumerate() {
        let (r, c) = (k / side, k % side);
        let from = match turns {
            0 => k,
            1 => c * side + end - r,
            2 => (end - r) * side + end - c,
            _ => (end - c) * side + r,
        };
        *slot = f32::from(pixels[from]) / 255.0;
    }
}

#[cfg(test)]
mod tests;
