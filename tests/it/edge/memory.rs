//! What the process takes while the most expensive valid requests of every RPC come at once: its limits, and a little more.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::task::JoinSet;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest,
};

use super::*;
use crate::harness::server::Pair;

const MIB: usize = 1 << 20;
/// Of the large records, and how many there are: two reads of all of them ask for more than the limits together.
const LARGE: usize = 512 << 10;
const RECORDS: usize = 200;
const IN_FLIGHT: usize = 96 * MIB;
const L1: usize = 64 * MIB;
const L2_CACHE: usize = 16 * MIB;
/// The embedded store's tables in memory: what was written and is not yet flushed.
const TABLES: usize = 80 * MIB;
/// What none of these counts.
const MARGIN: usize = 64 * MIB;
const STORM: Duration = Duration::from_secs(10);

/// How calls ended, by what they asked for.
#[derive(Clone, Default)]
struct Endings(Arc<Mutex<BTreeMap<(&'static str, i32), usize>>>);

impl Endings {
    fn note(&self, what: &'static str, code: Code) {
        *self.0.lock().unwrap().entry((what, code as i32)).or_default() += 1;
    }

    fn count(&self, what: &'static str, code: Code) -> usize {
        self.0.lock().unwrap().get(&(what, code as i32)).copied().unwrap_or(0)
    }
}

fn text(bytes: usize) -> Value {
    value(value::Kind::StringVal("x".repeat(bytes)))
}

fn large(id: usize) -> FeatureRecord {
    record(&format!("L{id}"), [("text", text(LARGE)), ("small", double(1.0))])
}

fn of_all(names: &[&str]) -> GetFeaturesRequest {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    GetFeaturesRequest { feature_names: names, omit_metadata: true, ..get((0..RECORDS).map(|id| format!("L{id}"))) }
}

/// Reads, and whether they are answered at all.
fn reads() -> Vec<(&'static str, GetFeaturesRequest, bool)> {
    let same = |names: &[&str]| GetFeaturesRequest { entity_ids: vec!["L0".to_owned(); 1000], ..of_all(names) };
    let absent: Vec<String> = (0..1000).map(|i| format!("{i:a>120}")).collect();
    let newer = (0..RECORDS).map(|id| (format!("L{id}"), i64::MAX / 2)).collect();
    let whole = get((0..30).map(|id| format!("L{id}")));
    vec![
        ("a small feature", of_all(&["small"]), true),
        (
            "a small feature, strong",
            GetFeaturesRequest { consistency: Consistency::Strong.into(), ..of_all(&["small"]) },
            true,
        ),
        ("a newer revision", GetFeaturesRequest { min_revisions: newer, ..of_all(&["small"]) }, true),
        (
            "a matrix",
            GetFeaturesRequest { format: ResponseFormat::MatrixFloat64.into(), ..of_all(&["small", "text"]) },
            true,
        ),
        ("another model version", GetFeaturesRequest { expected_model_version: "v".to_owned(), ..of_all(&[]) }, true),
        ("one record often", same(&["small"]), true),
        ("30 whole records", whole, true),
        ("all whole records", of_all(&[]), false),
        ("one large feature often", same(&["text"]), false),
        ("absent names", GetFeaturesRequest { feature_names: absent, ..of_all(&[]) }, false),
    ]
}

fn many_features(id: &str, count: usize, value: &Value) -> FeatureRecord {
    let features = (0..count).map(|i| (format!("f{i}"), value.clone())).collect();
    FeatureRecord { entity_id: id.to_owned(), features, ..FeatureRecord::default() }
}

/// One number, beside what stands there.
fn merge(id: &str) -> FeatureRecord {
    FeatureRecord { write_mode: WriteMode::Merge.into(), ..record(id, [("number", double(1.0))]) }
}

/// Upserts of the largest records.
fn upserts() -> Vec<(&'static str, UpsertFeaturesRequest)> {
    let floats = value(value::Kind::FloatListVal(FloatList { val: vec![1.5; 200] }));
    vec![
        ("upsert of a text", upsert(record("U text", [("text", text(MIB - 100))]))),
        ("upsert of lists", upsert(many_features("U lists", 1000, &floats))),
        ("upsert of many numbers", upsert(many_features("U numbers", 1000, &double(1.0)))),
        ("merge of one number into a large record", upsert(merge("L7"))),
        ("merge on a revision that is not there", upsert(FeatureRecord { if_revision: Some(1), ..merge("L8") })),
    ]
}

/// Messages of bulk streams.
fn messages() -> Vec<(&'static str, BulkUpsertRequest)> {
    let tiny = (0..1000).map(|i| many_features(&format!("B{i}"), 60, &value(value::Kind::BoolVal(true))));
    let lists = value(value::Kind::Int32ListVal(Int32List { val: vec![1; 4] }));
    let lists = (0..500).map(|i| many_features(&format!("B{i}"), 40, &lists));
    vec![
        ("bulk of tiny values", chunk(1, tiny)),
        ("bulk of tiny lists", chunk(1, lists)),
        ("warm bulk of large records", BulkUpsertRequest { warm_cache: true, ..chunk(1, (0..7).map(large)) }),
    ]
}

async fn fill(client: &mut Client) {
    for from in (0..RECORDS).step_by(5) {
        let (answers, ended) = bulk(client, [chunk(1, (from..from + 5).map(large))]).await;
        assert!(ended.is_none() && answers[0].written == 5, "{ended:?} {answers:?}");
    }
}

/// Calls of one kind, one after the other, until the time is over.
fn call_on<F: Future<Output = Code> + Send + 'static>(
    callers: &mut JoinSet<()>,
    endings: &Endings,
    server: &Binary,
    what: &'static str,
    mut call: impl FnMut(Client) -> F + Send + 'static,
) {
    let (endings, url, until) = (endings.clone(), server.url(), Instant::now() + STORM);
    callers.spawn(async move {
        let client = Client::connect(url).await.unwrap().max_decoding_message_size(64 << 20);
        while Instant::now() < until {
            endings.note(what, call(client.clone()).await);
        }
    });
}

fn code<T>(answer: Result<T, tonic::Status>) -> Code {
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

fn storm(server: &Binary, endings: &Endings) -> JoinSet<()> {
    let mut callers = JoinSet::new();
    for (what, request, _) in reads() {
        for _ in 0..2 {
            let request = request.clone();
            call_on(&mut callers, endings, server, what, move |mut client| {
                let request = request.clone();
                async move { code(client.get_features(request).await) }
            });
        }
    }
    for (what, request) in upserts() {
        call_on(&mut callers, endings, server, what, move |mut client| {
            let request = request.clone();
            async move { code(client.upsert_features(request).await) }
        });
    }
    for (what, message) in messages() {
        call_on(&mut callers, endings, server, what, move |mut client| {
            let message = message.clone();
            async move { bulk(&mut client, [message]).await.1.map_or(Code::Ok, |status| status.code()) }
        });
    }
    call_on(&mut callers, endings, server, "delete", |mut client| async move {
        code(client.delete_features(delete((0..1000).map(|id| format!("D{id}")))).await)
    });
    call_on(&mut callers, endings, server, "info", |mut client| async move {
        code(client.info(InfoRequest::default()).await)
    });
    others(&mut callers, endings, server);
    callers
}

/// What is not ours: health and reflection.
fn others(callers: &mut JoinSet<()>, endings: &Endings, server: &Binary) {
    let url = server.url();
    call_on(callers, endings, server, "watch", move |_| {
        let url = url.clone();
        async move {
            let channel = tonic::transport::Endpoint::from_shared(url).unwrap().connect().await.unwrap();
            let watched = HealthClient::new(channel).watch(HealthCheckRequest::default()).await;
            code(match watched {
                Ok(mut states) => states.get_mut().message().await.map(drop),
                Err(status) => Err(status),
            })
        }
    });
    let url = server.url();
    call_on(callers, endings, server, "reflection", move |_| {
        let url = url.clone();
        async move {
            let channel = tonic::transport::Endpoint::from_shared(url).unwrap().connect().await.unwrap();
            let ask = MessageRequest::FileContainingSymbol(SERVICE.to_owned());
            let asks = vec![ServerReflectionRequest { host: String::new(), message_request: Some(ask) }; 20];
            let mut client = ServerReflectionClient::new(channel).max_decoding_message_size(64 << 20);
            match client.server_reflection_info(tokio_stream::iter(asks)).await {
                Ok(answers) => {
                    let mut answers = answers.into_inner();
                    loop {
                        match answers.message().await {
                            Ok(Some(_)) => {}
                            ended => return code(ended),
                        }
                    }
                }
                Err(status) => status.code(),
            }
        }
    });
}

async fn memory_stays_within(pair: &Pair, limits: usize) {
    let bytes = [IN_FLIGHT, L1, L2_CACHE].map(|bytes| format!("{bytes}"));
    let more = [
        ("FEATURESTORE_LIMITS_MAX_BYTES_IN_FLIGHT", bytes[0].as_str()),
        ("FEATURESTORE_DEADLINES_READ", "100s"),
        ("FEATURESTORE_DEADLINES_STRONG", "100s"),
        ("FEATURESTORE_DEADLINES_WRITE", "100s"),
    ];
    let of_the_process = [("FEATURESTORE_L1_MEMORY", bytes[1].as_str()), ("FEATURESTORE_L2_CACHE", bytes[2].as_str())];
    let is_in_the_process = pair.redis.is_none() && pair.mongod.is_none();
    let of_the_process = if is_in_the_process { &of_the_process[..] } else { &[] };
    let server = Binary::start(&[&pair.settings()[..], &more[..], of_the_process].concat());
    server.until_serving().await;
    let idle = server.memory();
    fill(&mut server.client().await).await;
    let (peak, endings) = (Arc::new(AtomicUsize::new(0)), Endings::default());
    let mut callers = storm(&server, &endings);
    loop {
        peak.fetch_max(server.memory(), Relaxed);
        tokio::select! {
            ended = callers.join_next() => match ended {
                None => break,
                Some(ended) => ended.unwrap(),
            },
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
    }
    let peak = peak.load(Relaxed);
    println!("{}: idle {} MiB, peak {} MiB; {:?}", pair.name(), idle / MIB, peak / MIB, endings.0.lock().unwrap());
    for (what, _, is_answered) in reads() {
        let expected = if is_answered { Code::Ok } else { Code::ResourceExhausted };
        assert!(endings.count(what, expected) > 0, "{what} is never answered: {:?}", endings.0.lock().unwrap());
    }
    // Too busy, and nothing worse.
    let expected = [Code::Ok, Code::ResourceExhausted, Code::Unavailable, Code::Aborted].map(|code| code as i32);
    let others: Vec<_> =
        endings.0.lock().unwrap().keys().filter(|(_, code)| !expected.contains(code)).copied().collect();
    assert!(others.is_empty(), "{others:?}: {}", server.log());
    assert!(peak < idle + limits + MARGIN, "{} MiB, idle {} MiB", peak / MIB, idle / MIB);
    eventually("all bytes to be given back", async || {
        server.metrics().await.lines().any(|line| line == "featurestore_bytes_in_flight 0")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_most_expensive_requests_at_once_stay_within_the_limits_over_what_is_in_the_process() {
    memory_stays_within(&Pair::embedded(), IN_FLIGHT + L1 + L2_CACHE + TABLES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_most_expensive_requests_at_once_stay_within_the_limits_over_redis_and_mongodb() {
    memory_stays_within(&Pair::real(), IN_FLIGHT).await;
}
