//! The BulkUpsert stream: one chunk is written while the next is received, and every chunk is answered in order. Memory
//! stays flat whatever the client sends: two chunks are held at most, and a client that does not read its answers stops
//! being read.

use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::{
    Api, Arrival, InFlight,
    convert::{self, Chunk},
    failure::Failure,
    status, within,
};
use crate::{
    metrics::Counter,
    proto::{BulkUpsertRequest, BulkUpsertResponse, WriteOutcome, WriteResult},
    tiered::{BulkAnswer, WriteError},
    trace,
};

/// Answers that wait for a client which is slow to read them.
const ANSWERS: usize = 4;

type Answer = Result<BulkUpsertResponse, Status>;

/// Records of all streams, by what became of them.
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

/// Serves a stream until its client ends it, or a chunk cannot be taken.
pub(super) fn serve(
    api: Api,
    requests: Streaming<BulkUpsertRequest>,
    arrived: Arrival,
    place: Option<InFlight>,
) -> ReceiverStream<Answer> {
    let (received, chunks) = mpsc::channel(1);
    let (answers, to_client) = mpsc::channel(ANSWERS);
    tokio::spawn(receive(requests, received));
    tokio::spawn(trace::carried(async move {
        write(api, chunks, answers, arrived).await;
        drop(place);
    }));
    ReceiverStream::new(to_client)
}

/// Reads ahead by one chunk. Ends when the writer is gone.
async fn receive(
    mut requests: Streaming<BulkUpsertRequest>,
    received: mpsc::Sender<Result<BulkUpsertRequest, Status>>,
) {
    loop {
        let next = tokio::select! {
            next = requests.message() => next,
            () = received.closed() => return,
        };
        let Some(next) = next.transpose() else { return };
        let broken = next.is_err();
        if received.send(next).await.is_err() || broken {
            return;
        }
    }
}

async fn write(
    api: Api,
    mut chunks: mpsc::Receiver<Result<BulkUpsertRequest, Status>>,
    answers: mpsc::Sender<Answer>,
    arrived: Arrival,
) {
    let mut view = None;
    while let Some(request) = chunks.recv().await {
        let answer = match request {
            Ok(request) => match convert::chunk(request, view.as_ref(), &api.0.limits) {
                Ok(chunk) => {
                    view = Some(chunk.view.clone());
                    write_chunk(&api, chunk, arrived).await.map_err(Status::from)
                }
                Err(failure) => Err(failure.into()),
            },
            Err(status) if status.code() == Code::OutOfRange => {
                Err(status::request_too_large(api.0.limits.max_request_bytes))
            }
            Err(status) => Err(status),
        };
        let ended = answer.is_err();
        if answers.send(answer).await.is_err() || ended {
            return;
        }
    }
}

async fn write_chunk(api: &Api, chunk: Chunk, arrived: Arrival) -> Result<BulkUpsertResponse, Failure> {
    let Chunk { view: _, sequence, warm_cache, all_results, entity_ids, writes, refused } = chunk;
    // Each chunk has a deadline of its own; the stream has only its client's.
    let chunk_arrived = Arrival { at: Instant::now(), ..arrived };
    let (indices, writes): (Vec<usize>, Vec<_>) = writes.into_iter().unzip();
    let writing = async {
        let answer = match writes.is_empty() {
            true => BulkAnswer { items: Vec::new() },
            false => api.0.tiered.write_bulk(writes, warm_cache).await,
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
