//! Breadth first through all states, so that the first schedule that goes wrong is a shortest one.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt::{self, Display},
    hash::{BuildHasherDefault, Hasher},
};

use super::{
    actors::{State, Step},
    setup::Setup,
};

/// A bound that no set of roles here comes near; to reach it fails the test, as then not everything was seen.
const MOST_STATES: usize = 400_000;

/// What was found.
#[derive(Debug)]
pub(super) struct Explored {
    pub states: usize,
    /// The shortest schedule that ends with a wrong answer.
    pub wrong: Option<Schedule>,
}

/// Steps from the beginning to a wrong answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Schedule(pub Vec<Step>);

impl Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(at, step)| writeln!(f, "{:3}. {step}", at + 1))
    }
}

/// A step to another state.
pub(super) struct Next {
    pub step: Step,
    pub to: State,
    /// The step gave an answer that is too old.
    pub wrong: bool,
}

pub(super) fn explore(setup: &Setup) -> Explored {
    let first = State::first(setup);
    let mut seen: HashMap<State, (), BuildHasherDefault<Fx>> = HashMap::default();
    let mut from: Vec<(u32, Step)> = vec![(0, Step::default())];
    let mut layer = vec![(0u32, first.clone())];
    seen.insert(first, ());
    let schedule = |from: &[(u32, Step)], mut at: u32, last: Vec<Step>| {
        let mut steps = last;
        while at != 0 {
            let (before, step) = from[at as usize];
            steps.push(step);
            at = before;
        }
        steps.reverse();
        Some(Schedule(steps))
    };
    while !layer.is_empty() {
        let mut below = Vec::new();
        for (at, state) in layer {
            for Next { step, to, wrong } in state.next(setup) {
                if wrong {
                    return Explored { states: seen.len(), wrong: schedule(&from, at, vec![step]) };
                }
                let hit = to.too_old_a_hit(setup);
                if let Entry::Vacant(new) = seen.entry(to) {
                    if let Some(hit) = hit {
                        return Explored { states: seen.len(), wrong: schedule(&from, at, vec![hit, step]) };
                    }
                    below.push((from.len() as u32, new.key().clone()));
                    new.insert(());
                    from.push((at, step));
                }
            }
            assert!(seen.len() < MOST_STATES, "{setup:?}: too many states to see them all");
        }
        layer = below;
    }
    Explored { states: seen.len(), wrong: None }
}

/// Fast where hashing is not optimised.
#[derive(Default)]
struct Fx(u64);

impl Fx {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl Hasher for Fx {
    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.add(byte.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.add(word);
    }

    fn write_i64(&mut self, word: i64) {
        self.add(word as u64);
    }

    fn write_usize(&mut self, word: usize) {
        self.add(word as u64);
    }

    fn write_isize(&mut self, word: isize) {
        self.add(word as u64);
    }
}
