//! The change stream and the lease of who repairs, as a real server has them.

use featurestore::store::changes::{Changes, Event, FollowError, Position};

use super::*;
use crate::store_contract::fixture::eventually;

async fn follow(bench: &Bench, after: Option<Position>) -> Box<dyn Changes> {
    bench.store.changes(after, soon()).await.unwrap().unwrap()
}

/// The next so many events; none comes after them for a while.
async fn events(changes: &mut Box<dyn Changes>, count: usize) -> Vec<Event> {
    let (mut events, mut quiet) = (Vec::new(), false);
    while events.len() < count || !quiet {
        let batch = changes.next(soon()).await.unwrap();
        quiet = batch.changes.is_empty();
        events.extend(batch.changes.into_iter().map(|change| change.event));
    }
    events
}

fn edited(id: &str) -> Event {
    Event::Edited { key: key(id) }
}

fn written(id: &str, receipt: Receipt) -> Event {
    Event::Written { key: key(id), revision: receipt.revision }
}

fn at(id: &str) -> Document {
    doc! { "_id": { "view": key(id).view.as_str(), "entity_id": id } }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_of_servers_tell_their_revision_and_everything_else_is_an_edit() {
    let bench = Bench::new().await;
    let (_, _) = bench.write(upsert("other", record([]))).await;
    let mut changes = follow(&bench, None).await;
    let start = changes.position().clone();
    let (one, _) = bench.write(upsert("a", record([("n", Kind::DoubleVal(1.0))]))).await;
    let (two, _) = bench.write(upsert("a", record([("n", Kind::DoubleVal(2.0))]))).await;
    // A refused write changes nothing that a reader could see.
    bench.write(Write { if_revision: Some(Revision(1)), ..upsert("a", record([])) }).await;
    let (three, _) = bench.write(delete("a")).await;
    let features = bench.database.collection::<Document>("features");
    features.update_one(at("other"), doc! { "$set": { "features.n": 5.0 } }).await.unwrap();
    let mut copy = features.find_one(at("other")).await.unwrap().unwrap();
    copy.insert("model_version", "by hand");
    features.replace_one(at("other"), copy.clone()).await.unwrap();
    features.update_one(at("other"), doc! { "$unset": { "expire_at": 1 } }).await.unwrap();
    features.delete_one(at("other")).await.unwrap();
    features.insert_one(doc! { "_id": "no key of ours" }).await.unwrap();
    features.insert_one(doc! { "_id": at("new").get_document("_id").unwrap() }).await.unwrap();

    let told = [written("a", one), written("a", two), written("a", three)];
    let by_hand = [edited("other"), edited("other"), edited("other"), edited("other"), edited("new")];
    let expected: Vec<Event> = told.into_iter().chain(by_hand).collect();
    assert_eq!(events(&mut changes, expected.len()).await, expected);
    // The same from where it began, and nothing from where it has come to.
    assert_eq!(events(&mut follow(&bench, Some(start)).await, expected.len()).await, expected);
    let end = changes.position().clone();
    drop(changes);
    assert_eq!(events(&mut follow(&bench, Some(end)).await, 0).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_collection_is_told_once_and_followed_beyond_its_end() {
    let bench = Bench::new().await;
    bench.write(upsert("a", record([]))).await;
    let mut changes = follow(&bench, None).await;
    bench.database.collection::<Document>("features").drop().await.unwrap();
    let mut seen = Vec::new();
    // Until it ends.
    while let Ok(batch) = changes.next(soon()).await {
        seen.extend(batch.changes.into_iter().map(|change| change.event));
    }
    assert_eq!(seen, [Event::Everything]);
    let mut beyond = follow(&bench, Some(changes.position().clone())).await;
    let (receipt, _) = bench.write(upsert("a", record([]))).await;
    assert_eq!(events(&mut beyond, 1).await, [written("a", receipt)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_is_no_longer_there_is_lost_history_and_no_outage() {
    let bench = Bench::new().await;
    let nonsense = bson::serialize_to_vec(&doc! { "_data": "82AB" }).unwrap();
    for lost in [nonsense, b"no document".to_vec()] {
        let error = bench.store.changes(Some(Position(lost.into())), soon()).await.err().unwrap();
        assert!(matches!(error, FollowError::HistoryLost(_)), "{error:?}");
    }
    let unreachable = MongoStore::new(MongoConfig::new("mongodb://127.0.0.1:1/", "x", rules())).unwrap();
    let error = unreachable.changes(None, soon()).await.err().unwrap();
    assert!(matches!(error, FollowError::Store(_)), "{error:?}");
    assert!(unreachable.info().silent, "nobody knows yet");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standalone_server_has_no_changes_to_follow() {
    let bench = Bench::on(Mongod::shared_standalone(), rules()).await;
    for _ in 0..2 {
        assert!(bench.store.changes(None, soon()).await.unwrap().is_none());
    }
    assert!(bench.store.info().silent);
    let replicas = Bench::new().await;
    replicas.store.epoch(soon()).await.unwrap();
    assert!(!replicas.store.info().silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_at_a_time_leads_and_who_was_succeeded_stores_no_position() {
    let bench = Bench::new().await;
    let (lease, store) = (Duration::from_secs(60), &bench.store);
    let position = follow(&bench, None).await.position().clone();
    let lead =
        async |me: &str, position: Option<&Position>| store.lead(me, lease, position.cloned(), soon()).await.unwrap();
    assert!(!lead("a", Some(&position)).await.held, "it holds nothing to be prolonged");
    let first = lead("a", None).await;
    assert!(first.held && first.position.is_none());
    assert!(!lead("b", None).await.held);
    assert!(!lead("b", Some(&position)).await.held);
    assert_eq!(lead("b", None).await.position, None, "what b brought was not stored");
    assert_eq!(lead("a", Some(&position)).await.position.as_ref(), Some(&position));
    // It is given up only by who holds it.
    store.resign("b", soon()).await.unwrap();
    assert!(!lead("b", None).await.held);
    store.resign("a", soon()).await.unwrap();
    assert!(!lead("a", Some(&position)).await.held, "a late word of a leader");
    let next = lead("b", None).await;
    assert!(next.held && next.position.as_ref() == Some(&position));
    // A lease ends by itself.
    store.resign("b", soon()).await.unwrap();
    assert!(store.lead("c", Duration::from_millis(50), None, soon()).await.unwrap().held);
    eventually("the lease is over", async || lead("d", None).await.held).await;
}
