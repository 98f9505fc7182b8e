//! Generated characters: a few curved strokes, drawn again and again by hands that are not steady.
//!
//! A character is two to four quadratic Bézier curves in the unit square. A drawing moves every control
//! point a little, turns, stretches and shifts the whole, and takes a pen of its own width. The ink of a pixel is
//! how much of it the pen covers, judged by the distance of its centre from the curve.

use super::characters::{Character, Characters};
use crate::rng::{Purpose, Stream};

/// Drawings of a character, as many as Omniglot has.
pub(super) const DRAWINGS: usize = 20;
/// Straight pieces of a stroke.
const PIECES: usize = 10;

type Point = [f64; 2];
type Stroke = [Point; 3];

/// Draws so many characters.
pub(super) fn draw(count: usize, side: usize, seed: u64) -> Characters {
    let character = |k: usize| {
        let name = format!("generated/character{k:05}");
        let mut stream = Stream::named(seed, Purpose::Characters, &name);
        let strokes = strokes(&mut stream);
        let drawings = (0..DRAWINGS).map(|_| drawing(&strokes, side, &mut stream)).collect();
        Character { name, drawings }
    };
    Characters { all: (0..count).map(character).collect() }
}

fn strokes(stream: &mut Stream) -> Vec<Stroke> {
    let count = 2 + stream.below(3);
    let mut point = || [0.12 + 0.76 * stream.uniform(), 0.12 + 0.76 * stream.uniform()];
    let mut stroke = || loop {
        let s = [point(), point(), point()];
        if distance(s[0], s[2]) + distance(s[0], s[1]) > 0.5 {
            return s;
        }
    };
    (0..count).map(|_| stroke()).collect()
}

fn distance(a: Point, b: Point) -> f64 {
    (a[0] - b[0]).hypot(a[1] - b[1])
}

fn drawing(strokes: &[Stroke], side: usize, stream: &mut Stream) -> Vec<u8> {
    let (angle, pen) = (0.12 * stream.normal(), (0.035 + 0.02 * stream.uniform()) * side as f64);
    let stretch: Point = [1.0 + 0.08 * stream.normal(), 1.0 + 0.08 * stream.normal()];
    let shift: Point = [0.5 + 0.03 * stream.normal(), 0.5 + 0.03 * stream.normal()];
    let mut ink = vec![0.0f64; side * side];
    for stroke in strokes {
        let moved = stroke.map(|p| {
            let (x, y) = (p[0] - 0.5 + 0.025 * stream.normal(), p[1] - 0.5 + 0.025 * stream.normal());
            let turned = [x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()];
            [0, 1].map(|k| (turned[k] * stretch[k] + shift[k]) * side as f64)
        });
        let points: Vec<Point> = (0..=PIECES).map(|k| curve(&moved, k as f64 / PIECES as f64)).collect();
        points.windows(2).for_each(|w| line(&mut ink, side, (w[0], w[1]), pen));
    }
    ink.iter().map(|ink| (255.0 * (1.0 - ink) + 0.5).floor() as u8).collect()
}

/// A point of a quadratic Bézier curve.
fn curve(s: &Stroke, t: f64) -> Point {
    let r = 1.0 - t;
    [0, 1].map(|k| r * r * s[0][k] + 2.0 * r * t * s[1][k] + t * t * s[2][k])
}

/// Inks the pixels near a straight piece; a pixel keeps the most that any piece gives it.
fn line(ink: &mut [f64], side: usize, (a, b): (Point, Point), pen: f64) {
    let reach = pen / 2.0 + 1.0;
    let range = |k: usize| {
        let low = (a[k].min(b[k]) - reach).max(0.0) as usize;
        let high = (a[k].max(b[k]) + reach).clamp(0.0, side as f64) as usize;
        low..high
    };
    for r in range(1) {
        for c in range(0) {
            let p = [c as f64 + 0.5, r as f64 + 0.5];
            let covered = (pen / 2.0 + 0.5 - from_piece(p, a, b)).clamp(0.0, 1.0);
            let slot = &mut ink[r * side + c];
            *slot = slot.max(covered);
        }
    }
}

/// The distance of a point from a straight piece.
fn from_piece(p: Point, a: Point, b: Point) -> f64 {
    let along = [b[0] - a[0], b[1] - a[1]];
    let length = along[0] * along[0] + along[1] * along[1];
    let dot = (p[0] - a[0]) * along[0] + (p[1] - a[1]) * along[1];
    let t = if length > 0.0 { (dot / length).clamp(0.0, 1.0) } else { 0.0 };
    distance(p, [a[0] + t * along[0], a[1] + t * along[1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How different two images are: the mean of the squares, from 0 to 1.
    fn apart(a: &[u8], b: &[u8]) -> f64 {
        let square = |(x, y): (&u8, &u8)| (f64::from(*x) - f64::from(*y)).powi(2) / 65_025.0;
        a.iter().zip(b).map(square).sum::<f64>() / a.len() as f64
    }

    #[test]
    fn drawings_of_a_character_are_alike_and_not_the_same() {
        let found = draw(12, 31, 3);
        assert_eq!(found, draw(12, 31, 3));
        assert_ne!(found, draw(12, 31, 4));
        let (mut same, mut other) = (vec![], vec![]);
        for (k, a) in found.all.iter().enumerate() {
            assert_eq!((a.drawings.len(), a.drawings[0].len()), (DRAWINGS, 961));
            let ink =
                a.drawings.iter().flatten().map(|p| 1.0 - f64::from(*p) / 255.0).sum::<f64>() / 19_220.0;
            assert!((0.02..0.35).contains(&ink), "{ink}");
            same.push(apart(&a.drawings[0], &a.drawings[1]));
            other.extend(found.all[..k].iter().map(|b| apart(&a.drawings[0], &b.drawings[0])));
        }
        let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
        assert!(mean(&same) > 0.01 && mean(&same) < 0.8 * mean(&other), "{} {}", mean(&same), mean(&other));
    }
}
