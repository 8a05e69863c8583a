//! Messages that come packed count as what they are unpacked.

use h2::client::Builder;
use tonic::codec::CompressionEncoding;

use super::*;

/// Of one unpacked request; packed it is a few KiB.
const BYTES: usize = 3_000_000;
/// A connection's part of the setting below: there is room for two of them.
const PART: usize = 8 << 20;
const SETTINGS: [(&str, &str); 3] = [
    ("FEATURESTORE_LIMITS_MAX_BYTES_IN_FLIGHT", "32MiB"),
    ("FEATURESTORE_LIMITS_MAX_RESPONSE_BYTES", "4MiB"),
    ("FEATURESTORE_LIMITS_MAX_RECORD_BYTES", "4000000"),
];

fn large(id: &str, bytes: usize) -> FeatureRecord {
    record(id, [("text", value(value::Kind::StringVal("x".repeat(bytes))))])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packed_message_is_taken_and_counts_unpacked_while_its_request_is_not_whole() {
    let server = Binary::start(&SETTINGS);
    server.until_serving().await;
    let mut client = server.client().await.send_compressed(CompressionEncoding::Gzip);
    put(&mut client, large("unary", BYTES)).await;
    let (answers, ended) = bulk(&mut client, (1..5).map(|i| chunk(i, [large("bulk", BYTES / 3)]))).await;
    assert_eq!((answers.len(), ended.map(|status| status.code())), (4, None));
    eventually("all bytes to be given back", async || in_flight(&server).await == 0).await;

    // Their messages are there, and their ends do not come.
    let raw = raw::connect(server.port, &Builder::new()).await;
    let (mut begun, mut answers) = (Vec::new(), Vec::new());
    for i in 0..4 {
        let mut send = raw.send.clone().ready().await.unwrap();
        let head = raw::head("UpsertFeatures").header("grpc-encoding", "gzip").body(()).unwrap();
        let (answer, mut body) = send.send_request(head, false).unwrap();
        body.send_data(raw::packed(upsert(large(&format!("begun {i}"), BYTES))).await, false).unwrap();
        begun.push(body);
        answers.push(Box::pin(raw::finish(answer)));
    }
    let (refused, _, waiting) = futures_util::future::select_all(answers).await;
    assert_eq!(refused.unwrap().0, Code::ResourceExhausted);
    let (refused, _, waiting) = futures_util::future::select_all(waiting).await;
    assert_eq!(refused.unwrap().0, Code::ResourceExhausted);
    let held = in_flight(&server).await;
    assert!((2 * BYTES..PART).contains(&held), "{held}");
    another_is_served(&server).await;
    for mut body in begun {
        let _ = body.send_data(bytes::Bytes::new(), true);
    }
    for answer in waiting {
        assert_eq!(answer.await.unwrap().0, Code::Ok);
    }
    eventually("all bytes to be given back", async || in_flight(&server).await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packed_message_that_is_too_large_is_told_so_as_a_plain_one_is() {
    let server = Binary::start(&SETTINGS);
    server.until_serving().await;
    let plain = server.client().await;
    for mut client in [plain.clone(), plain.send_compressed(CompressionEncoding::Gzip)] {
        let too_large = || large("a", 5 << 20);
        let unary = client.upsert_features(upsert(too_large())).await.unwrap_err();
        let (_, streamed) = bulk(&mut client, [chunk(1, [too_large()])]).await;
        for status in [unary, streamed.unwrap()] {
            let refused = Refusal::of(&status);
            assert_eq!((refused.code, refused.reason.as_str()), (Code::InvalidArgument, "REQUEST_TOO_LARGE"));
        }
    }
}
