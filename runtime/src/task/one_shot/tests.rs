//! What episodes show, and to whom.

use super::*;
use crate::task::testing::{address, task};

const SMALL: &str = "characters = 20\nheld_out = 7\nside = 15\n";

fn images(task: &dyn Task, at: Address) -> (Vec<Vec<f32>>, Vec<Vec<f32>>, Vec<f32>) {
    let mut run = task.episode(at);
    let (mut seen, mut labels) = (vec![], vec![]);
    for t in 0..task.steps() {
        let (mut x, mut label) = (vec![0.0; task.inputs()], vec![0.0; task.labels()]);
        run.observe(t, &mut x);
        run.label(t, &mut label);
        assert_eq!(run.target(t).is_some(), t + 1 == task.steps());
        seen.push(x);
        labels.push(label);
    }
    let target = run.target(task.steps() - 1).expect("target").to_vec();
    (seen, labels, target)
}

#[test]
fn an_episode_as_published() {
    let task = task("one-shot", "");
    assert_eq!((task.steps(), task.inputs(), task.labels()), (6, 961, 5));
    assert_eq!(task.axes(), [("I", 961), ("O", 5)]);
    let (seen, labels, target) = images(&*task, address(1, 0));
    let mut shown: Vec<usize> = labels[..5].iter().map(|l| hot(l)).collect();
    assert!(labels[..5].iter().all(|l| l.iter().sum::<f32>() == 1.0));
    assert_eq!((labels[5].iter().sum::<f32>(), target.iter().sum::<f32>()), (0.0, 1.0));
    shown.sort_unstable();
    assert_eq!(shown, [0, 1, 2, 3, 4]);
    assert!(seen.iter().flatten().all(|x| (0.0..=1.0).contains(x)));
    assert!(seen.iter().all(|x| x.iter().sum::<f32>() > 961.0 / 2.0), "mostly paper");
    assert!(!seen[..5].contains(&seen[5]), "the test is another drawing");
    let again = images(&*task, address(1, 0));
    assert_eq!(again, (seen.clone(), labels, target));
    assert_ne!(images(&*task, address(1, 1)).0, seen);
}

/// The views of many episodes: which characters, which classes, which turns.
fn views(domain: Domain) -> Vec<Vec<View>> {
    let mut o = Options::new("task", SMALL.parse().expect("toml"));
    let task = OneShot::new(&mut o);
    let episode = |row: u32| {
        let at = Address { seed: 5, domain, episode: 2, row };
        let mut stream = at.stream(Purpose::World, 0);
        let places = distinct(&mut stream, task.pool(domain).len(), task.ways);
        assert_eq!(places.len(), 5);
        let mut run = task.episode(at);
        let mut seen = vec![];
        for t in 0..task.steps() {
            let mut x = vec![0.0; task.inputs()];
            run.observe(t, &mut x);
            seen.push(x);
        }
        let find = |x: &Vec<f32>| {
            let all = (0..20).flat_map(|c| (0..20).flat_map(move |d| (0..4).map(move |t| (c, d, t))));
            let same = |(c, d, t): &(usize, usize, usize)| {
                let mut image = vec![0.0; x.len()];
                turned(&task.characters().all[*c].drawings[*d], task.side, *t, &mut image);
                image == *x
            };
            let (character, drawing, turns) = all.into_iter().find(same).expect("a known drawing");
            View { class: 0, character, drawing, turns }
        };
        seen.iter().map(find).collect()
    };
    (0..12).map(episode).collect()
}

#[test]
fn held_out_characters_are_never_trained_on() {
    let used = |domain| {
        let mut all: Vec<usize> = views(domain).into_iter().flatten().map(|v| v.character).collect();
        all.sort_unstable();
        all.dedup();
        all
    };
    let (train, eval) = (used(Domain::Train), used(Domain::Eval));
    assert_eq!((train.len(), eval.len()), (13, 7));
    assert!(eval.iter().all(|c| !train.contains(c)));
}

#[test]
fn a_character_keeps_its_turn_for_an_episode() {
    let mut turns = [0; 4];
    for views in views(Domain::Train) {
        let test = views[5];
        let shown: Vec<&View> = views[..5].iter().filter(|v| v.character == test.character).collect();
        assert_eq!(shown.len(), 1);
        assert_eq!(shown[0].turns, test.turns);
        assert_ne!(shown[0].drawing, test.drawing);
        views.iter().for_each(|v| turns[v.turns] += 1);
    }
    assert!(turns.iter().all(|n| *n > 4), "{turns:?}");
}

#[test]
fn several_shots_and_no_turns() {
    let task = task("one-shot", "characters = 9\nheld_out = 4\nways = 3\nshots = 4\nrotations = false");
    assert_eq!((task.steps(), task.labels()), (13, 3));
    let (_, labels, _) = images(&*task, address(1, 0));
    for class in 0..3 {
        assert_eq!(labels.iter().filter(|l| l[class] == 1.0).count(), 4);
    }
}

#[test]
fn four_turns_are_none() {
    let pixels: Vec<u8> = (0..9).collect();
    let mut image = vec![0.0; 9];
    turned(&pixels, 3, 1, &mut image);
    let left: Vec<u8> = image.iter().map(|x| (x * 255.0).round() as u8).collect();
    assert_eq!(left, [2, 5, 8, 1, 4, 7, 0, 3, 6]);
    let mut now = pixels.clone();
    for _ in 0..4 {
        turned(&now, 3, 1, &mut image);
        now = image.iter().map(|x| (x * 255.0).round() as u8).collect();
    }
    assert_eq!(now, pixels);
    for turns in [2, 3] {
        let mut by_steps = pixels.clone();
        for _ in 0..turns {
            turned(&by_steps, 3, 1, &mut image);
            by_steps = image.iter().map(|x| (x * 255.0).round() as u8).collect();
        }
        turned(&pixels, 3, turns, &mut image);
        let at_once: Vec<u8> = image.iter().map(|x| (x * 255.0).round() as u8).collect();
        assert_eq!(at_once, by_steps);
    }
}

#[test]
fn guessing_is_right_by_chance() {
    let task = task("one-shot", SMALL);
    let hits = |row| task.episode(address(3, row)).scores(&[1.0, 0.0, 0.0, 0.0, 0.0], 0.0)[0];
    let rate = (0..2000).map(hits).sum::<f64>() / 2000.0;
    assert!((rate - 0.2).abs() < 4.0 * 0.009, "{rate}");
}

#[test]
fn too_few_characters() {
    let problem = |text: &str| {
        let mut o = Options::new("task", text.parse().expect("toml"));
        OneShot::new(&mut o);
        let (_, problems) = o.finish();
        problems
            .into_iter()
            .map(|p| format!("{}: {} [{}]", p.key, p.message, p.help.unwrap_or_default()))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        problem("characters = 20\nheld_out = 18"),
        [
            "task.held_out: of 20 characters, 18 are held out; an episode needs 5, from those or from the others \
          [hold out 5 to 15]"
        ]
    );
    assert!(problem("characters = 8\nheld_out = 4")[0].ends_with("[give more characters, or fewer `ways`]"));
    let missing = &problem("data = \"/no/such/folder\"")[0];
    assert!(
        missing.contains("cannot list `/no/such/folder`: no such file") && missing.contains("--data"),
        "{missing}"
    );
}
