//! Whether L1 may be used: the view of the epoch, the breaker, and the keys that L1 may hold stale values of.
//!
//! L1 is trusted while its breaker is healthy and nothing is remembered. A write that L1 did not confirm, and a read
//! whose SETTLE was lost, leave their key here; L1 is trusted again when every such write has ended and every such key
//! was removed from L1 (`watch` does it). The list is bounded: beyond the bound a new epoch makes it needless.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::{sync::Notify, time::Instant};

use super::breaker::Breaker;
use crate::{cache::Epoch, record::RecordKey, store::EpochState};

/// How old a view of the epoch may be.
pub const VIEW_LIFE: Duration = Duration::from_secs(2);
/// How long everybody bypasses L1 after a change of the epoch: longer than anybody's view lives.
const CHANGE_PAUSE: Duration = Duration::from_secs(3);
/// A server that starts takes an epoch of this age, by L2's clock, for one that everybody uses. Far more than the pause,
/// as a new primary's clock may differ.
const SETTLED_AGE: Duration = Duration::from_secs(60);
/// How long a word of the changes holds; there is one at least each half second.
const HEARD_LIFE: Duration = Duration::from_secs(2);
const ALWAYS: u64 = u64::MAX;
/// Keys remembered at most (some 20 MB).
const MAX_REMEMBERED: usize = 100_000;

/// How L1 may be used by one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L1Use {
    /// Fully, in this epoch.
    Trusted(Epoch),
    /// It may hold stale values of some keys, so nothing is read from it. Writes use it as ever: a permit counts whatever
    /// else L1 holds.
    Untrusted(Epoch),
    /// The epoch has just changed, and other servers may still use the one before: nothing is read, filled or marked, and
    /// nothing that is told to L1 makes a write `cached`.
    Paused(Epoch),
    /// L2 has not confirmed the epoch lately: clean hits may be answered as `degraded`, nothing may be filled.
    HitsOnly(Epoch),
    /// Not at all.
    Bypassed,
}

/// What this server knows of L1's trustworthiness.
pub struct Trust {
    /// Trips when L1 does not answer.
    pub breaker: Breaker,
    trusted: AtomicBool,
    /// Where L1 is this server's own, and others write to L2: until when it knows of their writes, in ms since `born`.
    /// `ALWAYS`: there is nobody to be followed.
    followed_until: AtomicU64,
    born: Instant,
    view: ArcSwapOption<View>,
    remembered: Mutex<Remembered>,
    wake: Notify,
    /// No other server can have another view of the epoch.
    exclusive: bool,
}

#[derive(Debug)]
struct View {
    state: EpochState,
    /// From before the read that told it.
    as_of: Instant,
    bypass_until: Option<Instant>,
}

impl View {
    fn is_paused(&self) -> bool {
        self.bypass_until.is_some_and(|until| Instant::now() < until)
    }
}

#[derive(Default)]
struct Remembered {
    keys: HashMap<RecordKey, Doubt>,
    overflow: bool,
    next: u64,
}

#[derive(Clone, Copy)]
struct Doubt {
    /// Writes of this key that have not ended.
    writes: u32,
    /// Changes whenever the key is remembered anew, so that an earlier removal does not count for it.
    stamp: u64,
}

impl Trust {
    pub(super) fn new(exclusive: bool) -> Self {
        Self {
            breaker: Breaker::new(3),
            trusted: AtomicBool::new(false),
            followed_until: AtomicU64::new(ALWAYS),
            born: Instant::now(),
            view: ArcSwapOption::empty(),
            remembered: Mutex::default(),
            wake: Notify::new(),
            exclusive,
        }
    }

