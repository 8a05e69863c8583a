//! BulkUpsert as a client uses it: chunks are sent ahead of their answers, which come in order.

use std::{
    collections::VecDeque,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;
use http::uri::PathAndQuery;
use prost::Message as _;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Streaming, client::Grpc, transport::Channel};

use crate::{
    codec::RawCodec,
    data::Chunks,
    load::Call,
    pb,
    server::{CHUNK, Server},
};

const PATH: &str = "/featurestore.v1.FeatureStoreService/BulkUpsert";

/// Opens a stream.
pub(crate) async fn open(
    mut client: Grpc<Channel>,
    chunks: impl Stream<Item = Bytes> + Send + 'static,
) -> Result<Streaming<Bytes>, String> {
    client.ready().await.map_err(|e| e.to_string())?;
    let answers = client.streaming(Request::new(chunks), PathAndQuery::from_static(PATH), RawCodec).await;
    answers.map(tonic::Response::into_inner).map_err(|status| status.to_string())
}

/// How many records an answer says were written; that some were not is an error.
pub(crate) fn written(answer: Bytes) -> Result<u64, String> {
    let answer = pb::BulkUpsertResponse::decode(answer).map_err(|e| e.to_string())?;
    match answer.results.iter().find_map(|result| result.error.as_ref()) {
        Some(error) => Err(format!("a record was not written: {}", error.message)),
        None => Ok(answer.written),
    }
}

/// Sends all chunks and answers how many records were written.
pub(crate) async fn load(
    client: Grpc<Channel>,
    chunks: impl Iterator<Item = Bytes> + Send + 'static,
) -> Result<u64, String> {
    let mut answers = open(client, tokio_stream::iter(chunks)).await?;
    let mut count = 0;
    while let Some(answer) = answers.next().await {
        count += written(answer.map_err(|status| status.to_string())?)?;
    }
    Ok(count)
}

/// One stream over which many tasks send chunks of new records.
pub(crate) struct Bulk {
    chunks: Chunks,
    next: Arc<AtomicU64>,
    pid: u32,
    /// What sends, and who waits for which answer: the order of both must be the same.
    stream: Mutex<(mpsc::Sender<Bytes>, Arc<Mutex<Waiting>>)>,
}

type Waiting = VecDeque<oneshot::Sender<Result<u64, String>>>;

impl Bulk {
    /// Opens the stream; records are numbered on from `next`, which streams may share.
    pub(crate) async fn open(server: &Server, chunks: Chunks, next: Arc<AtomicU64>) -> Result<Self, String> {
        let (sender, receiver) = mpsc::channel(1);
        let waiting = Arc::new(Mutex::new(Waiting::new()));
        let (client, answered) = (server.raw(), waiting.clone());
        // A server may hold back its headers until it has an answer, so nothing waits here for them.
        tokio::spawn(async move {
            let failure = match open(client, ReceiverStream::new(receiver)).await {
                Ok(mut answers) => loop {
                    let answer = match answers.next().await {
                        Some(Ok(answer)) => written(answer),
                        Some(Err(status)) => break status.to_string(),
                        None => break "the stream ended".to_owned(),
                    };
                    if let Some(waiter) = answered.lock().await.pop_front() {
                        let _ = waiter.send(answer);
                    }
                },
                Err(error) => error,
            };
            for waiter in answered.lock().await.drain(..) {
                let _ = waiter.send(Err(failure.clone()));
            }
        });
        Ok(Self { chunks, next, pid: server.pid(), stream: Mutex::new((sender, waiting)) })
    }
}

impl Call for Bulk {
    async fn call(&self) -> Result<(), String> {
        let first = self.next.fetch_add(CHUNK, Relaxed);
        let chunk = self.chunks.chunk(first..first + CHUNK);
        let answer = {
            let stream = self.stream.lock().await;
            let (sender, receiver) = oneshot::channel();
            stream.1.lock().await.push_back(sender);
            stream.0.send(chunk).await.map_err(|_| "the stream is closed".to_owned())?;
            receiver
        };
        match answer.await.map_err(|_| "the stream is closed".to_owned())?? {
            CHUNK => Ok(()),
            written => Err(format!("{written} of {CHUNK} records were written")),
        }
    }

    fn pid(&self) -> u32 {
        self.pid
    }
}
