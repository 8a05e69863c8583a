//! Streams of many small messages: each message is answered, and no other call of the connection waits for them.

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::Builder};
use prost::Message as _;

use super::*;
use crate::harness::tools;

/// The messages of a bulk stream, which its client sends as it likes.
struct Messages {
    send: SendStream<Bytes>,
    /// Of the last one.
    sequence: u64,
}

/// The answers of the stream, which its client reads when it likes.
struct Answers(RecvStream);

async fn open(raw: &Raw) -> (Messages, Answers) {
    let mut send = raw.send.clone().ready().await.unwrap();
    let (answer, send) = send.send_request(raw::head("BulkUpsert").body(()).unwrap(), false).unwrap();
    (Messages { send, sequence: 0 }, Answers(answer.await.unwrap().into_body()))
}

impl Messages {
    /// Sends a message as a frame of its own, as soon as the server lets it. False: it did not for a while.
    async fn send(&mut self, mut message: BulkUpsertRequest) -> bool {
        message.sequence = self.sequence + 1;
        let message = raw::framed(&message);
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

    fn end(&mut self) {
        // Whatever room was asked for, the end needs none.
        self.send.reserve_capacity(0);
        self.send.send_data(Bytes::new(), true).unwrap();
    }
}

impl Answers {
    /// Reads all, which must be in order and the end good. Gives their number.
    async fn read(mut self) -> u64 {
        let (mut bytes, mut answered) = (Vec::new(), 0);
        while let Some(data) = self.0.data().await {
            let data = data.unwrap();
            self.0.flow_control().release_capacity(data.len()).unwrap();
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
        let trailers = self.0.trailers().await.unwrap().unwrap();
        assert_eq!(trailers["grpc-status"], "0", "{trailers:?}");
        answered
    }
}

/// A message without a record, which is answered without a write.
fn empty() -> BulkUpsertRequest {
    chunk(0, [])
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_messages_are_all_answered_while_they_are_sent() {
    let server = Binary::start(&[]);
    server.until_serving().await;
    let raw = raw::connect(server.port, Builder::new().initial_connection_window_size(64 << 20)).await;
    for (messages, records) in [(30_000, 0), (2_000, 1), (300, 30)] {
        let (mut sent, answers) = open(&raw).await;
        let answered = tokio::spawn(answers.read());
        let message = chunk(0, (0..records).map(|i| record(&format!("r{i}"), [])));
        for _ in 0..messages {
            assert!(sent.send(message.clone()).await, "{messages} of {records}: no room after {}", sent.sequence);
        }
        sent.end();
        assert_eq!(answered.await.unwrap(), messages, "{records}");
    }
    another_is_served(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_whose_answers_nobody_reads_yet_keep_no_other_call_of_their_connection_from_being_answered() {
    // Five of them have more to send than the connection's window holds.
    const STREAMS: usize = 6;
    let server = Binary::start(&[]);
    server.until_serving().await;
    another_is_served(&server).await;
    let raw = raw::connect(server.port, Builder::new().initial_connection_window_size(64 << 20)).await;
    let before = server.memory();
    // As far ahead as the server lets them: one small message after the other, each in a frame of its own.
    let small = BulkUpsertRequest { model_version: "v".repeat(30), ..empty() };
    let mut sending = tokio::task::JoinSet::new();
    for _ in 0..STREAMS {
        let (mut sent, answers) = open(&raw).await;
        let small = small.clone();
        sending.spawn(async move {
            while sent.send(small.clone()).await {
                if sent.sequence % 16 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            (sent, answers)
        });
    }
    let unread = sending.join_all().await;
    let messages: u64 = unread.iter().map(|(sent, _)| sent.sequence).sum();
    let after = server.memory();
    println!("{messages} messages were taken, and memory grew from {} to {} MiB", before >> 20, after >> 20);
    assert!(messages > 20_000 * STREAMS as u64, "is anything waiting there? {messages}");
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
    for (mut sent, answers) in unread {
        sent.end();
        finishing.spawn(async move { assert_eq!(answers.read().await, sent.sequence) });
    }
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
    let (mut sent, answers) = open(&raw).await;
    for _ in 0..1000 {
        assert!(sent.send(empty()).await);
    }
    eventually("an answer to wait", async || {
        server.metrics().await.lines().any(|line| line == "featurestore_streams_in_flight{kind=\"bulk\"} 1")
    })
    .await;
    server.signal("TERM");
    assert_eq!(server.exit_code(PATIENCE), 0, "{}", server.log());
    drop(answers);
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcurl_python_and_node_get_an_answer_to_each_of_many_small_messages() {
    let server = Binary::start(&[]);
    server.until_serving().await;
    another_is_served(&server).await;
    for (messages, records, streams) in [("20000", "0", "4"), ("500", "1", "4")] {
        let given = ["--target", &server.address(), "--messages", messages, "--records", records, "--streams", streams];
        if let Some(ended) = tools::python("small_chunks.py", &given).await {
            println!("{}", ended.unwrap());
        }
    }
    if let Some(ended) = tools::node("small_chunks.js", &[&server.address(), "30000"]).await {
        println!("{}", ended.unwrap());
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
