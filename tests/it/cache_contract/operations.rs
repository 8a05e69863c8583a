//! What each operation means, on every implementation.

use std::{future::Future, time::Duration};

use featurestore::cache::{Acquired::*, Effect::*, Marked, *};

use super::*;

/// Runs a test on each implementation, on an empty cache.
async fn on_every_cache<F: Future<Output = ()>>(test: impl Fn(Arc<dyn Cache>) -> F) {
    test(memory()).await;
    let server = RedisServer::start();
    test(redis_at(&server).await).await;
    let cluster = empty_cluster().await;
    test(redis_of(&cluster.url()).await).await;
    drop(cluster);
    let sentinels = empty_sentinels().await;
    test(redis_of(&sentinels.url()).await).await;
}

#[tokio::test]
async fn a_read_fills_under_its_lease_and_the_next_one_hits() {
    on_every_cache(async |cache| {
        let key = key("a");
        assert_eq!(get(&*cache, &key).await, None);
        let ask = |token| [(key.clone(), id(token))];
        assert_eq!(cache.acquire(&ask(1), soon()).await, [Ok(Lease { suspect: None })]);
        assert_eq!(cache.acquire(&ask(2), soon()).await, [Ok(NoFill { suspect: None })]);
        assert_eq!(get(&*cache, &key).await, None, "pending is a miss");
        assert_eq!(cache.settle(&[settle(&key, 2, record(5))], soon()).await, [Ok(Kept)], "not its lease");
        assert_eq!(cache.settle(&[settle(&key, 1, record(6))], soon()).await, [Ok(Installed)]);
        assert_eq!(get(&*cache, &key).await, Some(record(6)));
        assert_eq!(cache.acquire(&ask(3), soon()).await, [Ok(Hit(record(6)))]);
    })
    .await;
}

#[tokio::test]
async fn of_many_readers_at_once_one_gets_the_lease() {
    on_every_cache(async |cache| {
        let mut readers = tokio::task::JoinSet::new();
        for reader in 0..50 {
            let cache = cache.clone();
            readers.spawn(async move { only(cache.acquire(&[(key("a"), id(reader))], soon()).await) });
        }
        let replies = readers.join_all().await;
        assert_eq!(replies.iter().filter(|reply| **reply == Ok(Lease { suspect: None })).count(), 1);
        assert_eq!(replies.iter().filter(|reply| **reply == Ok(NoFill { suspect: None })).count(), 49);
    })
    .await;
}

#[tokio::test]
async fn a_write_makes_the_value_suspect_and_its_put_makes_it_clean() {
    on_every_cache(async |cache| {
        let key = key("a");
        warm(&*cache, &key, record(5)).await;
        assert_eq!(cache.mark(&[(key.clone(), id(1))], soon()).await, [Ok(Marked::Granted)]);
        assert_eq!(get(&*cache, &key).await, None);
        let ask = [(key.clone(), id(2))];
        assert_eq!(cache.acquire(&ask, soon()).await, [Ok(NoFill { suspect: Some(record(5)) })]);
        assert_eq!(cache.put(&[put(&key, 1, record(6))], soon()).await, [Ok(Installed)]);
        assert_eq!(get(&*cache, &key).await, Some(record(6)));
        assert_eq!(cache.put(&[put(&key, 1, record(7))], soon()).await, [Ok(Dropped)], "its permit is used up");
        assert_eq!(cache.put(&[put(&key, 1, record(8))], soon()).await, [Ok(NoEntry)]);
    })
    .await;
}

#[tokio::test]
async fn unmark_makes_the_suspect_clean_again() {
    on_every_cache(async |cache| {
        let key = key("a");
        warm(&*cache, &key, record(5)).await;
        let write = [(key.clone(), id(1))];
        assert_eq!(cache.mark(&write, soon()).await, [Ok(Marked::Granted)]);
        assert_eq!(cache.unmark(&write, soon()).await, [Ok(Kept)]);
        assert_eq!(get(&*cache, &key).await, Some(record(5)));
        assert_eq!(cache.remove(std::slice::from_ref(&key), soon()).await, [Ok(())]);
        assert_eq!(get(&*cache, &key).await, None);
        assert_eq!(cache.unmark(&write, soon()).await, [Ok(NoEntry)]);
    })
    .await;
}

