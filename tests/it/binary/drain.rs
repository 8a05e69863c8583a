//! SIGTERM: health, the calls in flight, the exit code.

use std::time::{Duration, Instant};

use tonic_health::pb::health_check_response::ServingStatus;

use super::*;

/// The drain's own bounds, and time to spare.
const END: Duration = Duration::from_secs(60);

/// A bulk stream that was begun: calls in flight until it is ended.
async fn open_stream(
    client: &mut Client,
) -> (tokio::sync::mpsc::Sender<BulkUpsertRequest>, tonic::Streaming<BulkUpsertResponse>) {
    let (send, chunks) = tokio::sync::mpsc::channel(1);
    send.send(chunk(1)).await.unwrap();
    let chunks = tokio_stream::wrappers::ReceiverStream::new(chunks);
    let mut answers = client.bulk_upsert(chunks).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().sequence, 1);
    (send, answers)
}

fn chunk(sequence: u64) -> BulkUpsertRequest {
    let records = vec![record(&format!("r{sequence}"), [("n", double(1.0))])];
    BulkUpsertRequest { sequence, records, ..BulkUpsertRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_calls_in_flight_finish_and_exits_with_0() {
    let data = temp_dir();
    let settings = [("FEATURESTORE_DRAIN_DELAY", "1s"), ("FEATURESTORE_DATA_DIR", data.path().to_str().unwrap())];
    let mut server = Binary::start(&settings);
    server.until_serving().await;
    let mut client = server.client().await;
    let (send, mut answers) = open_stream(&mut client).await;
    server.signal("TERM");
    eventually("health to say so", async || server.health(SERVICE).await == Some(ServingStatus::NotServing)).await;
    assert_eq!(server.health("").await, Some(ServingStatus::NotServing));
    // During the delay calls are still taken.
    client.get_features(get(["r1"])).await.unwrap();
    eventually("connections to be refused", async || server.health("").await.is_none()).await;

    send.send(chunk(2)).await.unwrap();
    let answer = answers.message().await.unwrap().unwrap();
    assert_eq!((answer.sequence, answer.written, answer.failed), (2, 1, 0));
    assert!(server.is_running(), "it waits for the stream");
    drop(send);
    assert!(answers.message().await.unwrap().is_none(), "it ended well");
    assert_eq!(server.exit_code(END), 0, "{}", server.log());

    let again = Binary::start(&settings);
    again.until_serving().await;
    let rows = again.client().await.get_features(get(["r1", "r2"])).await.unwrap().into_inner().rows;
    assert!(rows.iter().all(|row| row.status() == RowStatus::Found), "{rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let mut server = Binary::start(&[("FEATURESTORE_DRAIN_DELAY", "50s")]);
    server.until_serving().await;
    let mut client = server.client().await;
    let (_send, _answers) = open_stream(&mut client).await;
    server.signal("TERM");
    eventually("health to say so", async || server.health("").await == Some(ServingStatus::NotServing)).await;
    let start = Instant::now();
    server.signal("INT");
    assert_ne!(server.exit_code(END), 0, "it did not finish what it had begun");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(server.log().contains("second signal"), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_drains_as_well_and_an_idle_client_does_not_hold_it_up() {
    let mut server = Binary::start(&[]);
    server.until_serving().await;
    let mut client = server.client().await;
    client.info(InfoRequest {}).await.unwrap();
    let start = Instant::now();
    server.signal("INT");
    assert_eq!(server.exit_code(END), 0, "{}", server.log());
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}
