//! Data survives, whatever ends the server.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn data_survives_a_restart() {
    let data = temp_dir();
    let settings = [("FEATURESTORE_DATA_DIR", data.path().to_str().unwrap())];
    let mut server = Binary::start(&settings);
    server.until_serving().await;
    let mut client = server.client().await;
    let written = client.upsert_features(upsert(record("a", [("n", double(1.5))]))).await.unwrap().into_inner();
    client.upsert_features(upsert(record("gone", []))).await.unwrap();
    client.delete_features(delete(["gone"])).await.unwrap();
    drop(client);
    server.signal("TERM");
    assert_eq!(server.exit_code(Duration::from_secs(30)), 0, "{}", server.log());

    let server = Binary::start(&settings);
    server.until_serving().await;
    let rows = server.client().await.get_features(get(["a", "gone", "never"])).await.unwrap().into_inner().rows;
    assert_eq!((rows[0].status(), rows[0].revision), (RowStatus::Found, written.revision));
    assert_eq!(rows[0].features, features([("n", double(1.5))]));
    assert_eq!(rows[0].expire_time, written.expire_time);
    assert_eq!(rows[1].status(), RowStatus::NotFound);
    assert!(rows[1].revision > 0, "its tombstone is kept");
    assert_eq!((rows[2].status(), rows[2].revision), (RowStatus::NotFound, 0));
}

/// The newest acknowledged number and revision of each id.
type Acked = Arc<Mutex<BTreeMap<String, (f64, i64)>>>;

const CRASHES: usize = 20;
const WRITERS: usize = 8;
/// Writes between a start and the kill, so that it comes in the middle of others.
const WRITES: usize = 60;

