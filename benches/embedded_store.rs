//! What the embedded store costs over its engine: the same keys and values of 600 bytes through fjall alone and through
//! `EmbeddedStore`, at the same durability.
//!
//! `cargo bench --bench embedded_store [-- records]`. Each phase runs in a process of its own that ends by SIGKILL, so every
//! open is one after a crash. The same measurement against redb, and why fjall won: `docs/embedded-engine.md`.

use std::{
    hint::black_box,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use featurestore::{
    proto::{Value, value::Kind},
    record::{Clock, EntityId, FeatureName, FeatureView, Record, RecordKey, State, WriteMode},
    store::{Change, ReadConcern, RequestId, Store, Write, WriteRules, embedded::EmbeddedStore},
};

#[path = "performance/engine.rs"]
mod engine;

use engine::{Engine, L2_CACHE, Numbers, engine_key};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: u64 = 1_000;
const READ_BATCH: u64 = 100;
const FOR: Duration = Duration::from_secs(5);

fn key(i: u64) -> RecordKey {
    RecordKey {
        view: FeatureView::parse("default").unwrap(),
        entity_id: EntityId::parse(&format!("CUST-{i:09}")).unwrap(),
    }
}

fn write(i: u64, numbers: &mut Numbers) -> Write {
    let feature = |f| {
        let value = Value { kind: Some(Kind::DoubleVal(numbers.next() as f64 / 1e12)) };
        (FeatureName::parse(&format!("feature_col_{f:02}")).unwrap(), value)
    };
    let record = Record {
        mode: WriteMode::Replace,
        features: (0..20).map(feature).collect(),
        model_version: "v1".into(),
        event_time: None,
        lifetime: None,
    };
    let request_id = RequestId(format!("{:016x}", numbers.next()).into());
    Write { key: key(i), request_id, if_revision: None, change: Change::Upsert(record) }
}

fn open_store(dir: &Path) -> EmbeddedStore {
    let rules = WriteRules {
        default_ttl: Duration::from_secs(3600),
        tombstone_ttl: Duration::from_secs(3600),
        max_features: 1000,
        max_record_bytes: 1 << 20,
    };
    EmbeddedStore::open(dir, L2_CACHE, rules, Clock::system()).unwrap()
}

async fn load_store(dir: &Path, records: u64) {
    let store = open_store(dir);
    let mut numbers = Numbers(42);
    let mut spent = Duration::ZERO;
    for first in (0..records).step_by(BATCH as usize) {
        // A stride that is prime to the count visits every key once, in no useful order.
        let batch = (first..records.min(first + BATCH)).map(|i| write(i * 611_953 % records, &mut numbers)).collect();
        let start = Instant::now();
        let receipts = store.write_batch(batch, deadline()).await;
        assert!(receipts.iter().all(Result::is_ok));
        spent += start.elapsed();
    }
    println!("  store: load, durable batches of 1,000: {:.1} k/s", records as f64 / spent.as_secs_f64() / 1e3);
}

/// Copies the envelopes of the store into tables of the same settings: what the engine alone makes of the same bytes.
fn load_engine(store: &Path, dir: &Path, records: u64) {
    let (from, to) = (Engine::open(store).unwrap(), Engine::open(dir).unwrap());
    let (mut spent, mut first) = (Duration::ZERO, 0);
    while first < records {
        let keys = (first..records.min(first + BATCH)).map(|i| engine_key("default", i * 611_953 % records));
        let items: Vec<(_, Arc<[u8]>)> =
            keys.map(|key| (key.clone(), from.records.get(&key).unwrap().unwrap().as_ref().into())).collect();
        let start = Instant::now();
        to.write(items).unwrap();
        spent += start.elapsed();
        first += BATCH;
    }
    println!("  engine: load, durable batches of 1,000: {:.1} k/s", records as f64 / spent.as_secs_f64() / 1e3);
}

fn read_engine(dir: &Path, records: u64) {
    let engine = Engine::open(dir).unwrap();
    for count in [1, READ_BATCH] {
        let mut numbers = Numbers(1);
        let (mut done, start) = (0, Instant::now());
        while start.elapsed() < FOR {
            for _ in 0..count {
                assert!(
                    black_box(engine.records.get(engine_key("default", numbers.next() % records)).unwrap()).is_some()
                );
            }
            done += count;
        }
        report(&format!("engine: read, {count} keys a call"), done, start);
    }
}

async fn read_store(dir: &Path, records: u64) {
    let start = Instant::now();
    let store = open_store(dir);
    println!("  store: open after SIGKILL: {} ms", start.elapsed().as_millis());
    for count in [1, 4, 5, READ_BATCH] {
        let mut numbers = Numbers(1);
        let (mut done, start) = (0, Instant::now());
        while start.elapsed() < FOR {
            let keys: Vec<_> = (0..count).map(|_| key(numbers.next() % records)).collect();
            let states = store.read(&keys, ReadConcern::Majority, deadline()).await;
            assert!(states.iter().all(|state| matches!(state, Ok(State::Record(_)))));
            done += count;
        }
        report(&format!("store: read, {count} keys a call"), done, start);
        println!("    a call: {:.1} us", start.elapsed().as_secs_f64() * 1e6 * count as f64 / done as f64);
    }
}

async fn write_store(dir: &Path, records: u64) {
    let store = Arc::new(open_store(dir));
    for writers in [1, 16, 128] {
        let (start, mut tasks) = (Instant::now(), tokio::task::JoinSet::new());
        for writer in 0..writers {
            let store = Arc::clone(&store);
            tasks.spawn(async move {
                let (mut numbers, mut done) = (Numbers(writer + 99), 0);
                while start.elapsed() < FOR {
                    store.write(write(numbers.next() % records, &mut numbers), deadline()).await.unwrap();
                    done += 1;
                }
                done
            });
        }
        let done: Vec<u64> = tasks.join_all().await;
        report(&format!("store: single durable writes, {writers} writers"), done.iter().sum(), start);
    }
}

fn deadline() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(30)
}

fn report(what: &str, count: u64, start: Instant) {
    println!("  {what}: {:.1} k/s", count as f64 / start.elapsed().as_secs_f64() / 1e3);
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [phase, dir, records] = &args[..] {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (store, engine) = (Path::new(dir).join("store"), Path::new(dir).join("engine"));
        let records = records.parse().unwrap();
        match phase.as_str() {
            "load-store" => runtime.block_on(load_store(&store, records)),
            "load-engine" => load_engine(&store, &engine, records),
            "read-engine" => read_engine(&store, records),
            "read-store" => runtime.block_on(read_store(&store, records)),
            _ => runtime.block_on(write_store(&store, records)),
        }
        println!("    resident after {phase}: {} MiB", resident_mib());
        let _ = Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
    }
    let records = args.first().map_or(1_000_000, |records| records.parse::<u64>().unwrap());
    let dir = std::env::temp_dir().join(format!("embedded-store-{}", std::process::id()));
    for phase in ["load-store", "load-engine", "read-store", "read-engine", "write-store"] {
        let _ = Command::new(std::env::current_exe().unwrap()).arg(phase).arg(&dir).arg(records.to_string()).status();
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
