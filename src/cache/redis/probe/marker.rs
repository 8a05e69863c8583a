//! What a marker says about the data of a server: the rules, without a connection.
//!
//! Redis names each of its runs (`run_id`) and each history of its data (`master_replid`). A server
//! that becomes a master begins a new history and remembers the previous one (`master_replid2`). A
//! server that becomes a replica takes the history of its master. Every probe writes a *beat* into
//! the marker: which server verified data of which history, and when. Replication keeps the order,
//! so data with a beat also holds all that was acknowledged before it.
//!
//! - This process has itself verified this run and this history: the server has been the master
//!   since then, so the data is good. Exception: the marker is older than what this process saw in
//!   the same slot; then the server was set back to an earlier time. Another slot proves nothing,
//!   because the marker moves while slots of a cluster come and go, and the one left behind is not
//!   renewed.
//! - The marker is of this run and this history, and the beat is younger than 20 s: the data is
//!   good. With an older beat, a process that looks for the first time cannot tell whether the
//!   server was not used, or was set back as a whole.
//! - The marker is of the history that this server continues, it was written while this server ran,
//!   and the beat is younger than 20 s: a replica was promoted. What was lost with its master is
//!   younger than the beat, and the second pass of the repairer covers it. So the cache is kept.
//! - Anything else is data from an earlier time. A server that restarted loaded its beat from a
//!   file, so the beat is older than its run, even if the file names a history to continue. A
//!   replica that copied such data copied the old beat too, and a replica that lagged has a beat
//!   that is too old. A former master that took somebody's old data before it became a master again
//!   has the same run but another history. In doubt the data is old: a cold cache is always
//!   correct.

use std::collections::HashMap;

use crate::cache::Probe;

/// How old the beat of a promoted replica may be, in ms. What was lost is younger. The second pass
/// of the repairer applies all changes again after 30 s. Of these, 5 s are for clocks that differ
/// (`MAX_SKEW`), and 5 s for a repairer that used the old master until it noticed: 30 - 5 - 5 = 20.
const MAX_LOSS: i64 = 20_000;
/// How far the clocks of Redis servers may differ, in ms.
const MAX_SKEW: i64 = 5_000;
/// How far the clock of a server may be set back while it runs, in ms.
const MAX_STEP: i64 = 1_000;
/// `uptime_in_seconds` is the difference of two whole seconds.
const UPTIME_ROUNDING: i64 = 2_000;

/// A run of a server, and the history of its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) run: String,
    pub(super) history: String,
}

/// The content of a marker.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Marker {
    pub(super) by: Identity,
    /// The time by the clock of that server, in ms.
    pub(super) beat: i64,
}

impl Marker {
    /// Reads `<run> <history> <beat>`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ').map(str::to_owned);
        let by = Identity { run: words.next()?, history: words.next()? };
        Some(Self { by, beat: words.next()?.parse().ok()? })
    }
}

/// What a server says of itself.
#[derive(Clone, Debug)]
pub(super) struct Present {
    pub(super) identity: Identity,
    /// The history that its own continues, if any.
    pub(super) previous: Option<String>,
    /// Its clock, in ms.
    pub(super) now: i64,
    /// How long it has been running, in ms.
    pub(super) uptime: i64,
    /// It holds any keys, ours or others.
    pub(super) holds_keys: bool,
}

/// What this process verified of a server.
#[derive(Clone, Debug)]
pub(super) struct Verified {
    pub(super) by: Identity,
    /// The last verification by the clock of that server, in ms, for each key of the marker.
    beats: HashMap<String, i64>,
}

impl Verified {
    pub(super) fn new(by: Identity) -> Self {
        Self { by, beats: HashMap::new() }
    }

    /// Notes another verification. `marker`: where the marker is; None: it has no place for one.
    pub(super) fn again(&mut self, marker: Option<&str>, now: i64) {
        if let Some(marker) = marker {
            self.beats.insert(marker.to_owned(), now);
        }
    }

    /// The part that matters if the marker is there.
    pub(super) fn at(&self, marker: Option<&str>) -> Memory<'_> {
        Memory::This { by: &self.by, beat: marker.and_then(|marker| self.beats.get(marker)).copied() }
    }
}

