//! The BulkUpsert stream: one chunk is written while the next one is received, and chunks are
//! answered in their order. The memory of a stream is bounded whatever the client sends: at most
//! two chunks are held, and the server stops reading from a client that does not read its answers.

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{
    Api, Arrival, InFlight, Limits, Share, audit,
    convert::{self, Chunk},
    failure::Failure,
    status, within,
};
use crate::{
    access::Access,
    metrics::Counter,
    proto::{BulkUpsertRequest, BulkUpsertResponse, Unpacked, WriteOutcome, WriteResult},
    record::{DEFAULT_VIEW, FeatureView},
    tiered::{BulkAnswer, WriteError},
    trace,
};

/// Answers that may wait for a client which is slow to read them.
const ANSWERS: usize = 4;

/// How long a client may send nothing after connections received GOAWAY.
const LAST_CALL: Duration = Duration::from_secs(1);

/// How long a client may send nothing at any time, because its stream keeps others from its place.
/// This is far longer than a client needs to make a chunk.
const SILENCE: Duration = Duration::from_secs(300);

type Answer = Result<BulkUpsertResponse, Status>;

/// A chunk, and the bytes of its message. They are released when the chunk is both written and
/// answered.
type Received = (Result<Checked, Status>, Option<Arc<Share>>);

/// A chunk that was checked while the one before it was written; the feature view that it named, or
/// ""; and the number of its records.
struct Checked {
    named: String,
    records: usize,
    chunk: Result<Chunk, Failure>,
}

impl Checked {
    /// `view` is the view of the chunk before, for chunks that name none.
    fn of(request: BulkUpsertRequest, view: &mut Option<FeatureView>, limits: &Limits) -> Self {
        let (named, records) = (request.feature_view.clone(), request.records.len());
        let chunk = convert::chunk(request, view.as_ref(), limits);
        if let Ok(chunk) = &chunk {
            *view = Some(chunk.view.clone());
        }
        Self { named, records, chunk }
    }
}

/// Records of all streams since the start, by outcome.
#[derive(Debug, Default)]
pub(super) struct BulkRecords {
    written: Counter,
    skipped_stale: Counter,
    failed: Counter,
}

