//! The epoch in MongoDB: which L1 it holds for, who says to use it, and for which records it was made.

use featurestore::{
    cache::L1Name,
    store::{Claim, EpochState, LEASE, Store},
};

use super::*;
use crate::harness::server::eventually;

fn l1(id: &str, histories: &[&str]) -> L1Name {
    let histories: Vec<String> = histories.iter().map(|history| (*history).to_owned()).collect();
    L1Name { id: id.into(), shared: !histories.is_empty(), histories: histories.into(), address: "$somewhere".into() }
}

fn claim(seen: &EpochState, l1: &L1Name) -> Claim {
    Claim { seen: seen.clone(), l1: l1.clone(), keep_epoch: false, at_once: false }
}

#[tokio::test]
async fn the_epoch_goes_to_another_l1_only_when_nobody_says_to_use_the_one_before() {
    for mongod in [Mongod::shared_replica_set(), Mongod::shared_standalone()] {
        let Bench { store, .. } = Bench::on(mongod, rules()).await;
        let (one, two) = (l1("one", &["a"]), l1("two", &["b"]));
        let first = store.epoch(soon()).await.unwrap();
        assert_eq!(first.l1, None);
        let named = store.name_l1(claim(&first, &one), soon()).await.unwrap();
        assert!(named.l1.as_ref() == Some(&one) && named.epoch != first.epoch && !named.leased.is_zero());
        assert_eq!(store.name_l1(claim(&first, &two), soon()).await.unwrap().l1, Some(one.clone()), "seen too early");
        // While one server goes on saying so.
        let until = Instant::now() + LEASE + Duration::from_secs(1);
        while Instant::now() < until {
            let seen = store.use_l1(&one, soon()).await.unwrap();
            assert!(seen.epoch == named.epoch && seen.leased > Duration::from_secs(2), "{seen:?}");
            assert_eq!(store.name_l1(claim(&seen, &two), soon()).await.unwrap().l1, Some(one.clone()));
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        let mut seen = store.use_l1(&two, soon()).await.unwrap();
        eventually("the lease to end", async || {
            seen = store.epoch(soon()).await.unwrap();
            seen.leased.is_zero()
        })
        .await;
        let taken = store.name_l1(claim(&seen, &two), soon()).await.unwrap();
        assert!(taken.names(&two) && taken.epoch != named.epoch && taken.age < Duration::from_secs(10));
        // What goes on from it keeps the epoch; at once, whoever uses it.
        let promoted = l1("two", &["c"]);
        let kept = Claim { keep_epoch: true, at_once: true, ..claim(&taken, &promoted) };
        let kept = store.name_l1(kept, soon()).await.unwrap();
        assert!(kept.epoch == taken.epoch && kept.l1 == Some(promoted.clone()));
        // A cluster that has grown.
        let grown = l1("two", &["c", "d"]);
        assert_eq!(store.use_l1(&grown, soon()).await.unwrap().l1, Some(grown.clone()));
        // A renewal keeps the name.
        assert_eq!(store.renew_epoch(kept.epoch, soon()).await.unwrap().l1, Some(grown));
    }
}

#[tokio::test]
async fn an_l1_in_a_process_beside_the_named_one_is_known_to_all() {
    let Bench { store, .. } = Bench::new().await;
    let (named, beside) = (l1("one", &["a"]), l1("two", &[]));
    let first = store.epoch(soon()).await.unwrap();
    let state = store.name_l1(claim(&first, &named), soon()).await.unwrap();
    assert!(state.beside.is_zero());
    assert!(!store.use_l1(&beside, soon()).await.unwrap().beside.is_zero());
    assert!(!store.epoch(soon()).await.unwrap().beside.is_zero());
    assert!(store.epoch(soon()).await.unwrap().now.is_some(), "each look brings L2's time");
}

#[tokio::test]
async fn an_epoch_that_was_made_for_other_records_is_replaced_before_anybody_uses_it() {
    let bench = Bench::new().await;
    let store = &bench.store;
    let one = l1("one", &["a"]);
    bench.write(upsert("a", record([]))).await;
    let first = store.epoch(soon()).await.unwrap();
    let named = store.name_l1(claim(&first, &one), soon()).await.unwrap();
    assert_eq!(store.epoch(soon()).await.unwrap().epoch, named.epoch, "it stays");
    // Dropped and restored: the collection is another one.
    bench.features().drop().await.unwrap();
    bench.features().insert_one(doc! { "_id": { "view": "customers", "entity_id": "b" } }).await.unwrap();
    let mut renewed = named.clone();
    eventually("the other collection to be noticed", async || {
        renewed = store.epoch(soon()).await.unwrap();
        renewed.epoch != named.epoch
    })
    .await;
    assert!(renewed.names(&one), "the L1 is the same");
    assert_eq!(store.epoch(soon()).await.unwrap().epoch, renewed.epoch, "once");
    // A server that starts over a copy notices at once.
    let copy = format!("{}_copy", bench.database.name());
    for collection in ["features", "meta"] {
        let out = doc! { "$out": { "db": &copy, "coll": collection } };
        bench.database.collection::<Document>(collection).aggregate([out]).await.unwrap();
    }
    let over_copy = MongoStore::new(MongoConfig::new(Mongod::shared_replica_set().uri(), &copy, rules())).unwrap();
    assert_ne!(over_copy.epoch(soon()).await.unwrap().epoch, renewed.epoch);
    assert_eq!(store.epoch(soon()).await.unwrap().epoch, renewed.epoch, "the original goes on");
}

#[tokio::test]
async fn whatever_stands_in_place_of_the_epoch_a_new_one_mends_it() {
    let one = l1("one", &["a"]);
    for damage in [
        doc! { "epoch": 5 },
        doc! { "epoch": "zz", "since": "yesterday", "dirty": "no" },
        doc! { "epoch": { "x": 1 }, "l1": 7, "l2": [1], "leased_until": "soon", "beside_until": {} },
        doc! { "since": 1, "l1": { "id": "x", "histories": [1], "shared": 1 }, "leased_until": true },
    ] {
        let bench = Bench::new().await;
        bench.store.epoch(soon()).await.unwrap();
        let meta = bench.database.collection::<Document>("meta");
        let mut broken = damage.clone();
        broken.insert("_id", "epoch");
        meta.replace_one(doc! { "_id": "epoch" }, broken).await.unwrap();
        let error = bench.store.epoch(soon()).await.unwrap_err().to_string();
        assert!(error.contains("featurestore epoch new"), "{error}");
        let made = bench.store.new_epoch(Some(&one), soon()).await.unwrap();
        assert!(made.names(&one) && !made.dirty, "{damage}: {made:?}");
        let seen = bench.store.epoch(soon()).await.unwrap();
        assert!(seen.epoch == made.epoch && seen.names(&one) && !seen.leased.is_zero() && seen.beside.is_zero());
        let made = bench.store.new_epoch(None, soon()).await.unwrap();
        assert!(made.l1.is_none() && made.leased.is_zero() && made.epoch != seen.epoch);
    }
}

#[tokio::test]
async fn an_epoch_of_which_nobody_can_say_whether_it_is_dirty_is() {
    let bench = Bench::new().await;
    let before = bench.store.epoch(soon()).await.unwrap();
    assert!(!before.dirty);
    let meta = bench.database.collection::<Document>("meta");
    meta.update_one(doc! { "_id": "epoch" }, doc! { "$set": { "dirty": "no" } }).await.unwrap();
    let seen = bench.store.epoch(soon()).await.unwrap();
    assert!(seen.dirty && seen.epoch == before.epoch);
    assert!(!bench.store.renew_epoch(seen.epoch, soon()).await.unwrap().dirty);
}
