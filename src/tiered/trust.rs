//! Whether L1 may be used. This depends on the view of the epoch, on the L1 that the epoch names,
//! on the breaker, and on the remembered keys, of which L1 may hold stale values.
//!
//! L1 is trusted while its breaker is closed and no key is remembered. A write that L1 did not
//! confirm, and a read whose SETTLE was lost, remember their keys here. L1 is trusted again when
//! each such write has ended and each such key was removed from L1 (`watch` does it). The list is
//! bounded; beyond the bound a new epoch replaces it.
//!
//! An L1 that the epoch does not name is not used. After a change of the epoch, or of the named L1,
//! all servers bypass L1 for longer than a view lives, so two epochs never count at once.

mod remembered;
#[cfg(test)]
mod tests;
mod view;

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::{sync::Notify, time::Instant};

pub(super) use self::remembered::BypassedWrite;
use self::{
    remembered::Remembered,
    view::{Age, Role, View},
};
use super::breaker::Breaker;
use crate::{
    cache::{Epoch, L1Name},
    record::{Clock, Millis, RecordKey},
    store::EpochState,
};

/// How long a view of the epoch may be used.
pub const VIEW_LIFE: Duration = Duration::from_secs(2);
/// How long all servers bypass L1 after a change of the epoch: longer than a view lives.
const CHANGE_PAUSE: Duration = Duration::from_secs(3);
/// At start, an epoch of this age, by L2's clock, counts as known to all servers. Far more than the
/// pause, as the clock of a new primary may differ.
const SETTLED_AGE: Duration = Duration::from_secs(60);
/// How long L1 may be used after the last news of the change stream; some come each half second.
const HEARD_LIFE: Duration = Duration::from_secs(2);
const ALWAYS: u64 = u64::MAX;
/// By how much more than the monotonic clock the wall clock may advance between two views.
const SUSPENDED: Duration = Duration::from_secs(1);

/// How one call may use L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L1Use {
    /// Fully, in this epoch.
    Trusted(Epoch),
    /// L1 may hold stale values of some keys, so nothing is read from it. Writes use it as always:
    /// a permit counts whatever else L1 holds.
    Untrusted(Epoch),
    /// The epoch has just changed, and other servers may still use the one before. Nothing is read,
    /// filled or marked, and no confirmation of L1 makes a write `cached`.
    Paused(Epoch),
    /// L2 has not confirmed the epoch lately. Clean hits are `degraded`, and nothing may be filled.
    HitsOnly(Epoch),
    /// Not at all.
    Bypassed,
}

/// What this server knows about whether L1 may be used.
pub struct Trust {
    /// The circuit breaker of L1.
    pub breaker: Breaker,
    trusted: AtomicBool,
    /// For an L1 in this process over an L2 that others write to: until when this server knows
    /// their changes, in ms since `born`. `ALWAYS`: there are no changes to follow.
    followed_until: AtomicU64,
    born: Instant,
    view: ArcSwapOption<View>,
    mine: ArcSwapOption<L1Name>,
    remembered: Mutex<Remembered>,
    wake: Notify,
    /// No other server can have another view of the epoch.
    exclusive: bool,
    /// The wall clock; it shows when the machine was suspended.
    clock: Clock,
}

impl Trust {
    pub(super) fn new(exclusive: bool, clock: Clock) -> Self {
        Self {
            breaker: Breaker::new(3),
            trusted: AtomicBool::new(false),
            followed_until: AtomicU64::new(ALWAYS),
            born: Instant::now(),
            view: ArcSwapOption::empty(),
            mine: ArcSwapOption::empty(),
            remembered: Mutex::default(),
            wake: Notify::new(),
            exclusive,
            clock,
        }
    }

    /// How a call that begins now may use L1.
    pub fn l1(&self) -> L1Use {
        self.l1_now().0
    }

    /// The same, and the `life` of the view: confirmations count only while it stays the same.
    pub(super) fn l1_now(&self) -> (L1Use, u64) {
        // Loaded before the view: trust in a later epoch must not be combined with an earlier view.
        let trusted = self.trusted.load(SeqCst);
        let view = self.view.load();
        let Some(view) = view.as_deref().filter(|view| self.breaker.is_healthy() && view.role != Role::Another) else {
            return (L1Use::Bypassed, 0);
        };
        let epoch = view.state.epoch;
        let l1 = match (view.is_paused(), view.age(&self.clock), trusted) {
            (_, Age::Suspended, _) => L1Use::Bypassed,
            (false, Age::Fresh, true) if !self.is_followed() => L1Use::Untrusted(epoch),
            (true, ..) => L1Use::Paused(epoch),
            (false, Age::Fresh, true) => L1Use::Trusted(epoch),
            (false, Age::Fresh, false) => L1Use::Untrusted(epoch),
            (false, Age::Old, true) => L1Use::HitsOnly(epoch),
            (false, Age::Old, false) => L1Use::Bypassed,
        };
        (l1, view.life)
    }