async fn write_until_killed(mut client: Client, writer: usize, round: usize, acked: Acked, count: Arc<AtomicUsize>) {
    for n in 0.. {
        // Each writer has ids of its own, some written again and again.
        let id = if n % 2 == 0 { format!("w{writer}") } else { format!("w{writer}-{round}-{n}") };
        let number = (round * 1_000_000 + n) as f64;
        let Ok(written) = client.upsert_features(upsert(record(&id, [("n", double(number))]))).await else { return };
        acked.lock().unwrap().insert(id, (number, written.into_inner().revision));
        count.fetch_add(1, SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_write_survives_twenty_kills_in_the_middle_of_writing() {
    let data = temp_dir();
    let settings = [("FEATURESTORE_DATA_DIR", data.path().to_str().unwrap())];
    let acked = Acked::default();
    let mut slowest = Duration::ZERO;
    for round in 0..=CRASHES {
        let mut server = Binary::start(&settings);
        slowest = slowest.max(server.until_serving().await);
        let mut client = server.client().await;
        let expected: Vec<_> = acked.lock().unwrap().iter().map(|(id, told)| (id.clone(), *told)).collect();
        for chunk in expected.chunks(500) {
            let request = get(chunk.iter().map(|(id, _)| id.clone()));
            let rows = client.get_features(request).await.unwrap().into_inner().rows;
            for (row, (id, (number, revision))) in rows.iter().zip(chunk) {
                assert_eq!(row.status(), RowStatus::Found, "{id} is lost after {round} kills");
                assert!(row.revision >= *revision, "{id} was acknowledged at {revision}: {row:?}");
                // What was never answered may have happened as well.
                let newer = row.revision > *revision;
                assert!(newer || row.features == features([("n", double(*number))]), "{id}: {row:?}");
            }
        }
        if round == CRASHES {
            break;
        }
        let (mut writers, count) = (tokio::task::JoinSet::new(), Arc::new(AtomicUsize::new(0)));
        for writer in 0..WRITERS {
            let client = server.client().await;
            writers.spawn(write_until_killed(client, writer, round, acked.clone(), count.clone()));
        }
        eventually("writes to be on their way", async || count.load(SeqCst) >= WRITES).await;
        server.kill();
        writers.join_all().await;
    }
    println!("{} ids; the slowest of {} starts took {slowest:?}", acked.lock().unwrap().len(), CRASHES + 1);
    // `until_serving` holds the bound.
}

const BULK_CRASHES: usize = 6;
const STREAMS: usize = 3;
const CHUNK: usize = 40;
/// Chunks answered between a start and the kill.
const CHUNKS: usize = 12;
/// Chunks of a stream on their way at once, so that the kill meets some.
const ON_THEIR_WAY: usize = 4;

/// What a stream sent, and what of it was answered: id -> (number, revision).
#[derive(Default)]
struct Streamed {
    sent: BTreeMap<String, f64>,
    acked: BTreeMap<String, (f64, i64)>,
}

/// Each chunk has records of its own, and one that every chunk of the stream writes again.
fn chunk_of(stream: usize, round: usize, n: usize) -> Vec<FeatureRecord> {
    let number = (round * 1_000_000 + n) as f64;
    let ids = (1..CHUNK).map(|i| format!("s{stream}-{round}-{n}-{i}")).chain([format!("s{stream}")]);
    ids.map(|id| record(&id, [("n", double(number)), ("same", double(number))])).collect()
}

async fn stream_until_killed(
    mut client: Client,
    stream: usize,
    round: usize,
    streamed: Arc<Mutex<Streamed>>,
    count: Arc<AtomicUsize>,
) {
    let (send, chunks) = tokio::sync::mpsc::channel(ON_THEIR_WAY);
    let (sending, room) = (streamed.clone(), Arc::new(tokio::sync::Semaphore::new(ON_THEIR_WAY)));
    let answered = room.clone();
    let sender = tokio::spawn(async move {
        for n in 0.. {
            room.acquire().await.unwrap().forget();
            let records = chunk_of(stream, round, n);
            let number = (round * 1_000_000 + n) as f64;
            sending.lock().unwrap().sent.extend(records.iter().map(|record| (record.entity_id.clone(), number)));
            let request = BulkUpsertRequest { all_results: true, ..chunk(n as u64, records) };
            if send.send(request).await.is_err() {
                return;
            }
        }
    });
    let chunks = tokio_stream::wrappers::ReceiverStream::new(chunks);
    let Ok(answers) = client.bulk_upsert(chunks).await else { return sender.abort() };
    let mut answers = answers.into_inner();
    while let Ok(Some(answer)) = answers.message().await {
        answered.add_permits(1);
        assert_eq!((answer.written, answer.results.len()), (CHUNK as u64, CHUNK), "{answer:?}");
        let number = round as f64 * 1_000_000.0 + answer.sequence as f64;
        let told = answer.results.into_iter().map(|result| (result.entity_id, (number, result.revision)));
        streamed.lock().unwrap().acked.extend(told);
        count.fetch_add(1, SeqCst);
    }
    sender.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answered_chunk_survives_kills_in_the_middle_of_bulk_streams() {
    let data = temp_dir();
    let settings = [("FEATURESTORE_DATA_DIR", data.path().to_str().unwrap())];
    let streams: Vec<_> = (0..STREAMS).map(|_| Arc::<Mutex<Streamed>>::default()).collect();
    let (mut unanswered, mut there) = (0, 0);
    for round in 0..=BULK_CRASHES {
        let mut server = Binary::start(&settings);
        server.until_serving().await;
        let mut client = server.client().await;
        for streamed in &streams {
            let (sent, acked) = {
                let streamed = streamed.lock().unwrap();
                (streamed.sent.clone(), streamed.acked.clone())
            };
            for ids in sent.keys().collect::<Vec<_>>().chunks(500) {
                for row in rows(&mut client, get(ids.iter().map(|id| id.as_str()))).await {
                    let id = &row.entity_id;
                    let Some((number, revision)) = acked.get(id) else {
                        unanswered += 1;
                        match row.status() {
                            // Wholly, or not at all.
                            RowStatus::Found => {
                                let number = double(sent[id]);
                                assert_eq!(row.features, features([("n", number.clone()), ("same", number)]), "{id}");
                                there += 1;
                            }
                            status => assert_eq!((status, row.revision), (RowStatus::NotFound, 0), "{id}"),
                        }
                        continue;
                    };
                    assert_eq!(row.status(), RowStatus::Found, "{id} is lost after {round} kills");
                    assert!(row.revision >= *revision, "{id} was answered at {revision}: {row:?}");
                    assert_eq!(row.features["n"], row.features["same"], "{id} is of two chunks: {row:?}");
                    let newer = row.revision > *revision;
                    assert!(newer || row.features["n"] == double(*number), "{id}: {row:?}");
                }
            }
        }
        if round == BULK_CRASHES {
            break;
        }
        let (mut writing, count) = (tokio::task::JoinSet::new(), Arc::new(AtomicUsize::new(0)));
        for (stream, streamed) in streams.iter().enumerate() {
            let client = server.client().await;
            writing.spawn(stream_until_killed(client, stream, round, streamed.clone(), count.clone()));
        }
        eventually("chunks to be answered", async || count.load(SeqCst) >= CHUNKS).await;
        server.kill();
        writing.join_all().await;
    }
    println!("{unanswered} looks at unanswered records, {there} of them there and whole");
}
