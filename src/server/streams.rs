//! Streams: calls that last as long as their clients want. They are silent most of the time, so
//! they do not count among the calls in flight. Each kind has its own places, of which one
//! connection gets a share. A stream that is silent for too long, or while the server drains, is
//! ended.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    api::{StreamPlace, status},
    metrics::Counter,
};

/// How long a client may be silent after connections received GOAWAY.
const LAST_CALL: Duration = Duration::from_secs(1);

/// How long a client may leave an answer unread.
const UNREAD: Duration = Duration::from_secs(5 * 60);

/// One connection gets this part of the places of a kind, so only eight clients together can take
/// all.
const CONNECTION_PART: usize = 8;

/// Bulk streams over all connections.
pub(crate) const MAX_BULK_STREAMS: usize = 1024;

/// A kind of stream.
#[derive(Debug)]
pub(super) struct Kind {
    name: &'static str,
    paths: &'static [&'static str],
    max: usize,
    silence: Silence,
}

/// What happens to a stream on which neither side sends anything for a while.
#[derive(Debug)]
enum Silence {
    /// The stream is ended after this time.
    Ends(Duration),
    /// The service ends it, because only the service knows whether it is working for the client.
    IsWatchedByTheService,
}

/// All kinds; a test compares them with the services.
const KINDS: [Kind; 3] = [
    Kind {
        name: "bulk",
        paths: &["/featurestore.v1.FeatureStoreService/BulkUpsert"],
        max: MAX_BULK_STREAMS,
        silence: Silence::IsWatchedByTheService,
    },
    Kind {
        name: "watch",
        paths: &["/grpc.health.v1.Health/Watch"],
        max: 1024,
        // A healthy server may have nothing to send for days. The client watches again, as it must
        // when its connection reaches its maximum age, which is the same time.
        silence: Silence::Ends(Duration::from_secs(30 * 60)),
    },
    Kind {
        name: "reflection",
        paths: &[
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        ],
        max: 128,
        // Tools send one question after the other and leave.
        silence: Silence::Ends(Duration::from_secs(30)),
    },
];

/// The number of the kind, by the path of a call. None: the call is not a stream.
pub(super) fn kind(path: &str) -> Option<usize> {
    KINDS.iter().position(|kind| kind.paths.contains(&path))
}

#[derive(Debug)]
pub(super) struct Streams {
    places: [Arc<Semaphore>; KINDS.len()],
    refused: [Counter; KINDS.len()],
    closing: CancellationToken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) kind: &'static str,
    pub(super) open: usize,
    pub(super) max: usize,
    pub(super) refused: u64,
}

impl Streams {
    /// `closing` is cancelled when connections receive GOAWAY.
    pub(super) fn new(closing: CancellationToken) -> Self {
        let places = KINDS.each_ref().map(|kind| Arc::new(Semaphore::new(kind.max)));
        Self { places, refused: Default::default(), closing }
    }

    pub(super) fn reading(&self) -> impl Iterator<Item = Reading> {
        KINDS.iter().zip(&self.places).zip(&self.refused).map(|((kind, places), refused)| Reading {
            kind: kind.name,
            open: kind.max - places.available_permits(),
            max: kind.max,
            refused: refused.get(),
        })
    }

    /// Begins a stream of this kind on a connection. None: there is no place for it.
    pub(super) fn begin(&self, kind: usize, connection: &ConnectionStreams) -> Option<Arc<Life>> {
        let share = connection.0[kind].clone().try_acquire_owned().ok();
        let place = share.and_then(|share| Some((self.places[kind].clone().try_acquire_owned().ok()?, share)));
        let Some((place, share)) = place else {
            self.refused[kind].add(1);
            return None;
        };
        let place = Arc::new(StreamPlace::new(place, share));
        Some(Arc::new(Life {
            kind: &KINDS[kind],
            place,
            closing: self.closing.clone(),
            active: Mutex::new(Instant::now()),
            ended: CancellationToken::new(),
            why: OnceLock::new(),
        }))
    }
}

#[derive(Debug)]
pub(super) struct ConnectionStreams([Arc<Semaphore>; KINDS.len()]);

impl Default for ConnectionStreams {
    fn default() -> Self {
        Self(KINDS.each_ref().map(|kind| Arc::new(Semaphore::new(kind.max / CONNECTION_PART))))
    }
}

/// A stream while it lasts; the bodies of its request and of its answer hold it.
#[derive(Debug)]
pub(super) struct Life {
    kind: &'static Kind,
    place: Arc<StreamPlace>,
    closing: CancellationToken,
    /// When something was last received or sent.
    active: Mutex<Instant>,
    ended: CancellationToken,
    /// Why the server ended it, if it did.
    why: OnceLock<Status>,
}

impl Life {
    pub(super) fn place(&self) -> &Arc<StreamPlace> {
        &self.place
    }