    /// Whether what L1 confirmed in `epoch` keeps later hits, of this server and of all that share
    /// its L1, from being older: the epoch is still the same, and no server can be using another.
    pub fn stands(&self, epoch: Epoch) -> bool {
        self.view.load().as_deref().is_some_and(|view| view.state.epoch == epoch && self.is_in_use(view))
    }

    /// Whether what L1 confirmed since the view had this `life` holds for all servers: since then
    /// the same epoch has held for the same L1, and no server reads from another.
    pub(super) fn holds(&self, epoch: Epoch, life: u64) -> bool {
        let view = self.view.load();
        view.as_deref().is_some_and(|view| {
            let is_everybodys = view.role == Role::Named { alone: true };
            view.state.epoch == epoch && view.life == life && is_everybodys && self.is_in_use(view)
        })
    }

    /// Whether L1 would hold for all servers now, apart from a pause, which ends by itself.
    pub(super) fn is_everybodys(&self) -> bool {
        self.view.load().as_deref().is_some_and(|view| view.role == Role::Named { alone: true })
    }

    /// Whether the epoch is this one and names our L1, also in the pause after a change.
    pub(super) fn is_ours(&self, epoch: Epoch, life: u64) -> bool {
        self.ours() == Some((epoch, life))
    }

    fn is_in_use(&self, view: &View) -> bool {
        view.role != Role::Another && !view.is_paused() && view.age(&self.clock) == Age::Fresh
    }

    /// The epoch as L2 last returned it, however old that is.
    pub fn epoch(&self) -> Option<EpochState> {
        self.view.load().as_deref().map(|view| view.state.clone())
    }

    /// The epoch, if the view is fresh. Then no server can have filled L1 in a later one, because
    /// after a change all bypass L1 for longer than a view lives.
    pub fn fresh_epoch(&self) -> Option<EpochState> {
        let view = self.view.load();
        view.as_deref().filter(|view| view.age(&self.clock) == Age::Fresh).map(|view| view.state.clone())
    }

    /// The epoch, if the view is fresh and the epoch names our L1, also in the pause after a
    /// change; and the `life` of the view.
    pub(super) fn ours(&self) -> Option<(Epoch, u64)> {
        let view = self.view.load();
        let view = view.as_deref().filter(|view| view.role != Role::Another && view.age(&self.clock) == Age::Fresh);
        view.map(|view| (view.state.epoch, view.life))
    }

    /// Whether the view is less than `VIEW_LIFE` old.
    pub(super) fn is_fresh(&self) -> bool {
        self.view.load().as_deref().is_some_and(|view| view.age(&self.clock) == Age::Fresh)
    }

    /// Whether reads may use L1, apart from the breaker and the view of the epoch.
    pub fn is_trusted(&self) -> bool {
        self.trusted.load(SeqCst)
    }

    /// How many keys wait to be removed from L1.
    pub fn remembered(&self) -> usize {
        self.lock().keys.len()
    }

    /// The name of this server's L1, as it was last verified.
    pub fn mine(&self) -> Option<L1Name> {
        self.mine.load().as_deref().cloned()
    }

    /// A probe found that our L1 is this one. Until the next probe the cache uses no other.
    pub(super) fn found(&self, mine: &L1Name) {
        let _one_at_a_time = self.lock();
        if self.mine.load().as_deref() == Some(mine) {
            return;
        }
        self.mine.store(Some(mine.clone().into()));
        if let Some(known) = self.view.load().as_deref() {
            let as_of = (known.as_of, known.as_of_wall);
            let view = View::new(Some(known), known.state.clone(), Some(mine), as_of, self.exclusive);
            self.view.store(Some(view.into()));
        }
    }

    /// The time before a request to L2, by the monotonic clock and by the wall clock.
    pub(super) fn now(&self) -> (Instant, Millis) {
        // The wall clock first: after a suspension between the two, the view looks older.
        let wall = self.clock.now();
        (Instant::now(), wall)
    }