/// What this process remembers of an epoch.
#[derive(Clone, Copy, Debug)]
pub(super) enum Memory<'a> {
    /// It has not verified this epoch yet.
    Nothing,
    /// It verified the epoch, but never this server.
    OtherServers,
    /// What it last verified here, and when, with the marker in its present slot. None: it was
    /// always in another slot.
    This { by: &'a Identity, beat: Option<i64> },
}

impl Memory<'_> {
    /// Whether this process verified this run and this history itself.
    pub(super) fn knows(self, identity: &Identity) -> bool {
        matches!(self, Self::This { by, .. } if by == identity)
    }
}

/// What the marker of a server (None: it has none) and the memory of this process say of its data.
pub(super) fn judge(present: &Present, marker: Option<&Marker>, memory: Memory<'_>) -> Probe {
    let is_intact = match marker {
        // Eviction and FLUSHALL may remove a marker. But a marker cannot be older than what this
        // process saw here.
        Some(marker) if memory.knows(&present.identity) => !is_older(marker, memory),
        None if memory.knows(&present.identity) => true,
        // A process that looks for the first time cannot know what happened before.
        Some(marker) if marker.by == present.identity => is_young(present, marker),
        Some(marker) => goes_on_from(present, marker),
        None if !present.holds_keys => true,
        // The marker may have been evicted. A server that was promoted or restarted should have
        // one.
        None => match memory {
            Memory::Nothing => true,
            Memory::OtherServers => present.previous.is_none(),
            Memory::This { .. } => false,
        },
    };
    if is_intact { Probe::Intact } else { Probe::Restored }
}

/// Whether a marker is older than what this process saw there.
fn is_older(marker: &Marker, memory: Memory<'_>) -> bool {
    matches!(memory, Memory::This { beat: Some(beat), .. } if marker.beat < beat - MAX_STEP)
}

/// Whether a server verified the data a short time ago.
fn is_young(present: &Present, marker: &Marker) -> bool {
    (-MAX_SKEW..=MAX_LOSS).contains(&(present.now - marker.beat))
}