#[tokio::test]
async fn settle_without_a_lease_removes_what_is_older_and_raises_the_floor() {
    on_every_cache(async |cache| {
        let key = key("a");
        assert_eq!(cache.settle(&[outdate(&key, 9)], soon()).await, [Ok(NoEntry)]);
        warm(&*cache, &key, record(5)).await;
        assert_eq!(cache.settle(&[outdate(&key, 5)], soon()).await, [Ok(Kept)]);
        assert_eq!(cache.settle(&[outdate(&key, 6)], soon()).await, [Ok(Dropped)]);
        assert_eq!(get(&*cache, &key).await, None);
        cache.acquire(&[(key.clone(), id(1))], soon()).await;
        assert_eq!(cache.settle(&[outdate(&key, 6)], soon()).await, [Ok(Kept)]);
        assert_eq!(cache.settle(&[settle(&key, 1, record(5))], soon()).await, [Ok(Kept)], "below the floor");
        assert_eq!(cache.settle(&[outdate(&key, 6)], soon()).await, [Ok(NoEntry)], "nothing was left");
    })
    .await;
}

#[tokio::test]
async fn absence_is_kept_with_its_revision() {
    on_every_cache(async |cache| {
        for (entity, revision) in [("never", 0), ("deleted", 1_790_000_000_000_001)] {
            let (key, absent) = (key(entity), CacheValue::Absent(Revision(revision)));
            warm(&*cache, &key, absent.clone()).await;
            assert_eq!(cache.acquire(&[(key, id(1))], soon()).await, [Ok(Hit(absent))]);
        }
    })
    .await;
}

#[tokio::test]
async fn too_many_permits_remove_the_entry() {
    on_every_cache(async |cache| {
        let key = key("a");
        let marks: Vec<_> = (0..=MAX_PERMITS as u8).map(|permit| (key.clone(), id(permit))).collect();
        let mut replies = cache.mark(&marks, soon()).await;
        assert_eq!(replies.pop(), Some(Ok(Marked::Overflow)));
        assert!(replies.iter().all(|reply| *reply == Ok(Marked::Granted)));
        assert_eq!(cache.put(&[put(&key, 0, record(5))], soon()).await, [Ok(NoEntry)]);
    })
    .await;
}

#[tokio::test]
async fn a_batch_answers_in_its_own_order() {
    on_every_cache(async |cache| {
        warm(&*cache, &key("b"), record(5)).await;
        let keys = [key("a"), key("b"), key("c"), key("b")];
        let hits: Vec<_> = cache.get(&keys, soon()).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(hits, [None, Some(record(5)), None, Some(record(5))]);
        let asks: Vec<_> = keys.iter().map(|key| (key.clone(), id(1))).collect();
        let (lease, hit) = (Ok(Lease { suspect: None }), Ok(Hit(record(5))));
        assert_eq!(cache.acquire(&asks, soon()).await, [lease.clone(), hit.clone(), lease, hit]);
        assert!(cache.get(&[], soon()).await.is_empty());
        assert!(cache.put(&[], soon()).await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn an_entry_is_gone_when_its_time_is_over() {
    on_every_cache(async |cache| {
        let key = key("a");
        cache.acquire(&[(key.clone(), id(1))], soon()).await;
        let mut short = settle(&key, 1, record(5));
        short.fill.as_mut().unwrap().1.ttl = Duration::from_millis(1);
        assert_eq!(cache.settle(&[short], soon()).await, [Ok(Installed)]);
        let bound = soon();
        while get(&*cache, &key).await.is_some() {
            assert!(Instant::now() < bound, "it outlives its time");
            tokio::task::yield_now().await;
        }
        assert_eq!(cache.settle(&[outdate(&key, 9)], soon()).await, [Ok(NoEntry)]);
    })
    .await;
}

#[tokio::test]
async fn a_probe_finds_an_empty_cache_intact() {
    on_every_cache(async |cache| {
        assert_eq!(cache.probe_any(EPOCH, soon()).await, Ok(Probe::Intact));
        assert_eq!(cache.probe_any(Epoch(2), soon()).await, Ok(Probe::Intact));
    })
    .await;
}
