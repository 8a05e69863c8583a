//! What calls hold while they are in progress: a place among the calls in flight, and bytes. Bytes
//! have two bounds, one over all connections and one for each, so that a client that sends without
//! end or never reads uses only its own part.
//!
//! The bytes are counted in `server::bytes`, in `bulk`, and for what reads hold in `tiered`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{Mutex, OwnedSemaphorePermit},
    time::{Instant, sleep, timeout_at},
};

/// One connection may hold this part of all bytes: a quarter.
pub const CONNECTION_PART: usize = 4;

/// How often the first waiter for bytes checks whether they are free.
const LOOK: Duration = Duration::from_millis(5);

/// The bytes in flight over all connections.
#[derive(Debug)]
pub struct ByteBudget {
    max: usize,
    held: AtomicUsize,
    refused: AtomicU64,
    /// Waiters get bytes in their order, so that one that needs many is not overtaken forever.
    line: Mutex<()>,
}

impl ByteBudget {
    /// A budget of `max` bytes.
    pub fn new(max: usize) -> Self {
        Self { max, held: AtomicUsize::new(0), refused: AtomicU64::new(0), line: Mutex::default() }
    }

    /// The bytes that are held now.
    pub fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// How often something was refused because bytes were short.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// Whether bytes that are held needlessly should be released.
    fn is_scarce(&self) -> bool {
        self.held() > self.max / 2
    }
}

/// The bytes in flight of one connection, which also count among all.
#[derive(Debug)]
pub struct ConnectionBytes {
    all: Arc<ByteBudget>,
    max: usize,
    /// Bytes of requests that are not answered yet.
    received: AtomicUsize,
    /// Bytes of answers that are not sent yet.
    unsent: AtomicUsize,
    sent: AtomicUsize,
}

/// What the bytes belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Request,
    Answer,
}

impl ConnectionBytes {
    /// The bytes of a new connection.
    pub fn new(all: Arc<ByteBudget>) -> Self {
        let max = all.max / CONNECTION_PART;
        Self::with_part(all, max)
    }

    fn with_part(all: Arc<ByteBudget>, max: usize) -> Self {
        Self { all, max, received: AtomicUsize::new(0), unsent: AtomicUsize::new(0), sent: AtomicUsize::new(0) }
    }

    /// Whether a new call should be refused, because its answer would find no bytes.
    pub fn is_full(&self) -> bool {
        let is_full = self.all.held() >= self.all.max || self.held() >= self.max;
        if is_full {
            self.all.refused.fetch_add(1, Relaxed);
        }
        is_full
    }

    /// If bytes are scarce and this connection has answers to send: how often it sent something. If
    /// that stays the same, its client does not read.
    pub fn keeps_scarce_bytes(&self) -> Option<usize> {
        let keeps = self.all.is_scarce() && self.unsent.load(Relaxed) > 0;
        keeps.then(|| self.sent.load(Relaxed))
    }

    fn held(&self) -> usize {
        self.received.load(Relaxed) + self.unsent.load(Relaxed)
    }

    fn part(&self, part: Part) -> &AtomicUsize {
        match part {
            Part::Request => &self.received,
            Part::Answer => &self.unsent,
        }
    }

    fn take(&self, part: Part, bytes: usize) {
        self.part(part).fetch_add(bytes, Relaxed);
        self.all.held.fetch_add(bytes, Relaxed);
    }

    fn try_take(&self, part: Part, bytes: usize) -> bool {
        let fits = self.takes(part, bytes);
        if !fits {
            self.all.refused.fetch_add(1, Relaxed);
        }
        fits
    }

    /// Like `try_take`, but does not count a refusal.
    fn takes(&self, part: Part, bytes: usize) -> bool {
        self.part(part).fetch_add(bytes, Relaxed);
        let all = self.all.held.fetch_add(bytes, Relaxed) + bytes;
        let fits = self.held() <= self.max && all <= self.all.max;
        if !fits {
            self.give_back(part, bytes);
        }
        fits
    }