    /// Records that something was received or sent.
    pub(super) fn go_on(&self) {
        *self.active.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Records that the rest of its request cannot be read. This ends the stream, unless the
    /// service does so after it has answered what came before.
    pub(super) fn fail(&self, why: Status) {
        if !matches!(self.kind.silence, Silence::IsWatchedByTheService) {
            self.end(why);
        }
    }

    /// Ends both its bodies.
    fn end(&self, why: Status) {
        // The first reason is the one that the client receives.
        let _ = self.why.set(why);
        self.ended.cancel();
    }

    /// Why it was ended. None: it was not.
    pub(super) fn why_ended(&self) -> Option<&Status> {
        self.why.get()
    }

    pub(super) async fn ended(self: Arc<Self>) {
        self.ended.cancelled().await;
    }

    /// Waits until it is ended, or ends it when it is silent for too long.
    pub(super) async fn over(self: Arc<Self>) {
        tokio::select! {
            () = self.ended.cancelled() => {}
            why = self.silent_for_too_long() => self.end(why),
        }
    }

    /// Waits for as long as a client may leave an answer unread.
    pub(super) async fn unread(&self) {
        let drained = async {
            self.closing.cancelled().await;
            sleep(LAST_CALL).await;
        };
        let _ = timeout(UNREAD, drained).await;
    }

    async fn silent_for_too_long(&self) -> Status {
        let Silence::Ends(silence) = self.kind.silence else { return std::future::pending().await };
        loop {
            let drains = self.closing.is_cancelled();
            let active = *self.active.lock().unwrap_or_else(PoisonError::into_inner);
            let end = active + if drains { LAST_CALL } else { silence };
            if Instant::now() >= end {
                return if drains { status::draining() } else { status::silent(silence) };
            }
            tokio::select! {
                () = sleep_until(end) => {}
                () = self.closing.cancelled(), if !drains => self.go_on(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;
    use tonic::Code;

    use super::*;

    #[test]
    fn every_stream_that_a_client_may_begin_is_of_a_kind() {
        let sets = [
            crate::proto::DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let mut streams = BTreeSet::new();
        for set in sets {
            for file in prost_types::FileDescriptorSet::decode(set).unwrap().file {
                for service in &file.service {
                    let streaming = service.method.iter().filter(|m| m.client_streaming() || m.server_streaming());
                    streams.extend(streaming.map(|m| format!("/{}.{}/{}", file.package(), service.name(), m.name())));
                }
            }
        }
        let known = KINDS.iter().flat_map(|kind| kind.paths).map(|path| (*path).to_owned());
        assert_eq!(streams, known.collect());
        assert_eq!(kind("/featurestore.v1.FeatureStoreService/GetFeatures"), None);
    }

    fn number(name: &str) -> usize {
        KINDS.iter().position(|kind| kind.name == name).unwrap()
    }

    #[test]
    fn a_connection_gets_its_share_and_all_of_them_no_more_than_there_is() {
        let streams = Streams::new(CancellationToken::new());
        let open = |name: &str| streams.reading().find(|reading| reading.kind == name).unwrap();
        for (number, Kind { name, max, .. }) in KINDS.iter().enumerate() {
            let connections: Vec<_> = (0..CONNECTION_PART + 1).map(|_| ConnectionStreams::default()).collect();
            let mut held = Vec::new();
            for connection in &connections[..CONNECTION_PART] {
                held.extend((0..max / CONNECTION_PART).map(|_| streams.begin(number, connection).unwrap()));
                assert!(streams.begin(number, connection).is_none(), "{name}");
            }
            assert!(streams.begin(number, &connections[CONNECTION_PART]).is_none(), "{name}");
            assert_eq!((open(name).open, open(name).refused), (*max, CONNECTION_PART as u64 + 1));
            // A stream that is shed over all connections takes nothing of its connection's share.
            held.pop();
            assert!(streams.begin(number, &connections[CONNECTION_PART]).is_some(), "{name}");
            drop(held);
            assert_eq!(open(name).open, 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_ends_and_one_that_goes_on_does_not() {
        let streams = Streams::new(CancellationToken::new());
        for name in ["watch", "reflection"] {
            let Silence::Ends(silence) = KINDS[number(name)].silence else { panic!("{name}") };
            let life = streams.begin(number(name), &ConnectionStreams::default()).unwrap();
            let over = tokio::spawn(life.clone().over());
            for _ in 0..3 {
                tokio::time::sleep(silence * 2 / 3).await;
                assert!(!over.is_finished(), "{name}");
                life.go_on();
            }
            let began = Instant::now();
            over.await.unwrap();
            assert!(began.elapsed() <= silence + Duration::from_millis(5), "{name}: {:?}", began.elapsed());
            assert_eq!(life.why_ended().unwrap().code(), Code::Unavailable);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_a_stream_whose_client_is_silent_for_a_moment() {
        let closing = CancellationToken::new();
        let streams = Streams::new(closing.clone());
        let begin = || streams.begin(number("watch"), &ConnectionStreams::default()).unwrap();
        let (life, late) = (begin(), begin());
        let over = tokio::spawn(life.clone().over());
        tokio::time::sleep(Duration::from_secs(60)).await;
        closing.cancel();
        tokio::time::sleep(LAST_CALL / 2).await;
        assert!(!over.is_finished());
        tokio::time::timeout(LAST_CALL, over).await.unwrap().unwrap();
        assert!(life.why_ended().unwrap().message().contains("shutting down"));
        tokio::time::timeout(2 * LAST_CALL, late.over()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn of_what_the_service_watches_only_the_place_is_kept_here() {
        let streams = Streams::new(CancellationToken::new());
        let life = streams.begin(number("bulk"), &ConnectionStreams::default()).unwrap();
        let day = Duration::from_secs(24 * 3600);
        assert!(tokio::time::timeout(day, life.clone().over()).await.is_err());
        life.fail(status::request_too_slow());
        assert!(life.why_ended().is_none(), "it answers what came before");
    }
}