    /// How a call that begins now may use L1.
    pub fn l1(&self) -> L1Use {
        // Before the view: trust that was restored in a later epoch must not meet an earlier view.
        let trusted = self.trusted.load(SeqCst);
        let view = self.view.load();
        let Some(view) = view.as_deref().filter(|_| self.breaker.is_healthy()) else {
            return L1Use::Bypassed;
        };
        let epoch = view.state.epoch;
        match (view.is_paused(), self.is_fresh(view), trusted) {
            (false, true, true) if !self.is_followed() => L1Use::Untrusted(epoch),
            (true, _, _) => L1Use::Paused(epoch),
            (false, true, true) => L1Use::Trusted(epoch),
            (false, true, false) => L1Use::Untrusted(epoch),
            (false, false, true) => L1Use::HitsOnly(epoch),
            (false, false, false) => L1Use::Bypassed,
        }
    }

    /// Whether what was told to L1 in `epoch` holds for everybody: it still stands, and nobody can be using another.
    pub fn holds(&self, epoch: Epoch) -> bool {
        let view = self.view.load();
        view.as_deref().is_some_and(|view| view.state.epoch == epoch && !view.is_paused() && self.is_fresh(view))
    }

    /// The epoch as it was last seen.
    pub fn epoch(&self) -> Option<EpochState> {
        self.view.load().as_deref().map(|view| view.state)
    }

    /// The epoch, if it was seen so lately that nobody can have filled L1 in a later one: after a change everybody
    /// bypasses L1 for longer than a view lives.
    pub fn fresh_epoch(&self) -> Option<EpochState> {
        let view = self.view.load();
        view.as_deref().filter(|view| self.is_fresh(view)).map(|view| view.state)
    }

    /// Nobody but us changes the epoch of an exclusive store, so no view of it is too old.
    fn is_fresh(&self, view: &View) -> bool {
        self.exclusive || view.as_of.elapsed() < VIEW_LIFE
    }

    /// Whether L1 is trusted.
    pub fn is_trusted(&self) -> bool {
        self.trusted.load(SeqCst)
    }

    /// How many keys are waiting to be removed from L1.
    pub fn remembered(&self) -> usize {
        self.lock().keys.len()
    }

    /// Takes what L2 said of the epoch, asked at `as_of`.
    pub(super) fn see(&self, state: EpochState, as_of: Instant) {
        let _one_at_a_time = self.lock();
        let known = self.view.load();
        let known = known.as_deref();
        if known.is_some_and(|known| known.as_of > as_of) {
            return; // an answer to an older question
        }
        let changed = match known {
            Some(known) => known.state.epoch != state.epoch,
            // At start: others may still use the epoch before this one.
            None => state.age < SETTLED_AGE,
        };
        let mut bypass_until = known.and_then(|known| known.bypass_until);
        if changed {
            bypass_until = (!self.exclusive).then(|| Instant::now() + CHANGE_PAUSE);
            let what = if known.is_some() { "new epoch, L1 starts cold" } else { "young epoch" };
            let pause = bypass_until.map_or(Duration::ZERO, |_| CHANGE_PAUSE);
            tracing::info!(epoch = %state.epoch, ?pause, "{what}: L1 is used once every server knows of it");
        }
        self.view.store(Some(View { state, as_of, bypass_until }.into()));
    }

