//! A lane bounds the calls that use a tier: some run, some wait for a while, and the rest is shed,
//! so that after a herd of calls not everything is slow.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// The places for calls that run, and a queue of calls that wait for one.
#[derive(Debug)]
pub struct Lane {
    places: Arc<Semaphore>,
    all: usize,
    queue: usize,
    patience: Duration,
    waiting: AtomicUsize,
    shed: AtomicU64,
}

/// Some places in a lane, which are free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

impl Lane {
    /// `queue` calls may wait for one of `places`, each for `patience` at most.
    pub(super) fn new(places: usize, queue: usize, patience: Duration) -> Self {
        let all = places.clamp(1, u32::MAX as usize).min(Semaphore::MAX_PERMITS);
        let places = Arc::new(Semaphore::new(all));
        Self { places, all, queue, patience, waiting: AtomicUsize::new(0), shed: AtomicU64::new(0) }
    }

    /// Takes this many places, or all if there are fewer. Calls that wait get them in order. None:
    /// too many wait, or the time is over.
    pub(super) async fn enter(&self, places: usize, until: Instant) -> Option<Place> {
        let count = places.clamp(1, self.all) as u32;
        if let Ok(place) = self.places.clone().try_acquire_many_owned(count) {
            return Some(Place(place));
        }
        let waiting = Waiting::new(&self.waiting);
        let place = if waiting.before < self.queue {
            let until = until.min(Instant::now() + self.patience);
            timeout_at(until, self.places.clone().acquire_many_owned(count)).await.ok().and_then(Result::ok)
        } else {
            None
        };
        if place.is_none() {
            self.shed.fetch_add(1, Relaxed);
        }
        place.map(Place)
    }

    /// Takes a place if one is free now; otherwise it counts as shed.
    pub(super) fn try_enter(&self) -> Option<Place> {
        let place = self.places.clone().try_acquire_owned().ok();
        if place.is_none() {
            self.shed.fetch_add(1, Relaxed);
        }
        place.map(Place)
    }

    /// The places that are taken now.
    pub fn taken(&self) -> usize {
        self.all - self.places.available_permits()
    }

    /// The calls that wait now.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// The calls that got no place, since start.
    pub fn shed(&self) -> u64 {
        self.shed.load(Relaxed)
    }
}

/// Counts a call as waiting until it is dropped.
struct Waiting<'a> {
    count: &'a AtomicUsize,
    before: usize,
}

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        Self { count, before: count.fetch_add(1, Relaxed) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(500);

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_shed_at_once_if_the_queue_is_full_and_otherwise_after_a_while() {
        let lane = Arc::new(Lane::new(1, 1, PATIENCE));
        let place = lane.enter(1, soon()).await.unwrap();
        let waiter = tokio::spawn({
            let lane = lane.clone();
            async move { lane.enter(1, soon()).await.is_some() }
        });
        tokio::task::yield_now().await;
        assert_eq!((lane.taken(), lane.waiting()), (1, 1));
        let start = Instant::now();
        assert!(lane.enter(1, soon()).await.is_none());
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert!(!waiter.await.unwrap());
        assert!(start.elapsed() >= PATIENCE);
        assert_eq!((lane.taken(), lane.waiting(), lane.shed()), (1, 0, 2));
        drop(place);
        assert!(lane.enter(9, soon()).await.is_some(), "all places are enough for any call");
        assert_eq!(lane.taken(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_gives_up_leaves_the_queue() {
        let lane = Lane::new(1, 1, PATIENCE);
        let place = lane.enter(1, soon()).await.unwrap();
        assert!(tokio::time::timeout(PATIENCE / 2, lane.enter(1, soon())).await.is_err());
        assert_eq!(lane.waiting(), 0);
        drop(place);
        assert!(lane.try_enter().is_some());
    }
}