    /// Like `try_take`, but waits for other holders until `until`. What exceeds the connection's
    /// own part is refused at once: a waiter for that would keep all others waiting.
    async fn take_by(&self, part: Part, bytes: usize, until: Instant) -> bool {
        let has_room = || self.held() + bytes <= self.max;
        let waiting = async {
            let _first = self.all.line.lock().await;
            while has_room() {
                if self.takes(part, bytes) {
                    return true;
                }
                sleep(LOOK).await;
            }
            false
        };
        let fits = match self.all.line.try_lock().is_ok_and(|_| self.takes(part, bytes)) {
            true => true,
            false => has_room() && timeout_at(until, waiting).await.unwrap_or(false),
        };
        if !fits {
            self.all.refused.fetch_add(1, Relaxed);
        }
        fits
    }

    fn give_back(&self, part: Part, bytes: usize) {
        self.part(part).fetch_sub(bytes, Relaxed);
        self.all.held.fetch_sub(bytes, Relaxed);
    }
}

/// Bytes that are held until this is dropped.
#[derive(Debug)]
pub struct Share {
    of: Arc<ConnectionBytes>,
    part: Part,
    bytes: usize,
}

impl Share {
    /// Takes bytes for an answer. None: too few are free.
    pub fn try_take(of: &Arc<ConnectionBytes>, bytes: usize) -> Option<Self> {
        let part = Part::Answer;
        of.try_take(part, bytes).then(|| Self { of: of.clone(), part, bytes })
    }

    /// Like `try_take`, but waits for other holders until `until`.
    pub async fn take_by(of: &Arc<ConnectionBytes>, bytes: usize, until: Instant) -> Option<Self> {
        let part = Part::Answer;
        of.take_by(part, bytes, until).await.then(|| Self { of: of.clone(), part, bytes })
    }

    /// Takes up to `bytes` bytes for requests that arrived before the service read them, at most
    /// half of the connection's part, so that no call is refused because of them. None: bytes are
    /// short.
    pub fn take_ahead(of: &Arc<ConnectionBytes>, bytes: usize) -> Option<Self> {
        let (part, free) = (Part::Request, (of.all.max / CONNECTION_PART / 2).saturating_sub(of.held()));
        let bytes = bytes.min(free);
        (bytes > 0 && !of.all.is_scarce() && of.try_take(part, bytes)).then(|| Self { of: of.clone(), part, bytes })
    }

    /// The number of bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes bytes for an answer that cannot be refused any more.
    pub fn take(of: &Arc<ConnectionBytes>, bytes: usize) -> Self {
        let part = Part::Answer;
        of.take(part, bytes);
        Self { of: of.clone(), part, bytes }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.give_back(self.part, self.bytes);
        if self.part == Part::Answer {
            self.of.sent.fetch_add(1, Relaxed);
        }
    }
}

/// The place of a stream among those of its kind, and in the share of its connection.
#[derive(Debug)]
pub struct StreamPlace {
    _among_all: OwnedSemaphorePermit,
    _of_connection: OwnedSemaphorePermit,
}

impl StreamPlace {
    /// Holds both.
    pub fn new(among_all: OwnedSemaphorePermit, of_connection: OwnedSemaphorePermit) -> Self {
        Self { _among_all: among_all, _of_connection: of_connection }
    }
}

/// What a call occupies while it lasts.
#[derive(Debug)]
pub enum Place {
    /// Nothing: the health service is always answered.
    None,
    /// One of the calls in flight.
    Call(OwnedSemaphorePermit),
    /// One of the streams of its kind.
    Stream(Arc<StreamPlace>),
}

/// The bytes that a read holds of the tiers' answers, until this is dropped. They count as received
/// by the connection of the read; without a connection nothing is counted.
#[derive(Debug, Default)]
pub struct Holding {
    of: Option<Arc<ConnectionBytes>>,
    bytes: usize,
}

impl Holding {
    /// For a call on this connection.
    pub fn of(connection: Arc<ConnectionBytes>) -> Self {
        Self { of: Some(connection), bytes: 0 }
    }

    /// For work of the server itself, which may serve several connections: only the bound over all
    /// applies.
    pub fn of_all(all: &Arc<ByteBudget>) -> Self {
        let of = ConnectionBytes::with_part(all.clone(), all.max);
        Self { of: Some(Arc::new(of)), bytes: 0 }
    }

    /// Holds more bytes. False: too few are free, and none of them is counted.
    #[must_use]
    pub fn add(&mut self, bytes: usize) -> bool {
        let Some(of) = &self.of else { return true };
        let fits = bytes == 0 || of.try_take(Part::Request, bytes);
        if fits {
            self.bytes += bytes;
        }
        fits
    }

