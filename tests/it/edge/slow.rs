//! Clients that ask and never read: what they do not read is bounded, and theirs.

use h2::client::Builder;
use tokio::task::JoinSet;

use super::*;

const RECORDS: usize = 60;
const RECORD_BYTES: usize = 250_000;
/// Of one answer.
const ANSWER: usize = RECORDS * RECORD_BYTES;
/// A connection's part of the setting below: there is room for one answer.
const PART: usize = 16 << 20;

fn all() -> GetFeaturesRequest {
    get((0..RECORDS).map(|i| format!("large {i}")))
}

/// Asks many times for the largest answer, over a connection that lets nothing through. Gives those who wait for it.
async fn ask_and_never_read(server: &Binary, times: usize) -> (Raw, JoinSet<Code>) {
    let raw = raw::connect(server.port, Builder::new().initial_window_size(0)).await;
    let mut answers = JoinSet::new();
    for _ in 0..times {
        let answer = raw.begin("GetFeatures", &all()).await.unwrap();
        answers.spawn(async move { raw::finish(answer).await.map_or(Code::Cancelled, |(code, _)| code) });
    }
    // All but the one that there is room for are refused.
    for _ in 1..times {
        let code = tokio::time::timeout(PATIENCE, answers.join_next()).await.expect("neither held nor refused");
        assert_eq!(code.unwrap().unwrap(), Code::ResourceExhausted);
    }
    (raw, answers)
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_read_hold_their_part_and_are_cut_off_when_others_need_it() {
    let server = Binary::start(&[("FEATURESTORE_LIMITS_MAX_BYTES_IN_FLIGHT", "64MiB")]);
    server.until_serving().await;
    let mut client = server.client().await.max_decoding_message_size(64 << 20);
    for i in 0..RECORDS {
        let text = value(value::Kind::StringVal("x".repeat(RECORD_BYTES)));
        put(&mut client, record(&format!("large {i}"), [("text", text)])).await;
    }
    assert_eq!(rows(&mut client, all()).await.len(), RECORDS);
    let before = server.memory();

    let one = ask_and_never_read(&server, 48).await;
    let with_one = server.memory();
    another_is_served(&server).await;
    assert_eq!(rows(&mut client, all()).await.len(), RECORDS, "a large answer fits too");

    let (second, third, fourth) =
        tokio::join!(ask_and_never_read(&server, 8), ask_and_never_read(&server, 8), ask_and_never_read(&server, 8),);
    let with_all = server.memory();
    println!(
        "memory: {} MiB, with one client that does not read 48 answers of {} MiB {} MiB, with four {} MiB",
        before >> 20,
        ANSWER >> 20,
        with_one >> 20,
        with_all >> 20
    );
    // What a call makes on the way is not counted: some answers at once, and what the allocator keeps.
    assert!(with_one < before + PART + 10 * ANSWER, "{with_one}");
    assert!(with_all < before + 4 * PART + 10 * ANSWER, "{with_all}");
    let status = client.get_features(all()).await.unwrap_err();
    let refused = Refusal::of(&status);
    assert_eq!((refused.code, refused.reason.as_str(), refused.retry), (Code::ResourceExhausted, "TOO_BUSY", true));
    assert_eq!(server.health(SERVICE).await, Some(ServingStatus::Serving));
    assert_eq!(server.admin_health(SERVICE).await, Some(ServingStatus::Serving));

    eventually("them to be cut off", async || client.get_features(all()).await.is_ok()).await;
    assert!(server.log().contains("it read nothing for 10 s"), "{}", server.log());
    another_is_served(&server).await;
    drop((one, second, third, fourth));
    eventually("all bytes to be given back", async || {
        server.metrics().await.lines().any(|line| line == "featurestore_bytes_in_flight 0")
    })
    .await;
}
