//! What only the embedded store promises: durability across opens, an exclusive folder, collection.
//! (Damage: `durability`.)

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use featurestore::{
    record::{Clock, EntityId, FeatureView, Millis, RecordKey, State},
    store::{
        ReadConcern, Store, StoreError,
        embedded::{EmbeddedStore, OpenError},
    },
};
use tempfile::TempDir;

use super::fixture::*;

const CACHE_BYTES: u64 = 8 << 20;

/// A store in a new folder.
pub(crate) async fn fresh() -> (Arc<dyn Store>, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (open(dir.path()), dir)
}

fn open(dir: &Path) -> Arc<dyn Store> {
    Arc::new(try_open(dir).unwrap())
}

fn try_open(dir: &Path) -> Result<EmbeddedStore, OpenError> {
    EmbeddedStore::open(dir, CACHE_BYTES, rules(), Clock::system())
}

/// A clock in milliseconds that tests turn.
fn turned(start: i64) -> (Arc<AtomicI64>, Clock) {
    let time = Arc::new(AtomicI64::new(start));
    let read = Arc::clone(&time);
    (time, Clock::new(move || Millis(read.load(Ordering::SeqCst))))
}

#[tokio::test]
async fn all_is_there_after_close_and_reopen() {
    let (store, dir) = fresh().await;
    let (live, deleted) = (key("live"), key("deleted"));
    put(&live).int("a", 1).version("v1").forever().request("w").written(&store).await;
    put(&deleted).written(&store).await;
    delete(&deleted).on(&store).await;
    let epoch = store.mark_dirty(deadline()).await.unwrap();
    let before = [read(&store, &live).await, read(&store, &deleted).await];
    store.close().await;

    let store = open(dir.path());
    assert_eq!([read(&store, &live).await, read(&store, &deleted).await], before);
    assert_eq!(store.epoch(deadline()).await.unwrap(), epoch);
    let (receipt, state) = put(&live).int("a", 2).request("w").on(&store).await;
    assert_eq!((receipt.revision, state), (before[0].revision(), before[0].clone()), "requests are remembered");
}

#[tokio::test]
async fn an_answered_write_is_there_without_a_close() {
    let dir = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let keys: Vec<_> = (0..50).map(|i| key(&format!("{i}"))).collect();
    for key in &keys {
        put(key).int("a", 1).written(&store).await;
    }
    // The files as a crash would leave them.
    copy_folder(dir.path(), copy.path());
    let crashed = open(copy.path());
    for key in &keys {
        assert_eq!(read(&crashed, key).await, read(&store, key).await);
    }
}