    /// Takes the epoch that L2 returned to a request sent at `as_of`.
    pub(super) fn see(&self, state: EpochState, as_of: (Instant, Millis)) {
        let _one_at_a_time = self.lock();
        let known = self.view.load();
        let known = known.as_deref();
        if known.is_some_and(|known| known.as_of > as_of.0) {
            return; // a later request was answered before
        }
        let changed = match known {
            Some(known) => known.differs(&state),
            // At start other servers may still use the epoch before this one.
            None => state.age < SETTLED_AGE,
        };
        if known.is_some_and(|known| was_suspended((known.as_of, known.as_of_wall), as_of)) {
            // The changes that were made while the machine was suspended are not known yet.
            let _ = self.followed_until.fetch_update(SeqCst, SeqCst, |until| (until != ALWAYS).then_some(0));
        }
        let mine = self.mine.load();
        let epoch = state.epoch;
        let named = state.l1.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
        let mut view = View::new(known, state, mine.as_deref(), as_of, self.exclusive);
        if changed {
            view.bypass_until = (!self.exclusive).then(|| Instant::now() + CHANGE_PAUSE);
            let what = match known {
                None => "the epoch is young",
                Some(known) if known.state.epoch == epoch => "the epoch continues with another L1",
                Some(_) => "new epoch, L1 starts cold",
            };
            let pause = view.bypass_until.map_or(Duration::ZERO, |_| CHANGE_PAUSE);
            tracing::info!(%epoch, l1 = named, ?pause, "{what}: L1 is used after the pause, when all servers know");
        }
        self.view.store(Some(view.into()));
    }

    /// Remembers keys of which L1 may hold older values. L1 is not trusted until they are removed.
    pub(super) fn remember<'a>(&self, keys: impl IntoIterator<Item = &'a RecordKey>) {
        let mut remembered = self.lock();
        self.trusted.store(false, SeqCst);
        for key in keys {
            remembered.add(key, 0);
        }
        self.wake.notify_one();
    }

    /// Remembers keys before a bypassed write of them commits, at least until the guard is dropped.
    pub(super) fn begin_bypassed(&self, keys: Vec<RecordKey>) -> BypassedWrite<'_> {
        let mut remembered = self.lock();
        self.trusted.store(false, SeqCst);
        for key in &keys {
            remembered.add(key, 1);
        }
        BypassedWrite { trust: self, keys }
    }

    /// At most `most` remembered keys whose writes have ended, to be removed from L1.
    pub(super) fn to_remove(&self, most: usize) -> Vec<(RecordKey, u64)> {
        let remembered = self.lock();
        let ended = remembered.keys.iter().filter(|(_, doubt)| doubt.writes == 0);
        ended.take(most).map(|(key, doubt)| (key.clone(), doubt.stamp)).collect()
    }

    /// Forgets keys that were removed from L1, except those that were remembered again meanwhile.
    pub(super) fn removed(&self, keys: &[(RecordKey, u64)]) {
        let mut remembered = self.lock();
        for (key, stamp) in keys {
            if remembered.keys.get(key).is_some_and(|doubt| doubt.stamp == *stamp && doubt.writes == 0) {
                remembered.keys.remove(key);
            }
        }
    }

    /// Whether L1 can be trusted again only in a new epoch.
    pub(super) fn needs_new_epoch(&self) -> bool {
        self.lock().overflow || self.view.load().as_deref().is_some_and(|view| view.state.dirty)
    }

    /// A new epoch was made, requested at `asked` with a fresh view. Keys whose writes have ended
    /// are forgotten: even an epoch that another server made was not filled yet when those writes
    /// ended. A late answer does not count.
    pub(super) fn renewed(&self, asked: Instant) {
        if !self.exclusive && asked.elapsed() > CHANGE_PAUSE - VIEW_LIFE {
            return;
        }
        let mut remembered = self.lock();
        remembered.overflow = false;
        remembered.keys.retain(|_, doubt| doubt.writes > 0);
    }

    /// Trusts L1 again if no key is remembered, its breaker is closed and the epoch is not dirty.
    pub(super) fn restore(&self) -> bool {
        let remembered = self.lock();
        let clear = remembered.keys.is_empty()
            && !remembered.overflow
            && self.breaker.is_healthy()
            && self.view.load().as_deref().is_some_and(|view| !view.state.dirty);
        if clear {
            self.trusted.store(true, SeqCst);
        }
        clear
    }

    /// Stops trusting L1 until the watcher restores it.
    pub(super) fn lost(&self) {
        let _guard = self.lock();
        self.trusted.store(false, SeqCst);
    }

    /// There are no changes of other writers that this server must follow.
    pub(super) fn follows_nobody(&self) {
        self.followed_until.store(ALWAYS, SeqCst);
    }

    /// The changes of other writers are followed, and all so far were applied to L1. No effect
    /// after `follows_nobody`.
    pub(super) fn heard(&self) {
        if self.followed_until.load(SeqCst) != ALWAYS {
            self.followed_until.store(self.age_ms() + HEARD_LIFE.as_millis() as u64, SeqCst);
        }
    }

    /// The changes of other writers are not followed: nothing is read from L1 or filled into it,
    /// unless L2 is gone.
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

    /// Makes the watcher probe L1 at once.
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

/// Whether more time has passed by the wall clock than by the monotonic one.
fn was_suspended(before: (Instant, Millis), now: (Instant, Millis)) -> bool {
    let wall = now.1.0.saturating_sub(before.1.0);
    wall > (now.0.saturating_duration_since(before.0) + SUSPENDED).as_millis() as i64
}