/// Whether the data holds all that was acknowledged until a short time ago.
fn goes_on_from(present: &Present, marker: &Marker) -> bool {
    let is_same_run = marker.by.run == present.identity.run;
    let history = Some(&marker.by.history);
    let is_same_history = history == Some(&present.identity.history) || history == present.previous.as_ref();
    let came_while_running = marker.beat >= present.now - present.uptime + UPTIME_ROUNDING;
    is_young(present, marker) && (is_same_run || (is_same_history && came_while_running))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_790_000_000_000;

    fn identity(run: &str, history: &str) -> Identity {
        Identity { run: run.to_owned(), history: history.to_owned() }
    }

    fn marker(run: &str, history: &str, age: i64) -> Marker {
        Marker { by: identity(run, history), beat: NOW - age }
    }

    /// Run r1, whose history h1 continues h0. It has run for an hour.
    fn present() -> Present {
        let previous = Some("h0".to_owned());
        Present { identity: identity("r1", "h1"), previous, now: NOW, uptime: 3_600_000, holds_keys: true }
    }

    fn intact(present: &Present, marker: &Marker) -> bool {
        judge(present, Some(marker), Memory::Nothing) == Probe::Intact
    }

    #[test]
    fn a_marker_is_read_as_it_is_written() {
        let read = Marker::parse("r1 h1 1790000000000");
        assert_eq!(read, Some(marker("r1", "h1", 0)));
        assert_eq!(Marker::parse("r1"), None, "an earlier version's");
    }

    fn verified(run: &str, history: &str, age: i64) -> Verified {
        let mut verified = Verified::new(identity(run, history));
        verified.again(Some("here"), NOW - age);
        verified
    }

    fn this(verified: &Verified) -> Memory<'_> {
        verified.at(Some("here"))
    }

    #[test]
    fn who_was_the_master_all_the_time_is_intact_for_who_knows_it() {
        let (known, old) = (verified("r1", "h1", 1 << 40), marker("r1", "h1", 1 << 40));
        assert_eq!(judge(&present(), Some(&old), this(&known)), Probe::Intact, "whatever the age");
        let known = verified("r1", "h1", 500);
        assert_eq!(judge(&present(), Some(&marker("r1", "h1", 900)), this(&known)), Probe::Intact);
        let set_back = judge(&present(), Some(&marker("r1", "h1", 3_000)), this(&known));
        assert_eq!(set_back, Probe::Restored, "the whole machine, to an earlier time");
    }

    #[test]
    fn what_was_seen_in_another_place_says_nothing_of_a_marker() {
        let mut known = verified("r1", "h1", 9_000);
        let left_behind = marker("r1", "h1", 9_000);
        // A slot came with its marker, and has left again.
        known.again(Some("in the slot that came"), NOW - 500);
        assert_eq!(judge(&present(), Some(&left_behind), this(&known)), Probe::Intact, "nobody renewed it meanwhile");
        let arrived = judge(&present(), Some(&marker("r5", "h5", 9_000)), known.at(Some("in a slot that came later")));
        assert_eq!(arrived, Probe::Intact, "another server wrote it last");
        let set_back = judge(&present(), Some(&marker("r1", "h1", 11_000)), this(&known));
        assert_eq!(set_back, Probe::Restored, "older than it was in the same place");
        assert_eq!(judge(&present(), Some(&left_behind), Memory::Nothing), Probe::Intact);
    }

    #[test]
    fn who_looks_for_the_first_time_does_not_believe_an_old_marker() {
        assert!(intact(&present(), &marker("r1", "h1", 20_000)));
        assert!(!intact(&present(), &marker("r1", "h1", 20_001)));
        let old = marker("r1", "h1", 20_001);
        assert_eq!(judge(&present(), Some(&old), Memory::OtherServers), Probe::Restored);
    }

    #[test]
    fn a_promoted_replica_is_intact_while_what_was_lost_is_short() {
        assert!(intact(&present(), &marker("r0", "h0", 19_000)));
        assert!(!intact(&present(), &marker("r0", "h0", 21_000)), "a lagging one");
        assert!(!intact(&present(), &marker("r0", "h0", -6_000)), "its clock is far off");
        assert!(!intact(&present(), &marker("r0", "h9", 1_000)), "another history");
    }

    #[test]
    fn a_server_that_loaded_its_marker_from_a_file_is_not() {
        let restarted = Present { uptime: 5_000, ..present() };
        assert!(!intact(&restarted, &marker("r0", "h0", 6_000)), "though the file names the history");
        assert!(!intact(&restarted, &marker("r0", "h0", 4_000)), "seconds are rounded");
        assert!(intact(&restarted, &marker("r0", "h0", 1_000)), "this one came by replication");
    }

    #[test]
    fn a_master_of_old_that_took_on_old_data_is_not() {
        assert!(!intact(&present(), &marker("r1", "h7", 21_000)));
        assert!(intact(&present(), &marker("r1", "h7", 1_000)), "what is lost is short");
    }

    #[test]
    fn what_this_process_knows_counts_where_the_marker_is_gone() {
        let (known, other) = (verified("r1", "h1", 500), verified("r0", "h0", 500));
        for (memory, holds_keys, expected) in [
            (Memory::Nothing, true, Probe::Intact),
            (this(&known), true, Probe::Intact),
            (this(&other), true, Probe::Restored),
            (this(&other), false, Probe::Intact),
            (Memory::OtherServers, true, Probe::Restored),
            (Memory::OtherServers, false, Probe::Intact),
        ] {
            let present = Present { holds_keys, ..present() };
            assert_eq!(judge(&present, None, memory), expected, "{memory:?}, {holds_keys}");
        }
        let never_promoted = Present { previous: None, ..present() };
        assert_eq!(judge(&never_promoted, None, Memory::OtherServers), Probe::Intact, "a new master of a cluster");
        let moved = marker("r5", "h5", 0);
        assert_eq!(judge(&present(), Some(&moved), this(&known)), Probe::Intact, "a slot moved here");
        assert_eq!(judge(&present(), Some(&moved), Memory::OtherServers), Probe::Restored);
    }
}