    /// Remembers keys of which L1 may hold older values, and distrusts L1 until they are removed.
    pub(super) fn remember<'a>(&self, keys: impl IntoIterator<Item = &'a RecordKey>) {
        let mut remembered = self.lock();
        self.trusted.store(false, SeqCst);
        for key in keys {
            remembered.add(key, 0);
        }
        self.wake.notify_one();
    }

    /// Remembers keys before a write of them commits behind L1's back, until the guard is dropped and they are removed.
    pub(super) fn begin_bypassed(&self, keys: Vec<RecordKey>) -> BypassedWrite<'_> {
        let mut remembered = self.lock();
        self.trusted.store(false, SeqCst);
        for key in &keys {
            remembered.add(key, 1);
        }
        BypassedWrite { trust: self, keys }
    }

    /// Keys whose writes have ended, to be removed from L1, at most `most`.
    pub(super) fn to_remove(&self, most: usize) -> Vec<(RecordKey, u64)> {
        let remembered = self.lock();
        let ended = remembered.keys.iter().filter(|(_, doubt)| doubt.writes == 0);
        ended.take(most).map(|(key, doubt)| (key.clone(), doubt.stamp)).collect()
    }

    /// These were removed from L1; a key that was remembered anew meanwhile stays.
    pub(super) fn removed(&self, keys: &[(RecordKey, u64)]) {
        let mut remembered = self.lock();
        for (key, stamp) in keys {
            if remembered.keys.get(key).is_some_and(|doubt| doubt.stamp == *stamp && doubt.writes == 0) {
                remembered.keys.remove(key);
            }
        }
    }

    /// Whether only a new epoch can make L1 trustworthy.
    pub(super) fn needs_new_epoch(&self) -> bool {
        self.lock().overflow || self.epoch().is_some_and(|state| state.dirty)
    }

    /// A new epoch stands, asked for when the view was fresh: what was remembered and has ended is cold, because even an
    /// epoch that another server made was not filled yet when those writes ended. Late answers do not count.
    pub(super) fn renewed(&self, asked: Instant) {
        if !self.exclusive && asked.elapsed() > CHANGE_PAUSE - VIEW_LIFE {
            return;
        }
        let mut remembered = self.lock();
        remembered.overflow = false;
        remembered.keys.retain(|_, doubt| doubt.writes > 0);
    }

    /// Trusts L1 again, if nothing stands against it.
    pub(super) fn restore(&self) -> bool {
        let remembered = self.lock();
        let clear = remembered.keys.is_empty()
            && !remembered.overflow
            && self.breaker.is_healthy()
            && self.epoch().is_some_and(|state| !state.dirty);
        if clear {
            self.trusted.store(true, SeqCst);
        }
        clear
    }

    /// Distrusts L1 until it was looked at.
    pub(super) fn lost(&self) {
        let _guard = self.lock();
        self.trusted.store(false, SeqCst);
    }

    /// Nobody else's changes need to be followed.
    pub(super) fn follows_nobody(&self) {
        self.followed_until.store(ALWAYS, SeqCst);
    }

    /// The changes that others make are followed, and L1 was told of all so far. Where nobody is followed this says nothing.
    pub(super) fn heard(&self) {
        if self.followed_until.load(SeqCst) != ALWAYS {
            self.followed_until.store(self.age_ms() + HEARD_LIFE.as_millis() as u64, SeqCst);
        }
    }

    /// The changes that others make are not followed: nothing is read from L1 or filled into it, unless L2 is gone.
    pub(super) fn lost_track(&self) {
        self.followed_until.store(0, SeqCst);
    }

    fn is_followed(&self) -> bool {
        match self.followed_until.load(SeqCst) {
            ALWAYS => true,
            until => self.age_ms() < until,
        }
    }

    fn age_ms(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }

    /// Makes the watcher look at once.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
    fn add(&mut self, key: &RecordKey, writes: u32) {
        self.next += 1;
        let stamp = self.next;
        if let Some(doubt) = self.keys.get_mut(key) {
            *doubt = Doubt { writes: doubt.writes + writes, stamp };
        } else if self.keys.len() < MAX_REMEMBERED || writes > 0 {
            // Writes on their way are bounded by the calls in flight; the bound is for what has ended.
            self.keys.insert(key.detached(), Doubt { writes, stamp });
        } else {
            self.overflow = true;
        }
    }
}

