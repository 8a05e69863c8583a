//! The gRPC service: five methods over [`Tiered`].
//!
//! A method converts its request (`convert`), calls the tiers within a deadline, and builds the
//! answer (`rows`, `matrix`, `status`). The status code of the call is about the request; the
//! status of a row is about its entity.

mod audit;
mod bulk;
mod convert;
mod failure;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod info;
mod keep;
mod matrix;
mod rows;
pub mod status;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    access::Access,
    proto::{
        BulkUpsertRequest, BulkUpsertResponse, DeleteFeaturesRequest, DeleteFeaturesResponse, GetFeaturesRequest,
        GetFeaturesResponse, Held, InfoRequest, InfoResponse, Unpacked, UpsertFeaturesRequest, UpsertFeaturesResponse,
        feature_store_service_server::FeatureStoreService,
    },
    record::DEFAULT_VIEW,
    store::Write,
    tiered::{Consistency, Tiered},
};
use bulk::BulkRecords;
use failure::Failure;
use keep::Needed;

pub use crate::in_flight::{ByteBudget, CONNECTION_PART, ConnectionBytes, InFlight, Place, Share, StreamPlace};

/// Answers of fewer bytes than this are not counted before they are encoded.
const UNCOUNTED: usize = 4 << 10;

/// The limits of a request.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Entity ids in a read or a delete.
    pub max_entities: usize,
    /// Features of a record, after a merge; feature names in a read.
    pub max_features: usize,
    /// Bytes of a record's features as they are stored, after a merge; in a request, also those of
    /// its model version.
    pub max_record_bytes: usize,
    /// Records in a message of a bulk stream.
    pub max_bulk_records: usize,
    /// Bytes of a request message.
    pub max_request_bytes: usize,
    /// Bytes of a response message.
    pub max_response_bytes: usize,
    /// The longest ttl of a record.
    pub max_ttl: Duration,
}

/// How long calls may take if their clients set no deadline, or a later one.
#[derive(Clone, Debug)]
pub struct Deadlines {
    /// Reads that L1 may answer.
    pub read: Duration,
    /// Reads with strong consistency.
    pub strong: Duration,
    /// Writes, deletes, and each chunk of a bulk stream.
    pub write: Duration,
}

/// The deadline of the client. The layer `server::deadline` puts it into the extensions of the
/// request.
#[derive(Clone, Copy, Debug)]
pub struct ClientDeadline(pub Instant);

/// The gRPC service; clones share it.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    tiered: Arc<Tiered>,
    limits: Limits,
    deadlines: Deadlines,
    /// Only reported, in Info.
    default_ttl: Duration,
    callers_are_known: bool,
    started: Instant,
    draining: AtomicBool,
    /// Cancelled when connections receive GOAWAY.
    closing: CancellationToken,
    bulk_records: BulkRecords,
}

impl Api {
    /// Makes the service over these tiers. `callers_are_known`: a call without an [`Access`] is an
    /// internal error.
    pub fn new(
        tiered: Arc<Tiered>,
        limits: Limits,
        deadlines: Deadlines,
        default_ttl: Duration,
        callers_are_known: bool,
    ) -> Self {
        Self(Arc::new(Inner {
            tiered,
            limits,
            deadlines,
            default_ttl,
            callers_are_known,
            started: Instant::now(),
            draining: AtomicBool::new(false),
            closing: CancellationToken::new(),
            bulk_records: BulkRecords::default(),
        }))
    }

