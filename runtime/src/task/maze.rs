//! Grid maze (Miconi et al. 2019, §4.2): find the reward, return to it from wherever you are put.
//!
//! A grid of `size`×`size` cells has walls at its border and pillars where row and column are both
//! even; the centre is always free. The agent starts at the centre and sees the 3×3 cells around
//! it. The reward cell is hidden and fixed for the episode; reaching it pays `reward` and puts the
//! agent on a random free cell other than the reward cell.

use super::{DeviceTask, Episode, Goal, Task, one_hot};
use crate::options::Options;
use crate::rng::{Address, Purpose, Stream};

/// Which inputs there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// As released: patch (9), an unused zero, bias, time, previous reward, previous action (4).
    Code,
    /// As printed: patch (9), previous action (4), previous reward.
    Paper,
}

/// The task.
#[derive(Clone, Debug)]
pub struct Maze {
    grid: Grid,
    steps: usize,
    reward: f32,
    wall_penalty: f32,
    layout: Layout,
    starts_up: bool,
}

/// The cells of a maze.
#[derive(Clone, Debug)]
struct Grid {
    size: usize,
    free: Vec<usize>,
}

impl Grid {
    fn new(size: usize) -> Self {
        let mut grid = Grid { size, free: vec![] };
        grid.free = (0..size * size).filter(|&cell| !grid.is_wall(cell)).collect();
        grid
    }

    fn centre(&self) -> usize {
        self.size / 2 * self.size + self.size / 2
    }

    fn is_wall(&self, cell: usize) -> bool {
        let (row, column, last) = (cell / self.size, cell % self.size, self.size - 1);
        let border = row == 0 || column == 0 || row == last || column == last;
        let pillar = row % 2 == 0 && column % 2 == 0;
        border || (pillar && cell != self.centre())
    }

    /// Where an action (up, down, left, right) leads; `None` into a wall.
    fn moved(&self, cell: usize, action: usize) -> Option<usize> {
        let next = match action {
            0 => cell - self.size,
            1 => cell + self.size,
            2 => cell - 1,
            _ => cell + 1,
        };
        (!self.is_wall(next)).then_some(next)
    }

    /// The cells around a cell, row by row: 1 for a wall.
    fn patch(&self, cell: usize, out: &mut [f32]) {
        for (k, slot) in out.iter_mut().enumerate().take(9) {
            let around = cell + k / 3 * self.size + k % 3 - self.size - 1;
            *slot = f32::from(u8::from(self.is_wall(around)));
        }
    }

    /// A random free cell other than one.
    fn random_free(&self, stream: &mut Stream, other_than: usize) -> usize {
        loop {
            let cell = self.free[stream.below(self.free.len())];
            if cell != other_than {
                return cell;
            }
        }
    }
}

impl Maze {
    /// Reads the options.
    pub fn new(o: &mut Options) -> Self {
        let size = o.size("size", 11, 5..=101, "cells along an edge, walls included; odd");
        if size.is_multiple_of(2) {
            let message = format!("a maze has an odd number of cells along an edge, but `size` is {size}");
            o.problem("size", message, Some(format!("the nearest sizes are {} and {}", size - 1, size + 1)));
        }
        let layout = ["code", "paper"];
        let starts = ["none", "up"];
        Maze {
            grid: Grid::new(size),
            steps: o.size("steps", 200, 1..=1_000_000, "steps of an episode"),
            reward: o.number("reward", 10.0, 0.0..=1e6, "reward of reaching the reward cell") as f32,
            wall_penalty: o.number("wall_penalty", 0.0, 0.0..=1e6, "cost of walking into a wall") as f32,
            layout: match o.choice("layout", 0, &layout, "inputs as released, or as printed") {
                0 => Layout::Code,
                _ => Layout::Paper,
            },
            starts_up: o.choice("first_previous_action", 0, &starts, "what step 0 sees; \"up\" as released")
                == 1,
        }
    }
}

impl Task for Maze {
    fn steps(&self) -> usize {
        self.steps
    }

    fn axes(&self) -> Vec<(&'static str, usize)> {
        vec![("I", self.inputs()), ("A", 4)]
    }

    fn inputs(&self) -> usize {
        match self.layout {
            Layout::Code => 17,
            Layout::Paper => 14,
        }
    }