/// Writes on their way behind L1's back.
pub(super) struct BypassedWrite<'a> {
    trust: &'a Trust,
    keys: Vec<RecordKey>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{EntityId, FeatureView};

    fn key(id: &str) -> RecordKey {
        RecordKey { view: FeatureView::parse("").unwrap(), entity_id: EntityId::parse(id).unwrap() }
    }

    fn state(epoch: u64, dirty: bool) -> EpochState {
        EpochState { epoch: Epoch(epoch), dirty, age: SETTLED_AGE }
    }

    fn trusted() -> Trust {
        let trust = Trust::new(false);
        trust.see(state(1, false), Instant::now());
        assert!(trust.restore());
        trust
    }

    #[tokio::test]
    async fn a_remembered_key_is_forgotten_only_when_its_write_has_ended_and_it_was_removed() {
        let trust = trusted();
        let write = trust.begin_bypassed(vec![key("a")]);
        assert_eq!(trust.l1(), L1Use::Untrusted(Epoch(1)));
        assert!(trust.to_remove(10).is_empty());
        assert!(!trust.restore());
        drop(write);
        let removing = trust.to_remove(10);
        assert_eq!(removing.len(), 1);
        drop(trust.begin_bypassed(vec![key("a")]));
        trust.removed(&removing);
        assert!(!trust.restore(), "remembered anew while it was being removed");
        trust.removed(&trust.to_remove(10));
        assert!(trust.restore());
    }

    #[tokio::test]
    async fn a_dirty_epoch_is_never_trusted_again() {
        let trust = trusted();
        trust.see(state(1, true), Instant::now());
        trust.remember([&key("a")]);
        trust.removed(&trust.to_remove(10));
        assert!(!trust.restore());
        trust.see(state(2, false), Instant::now());
        assert!(trust.restore());
        assert_eq!(trust.l1(), L1Use::Paused(Epoch(2)), "until everybody has seen the change");
        assert!(!trust.holds(Epoch(2)), "others may still use the epoch before");
    }

    #[tokio::test(start_paused = true)]
    async fn a_view_lives_two_seconds_and_a_change_pauses_three() {
        let trust = trusted();
        assert_eq!(trust.l1(), L1Use::Trusted(Epoch(1)));
        tokio::time::advance(VIEW_LIFE).await;
        assert_eq!(trust.l1(), L1Use::HitsOnly(Epoch(1)));
        assert!(!trust.holds(Epoch(1)));
        trust.see(state(2, false), Instant::now());
        assert_eq!(trust.l1(), L1Use::Paused(Epoch(2)));
        tokio::time::advance(CHANGE_PAUSE).await;
        trust.see(state(2, false), Instant::now());
        assert_eq!(trust.l1(), L1Use::Trusted(Epoch(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_starts_into_a_young_epoch_pauses_too() {
        let trust = Trust::new(false);
        trust.see(EpochState { age: Duration::from_secs(1), ..state(1, false) }, Instant::now());
        assert!(trust.restore());
        assert_eq!(trust.l1(), L1Use::Paused(Epoch(1)));
        let alone = Trust::new(true);
        alone.see(EpochState { age: Duration::ZERO, ..state(1, false) }, Instant::now());
        assert!(alone.restore());
        assert_eq!(alone.l1(), L1Use::Trusted(Epoch(1)), "nobody else can use another");
    }

    #[tokio::test(start_paused = true)]
    async fn what_must_be_followed_is_used_only_while_it_is() {
        let trust = trusted();
        trust.lost_track();
        assert_eq!(trust.l1(), L1Use::Untrusted(Epoch(1)));
        trust.heard();
        assert_eq!(trust.l1(), L1Use::Trusted(Epoch(1)));
        tokio::time::advance(HEARD_LIFE).await;
        trust.see(state(1, false), Instant::now());
        assert_eq!(trust.l1(), L1Use::Untrusted(Epoch(1)), "nothing was heard for too long");
        trust.follows_nobody();
        tokio::time::advance(HEARD_LIFE).await;
        trust.see(state(1, false), Instant::now());
        assert_eq!(trust.l1(), L1Use::Trusted(Epoch(1)));
    }

    #[tokio::test]
    async fn the_list_is_bounded_and_its_overflow_asks_for_a_new_epoch() {
        let trust = trusted();
        for i in 0..=MAX_REMEMBERED {
            drop(trust.begin_bypassed(vec![key(&i.to_string())]));
        }
        assert!(trust.remembered() <= MAX_REMEMBERED);
        assert!(trust.needs_new_epoch());
        trust.renewed(Instant::now());
        assert!(!trust.needs_new_epoch());
        assert!(trust.restore());
    }
}