impl BulkRecords {
    pub(super) fn reading(&self) -> [(&'static str, u64); 3] {
        let Self { written, skipped_stale, failed } = self;
        [("written", written.get()), ("skipped_stale", skipped_stale.get()), ("failed", failed.get())]
    }

    fn count(&self, answer: &BulkUpsertResponse) {
        let BulkUpsertResponse { written, skipped_stale, failed, .. } = answer;
        self.written.add(*written as usize);
        self.skipped_stale.add(*skipped_stale as usize);
        self.failed.add(*failed as usize);
    }
}

/// Serves a stream until its client ends it, or a chunk is rejected.
pub(super) fn serve(
    api: Api,
    requests: Streaming<BulkUpsertRequest>,
    arrived: Arrival,
    (place, unpacked): (Option<InFlight>, Option<Unpacked>),
    access: Option<Access>,
) -> ReceiverStream<Answer> {
    let (received, chunks) = mpsc::channel(1);
    let (answers, to_client) = mpsc::channel(ANSWERS);
    let receiving = receive(api.clone(), requests, received, place.clone());
    match unpacked {
        None => tokio::spawn(receiving),
        Some(unpacked) => tokio::spawn(unpacked.throughout(receiving)),
    };
    tokio::spawn(trace::carried(async move {
        write(api, chunks, answers, arrived, access, place).await;
    }));
    ReceiverStream::new(to_client)
}

/// Receives and checks one chunk ahead of the writer. Ends when the writer has ended.
async fn receive(
    api: Api,
    mut requests: Streaming<BulkUpsertRequest>,
    received: mpsc::Sender<Received>,
    place: Option<InFlight>,
) {
    let mut view = None;
    loop {
        let next = tokio::select! {
            next = requests.message() => next,
            () = received.closed() => return,
        };
        let Some(next) = next.transpose() else { return };
        let share = place.as_ref().map(|place| Arc::new(place.take_received()));
        let next = next.map(|request| Checked::of(request, &mut view, &api.0.limits));
        let broken = !matches!(&next, Ok(Checked { chunk: Ok(_), .. }));
        if received.send((next, share)).await.is_err() || broken {
            return;
        }
    }
}

async fn write(
    api: Api,
    mut chunks: mpsc::Receiver<Received>,
    answers: mpsc::Sender<Answer>,
    arrived: Arrival,
    mut access: Option<Access>,
    place: Option<InFlight>,
) {
    let mut view = None;
    loop {
        // While the writer waits here, nothing of the stream is being written.
        let next = tokio::select! {
            biased;
            next = chunks.recv() => next,
            ended = silent_for_too_long(&api) => {
                // If the client does not read it, the status is not worth waiting for.
                let _ = answers.try_send(Err(ended.into()));
                return;
            }
        };
        let Some((checked, share)) = next else { return };
        let answer = match checked {
            Ok(Checked { named, records, chunk }) => {
                let named = match &*named {
                    "" => view.as_ref().map_or(DEFAULT_VIEW, FeatureView::as_str),
                    named => named,
                };
                match let_in(access.as_mut(), named) {
                    Ok(()) => {
                        let attempt = audit::Attempt::of(access.as_ref(), named, records);
                        let answer = match chunk {
                            Ok(chunk) => {
                                view = Some(chunk.view.clone());
                                write_chunk(&api, chunk, share.clone(), arrived, place.as_ref()).await
                            }
                            Err(failure) => Err(failure),
                        };
                        let answer = answer.map_err(Status::from);
                        attempt.ended(answer.as_ref().map(audit::Count::from));
                        answer
                    }
                    Err(failure) => Err(failure.into()),
                }
            }
            Err(said) => Err(status::reworded(&said, api.0.limits.max_request_bytes).unwrap_or(said)),
        };
        let ended = answer.is_err();
        let read = tokio::select! {
            biased;
            sent = answers.send(answer) => sent.is_ok(),
            // A client that does not read its answers occupies the stream's place just as a silent
            // one does.
            _ = silent_for_too_long(&api) => false,
        };
        if !read || ended {
            return;
        }
        drop(share);
    }
}

/// Waits until a silent client has been waited for long enough, and returns why its stream ends: it
/// would delay the drain, or keep others from its place.
async fn silent_for_too_long(api: &Api) -> Failure {
    let draining = async {
        api.0.closing.cancelled().await;
        tokio::time::sleep(LAST_CALL).await;
    };
    match tokio::time::timeout(SILENCE, draining).await {
        Ok(()) => Failure::draining(),
        Err(_) => Failure::silent(SILENCE),
    }
}

/// Checks the right for each chunk: it may name another feature view, and the token may have been
/// removed since the stream began.
fn let_in(access: Option<&mut Access>, view: &str) -> Result<(), Failure> {
    let Some(access) = access else { return Ok(()) };
    Ok(access.check_again(view)?)
}

async fn write_chunk(
    api: &Api,
    chunk: Chunk,
    held: Option<Arc<Share>>,
    arrived: Arrival,
    place: Option<&InFlight>,
) -> Result<BulkUpsertResponse, Failure> {
    let Chunk { view: _, sequence, warm_cache, all_results, entity_ids, writes, refused } = chunk;
    // Each chunk has its own deadline; the stream has only that of its client.
    let chunk_arrived = Arrival { at: Instant::now(), ..arrived };
    let (indices, writes): (Vec<usize>, Vec<_>) = writes.into_iter().unzip();
    let held = (held, api.hold_unfolded(place, &writes).await?);
    let writing = async {
        let answer = match writes.is_empty() {
            true => BulkAnswer { items: Vec::new() },
            false => api.0.tiered.write_bulk_holding(held, writes, warm_cache).await,
        };
        match convert::all_failed(&answer.items) {
            Some(error) => Err(error),
            None => Ok::<_, WriteError>(answer),
        }
    };
    let answer = within(chunk_arrived.deadline(api.0.deadlines.write), writing).await;
    let answer = answer.inspect_err(|_| _ = api.0.bulk_records.failed.add(entity_ids.len()))?;

    let mut response = BulkUpsertResponse { sequence, cached: true, ..BulkUpsertResponse::default() };
    let mut results: Vec<WriteResult> = Vec::new();
    for (index, item) in indices.into_iter().zip(answer.items) {
        let result = convert::result(index, entity_ids[index].clone(), item, &api.0.limits);
        match result.outcome() {
            WriteOutcome::Written => {
                response.written += 1;
                response.cached &= result.cached;
            }
            WriteOutcome::SkippedStale => response.skipped_stale += 1,
            _ => response.failed += 1,
        }
        if all_results || result.outcome() == WriteOutcome::Failed {
            results.push(result);
        }
    }
    for (index, failure) in refused {
        response.failed += 1;
        results.push(WriteResult {
            index: index as u32,
            entity_id: entity_ids[index].clone(),
            outcome: WriteOutcome::Failed.into(),
            revision: 0,
            error: Some(failure.into()),
            cached: false,
        });
    }
    results.sort_by_key(|result| result.index);
    response.results = results;
    api.0.bulk_records.count(&response);
    Ok(response)
}