#[tokio::test]
async fn after_a_close_every_call_is_unavailable() {
    let (store, dir) = fresh().await;
    let key = key("a");
    put(&key).written(&store).await;
    store.close().await;
    store.close().await;
    let unavailable = |error: StoreError| assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    let keys = vec![key.clone(); 20];
    for state in store.read(&keys, ReadConcern::Majority, deadline()).await {
        unavailable(state.unwrap_err());
    }
    unavailable(put(&key).try_on(&store).await.unwrap_err());
    unavailable(store.write_batch(vec![put(&key).0], deadline()).await.remove(0).unwrap_err());
    unavailable(store.epoch(deadline()).await.unwrap_err());
    unavailable(store.mark_dirty(deadline()).await.unwrap_err());
    unavailable(store.ping(deadline()).await.unwrap_err());
    open(dir.path()); // and the folder is free, though the store is still in hand
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_commits_what_waits() {
    let (store, dir) = fresh().await;
    let keys: Vec<_> = (0..200).map(|i| key(&format!("{i}"))).collect();
    let mut writing = tokio::task::JoinSet::new();
    for key in &keys {
        let (store, draft) = (Arc::clone(&store), put(key).int("a", 1));
        let key = key.clone();
        writing.spawn(async move { (key, draft.try_on(&store).await) });
    }
    tokio::time::sleep(Duration::from_micros(300)).await;
    store.close().await;
    let answers = writing.join_all().await;
    let store = open(dir.path());
    for (key, answer) in answers {
        match (answer, read(&store, &key).await) {
            (Ok((receipt, _)), state) => assert_eq!(receipt.revision, state.revision()),
            (Err(StoreError::Unavailable(_)), State::Absent) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_second_open_is_refused_and_says_why() {
    let (_store, dir) = fresh().await;
    let error = try_open(dir.path()).err().unwrap();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
    assert!(error.to_string().contains("another featurestore process"), "{error}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_is_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    for bad in [&file, &PathBuf::from("/proc/featurestore")] {
        let error = try_open(bad).err().unwrap();
        assert!(matches!(error, OpenError::Unusable { .. }), "{error}");
        assert!(error.to_string().contains(&bad.display().to_string()), "{error}");
    }
}

#[tokio::test]
async fn what_is_past_its_keeping_is_collected_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (time, clock) = turned(1_790_000_000_000);
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(dir.path(), CACHE_BYTES, rules(), clock).unwrap());
    let hour = Duration::from_secs(3600);
    let [expiring, deleted, renewed, forever, early] = ["expiring", "deleted", "renewed", "forever", "early"].map(key);
    put(&expiring).ttl(hour).written(&store).await;
    put(&deleted).forever().written(&store).await;
    delete(&deleted).on(&store).await;
    put(&renewed).ttl(hour).written(&store).await;
    put(&renewed).ttl(100 * hour).written(&store).await;
    put(&forever).ttl(hour).written(&store).await;
    merge(&forever).forever().written(&store).await;

    time.fetch_add(24 * 3_600_000 + 1, Ordering::SeqCst);
    eventually("the tombstone is collected", async || read(&store, &deleted).await == State::Absent).await;
    assert!(matches!(read(&store, &expiring).await, State::Record(_)), "kept for tombstone_ttl after it expired");

    // One due before what was swept already: the clock went back meanwhile.
    time.fetch_sub(10 * 3_600_000, Ordering::SeqCst);
    put(&early).ttl(Duration::from_millis(1)).written(&store).await;
    time.fetch_add(30 * 3_600_000, Ordering::SeqCst);
    eventually("the expired record is collected", async || read(&store, &expiring).await == State::Absent).await;
    eventually("the early one is collected", async || read(&store, &early).await == State::Absent).await;
    assert!(matches!(read(&store, &renewed).await, State::Record(_)));
    assert!(matches!(read(&store, &forever).await, State::Record(_)));
}

#[tokio::test]
async fn more_than_one_sweep_can_take_is_collected_too() {
    let dir = tempfile::tempdir().unwrap();
    let (time, clock) = turned(1_790_000_000_000);
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(dir.path(), CACHE_BYTES, rules(), clock).unwrap());
    let keys: Vec<_> = (0..2_000).map(|i| key(&format!("{i}"))).collect();
    for keys in keys.chunks(1_000) {
        store.write_batch(keys.iter().map(|key| put(key).0).collect(), deadline()).await;
    }
    time.fetch_add(26 * 3_600_000, Ordering::SeqCst);
    eventually("all are collected", async || {
        read_all(&store, &keys, ReadConcern::Majority).await.iter().all(|state| *state == State::Absent)
    })
    .await;
}

#[tokio::test]
async fn after_a_failed_commit_it_takes_no_more_writes_and_loses_none_that_it_answered() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).close().await;
    // A limit on the size of files stands for a full disk. Without the trap the kernel would end the process.
    let limited = r#"trap '' XFSZ; ulimit -f 4096; exec "$0" "$@""#;
    let probe = Command::new("sh")
        .args(["-c", limited])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "store_contract::embedded::probe_of_a_full_disk", "--nocapture"])
        .env(FULL, dir.path())
        .output()
        .unwrap();
    assert!(probe.status.success(), "{probe:?}");

    let acked = fs::read_to_string(dir.path().join("acked")).unwrap();
    assert!(acked.lines().count() > 10);
    let store = open(dir.path());
    for line in acked.lines() {
        let (revision, id) = line.split_once(' ').unwrap();
        assert_eq!(read(&store, &contract_key(id)).await.revision().to_string(), revision);
    }
    put(&key("again")).written(&store).await;
}

const FULL: &str = "FEATURESTORE_TEST_FULL_DISK";

/// The other half of the test above; alone, it has nothing to do.
#[tokio::test]
async fn probe_of_a_full_disk() {
    let Some(dir) = std::env::var_os(FULL).map(PathBuf::from) else { return };
    let store = open(&dir);
    let first = key("first");
    put(&first).written(&store).await;
    let mut acked = Vec::new();
    let failure = loop {
        let key = key("one of many");
        match put(&key).kind("a", random_text(1_000)).try_on(&store).await {
            Ok((receipt, _)) => acked.push(format!("{} {}\n", receipt.revision, key.entity_id)),
            Err(error) => break error,
        }
        assert!(acked.len() < 10_000, "the disk never fills");
    };
    assert!(matches!(failure, StoreError::OutcomeUnknown(_)), "{failure}");
    for refused in [
        put(&first).try_on(&store).await.map(drop),
        store.mark_dirty(deadline()).await.map(drop),
        store.ping(deadline()).await,
    ] {
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    }
    assert!(matches!(read(&store, &first).await, State::Record(_)), "reads go on");
    fs::write(dir.join("acked"), acked.concat()).unwrap();
    store.close().await;
}

/// The key of an entity id that `key` made.
fn contract_key(id: &str) -> RecordKey {
    RecordKey { view: FeatureView::parse("contract").unwrap(), entity_id: EntityId::parse(id).unwrap() }
}

fn random_text(words: usize) -> featurestore::proto::value::Kind {
    featurestore::proto::value::Kind::StringVal((0..words).map(|_| format!("{:x}", rand::random::<u64>())).collect())
}

/// `cp` keeps the journal's holes, most of its 64 MiB.
fn copy_folder(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-r").arg(from.join(".")).arg(to).status().unwrap();
    assert!(copied.success());
}