    fn goal(&self) -> Goal {
        Goal::Act(4)
    }

    fn scores(&self) -> &'static [&'static str] {
        &["return"]
    }

    fn episode(&self, address: Address) -> Box<dyn Episode + '_> {
        let goal = self.grid.random_free(&mut address.stream(Purpose::World, 0), self.grid.centre());
        let action = self.starts_up.then_some(0);
        Box::new(Run { task: self, address, goal, cell: self.grid.centre(), action, reward: 0.0 })
    }

    fn device(&self) -> Option<DeviceTask> {
        let (size, free) = (self.grid.size as i32, self.grid.free.len() as i32);
        let printed = i32::from(self.layout == Layout::Paper);
        let mut ints = vec![size, self.steps as i32, printed, i32::from(self.starts_up), free];
        ints.extend(self.grid.free.iter().map(|cell| *cell as i32));
        Some(DeviceTask {
            source: include_str!("maze.cu"),
            ints,
            floats: vec![self.reward, self.wall_penalty],
            doubles: vec![],
            row_ints: 3,
            row_floats: 1,
        })
    }
}

/// An episode.
struct Run<'a> {
    task: &'a Maze,
    address: Address,
    goal: usize,
    cell: usize,
    action: Option<usize>,
    reward: f32,
}

impl Episode for Run<'_> {
    fn observe(&mut self, step: usize, input: &mut [f32]) {
        self.task.grid.patch(self.cell, &mut input[..9]);
        match self.task.layout {
            Layout::Code => {
                input[10] = 1.0;
                input[11] = step as f32 / self.task.steps as f32;
                input[12] = self.reward;
                one_hot(&mut input[13..], self.action);
            }
            Layout::Paper => {
                one_hot(&mut input[9..13], self.action);
                input[13] = self.reward;
            }
        }
    }

    fn previous_reward(&self) -> f32 {
        self.reward
    }

    fn act(&mut self, step: usize, action: usize) -> f32 {
        self.action = Some(action);
        self.reward = 0.0;
        match self.task.grid.moved(self.cell, action) {
            Some(cell) => self.cell = cell,
            None => self.reward -= self.task.wall_penalty,
        }
        if self.cell == self.goal {
            self.reward += self.task.reward;
            let mut stream = self.address.stream(Purpose::World, step as u32 + 1);
            self.cell = self.task.grid.random_free(&mut stream, self.goal);
        }
        self.reward
    }

    fn scores(&self, _output: &[f32], reward: f64) -> Vec<f64> {
        vec![reward]
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{address, task};
    use super::*;

    /// Steps from every cell to `goal`.
    fn distances(grid: &Grid, goal: usize) -> Vec<usize> {
        let mut distance = vec![usize::MAX; grid.size * grid.size];
        distance[goal] = 0;
        let mut queue = std::collections::VecDeque::from([goal]);
        while let Some(cell) = queue.pop_front() {
            for next in (0..4).filter_map(|a| grid.moved(cell, a)) {
                if distance[next] == usize::MAX {
                    distance[next] = distance[cell] + 1;
                    queue.push_back(next);
                }
            }
        }
        distance
    }

    /// The exact mean return and number of bumps of the uniformly random walk.
    fn random_walk(grid: &Grid, steps: usize) -> (f64, f64) {
        let goals: Vec<usize> = grid.free.iter().copied().filter(|&g| g != grid.centre()).collect();
        let (mut pay, mut bumps) = (0.0, 0.0);
        for &goal in &goals {
            let mut here = vec![0.0; grid.size * grid.size];
            here[grid.centre()] = 1.0;
            for _ in 0..steps {
                let mut next = vec![0.0; here.len()];
                for &cell in &grid.free {
                    for action in 0..4 {
                        let p = here[cell] / 4.0;
                        match grid.moved(cell, action) {
                            Some(to) => next[to] += p,
                            None => {
                                next[cell] += p;
                                bumps += p;
                            }
                        }
                    }
                }
                let hit = std::mem::take(&mut next[goal]);
                pay += 10.0 * hit;
                for &cell in grid.free.iter().filter(|&&c| c != goal) {
                    next[cell] += hit / (grid.free.len() - 1) as f64;
                }
                here = next;
            }
        }
        (pay / goals.len() as f64, bumps / goals.len() as f64)
    }

    /// The exact mean return of an agent that knows the goal and the shortest way.
    fn omniscient(grid: &Grid, steps: usize) -> f64 {
        let goals: Vec<usize> = grid.free.iter().copied().filter(|&g| g != grid.centre()).collect();
        let mut total = 0.0;
        for &goal in &goals {
            let distance = distances(grid, goal);
            let mut hits = vec![0.0; steps + 1];
            for left in 1..=steps {
                let reachable = grid.free.iter().filter(|&&c| c != goal && distance[c] <= left);
                let sum: f64 = reachable.map(|&c| 1.0 + hits[left - distance[c]]).sum();
                hits[left] = sum / (grid.free.len() - 1) as f64;
            }
            total += 10.0 * (1.0 + hits[steps - distance[grid.centre()]]);
        }
        total / goals.len() as f64
    }

    #[test]
    fn exact_numbers_of_the_environment() {
        let cases = [
            (9, 41, 14.370, 71.45, 416.23),
            (11, 65, 7.718, 75.79, 324.23),
            (13, 97, 5.384, 69.00, 269.57),
            (15, 129, 3.700, 72.07, 228.29),
        ];
        for (size, free, random, bumps, best) in cases {
            let grid = Grid::new(size);
            if size < 15 {
                assert_eq!(grid.free.len(), free, "free cells at {size}");
            }
            let (r, b) = random_walk(&grid, 200);
            assert!((r - random).abs() < 6e-4 && (b - bumps).abs() < 6e-3, "{size}: {r} {b}");
            let o = omniscient(&grid, 200);
            assert!((o - best).abs() < 6e-3, "{size}: {o}");
        }
        let (random, best) = (random_walk(&Grid::new(11), 250).0, omniscient(&Grid::new(11), 250));
        assert!((random - 9.447).abs() < 6e-4 && (best - 405.3).abs() < 0.06, "{random} {best}");
    }

    /// The environment as the network lives in it has the mean that the transition table predicts.
    #[test]
    fn a_random_policy_earns_what_it_should() {
        for (options, mean, sd) in
            [("", 7.718, 9.4), ("size = 13", 5.384, 7.8), ("wall_penalty = 0.1", 0.139, 9.5)]
        {
            let task = task("maze", options);
            let mut total = 0.0;
            for row in 0..20_000 {
                let mut run = task.episode(address(3, row));
                let mut policy = address(4, row).stream(Purpose::Action, 0);
                for t in 0..200 {
                    total += f64::from(run.act(t, policy.below(4)));
                }
            }
            let found = total / 20_000.0;
            assert!((found - mean).abs() < 4.0 * sd / 141.4, "{options}: {found}");
        }
    }

    fn first_input(options: &str) -> Vec<f32> {
        let task = task("maze", options);
        let mut input = vec![0.0; task.inputs()];
        task.episode(address(1, 0)).observe(0, &mut input);
        input
    }

    #[test]
    fn what_the_agent_sees_first() {
        let crossing = [1., 0., 1., 0., 0., 0., 1., 0., 1.];
        assert_eq!(first_input("")[..9], crossing);
        assert_eq!(first_input("")[9..], [0., 1., 0., 0., 0., 0., 0., 0.]);
        assert_eq!(first_input("first_previous_action = \"up\"")[13..], [1., 0., 0., 0.]);
        assert_eq!(first_input("size = 13")[..9], [0.0; 9]);
        assert_eq!(first_input("layout = \"paper\"").len(), 14);
    }

    #[test]
    fn walls_stop_and_rewards_teleport() {
        let task = task("maze", "wall_penalty = 0.5");
        let mut hits = 0;
        for row in 0..50 {
            let mut run = task.episode(address(9, row));
            let mut policy = address(9, row).stream(Purpose::Action, 0);
            for t in 0..200 {
                let mut input = vec![0.0; 17];
                run.observe(t, &mut input);
                let action = policy.below(4);
                let blocked = input[[1, 7, 3, 5][action]] == 1.0;
                let reward = run.act(t, action);
                assert_eq!(blocked, reward == -0.5);
                assert!([0.0, -0.5, 10.0].contains(&reward));
                hits += usize::from(reward == 10.0);
            }
        }
        assert!(hits > 10);
    }
}
