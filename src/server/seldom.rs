//! Warnings that many clients could cause: one a while, with how many were held back.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

const WHILE: Duration = Duration::from_secs(10);

/// For one sort of warning.
#[derive(Debug, Default)]
pub(super) struct Seldom(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    last: Option<Instant>,
    held_back: u64,
}

impl Seldom {
    /// Whether it is time, and then how often it was not since the last time.
    pub(super) fn is_due(&self) -> Option<u64> {
        let mut said = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if said.last.is_some_and(|last| last.elapsed() < WHILE) {
            said.held_back += 1;
            return None;
        }
        said.last = Some(Instant::now());
        Some(std::mem::take(&mut said.held_back))
    }
}