    /// Like `add`, but waits for other holders until `until`.
    #[must_use]
    pub async fn add_by(&mut self, bytes: usize, until: Instant) -> bool {
        let Some(of) = &self.of else { return true };
        let fits = bytes == 0 || of.take_by(Part::Request, bytes, until).await;
        if fits {
            self.bytes += bytes;
        }
        fits
    }

    /// Holds bytes that another holder counts too, and soon releases: only the bound of the
    /// connection applies.
    #[must_use]
    pub fn take_over(&mut self, bytes: usize) -> bool {
        let Some(of) = &self.of else { return true };
        let fits = of.held() + bytes <= of.max;
        if fits {
            of.take(Part::Request, bytes);
            self.bytes += bytes;
        } else {
            of.all.refused.fetch_add(1, Relaxed);
        }
        fits
    }

    /// The number of bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts the same bytes only among all, and no longer for the connection, while both the
    /// records of a read and its answer are in memory.
    pub fn beside_connection(mut self) -> Self {
        let bytes = self.bytes;
        let beside = self.of.as_ref().map(|of| {
            let beside = ConnectionBytes::with_part(of.all.clone(), usize::MAX);
            beside.take(Part::Request, bytes);
            Arc::new(beside)
        });
        let _ = self.set(0);
        Self { bytes: if beside.is_some() { bytes } else { 0 }, of: beside }
    }

    /// Sets the number of bytes. False: too few are free, and the number stays as it was.
    #[must_use]
    pub fn set(&mut self, bytes: usize) -> bool {
        if let (Some(of), Some(fewer)) = (&self.of, self.bytes.checked_sub(bytes)) {
            of.give_back(Part::Request, fewer);
            self.bytes = bytes;
            return true;
        }
        self.add(bytes - self.bytes)
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        let _ = self.set(0);
    }
}

/// The place of a call, and the bytes of its request; released when the last clone is dropped. The
/// server's guard puts it into the extensions of a read or a write.
#[derive(Clone, Debug)]
pub struct InFlight(Arc<Held>);

#[derive(Debug)]
struct Held {
    _place: Place,
    received: AtomicUsize,
    connection: Arc<ConnectionBytes>,
}

impl InFlight {
    /// Holds this place.
    pub fn new(place: Place, connection: Arc<ConnectionBytes>) -> Self {
        Self(Arc::new(Held { _place: place, received: AtomicUsize::new(0), connection }))
    }

    /// The connection of the call.
    pub fn connection(&self) -> &Arc<ConnectionBytes> {
        &self.0.connection
    }

    /// Counts received bytes. False: too few are free.
    pub fn receive(&self, bytes: usize) -> bool {
        let fits = self.0.connection.try_take(Part::Request, bytes);
        if fits {
            self.0.received.fetch_add(bytes, Relaxed);
        }
        fits
    }

    /// The most bytes that its connection may hold.
    pub fn most(&self) -> usize {
        self.0.connection.all.max / CONNECTION_PART
    }

    /// Takes bytes for what a request becomes in memory, at most half of the connection's part, so
    /// that every valid request can be served. None: too few are free.
    pub fn hold(&self, bytes: usize) -> Option<Share> {
        let bytes = bytes.min(self.most() / 2);
        let (of, part) = (self.0.connection.clone(), Part::Request);
        of.try_take(part, bytes).then(|| Share { of, part, bytes })
    }

