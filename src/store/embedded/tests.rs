//! A record with a damaged envelope is never reported as absent, and is replaced by a write that
//! needs nothing stored. Also what an idle store does.

use std::{path::Path, time::Duration};

use tokio::time::Instant;

use super::{engine::Engine, *};
use crate::{
    record::{EntityId, FeatureView, Millis, Record, Revision, WriteMode},
    store::{Change, Outcome, RequestId},
};

const CACHE_BYTES: u64 = 8 << 20;

fn rules() -> WriteRules {
    WriteRules {
        default_ttl: Duration::from_secs(3600),
        tombstone_ttl: Duration::from_secs(3600),
        max_features: 5,
        max_record_bytes: 1000,
    }
}

fn open(dir: &Path, clock: Clock) -> EmbeddedStore {
    EmbeddedStore::open(dir, CACHE_BYTES, rules(), clock).unwrap()
}

fn key(id: &str) -> RecordKey {
    RecordKey { view: FeatureView::parse("v").unwrap(), entity_id: EntityId::parse(id).unwrap() }
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn upsert(key: &RecordKey, mode: WriteMode, version: &str) -> Write {
    let model_version = version.to_owned();
    let record = Record {
        mode,
        features: Default::default(),
        model_version: model_version.into(),
        event_time: None,
        lifetime: None,
    };
    let request_id = RequestId(format!("{:x}", rand::random::<u64>()).into());
    Write { key: key.clone(), request_id, if_revision: None, change: Change::Upsert(record) }
}

fn delete(key: &RecordKey) -> Write {
    Write { change: Change::Delete, ..upsert(key, WriteMode::Replace, "") }
}

async fn read(store: &EmbeddedStore, key: &RecordKey) -> Result<State, StoreError> {
    store.read(std::slice::from_ref(key), ReadConcern::Majority, deadline()).await.remove(0)
}

/// A store with wrong checksums in the envelopes of these keys, as after a bit flip in memory.
async fn damaged(dir: &Path, keys: &[&RecordKey], clock: Clock) -> EmbeddedStore {
    let store = open(dir, clock.clone());
    for key in keys {
        store.write(upsert(key, WriteMode::Replace, "before"), deadline()).await.unwrap();
    }
    store.close().await;
    let (engine, commits, highest) = Engine::open(dir, CACHE_BYTES).unwrap();
    let mut changes = engine.changes(commits + 1, highest);
    for key in keys {
        let stored_key = record_key(key);
        let mut envelope = engine.get(&stored_key).unwrap().unwrap().to_vec();
        envelope[17] ^= 4;
        engine.put(&mut changes, &stored_key, envelope);
    }
    engine.commit(changes).unwrap();
    drop(engine);
    open(dir, clock)
}

#[tokio::test]
async fn a_damaged_record_answers_every_write_that_depends_on_it_with_corrupt() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key("a"));
    let store = damaged(dir.path(), &[&key], Clock::system()).await;
    let replace = upsert(&key, WriteMode::Replace, "after");
    let too_many = "x".repeat(2000);
    let mut too_large = upsert(&key, WriteMode::Replace, "");
    if let Change::Upsert(record) = &mut too_large.change {
        let text = crate::proto::Value { kind: Some(crate::proto::value::Kind::StringVal(too_many)) };
        record.features = [(crate::record::FeatureName::parse("f").unwrap(), text)].into_iter().collect();
    }
    let mut timed = replace.clone();
    if let Change::Upsert(record) = &mut timed.change {
        record.event_time = Some(Millis(1));
    }
    for refused in [
        upsert(&key, WriteMode::Merge, "after"),
        timed,
        Write { if_revision: Some(Revision(1)), ..replace.clone() },
        Write { if_revision: Some(Revision::NONE), ..replace.clone() },
        Write { if_revision: Some(Revision::NONE), ..delete(&key) },
        too_large,
    ] {
        let answer = store.write(refused, deadline()).await;
        let is_named = |error: &StoreError| {
            let text = error.to_string();
            matches!(error, StoreError::Corrupt(_)) && text.contains(key.view.as_str()) && text.contains("entity \"a\"")
        };
        assert!(answer.as_ref().is_err_and(is_named), "{answer:?}");
        let read = read(&store, &key).await;
        assert!(read.as_ref().is_err_and(is_named), "and nothing changed: {read:?}");
    }
}