    /// The limits of requests.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Checks the caller's right on the feature view that the request names. None: no tokens file
    /// is configured, so everybody may do everything.
    fn let_in<'r, T>(&self, request: &'r Request<T>, view: &str) -> Result<Option<&'r Access>, Failure> {
        let Some(access) = self.access(request)? else { return Ok(None) };
        access.check(if view.is_empty() { DEFAULT_VIEW } else { view })?;
        Ok(Some(access))
    }

    /// The caller. None: no tokens file is configured.
    fn access<'r, T>(&self, request: &'r Request<T>) -> Result<Option<&'r Access>, Failure> {
        match self.0.callers_are_known {
            false => Ok(None),
            true => request.extensions().get::<Access>().map(Some).ok_or_else(|| Failure::internal("no caller")),
        }
    }

    /// Records of bulk streams since the start, by outcome.
    pub fn bulk_records(&self) -> [(&'static str, u64); 3] {
        self.0.bulk_records.reading()
    }

    /// How often a stored record could not be read, since the start.
    pub fn unreadable_records(&self) -> u64 {
        failure::unreadable_records()
    }

    /// Takes the bytes that writes need in memory on their way to L2 and, for a single write, the
    /// bytes of the record that is expected to come back. If they are not free now, waits for them
    /// for 0.5 s.
    async fn hold_unfolded(&self, place: Option<&InFlight>, writes: &[Write]) -> Result<Option<Share>, Failure> {
        const PATIENCE: Duration = Duration::from_millis(500);
        let bytes = match place {
            Some(_) => {
                let answer = match writes {
                    [write] if write.needs_stored() => self.0.tiered.expected_answer(&write.key.view),
                    // A batch brings no records back.
                    _ => 0,
                };
                self.0.tiered.store().unfolds_to(writes) + answer
            }
            None => 0,
        };
        let Some(place) = place.filter(|_| bytes > 0) else { return Ok(None) };
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(share) = place.hold(bytes) {
                return Ok(Some(share));
            }
            if Instant::now() >= end {
                return Err(Failure::too_many_bytes());
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// Checks and converts a read. This is not part of the call's future, which would otherwise
    /// hold the request to its end.
    fn begin_read(
        &self,
        request: Request<GetFeaturesRequest>,
    ) -> Result<(Arrival, Option<Arc<ConnectionBytes>>, convert::Read), Status> {
        let arrived = Arrival::of(&request);
        self.let_in(&request, &request.get_ref().feature_view)?;
        let connection = request.extensions().get::<InFlight>().map(|call| call.connection().clone());
        let read = convert::read(request.into_inner(), &self.0.limits, |consistency| {
            arrived.deadline(match consistency {
                Consistency::Cached => self.0.deadlines.read,
                Consistency::Strong => self.0.deadlines.strong,
            })
        })?;
        Ok((arrived, connection, read))
    }

    async fn upsert(&self, request: Request<UpsertFeaturesRequest>) -> Result<UpsertFeaturesResponse, Failure> {
        let arrived = Arrival::of(&request);
        let (place, held) = (request.extensions().get::<InFlight>().cloned(), received(&request));
        let write = convert::upsert(request.into_inner(), &self.0.limits)?;
        let unfolded = self.hold_unfolded(place.as_ref(), std::slice::from_ref(&write)).await?;
        let held = (held, unfolded);
        let writing = within(arrived.deadline(self.0.deadlines.write), self.0.tiered.upsert_holding(held, write));
        writing.await.and_then(|answer| convert::upsert_response(answer, &self.0.limits))
    }

    async fn delete(&self, request: Request<DeleteFeaturesRequest>) -> Result<DeleteFeaturesResponse, Failure> {
        let arrived = Arrival::of(&request);
        let held = received(&request);
        let mut deletes = convert::delete(request.into_inner(), &self.0.limits)?;
        let writes = std::mem::take(&mut deletes.writes);
        let deleting = async { Ok::<_, Failure>(self.0.tiered.delete_holding(held, writes).await) };
        let answer = within(arrived.deadline(self.0.deadlines.write), deleting).await;
        answer.and_then(|answer| convert::delete_response(deletes, answer, &self.0.limits))
    }

    /// From now on, Info says that the server is shutting down.
    pub fn drain(&self) {
        self.0.draining.store(true, Relaxed);
    }

    /// From now on, streams of clients that send nothing end.
    pub fn close(&self) {
        self.0.closing.cancel();
    }
}

#[tonic::async_trait]
impl FeatureStoreService for Api {
    async fn get_features(
        &self,
        request: Request<GetFeaturesRequest>,
    ) -> Result<Response<GetFeaturesResponse>, Status> {
        let (arrived, connection, read) = self.begin_read(request)?;
        let deadline = read.request.deadline;
        let most = self.0.limits.max_response_bytes;
        let mut needed = Needed::of(&read, &self.0.tiered, most, connection.clone());
        let answer = {
            // The future is large: pinned here, it is not moved into the timeout.
            let reading = std::pin::pin!(self.0.tiered.read_keeping(&read.request, &mut needed));
            match arrived.is_clients(deadline) {
                true => tokio::time::timeout_at(deadline, reading).await.map_err(|_| Failure::deadline())?,
                // The deadline is ours, so the client still waits: what the tiers return at that
                // moment is used.
                false => reading.await,
            }
        };
        let now = needed.judged_at().map_or_else(|| self.0.tiered.now(), |at| at.max(self.0.tiered.now()));
        rows::check_time(&answer, deadline, arrived.is_clients(deadline))?;
        let (mut response, bytes, held) = rows::response(read, answer, now, most)?;
        if let Some(connection) = connection.filter(|_| bytes > UNCOUNTED) {
            // The bytes of the rows stay in memory until the rows are encoded.
            let held = held.beside_connection();
            let until = deadline.min(self.0.tiered.room_by());
            let share = Box::pin(Share::take_by(&connection, bytes, until)).await;
            let share = share.ok_or_else(Failure::too_many_bytes)?;
            response.held = Held::by(share, held);
        }
        Ok(Response::new(response))
    }

    async fn upsert_features(
        &self,
        request: Request<UpsertFeaturesRequest>,
    ) -> Result<Response<UpsertFeaturesResponse>, Status> {
        let access = self.let_in(&request, &request.get_ref().feature_view)?;
        let attempt = audit::Attempt::of(access, &request.get_ref().feature_view, 1);
        let answer = self.upsert(request).await.map_err(Status::from);
        attempt.ended(answer.as_ref().map(audit::Count::from));
        answer.map(Response::new)
    }

    type BulkUpsertStream = ReceiverStream<Result<BulkUpsertResponse, Status>>;

    async fn bulk_upsert(
        &self,
        request: Request<Streaming<BulkUpsertRequest>>,
    ) -> Result<Response<Self::BulkUpsertStream>, Status> {
        let (arrived, extensions) = (Arrival::of(&request), request.extensions());
        let place = (extensions.get::<InFlight>().cloned(), extensions.get::<Unpacked>().cloned());
        let access = self.access(&request)?.cloned();
        Ok(Response::new(bulk::serve(self.clone(), request.into_inner(), arrived, place, access)))
    }

    async fn delete_features(
        &self,
        request: Request<DeleteFeaturesRequest>,
    ) -> Result<Response<DeleteFeaturesResponse>, Status> {
        let access = self.let_in(&request, &request.get_ref().feature_view)?;
        let asked = request.get_ref().entity_ids.len();
        let attempt = audit::Attempt::of(access, &request.get_ref().feature_view, asked);
        let answer = self.delete(request).await.map_err(Status::from);
        attempt.ended(answer.as_ref().map(audit::Count::from));
        answer.map(Response::new)
    }

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        self.access(&request)?;
        Ok(Response::new(info::response(&self.0)))
    }
}

/// The bytes of a write's request. They belong to the task of the write and not to the call,
/// because the write continues if the call is cancelled.
fn received<T>(request: &Request<T>) -> Option<Share> {
    request.extensions().get::<InFlight>().map(InFlight::take_received)
}

/// When a call arrived, and the deadline of its client.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    at: Instant,
    client: Option<Instant>,
}

impl Arrival {
    fn of<T>(request: &Request<T>) -> Self {
        let client = request.extensions().get::<ClientDeadline>().map(|deadline| deadline.0);
        Self { at: Instant::now(), client }
    }

    /// The client's deadline, or this long after the arrival if that is sooner.
    fn deadline(self, ours: Duration) -> Instant {
        let ours = self.at + ours;
        self.client.map_or(ours, |client| client.min(ours))
    }

    /// Whether this is the deadline of the client.
    fn is_clients(self, deadline: Instant) -> bool {
        self.client == Some(deadline)
    }
}

/// Stops waiting for a write at the deadline. The write itself continues in its own task.
async fn within<T, E: Into<Failure>>(
    deadline: Instant,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    match tokio::time::timeout_at(deadline, work).await {
        Ok(done) => done.map_err(E::into),
        Err(_) => Err(Failure::write_deadline()),
    }
}