    /// Takes the bytes that were received since the last call. The holder of the message must hold
    /// them.
    pub fn take_received(&self) -> Share {
        let bytes = self.0.received.swap(0, Relaxed);
        Share { of: self.0.connection.clone(), part: Part::Request, bytes }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        match *self.received.get_mut() {
            0 => {}
            received => self.connection.give_back(Part::Request, received),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_connection_gets_its_part_and_all_of_them_no_more_than_there_is() {
        let all = Arc::new(ByteBudget::new(400));
        let connections = [(); 5].map(|()| Arc::new(ConnectionBytes::new(all.clone())));
        assert!(Share::try_take(&connections[0], 101).is_none());
        let shares = [0, 1, 2, 3].map(|i| Share::try_take(&connections[i], 100).unwrap());
        assert!(connections[0].is_full());
        assert!(Share::try_take(&connections[4], 1).is_none());
        let more = Share::take(&connections[4], 1);
        assert_eq!(all.held(), 401);
        drop((shares, more));
        assert_eq!(all.held(), 0);
        assert!(!connections[0].is_full());
        assert_eq!(all.refused(), 3);
    }

    #[test]
    fn what_a_read_holds_is_counted_as_long_as_it_holds_it() {
        let all = Arc::new(ByteBudget::new(400));
        let mut read = Holding::of(Arc::new(ConnectionBytes::new(all.clone())));
        assert!(read.add(60) && !read.add(60) && read.add(40));
        let mut shared = Holding::of_all(&all);
        assert!(shared.add(300) && !shared.add(1));
        assert!(read.set(30) && !read.set(101) && read.set(50) && !shared.add(51));
        assert_eq!(all.held(), 350);
        drop((read, shared));
        assert_eq!((all.held(), all.refused()), (0, 4));
        assert!(Holding::default().add(usize::MAX), "nobody counts");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_room_gets_it_in_turn_and_is_refused_when_the_time_is_over() {
        let all = Arc::new(ByteBudget::new(400));
        let holding = || Holding::of(Arc::new(ConnectionBytes::new(all.clone())));
        let second = Duration::from_secs(1);
        let (mut large, mut small, mut late) = (holding(), holding(), holding());
        let others = Holding::of_all(&all);
        let giving_back = async |mut others: Holding| {
            assert!(others.add(390));
            sleep(second).await;
            assert!(others.set(350));
            sleep(second).await;
            drop(others);
        };
        let began = Instant::now();
        let waiting = async {
            let large = async {
                assert!(large.add_by(60, began + 10 * second).await);
                began.elapsed().as_secs()
            };
            let small = async {
                assert!(small.add_by(20, began + 10 * second).await);
                began.elapsed().as_secs()
            };
            tokio::join!(large, small, late.add_by(20, began + second / 2))
        };
        let ((), ended) = tokio::join!(giving_back(others), waiting);
        assert_eq!(ended, (2, 2, false), "the small one is behind the large one");
        assert_eq!((all.held(), all.refused()), (80, 1));
        assert!(!large.add_by(41, Instant::now() + second).await, "its own connection holds the others");
        assert_eq!(began.elapsed().as_secs(), 2, "it does not wait for that");
        assert!(large.take_over(40) && !large.take_over(1));
        let beside = large.beside_connection();
        assert_eq!((beside.bytes(), all.held()), (100, 120));
        drop((beside, small, late));
        assert_eq!(all.held(), 0);
    }

    #[test]
    fn what_a_call_received_is_held_by_whoever_took_it_and_the_rest_by_the_call() {
        let all = Arc::new(ByteBudget::new(400));
        let call = InFlight::new(Place::None, Arc::new(ConnectionBytes::new(all.clone())));
        assert!(call.receive(60) && !call.receive(60));
        let first = call.take_received();
        assert!(call.receive(30));
        drop(first);
        assert_eq!(all.held(), 30);
        drop(call);
        assert_eq!(all.held(), 0);
    }

    #[test]
    fn what_a_request_becomes_is_taken_up_to_half_of_what_its_connection_may_hold() {
        let all = Arc::new(ByteBudget::new(400));
        let call = InFlight::new(Place::None, Arc::new(ConnectionBytes::new(all.clone())));
        assert!(call.receive(10));
        let first = call.hold(1000).unwrap();
        assert_eq!(all.held(), 60);
        assert!(call.hold(41).is_none());
        let second = call.hold(40).unwrap();
        drop((first, second, call));
        assert_eq!(all.held(), 0);
    }

    #[test]
    fn who_holds_on_is_seen_only_while_bytes_are_scarce() {
        let all = Arc::new(ByteBudget::new(400));
        let [idle, one, other, third] = [(); 4].map(|()| Arc::new(ConnectionBytes::new(all.clone())));
        let (mine, others) = (Share::take(&one, 100), Share::take(&other, 100));
        assert_eq!(one.keeps_scarce_bytes(), None);
        let waiting = InFlight::new(Place::None, third.clone());
        assert!(waiting.receive(100));
        assert_eq!(third.keeps_scarce_bytes(), None, "it waits for us");
        assert_eq!(idle.keeps_scarce_bytes(), None, "it holds none");
        let before = one.keeps_scarce_bytes().unwrap();
        assert_eq!(one.keeps_scarce_bytes(), Some(before));
        drop(mine);
        let mine = Share::take(&one, 100);
        assert_ne!(one.keeps_scarce_bytes(), Some(before));
        drop((mine, others, waiting));
    }
}