#[tokio::test]
async fn a_damaged_record_is_replaced_or_deleted_at_a_revision_above_all_even_after_the_clock_went_back() {
    let (dir, keys) = (tempfile::tempdir().unwrap(), ["a", "b", "c"].map(key));
    let [replaced, deleted, twice] = &keys;
    let before = Clock::new(|| Millis(2_000_000));
    let store = damaged(dir.path(), &[replaced, deleted, twice], before).await;
    store.close().await;
    let store = open(dir.path(), Clock::new(|| Millis(1_000_000)));
    let highest = Revision(2_000_000 * 1000);

    let (receipt, state) = store.write(upsert(replaced, WriteMode::Replace, "after"), deadline()).await.unwrap();
    assert_eq!(receipt.outcome, Outcome::Written);
    assert!(receipt.revision > highest && state.revision() == receipt.revision, "{receipt:?}");
    let (receipt, state) = store.write(delete(deleted), deadline()).await.unwrap();
    assert_eq!((receipt.outcome, receipt.tombstone), (Outcome::Deleted, true));
    assert!(receipt.revision > highest && state == State::Tombstone(receipt.revision), "{receipt:?}");
    let group = vec![upsert(twice, WriteMode::Replace, "1"), upsert(twice, WriteMode::Merge, "2")];
    let receipts = store.write_batch(group, deadline()).await;
    let [first, second] = [0, 1].map(|i| receipts[i].clone().unwrap());
    assert!(highest < first.revision && first.revision < second.revision, "{receipts:?}");

    let states = [replaced, deleted, twice].map(|key| (key, read(&store, key)));
    let mut read_before = Vec::new();
    for (_, state) in states {
        read_before.push(state.await.unwrap());
    }
    store.close().await;
    let store = open(dir.path(), Clock::system());
    for (key, before) in keys.iter().zip(read_before) {
        assert_eq!(read(&store, key).await.unwrap(), before);
    }
}

fn text(name: &str, bytes: usize, mode: WriteMode) -> Change {
    let value = crate::proto::Value { kind: Some(crate::proto::value::Kind::StringVal("x".repeat(bytes))) };
    Change::Upsert(Record {
        mode,
        features: [(crate::record::FeatureName::parse(name).unwrap(), value)].into_iter().collect(),
        model_version: Default::default(),
        event_time: None,
        lifetime: None,
    })
}

#[tokio::test]
async fn merges_into_large_records_are_committed_in_parts_so_that_not_all_of_them_are_held() {
    const LARGE: usize = 900_000;
    let dir = tempfile::tempdir().unwrap();
    let rules = WriteRules { max_record_bytes: 1 << 20, ..rules() };
    let store = EmbeddedStore::open(dir.path(), CACHE_BYTES, rules, Clock::system()).unwrap();
    let keys: Vec<RecordKey> = (0..60).map(|i| key(&i.to_string())).collect();
    for key in &keys {
        let large = Write { change: text("large", LARGE, WriteMode::Replace), ..delete(key) };
        store.write(large, deadline()).await.unwrap();
    }
    let merges = keys.iter().map(|key| Write { change: text("small", 1, WriteMode::Merge), ..delete(key) });
    let receipts = store.write_batch(merges.collect(), deadline()).await;
    assert!(
        receipts.iter().all(|receipt| receipt.as_ref().is_ok_and(|r| r.outcome == Outcome::Written)),
        "{receipts:?}"
    );
    for key in &keys {
        let State::Record(record) = read(&store, key).await.unwrap() else { panic!("{key:?} is gone") };
        assert_eq!(record.decode().unwrap().features.len(), 2);
    }
    store.close().await;
    let (_engine, commits, _highest) = Engine::open(dir.path(), CACHE_BYTES).unwrap();
    let parts = commits - keys.len() as u64;
    assert!((3..=12).contains(&parts), "{parts} parts of 54 MB that were read and 54 MB that were written");
}

/// The size of the engine's tables in bytes.
fn tables(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |entry: &std::fs::DirEntry| entry.metadata().map_or(0, |metadata| metadata.len());
    let of = |entry: std::fs::DirEntry| match entry.path() {
        path if path.is_dir() => tables(&path),
        path if path.parent().is_some_and(|folder| folder.ends_with("tables")) => size(&entry),
        _ => 0,
    };
    entries.map(of).sum()
}

