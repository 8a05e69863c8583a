//! A lane: so many at once, some more wait a while, and the rest is shed. What waits for a tier is bounded so that a herd
//! is told to come again instead of taking everybody's time.

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

/// Places, and a queue for them.
#[derive(Debug)]
pub struct Lane {
    places: Arc<Semaphore>,
    all: usize,
    queue: usize,
    patience: Duration,
    waiting: AtomicUsize,
    shed: AtomicU64,
}

/// Some places in a lane, free again when dropped.
#[derive(Debug)]
pub(super) struct Place(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

impl Lane {
    /// So many places; so many may wait for one, at most this long each.
    pub(super) fn new(places: usize, queue: usize, patience: Duration) -> Self {
        let all = places.clamp(1, u32::MAX as usize).min(Semaphore::MAX_PERMITS);
        let places = Arc::new(Semaphore::new(all));
        Self { places, all, queue, patience, waiting: AtomicUsize::new(0), shed: AtomicU64::new(0) }
    }

    /// Takes so many places (all of them at most), those who wait in their order. None: there are too many, or it would
    /// take too long.
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

    /// Takes a place if one is free now.
    pub(super) fn try_enter(&self) -> Option<Place> {
        let place = self.places.clone().try_acquire_owned().ok();
        if place.is_none() {
            self.shed.fetch_add(1, Relaxed);
        }
        place.map(Place)
    }

    /// Places taken now.
    pub fn taken(&self) -> usize {
        self.all - self.places.available_permits()
    }

    /// Who waits now.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// Who found no place since start.
    pub fn shed(&self) -> u64 {
        self.shed.load(Relaxed)
    }
}

/// One who waits, or gives up.
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
    async fn who_finds_the_queue_full_is_shed_at_once_and_who_waits_is_after_a_while() {
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
        assert!(lane.enter(9, soon()).await.is_some(), "nobody needs more than all");
        assert_eq!(lane.taken(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_waiting_leaves_the_queue() {
        let lane = Lane::new(1, 1, PATIENCE);
        let place = lane.enter(1, soon()).await.unwrap();
        assert!(tokio::time::timeout(PATIENCE / 2, lane.enter(1, soon())).await.is_err());
        assert_eq!(lane.waiting(), 0);
        drop(place);
        assert!(lane.try_enter().is_some());
    }
}
