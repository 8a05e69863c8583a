//! Flights: one read of L2 for many callers of one key.
//!
//! A reader may join a flight only before it asks anything of L1 or L2, as what it answers must not be older than the
//! reader's own call. One that comes later queues for the next flight of that key, which begins with a look into L1, where the
//! fill of the first one now answers it. So a key never has more than one L2 read running and one queued.
//!
//! A flight is a task of its own with its own deadline: a client that gives up does not cancel the fill for the others.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use super::read::{Row, RowError};
use crate::{metrics::Counter, record::RecordKey};

/// What a flight brings: a row, and whether a tier failed on the way.
#[derive(Clone, Debug)]
pub(super) struct Landed {
    pub(super) row: Result<Row, RowError>,
    pub(super) degraded: bool,
    /// What it left of its passengers' time for L1.
    pub(super) l1_time: Duration,
}

impl Landed {
    /// It ended before L2 was asked.
    pub(super) fn failed(error: RowError) -> Self {
        Self { row: Err(error), degraded: true, l1_time: Duration::MAX }
    }

    /// L1 answered after all.
    pub(super) fn of_l1(row: Result<Row, RowError>) -> Self {
        Self { row, degraded: false, l1_time: Duration::MAX }
    }
}

/// One read of one key.
pub(super) struct Flight {
    pub(super) key: RecordKey,
    landed: OnceLock<Landed>,
    done: Notify,
}

impl Flight {
    fn new(key: RecordKey) -> Arc<Self> {
        Arc::new(Self { key, landed: OnceLock::new(), done: Notify::new() })
    }

    /// Waits for the landing. Callers bound it by their own deadlines.
    pub(super) async fn landed(&self) -> Landed {
        // Most of a batch's flights land together, so only the first of them is waited for.
        if let Some(landed) = self.landed.get() {
            return landed.clone();
        }
        loop {
            let done = self.done.notified();
            tokio::pin!(done);
            done.as_mut().enable(); // from here on no landing is missed
            if let Some(landed) = self.landed.get() {
                return landed.clone();
            }
            done.await;
        }
    }

    fn land(&self, landed: Landed) {
        let _ = self.landed.set(landed);
        self.done.notify_waiters();
    }
}

struct Slot {
    running: Arc<Flight>,
    /// The time for L1 that is left to those aboard: to whom has the least.
    l1_time: Duration,
    /// The running flight has begun to ask: joining it is over.
    sent: bool,
    queued: Option<(Arc<Flight>, Duration)>,
}

/// The flights of this process, by key.
#[derive(Default)]
pub(super) struct Flights {
    slots: Mutex<HashMap<RecordKey, Slot, ahash::RandomState>>,
    /// Keys that found a flight of another caller.
    joined: Counter,
}

impl Flights {
    /// Joins a flight for each key, making those that are not there. The second list is of those that the caller must
    /// start. No flight waits for L1 longer than each of those aboard still may.
    pub(super) fn board(&self, keys: &[RecordKey], l1_time: Duration) -> (Vec<Arc<Flight>>, Vec<Arc<Flight>>) {
        let mut slots = self.lock();
        let mut to_start = Vec::new();
        let boarded = keys.iter().map(|key| match slots.get_mut(key) {
            Some(slot) if !slot.sent => {
                slot.l1_time = slot.l1_time.min(l1_time);
                slot.running.clone()
            }
            Some(slot) => {
                let (queued, least) = slot.queued.get_or_insert_with(|| (Flight::new(key.clone()), l1_time));
                *least = l1_time.min(*least);
                queued.clone()
            }
            None => {
                let running = Flight::new(key.clone());
                slots.insert(key.clone(), Slot { running: running.clone(), l1_time, sent: false, queued: None });
                to_start.push(running.clone());
                running
            }
        });
        let boarded: Vec<_> = boarded.collect();
        if boarded.len() > to_start.len() {
            self.joined.add(boarded.len() - to_start.len());
        }
        (boarded, to_start)
    }

    /// Keys that needed no read of their own, since start.
    pub(super) fn joined(&self) -> u64 {
        self.joined.get()
    }

    /// Those that run or are queued, a key each.
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RecordKey, Slot, ahash::RandomState>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The running flights of one task. When it is dropped before their end (a bug, a runtime that shuts down), those who
/// wait get an error instead of waiting for ever, and the keys are free again.
pub(super) struct Crew<'a> {
    flights: &'a Flights,
    aboard: Vec<Arc<Flight>>,
}

impl<'a> Crew<'a> {
    pub(super) fn new(flights: &'a Flights, aboard: Vec<Arc<Flight>>) -> Self {
        Self { flights, aboard }
    }