#[tokio::test]
async fn what_was_written_is_in_a_table_once_the_store_is_idle() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Clock::system());
    // The engine cannot compress these.
    let digits = |number: u64| format!("{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let version = |number: u64| (0..12).map(|i| digits(12 * number + i)).collect::<String>();
    for thousand in 0..30 {
        let write = |number: u64| upsert(&key(&number.to_string()), WriteMode::Replace, &version(number));
        let writes = (1000 * thousand..1000 * (thousand + 1)).map(write).collect();
        assert!(store.write_batch(writes, deadline()).await.iter().all(Result::is_ok));
    }
    let end = deadline();
    while tables(dir.path()) < 15_000 * 192 {
        assert!(Instant::now() < end, "{} bytes in tables", tables(dir.path()));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let model_version = |state: State| match state {
        State::Record(record) => record.model_version().unwrap().to_owned(),
        other => panic!("{other:?}"),
    };
    assert_eq!(model_version(read(&store, &key("29999")).await.unwrap()), version(29_999));
    store.close().await;
    let store = open(dir.path(), Clock::system());
    assert_eq!(model_version(read(&store, &key("7")).await.unwrap()), version(7));
    store.close().await;
}

fn l1(id: &str) -> L1Name {
    L1Name { id: id.into(), histories: ["h".to_owned()].into(), shared: true, address: "somewhere".into() }
}

#[tokio::test]
async fn the_epoch_holds_for_one_l1_in_this_folder_whoever_opens_it() {
    let dir = tempfile::tempdir().unwrap();
    let (data, copy) = (dir.path().join("data"), dir.path().join("copy"));
    let store = open(&data, Clock::system());
    let first = store.epoch(deadline()).await.unwrap();
    assert_eq!(first.l1, None);
    let claim = Claim { seen: first.clone(), l1: l1("x"), keep_epoch: false, at_once: true };
    let named = store.name_l1(claim.clone(), deadline()).await.unwrap();
    assert!(named.names(&l1("x")) && named.epoch != first.epoch);
    let late = Claim { l1: l1("y"), ..claim };
    assert_eq!(store.name_l1(late, deadline()).await.unwrap(), named, "who saw another state changes nothing");
    let renewed = store.renew_epoch(named.epoch, deadline()).await.unwrap();
    assert!(renewed.names(&l1("x")) && renewed.epoch != named.epoch);
    store.close().await;
    assert_eq!(open(&data, Clock::system()).epoch(deadline()).await.unwrap(), renewed);
    std::fs::create_dir(&copy).unwrap();
    let copied = std::process::Command::new("cp").arg("-a").arg(data.join(".")).arg(&copy).status().unwrap();
    assert!(copied.success());
    assert_eq!(open(&copy, Clock::system()).epoch(deadline()).await.unwrap().l1, None, "a copy names no L1");
}

#[tokio::test]
async fn an_epoch_that_cannot_be_read_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Clock::system());
    let key = key("a");
    store.write(upsert(&key, WriteMode::Replace, "kept"), deadline()).await.unwrap();
    let before = store.epoch(deadline()).await.unwrap();
    store.close().await;
    for damage in [b"".to_vec(), b"nonsense".to_vec(), vec![0; 13], vec![0; 4096]] {
        let (engine, commits, highest) = Engine::open(dir.path(), CACHE_BYTES).unwrap();
        let mut changes = engine.changes(commits + 1, highest);
        engine.put_meta(&mut changes, epoch::EPOCH, damage.clone());
        engine.put_meta(&mut changes, epoch::L1, damage);
        engine.commit(changes).unwrap();
        drop(engine);
        let store = open(dir.path(), Clock::system());
        let made = store.epoch(deadline()).await.unwrap();
        assert!(made.epoch != before.epoch && made.l1.is_none() && !made.dirty);
        assert!(matches!(read(&store, &key).await, Ok(State::Record(_))));
        assert!(store.new_epoch(Some(&l1("x")), deadline()).await.unwrap().names(&l1("x")));
        store.close().await;
    }
}
