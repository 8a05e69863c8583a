//! Streams of many small messages: each message is answered, and no other call of the connection waits for them.

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::Builder};
use prost::Message as _;

use super::*;
use crate::harness::tools;

/// A bulk stream whose client sends as it likes.
struct Stream {
    send: SendStream<Bytes>,
    answers: RecvStream,
    /// Of the last message.
    sequence: u64,
}

impl Stream {
    async fn open(raw: &Raw) -> Self {
        let mut send = raw.send.clone().ready().await.unwrap();
        let (answer, send) = send.send_request(raw::head("BulkUpsert").body(()).unwrap(), false).unwrap();
        Self { send, answers: answer.await.unwrap().into_body(), sequence: 0 }
    }

    /// Sends a message as a frame of its own, as soon as the server lets it. False: it did not for a while.
    async fn send(&mut self, records: usize) -> bool {
        let records = (0..records).map(|i| record(&format!("r{i}"), []));
        let message = raw::framed(&chunk(self.sequence + 1, records));
        self.send.reserve_capacity(message.len());
        let room = async {
            while self.send.capacity() < message.len() {
                std::future::poll_fn(|cx| self.send.poll_capacity(cx)).await.unwrap().unwrap();
            }
        };
        if tokio::time::timeout(Duration::from_secs(2), room).await.is_err() {
            return false;
        }
        self.send.send_data(message, false).unwrap();
        self.sequence += 1;
        true
    }

    /// Reads all answers, which must be there for each message, in order.
    async fn finish(mut self) {
        // Whatever room was asked for, the end needs none.
        self.send.reserve_capacity(0);
        self.send.send_data(Bytes::new(), true).unwrap();
        let (mut bytes, mut answered) = (Vec::new(), 0);
        while let Some(data) = self.answers.data().await {
            let data = data.unwrap();
            self.answers.flow_control().release_capacity(data.len()).unwrap();
            bytes.extend_from_slice(&data);
            let mut rest = &bytes[..];
            while let Some((head, body)) = rest.split_at_checked(5) {
                let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
                let Some((message, later)) = body.split_at_checked(length) else { break };
                answered += 1;
                assert_eq!(BulkUpsertResponse::decode(message).unwrap().sequence, answered);
                rest = later;
            }
            bytes = rest.to_vec();
        }
        let trailers = self.answers.trailers().await.unwrap().unwrap();
        assert_eq!((trailers["grpc-status"].to_str().unwrap(), answered), ("0", self.sequence), "{trailers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_messages_are_all_answered_while_they_are_sent() {
    let server = Binary::start(&[]);
    server.until_serving().await;
    let raw = raw::connect(server.port, Builder::new().initial_connection_window_size(64 << 20)).await;
    for (messages, records) in [(30_000, 0), (2_000, 1), (300, 30)] {
        let mut stream = Stream::open(&raw).await;
        let mut reading = stream.answers.flow_control().clone();
        for _ in 0..messages {
            assert!(stream.send(records).await, "{messages} of {records}: no room after {}", stream.sequence);
            // Its answers are taken, as their bytes are less than these.
            let _ = reading.release_capacity(reading.used_capacity().min(256));
        }
        stream.finish().await;
    }
    another_is_served(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_whose_answers_nobody_reads_yet_keep_no_other_call_of_their_connection_from_being_answered() {
    const STREAMS: usize = 12;
    let server = Binary::start(&[]);
    server.until_serving().await;
    another_is_served(&server).await;
    let raw = raw::connect(server.port, Builder::new().initial_connection_window_size(64 << 20)).await;
    let before = server.memory();
    // As far ahead as the server lets them: one message after the other, each in a packet of its own, the smallest that there
    // are.
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = Stream::open(&raw).await;
        streams.push(tokio::spawn(async move {
            while stream.send(0).await {
                if stream.sequence % 16 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            stream
        }));
    }
    let mut unread = Vec::new();
    for stream in streams {
        unread.push(stream.await.unwrap());
    }
    let messages: u64 = unread.iter().map(|stream| stream.sequence).sum();
    let after = server.memory();
    println!("{messages} messages were taken, and memory grew from {} to {} MiB", before >> 20, after >> 20);
    assert!(messages > 100_000 * STREAMS as u64, "is anything waiting there? {messages}");
    assert!(after < before + (64 << 20), "{before} {after}");

    for _ in 0..20 {
        let answer = raw.begin("GetFeatures", &get(["another"])).await.unwrap();
        let (code, bytes) = tokio::time::timeout(PATIENCE, raw::finish(answer)).await.expect("it waits").unwrap();
        assert!(code == Code::Ok && bytes > 0, "{code:?}");
    }
    // Also one that is larger than what is left where a window is shared.
    let large = record("large", [("text", value(value::Kind::StringVal("x".repeat(900_000))))]);
    let answer = raw.begin("UpsertFeatures", &upsert(large)).await.unwrap();
    let (code, _) = tokio::time::timeout(PATIENCE, raw::finish(answer)).await.expect("it waits").unwrap();
    assert_eq!(code, Code::Ok);

    let mut finishing = tokio::task::JoinSet::new();
    unread.into_iter().for_each(|stream| _ = finishing.spawn(stream.finish()));
    finishing.join_all().await;
    eventually("all bytes to be given back", async || {
        server.metrics().await.lines().any(|line| line == "featurestore_bytes_in_flight 0")
    })
    .await;
    another_is_served(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_reads_the_answers_does_not_hold_up_the_drain() {
    let mut server = Binary::start(&[("FEATURESTORE_DRAIN_TIMEOUT", "10min")]);
    server.until_serving().await;
    let raw = raw::connect(server.port, Builder::new().initial_window_size(100)).await;
    let mut stream = Stream::open(&raw).await;
    for _ in 0..1000 {
        assert!(stream.send(0).await);
    }
    eventually("an answer to wait", async || {
        server.metrics().await.lines().any(|line| line == "featurestore_streams_in_flight{kind=\"bulk\"} 1")
    })
    .await;
    server.signal("TERM");
    assert_eq!(server.exit_code(PATIENCE), 0, "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcurl_and_python_get_an_answer_to_each_of_many_small_messages() {
    let server = Binary::start(&[]);
    server.until_serving().await;
    another_is_served(&server).await;
    for (messages, records, streams) in [("20000", "0", "4"), ("500", "1", "4")] {
        let given = ["--target", &server.address(), "--messages", messages, "--records", records, "--streams", streams];
        if let Some(ended) = tools::python("small_chunks.py", &given).await {
            println!("{}", ended.unwrap());
        }
    }

    let folder = crate::harness::process::temp_dir();
    let (messages, count) = (folder.path().join("messages.json"), 2_000);
    let message =
        |i| format!("{{\"records\":[{{\"entity_id\":\"g{i}\",\"features\":{{\"x\":{{\"double_val\":1}}}}}}]}}\n");
    std::fs::write(&messages, (0..count).map(message).collect::<String>()).unwrap();
    let Some(program) = tools::grpcurl_program() else { return };
    let call = "exec \"$0\" -plaintext -d @ \"$1\" featurestore.v1.FeatureStoreService/BulkUpsert < \"$2\"";
    let ended = tools::run("sh", ["-c", call, &program, &server.address(), messages.to_str().unwrap()]).await;
    assert_eq!(ended.unwrap().matches("\"written\": \"1\"").count(), count);
}
