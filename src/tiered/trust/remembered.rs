//! The keys that L1 may hold stale values of, and the bypassed writes that have not ended.

use std::collections::HashMap;

use super::Trust;
use crate::record::RecordKey;

/// Keys remembered at most (some 20 MB).
pub(super) const MAX_REMEMBERED: usize = 100_000;

#[derive(Default)]
pub(super) struct Remembered {
    pub(super) keys: HashMap<RecordKey, Doubt>,
    pub(super) overflow: bool,
    next: u64,
}

#[derive(Clone, Copy)]
pub(super) struct Doubt {
    /// Writes of this key that have not ended.
    pub(super) writes: u32,
    /// Changes whenever the key is remembered again, so that an earlier removal does not count for
    /// it.
    pub(super) stamp: u64,
}

impl Remembered {
    pub(super) fn add(&mut self, key: &RecordKey, writes: u32) {
        self.next += 1;
        let stamp = self.next;
        if let Some(doubt) = self.keys.get_mut(key) {
            *doubt = Doubt { writes: doubt.writes + writes, stamp };
        } else if self.keys.len() < MAX_REMEMBERED || writes > 0 {
            // Bypassed writes are bounded by the calls in flight. The bound is for keys whose
            // writes have ended.
            self.keys.insert(key.detached(), Doubt { writes, stamp });
        } else {
            self.overflow = true;
        }
    }
}

/// Bypassed writes that have not ended. When it is dropped, their keys may be removed from L1.
pub(in super::super) struct BypassedWrite<'a> {
    pub(super) trust: &'a Trust,
    pub(super) keys: Vec<RecordKey>,
}

impl Drop for BypassedWrite<'_> {
    fn drop(&mut self) {
        let mut remembered = self.trust.lock();
        let full = remembered.keys.len() > MAX_REMEMBERED;
        for key in &self.keys {
            remembered.next += 1;
            let stamp = remembered.next;
            if let Some(doubt) = remembered.keys.get_mut(key) {
                *doubt = Doubt { writes: doubt.writes.saturating_sub(1), stamp };
                if full && doubt.writes == 0 {
                    remembered.keys.remove(key);
                    remembered.overflow = true;
                }
            }
        }
        drop(remembered);
        self.trust.wake();
    }
}