    pub(super) fn keys(&self) -> Vec<RecordKey> {
        self.aboard.iter().map(|flight| flight.key.clone()).collect()
    }

    /// The flights begin to ask: from now on nobody joins. Tells how long they may wait for L1.
    pub(super) fn close_doors(&self) -> Duration {
        let mut slots = self.flights.lock();
        let mut l1_time = Duration::MAX;
        for flight in &self.aboard {
            if let Some(slot) = slots.get_mut(&flight.key) {
                slot.sent = true;
                l1_time = l1_time.min(slot.l1_time);
            }
        }
        l1_time
    }

    /// Lands all flights, in the order of `keys`, and takes over those that queued meanwhile. False: none did.
    pub(super) fn land(&mut self, landed: Vec<Landed>) -> bool {
        let mut slots = self.flights.lock();
        let aboard = mem::take(&mut self.aboard);
        for (flight, landed) in aboard.into_iter().zip(landed) {
            flight.land(landed);
            if let Some(slot) = slots.get_mut(&flight.key) {
                match slot.queued.take() {
                    Some((next, l1_time)) => {
                        *slot = Slot { running: next.clone(), l1_time, sent: false, queued: None };
                        self.aboard.push(next);
                    }
                    None => {
                        slots.remove(&flight.key);
                    }
                }
            }
        }
        !self.aboard.is_empty()
    }
}

impl Drop for Crew<'_> {
    fn drop(&mut self) {
        while !self.aboard.is_empty() {
            let lost = Landed { row: Err(RowError::Internal), degraded: true, l1_time: Duration::ZERO };
            let landed = vec![lost; self.aboard.len()];
            self.land(landed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::{EntityId, FeatureView, State},
        tiered::read::Tier,
    };

    fn keys(ids: &[&str]) -> Vec<RecordKey> {
        let view = FeatureView::parse("").unwrap();
        ids.iter().map(|id| RecordKey { view: view.clone(), entity_id: EntityId::parse(id).unwrap() }).collect()
    }

    const L1_TIME: Duration = Duration::from_millis(50);

    fn absent() -> Landed {
        Landed { row: Ok(Row { state: State::Absent, tier: Tier::L2 }), degraded: false, l1_time: L1_TIME }
    }

    #[tokio::test]
    async fn joins_until_the_read_is_sent_and_queues_afterwards() {
        let flights = Flights::default();
        let (first, start) = flights.board(&keys(&["a"]), L1_TIME);
        assert_eq!(start.len(), 1);
        let (joined, start_none) = flights.board(&keys(&["a"]), L1_TIME);
        assert!(Arc::ptr_eq(&first[0], &joined[0]) && start_none.is_empty());

        let mut crew = Crew::new(&flights, start);
        assert_eq!(crew.close_doors(), L1_TIME);
        let (late, start_none) = flights.board(&keys(&["a"]), L1_TIME);
        let (later, _) = flights.board(&keys(&["a"]), L1_TIME);
        assert!(!Arc::ptr_eq(&first[0], &late[0]) && Arc::ptr_eq(&late[0], &later[0]) && start_none.is_empty());

        assert!(crew.land(vec![absent()]), "the queued flight is taken over");
        assert!(first[0].landed().await.row.is_ok());
        let (joined, _) = flights.board(&keys(&["a"]), L1_TIME);
        assert!(Arc::ptr_eq(&late[0], &joined[0]), "its doors are open again");
        assert!(!crew.land(vec![absent()]));
        assert!(late[0].landed().await.row.is_ok());
        assert!(flights.lock().is_empty());
    }

    #[tokio::test]
    async fn a_flight_waits_for_l1_no_longer_than_any_of_those_aboard_may() {
        let flights = Flights::default();
        let (_, start) = flights.board(&keys(&["a", "b"]), L1_TIME);
        flights.board(&keys(&["b"]), L1_TIME / 2);
        let mut crew = Crew::new(&flights, start);
        assert_eq!(crew.close_doors(), L1_TIME / 2);
        for left in [L1_TIME / 3, L1_TIME] {
            flights.board(&keys(&["a"]), left);
        }
        crew.land(vec![absent(), absent()]);
        assert_eq!(crew.close_doors(), L1_TIME / 3);
    }

    #[tokio::test]
    async fn a_lost_crew_leaves_nobody_waiting() {
        let flights = Flights::default();
        let (boarded, start) = flights.board(&keys(&["a", "b"]), L1_TIME);
        let crew = Crew::new(&flights, start);
        crew.close_doors();
        let (queued, _) = flights.board(&keys(&["a"]), L1_TIME);
        drop(crew);
        for flight in boarded.iter().chain(&queued) {
            assert!(flight.landed().await.row.is_err());
        }
        assert!(flights.lock().is_empty());
    }
}
