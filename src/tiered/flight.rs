//! Flights: one read of L2 for many callers that wait for the same key (singleflight).
//!
//! A caller may join a flight only before it asks L1 or L2, because what they return must not be
//! older than the call. Later callers queue for the next flight of that key, which first looks into
//! L1, where the first flight has filled the key by then. So a key never has more than one read of
//! L2 that runs and one that is queued.
//!
//! A flight runs in a task of its own, with its own deadline: a client that gives up does not stop
//! the fill for others.

use std::{
    collections::{HashMap, hash_map::Entry},
    mem,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::Notify;

use super::read::{Row, RowError};
use crate::{in_flight::Holding, metrics::Counter, record::RecordKey};

/// The result of a flight for one key.
#[derive(Clone, Debug)]
pub(super) struct Landed {
    pub(super) row: Result<Row, RowError>,
    pub(super) degraded: bool,
    /// What the flight left of its callers' time for L1.
    pub(super) l1_time: Duration,
}

impl Landed {
    /// It ended before L2 was asked.
    pub(super) fn failed(error: RowError) -> Self {
        Self { row: Err(error), degraded: true, l1_time: Duration::MAX }
    }

    /// L1 had the row after all.
    pub(super) fn of_l1(row: Result<Row, RowError>) -> Self {
        Self { row, degraded: false, l1_time: Duration::MAX }
    }
}

/// One read of some keys that one caller missed together. `sent` and `l1_nanos` change only under
/// the lock of all flights.
pub(super) struct Flight {
    /// Set before the lock of all flights is released.
    keys: OnceLock<Vec<RecordKey>>,
    /// One for each of `keys`; and their memory, counted until each caller has counted it too.
    landed: OnceLock<(Vec<Landed>, Arc<Holding>)>,
    done: Notify,
    /// It has begun to ask L1 or L2, so no caller may join any more.
    sent: AtomicBool,
    /// The least time for L1 that any of its callers has left, in nanoseconds.
    l1_nanos: AtomicU64,
}

impl Flight {
    fn new(l1_time: Duration) -> Arc<Self> {
        let (keys, landed, done, sent) = Default::default();
        Arc::new(Self { keys, landed, done, sent, l1_nanos: AtomicU64::new(nanos(l1_time)) })
    }

    pub(super) fn keys(&self) -> &[RecordKey] {
        self.keys.get().map_or(&[], Vec::as_slice)
    }

    fn at_most(&self, l1_time: Duration) {
        self.l1_nanos.fetch_min(nanos(l1_time), Relaxed);
    }

    fn land(&self, landed: Vec<Landed>, held: Arc<Holding>) {
        let _ = self.landed.set((landed, held));
        self.done.notify_waiters();
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The place of a key in a flight.
#[derive(Clone)]
pub(super) struct Seat {
    flight: Arc<Flight>,
    place: usize,
}

impl Seat {
    /// The result, if the flight has ended.
    pub(super) fn landed(&self) -> Option<Landed> {
        self.flight.landed.get()?.0.get(self.place).cloned()
    }

    /// Waits for the result. Callers bound this by their own deadlines.
    pub(super) async fn landing(&self) -> Landed {
        loop {
            let done = self.flight.done.notified();
            tokio::pin!(done);
            done.as_mut().enable(); // from here on no notification is missed
            if let Some(landed) = self.landed() {
                return landed;
            }
            done.await;
        }
    }
}

struct Slot {
    running: Seat,
    queued: Option<Arc<Flight>>,
}

#[derive(Default)]
pub(super) struct Flights {
    slots: Mutex<HashMap<RecordKey, Slot, ahash::RandomState>>,
    joined: Counter,
}

impl Flights {
    /// Gives each key a place in a flight that it may join, or in a new one, which is returned and
    /// must be started. A flight waits for L1 no longer than each of its callers may.
    pub(super) fn board<'a>(
        &self,
        keys: impl ExactSizeIterator<Item = &'a RecordKey>,
        l1_time: Duration,
    ) -> (Vec<Seat>, Option<Arc<Flight>>) {
        let flight = Flight::new(l1_time);
        let (mut seats, mut to_read) = (Vec::with_capacity(keys.len()), Vec::with_capacity(keys.len()));
        let mut slots = self.lock();
        for key in keys {
            seats.push(match slots.entry(key.clone()) {
                Entry::Occupied(mut slot) if slot.get().running.flight.sent.load(Relaxed) => {
                    let new = || {
                        let flight = Flight::new(l1_time);
                        let _ = flight.keys.set(vec![key.clone()]);
                        flight
                    };
                    let queued = slot.get_mut().queued.get_or_insert_with(new);
                    queued.at_most(l1_time);
                    Seat { flight: queued.clone(), place: 0 }
                }
                Entry::Occupied(slot) => {
                    let running = &slot.get().running;
                    running.flight.at_most(l1_time);
                    running.clone()
                }
                Entry::Vacant(slot) => {
                    let running = Seat { flight: flight.clone(), place: to_read.len() };
                    to_read.push(key.clone());
                    slot.insert(Slot { running: running.clone(), queued: None });
                    running
                }
            });
        }
        if seats.len() > to_read.len() {
            self.joined.add(seats.len() - to_read.len());
        }
        let is_needed = !to_read.is_empty();
        let _ = flight.keys.set(to_read);
        drop(slots);
        (seats, is_needed.then_some(flight))
    }

    /// Keys that needed no read of their own, since start.
    pub(super) fn joined(&self) -> u64 {
        self.joined.get()
    }

    /// Keys that have a flight which runs or is queued.
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RecordKey, Slot, ahash::RandomState>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The flights that one task runs. If it is dropped before they end (a bug, or the runtime shuts
/// down), their callers get an error instead of waiting forever, and the keys are free again.
pub(super) struct Crew<'a> {
    flights: &'a Flights,
    aboard: Vec<Arc<Flight>>,
}

impl<'a> Crew<'a> {
    pub(super) fn new(flights: &'a Flights, flight: Arc<Flight>) -> Self {
        Self { flights, aboard: vec![flight] }
    }

    pub(super) fn keys(&self) -> Vec<RecordKey> {
        self.aboard.iter().flat_map(|flight| flight.keys()).cloned().collect()
    }

    /// The flights begin to ask: no caller joins any more. Returns how long they may wait for L1.
    pub(super) fn close_doors(&self) -> Duration {
        let _slots = self.flights.lock();
        self.aboard.iter().for_each(|flight| flight.sent.store(true, Relaxed));
        let least = self.aboard.iter().map(|flight| flight.l1_nanos.load(Relaxed)).min();
        least.map_or(Duration::MAX, Duration::from_nanos)
    }

    /// Ends all flights with these results, in the order of `keys`, and takes over the queued ones.
    /// False: there are none.
    pub(super) fn land(&mut self, landed: Vec<Landed>, held: Holding) -> bool {
        let held = Arc::new(held);
        let mut landed = landed.into_iter();
        let mut slots = self.flights.lock();
        for flight in mem::take(&mut self.aboard) {
            flight.land(landed.by_ref().take(flight.keys().len()).collect(), held.clone());
            for key in flight.keys() {
                let Some(Slot { queued: Some(next), .. }) = slots.remove(key) else { continue };
                let running = Seat { flight: next.clone(), place: 0 };
                slots.insert(key.clone(), Slot { running, queued: None });
                self.aboard.push(next);
            }
        }
        !self.aboard.is_empty()
    }
}

impl Drop for Crew<'_> {
    fn drop(&mut self) {
        while !self.aboard.is_empty() {
            let lost = Landed { row: Err(RowError::Internal), degraded: true, l1_time: Duration::ZERO };
            let count = self.aboard.iter().map(|flight| flight.keys().len()).sum();
            self.land(vec![lost; count], Holding::default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::{EntityId, FeatureView, Revision, State},
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
        let is_same = |a: &[Seat], b: &[Seat]| Arc::ptr_eq(&a[0].flight, &b[0].flight) && a[0].place == b[0].place;
        let (first, start) = flights.board(keys(&["a"]).iter(), L1_TIME);
        let (joined, start_none) = flights.board(keys(&["a"]).iter(), L1_TIME);
        assert!(is_same(&first, &joined) && start_none.is_none());

        let mut crew = Crew::new(&flights, start.unwrap());
        assert_eq!(crew.close_doors(), L1_TIME);
        let (late, start_none) = flights.board(keys(&["a"]).iter(), L1_TIME);
        let (later, _) = flights.board(keys(&["a"]).iter(), L1_TIME);
        assert!(!is_same(&first, &late) && is_same(&late, &later) && start_none.is_none());

        assert!(crew.land(vec![absent()], Holding::default()), "the queued flight is taken over");
        assert!(first[0].landing().await.row.is_ok());
        let (joined, _) = flights.board(keys(&["a"]).iter(), L1_TIME);
        assert!(is_same(&late, &joined), "callers may join it");
        assert!(!crew.land(vec![absent()], Holding::default()));
        assert!(late[0].landing().await.row.is_ok());
        assert!(flights.lock().is_empty());
    }

    #[tokio::test]
    async fn a_flight_waits_for_l1_no_longer_than_each_of_its_callers_may() {
        let flights = Flights::default();
        let (_, start) = flights.board(keys(&["a", "b"]).iter(), L1_TIME);
        flights.board(keys(&["b"]).iter(), L1_TIME / 2);
        let mut crew = Crew::new(&flights, start.unwrap());
        assert_eq!(crew.close_doors(), L1_TIME / 2);
        for left in [L1_TIME / 3, L1_TIME] {
            flights.board(keys(&["a"]).iter(), left);
        }
        crew.land(vec![absent(), absent()], Holding::default());
        assert_eq!(crew.close_doors(), L1_TIME / 3);
    }

    #[tokio::test]
    async fn each_key_gets_its_own_answer() {
        let flights = Flights::default();
        let landed =
            |number| Landed { row: Ok(Row { state: State::Tombstone(Revision(number)), tier: Tier::L2 }), ..absent() };
        let revision = async |seat: &Seat| seat.landing().await.row.unwrap().state.revision().0;
        let (one, start) = flights.board(keys(&["a", "b"]).iter(), L1_TIME);
        let mut crew = Crew::new(&flights, start.unwrap());
        let (two, start) = flights.board(keys(&["b", "c", "d"]).iter(), L1_TIME);
        let mut other = Crew::new(&flights, start.unwrap());
        assert_eq!((crew.keys(), other.keys()), (keys(&["a", "b"]), keys(&["c", "d"])));
        crew.close_doors();
        let (queued, start) = flights.board(keys(&["d", "b", "a"]).iter(), L1_TIME);
        assert!(start.is_none());
        assert!(crew.land(vec![landed(1), landed(2)], Holding::default()));
        assert_eq!(crew.keys(), keys(&["a", "b"]));
        assert!(!crew.land(vec![landed(11), landed(12)], Holding::default()));
        assert!(!other.land(vec![landed(3), landed(4)], Holding::default()));
        for (seats, expected) in [(one, vec![1, 2]), (two, vec![2, 3, 4]), (queued, vec![4, 12, 11])] {
            for (seat, expected) in seats.iter().zip(expected) {
                assert_eq!(revision(seat).await, expected);
            }
        }
        assert!(flights.lock().is_empty());
    }

    #[tokio::test]
    async fn no_caller_waits_for_flights_that_were_dropped() {
        let flights = Flights::default();
        let (boarded, start) = flights.board(keys(&["a", "b"]).iter(), L1_TIME);
        let crew = Crew::new(&flights, start.unwrap());
        crew.close_doors();
        let (queued, _) = flights.board(keys(&["a"]).iter(), L1_TIME);
        drop(crew);
        for seat in boarded.iter().chain(&queued) {
            assert!(seat.landing().await.row.is_err());
        }
        assert!(flights.lock().is_empty());
    }
}
