//! The duties of an L1 that is elsewhere: deadlines, lost connections, old data, bytes of others, full memory.

use std::time::Duration;

use featurestore::cache::{Acquired::*, Effect::*, Marked, *};

use super::*;

fn is_unavailable<T: std::fmt::Debug>(result: &Result<T, CacheError>) -> bool {
    matches!(result, Err(CacheError::Unavailable(_)))
}

/// Whether every operation on an entry answers with an error that is like `what`.
async fn every_operation(
    cache: &dyn Cache,
    deadline: impl Fn() -> Instant,
    what: impl Fn(&CacheError) -> bool,
) -> bool {
    let (key, ask) = ([key("a")], [(key("a"), id(1))]);
    let errors = [
        only(cache.get(&key, deadline()).await).err(),
        only(cache.acquire(&ask, deadline()).await).err(),
        only(cache.settle(&[settle(&key[0], 1, record(1))], deadline()).await).err(),
        only(cache.mark(&ask, deadline()).await).err(),
        only(cache.put(&[put(&key[0], 1, record(1))], deadline()).await).err(),
        only(cache.unmark(&ask, deadline()).await).err(),
        only(cache.remove(&key, deadline()).await).err(),
    ];
    errors.iter().all(|error| error.as_ref().is_some_and(&what))
}

#[tokio::test]
async fn nothing_works_before_the_first_probe() {
    let server = RedisServer::start();
    let cache = unprobed(&server);
    assert!(every_operation(&cache, soon, |e| matches!(e, CacheError::Unavailable(_))).await);
    assert_eq!(cache.probe_any(EPOCH, soon()).await, Ok(Probe::Intact));
    warm(&cache, &key("a"), record(5)).await;
}

#[tokio::test]
async fn every_operation_ends_by_its_deadline_when_redis_is_frozen() {
    let server = RedisServer::start();
    let cache = redis_at(&server).await;
    warm(&*cache, &key("a"), record(5)).await;
    server.freeze();
    let start = Instant::now();
    let shortly = || Instant::now() + Duration::from_millis(50);
    assert!(every_operation(&*cache, shortly, |e| *e == CacheError::Timeout).await);
    assert!(start.elapsed() < Duration::from_millis(50 * 7 * 10));
    server.thaw();
    // A slow answer is no lost connection. What timed out may have happened; the last of it removed the entry.
    warm(&*cache, &key("b"), record(5)).await;

    server.freeze();
    assert_eq!(cache.probe_any(EPOCH, shortly()).await, Err(CacheError::Timeout));
    server.thaw();
    assert!(is_unavailable(&only(cache.get(&[key("b")], soon()).await)), "a failed probe ends the trust");
    assert_eq!(cache.probe_any(EPOCH, soon()).await, Ok(Probe::Intact));
    assert_eq!(get(&*cache, &key("b")).await, Some(record(5)));
}

#[tokio::test]
async fn late_answers_are_not_taken_for_those_of_others() {
    let server = RedisServer::start();
    let cache = redis_at(&server).await;
    let keys: Vec<(i64, CacheKey)> = (1..=20).map(|number| (number, key(&number.to_string()))).collect();
    for (revision, key) in &keys {
        warm(&*cache, key, record(*revision)).await;
    }
    server.freeze();
    for (_, key) in &keys {
        let shortly = Instant::now() + Duration::from_millis(5);
        assert_eq!(only(cache.get(std::slice::from_ref(key), shortly).await), Err(CacheError::Timeout));
    }
    server.thaw();
    for (revision, key) in keys.iter().rev() {
        assert_eq!(get(&*cache, key).await, Some(record(*revision)));
    }
}

#[tokio::test]
async fn every_connection_says_who_it_is_and_which_database_it_wants() {
    let server = RedisServer::start();
    assert_eq!(server.cli(&["ACL", "SETUSER", "me", "on", ">s3cret", "~*", "+@all"]), "OK");
    let cache = redis_of(&format!("redis://me:s3cret@{}/3", server.address())).await;
    warm(&*cache, &key("a"), record(5)).await;
    assert_eq!(get(&*cache, &key("a")).await, Some(record(5)));
    assert_eq!([server.cli(&["DBSIZE"]), server.cli(&["-n", "3", "EXISTS", name(&key("a"))])], ["0", "1"]);

    let refused = unprobed_of(&format!("redis://me:wr0ng@{}", server.address())).probe_any(EPOCH, soon()).await;
    assert!(is_unavailable(&refused) && !format!("{refused:?}").contains("wr0ng"), "{refused:?}");

    assert_eq!(server.cli(&["CONFIG", "SET", "requirepass", "s3cret"]), "OK");
    let cache = redis_of(&format!("redis://:s3cret@{}", server.address())).await;
    warm(&*cache, &key("b"), record(6)).await;
    assert_eq!(get(&*cache, &key("b")).await, Some(record(6)));
}

#[tokio::test]
async fn after_a_lost_connection_nothing_works_until_a_probe() {
    let server = RedisServer::start();
    let cache = redis_at(&server).await;
    warm(&*cache, &key("a"), record(5)).await;
    server.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    for _ in 0..2 {
        assert!(every_operation(&*cache, soon, |e| matches!(e, CacheError::Unavailable(_))).await);
    }
    assert_eq!(cache.probe_any(EPOCH, soon()).await, Ok(Probe::Intact));
    assert_eq!(get(&*cache, &key("a")).await, Some(record(5)), "the same run of Redis still holds it");
}

#[tokio::test]
async fn one_lost_connection_ends_the_use_of_all() {
    let server = RedisServer::start();
    // Two that the library makes, and two of our own that reads go through.
    for lost_one in 0..4 {
        let cache = redis_at(&server).await;
        let clients = server.cli(&["CLIENT", "LIST", "TYPE", "normal"]);
        let ids: Vec<&str> = clients.lines().map(|client| client.split([' ', '=']).nth(1).unwrap()).collect();
        // The last one is redis-cli's own.
        assert_eq!(ids.len(), 5, "{clients}");
        assert_eq!(server.cli(&["CLIENT", "KILL", "ID", ids[lost_one]]), "1");
        let mut lost = false;
        for _ in 0..6 {
            for is_lost in [
                is_unavailable(&only(cache.get(&[key("a")], soon()).await)),
                is_unavailable(&only(cache.remove(&[key("a")], soon()).await)),
            ] {
                assert!(is_lost || !lost, "the others still work, but are no longer trusted");
                lost = is_lost;
            }
        }
        assert!(lost, "{lost_one}");
        assert_eq!(cache.probe_any(EPOCH, soon()).await, Ok(Probe::Intact));
        assert_eq!(get(&*cache, &key("a")).await, None);
        drop(cache);
        let alone = async || server.cli(&["CLIENT", "LIST", "TYPE", "normal"]).lines().count() == 1;
        eventually("the connections to be closed with their cache", alone).await;
    }
}

#[tokio::test]
async fn a_redis_that_restarts_empty_is_intact() {
    let mut server = RedisServer::start();
    let cache = redis_at(&server).await;
    warm(&*cache, &key("a"), record(5)).await;
    server.kill();
    assert!(is_unavailable(&only(cache.get(&[key("a")], soon()).await)));
    assert!(is_unavailable(&cache.probe_any(EPOCH, soon()).await));
    server.start_again();
    assert!(is_unavailable(&only(cache.get(&[key("a")], soon()).await)), "it is back, but nobody looked");
    assert_eq!(cache.probe_any(EPOCH, soon()).await, Ok(Probe::Intact));
    assert_eq!(get(&*cache, &key("a")).await, None);
    warm(&*cache, &key("a"), record(6)).await;
}

#[tokio::test]
async fn a_redis_that_restarts_with_old_entries_needs_a_new_epoch() {
    let mut server = RedisServer::start();
    let cache = redis_at(&server).await;
    warm(&*cache, &key("a"), record(5)).await;
    server.cli(&["SAVE"]);
    server.restart();
    assert_eq!(cache.probe_any(EPOCH, soon()).await, Ok(Probe::Restored));
    assert!(is_unavailable(&only(cache.get(&[key("a")], soon()).await)), "old entries are never read");
    assert_eq!(unprobed(&server).probe_any(EPOCH, soon()).await, Ok(Probe::Restored), "a new process sees it too");
    assert_eq!(cache.probe_any(Epoch(2), soon()).await, Ok(Probe::Intact));
    assert_eq!(cache.probe_any(Epoch(2), soon()).await, Ok(Probe::Intact));
}

#[tokio::test]
async fn old_entries_are_noticed_where_the_marker_was_evicted() {
    let mut server = RedisServer::start();
    let cache = redis_at(&server).await;
    warm(&*cache, &key("a"), record(5)).await;
    assert_eq!(server.cli(&["DEL", &format!("{{}}fs:{EPOCH}")]), "1");
    server.cli(&["SAVE"]);
    server.restart();
    assert_eq!(cache.probe_any(EPOCH, soon()).await, Ok(Probe::Restored));
}

#[tokio::test]
async fn what_cannot_be_read_is_a_miss_and_is_removed() {
    let server = RedisServer::start();
    let cache = redis_at(&server).await;
    let key = key("a");
    let exists = || server.cli(&["EXISTS", name(&key)]) == "1";
    for corrupt in ["2", "7", "15", "30"] {
        warm(&*cache, &key, record(5)).await;
        server.cli(&["SETRANGE", name(&key), corrupt, "?"]);
        assert_eq!(get(&*cache, &key).await, None, "byte {corrupt}");
        assert!(!exists(), "byte {corrupt}");
    }
    server.cli(&["SET", name(&key), "Very much a text of somebody else"]);
    assert_eq!(get(&*cache, &key).await, None);
    assert!(!exists());
}

#[tokio::test]
async fn an_operation_that_meets_something_foreign_removes_it() {
    let server = RedisServer::start();
    let cache = redis_at(&server).await;
    let key = key("a");
    let ask = [(key.clone(), id(1))];
    for foreign in [&["RPUSH", "x"][..], &["SET", "P\u{1}rubbish"], &["SET", "P\u{1}"], &["SET", ""], &["SET", "text"]]
    {
        let place = || {
            server.cli(&["DEL", name(&key)]);
            server.cli(&[foreign[0], name(&key), foreign[1]]);
        };
        let gone = || server.cli(&["EXISTS", name(&key)]) == "0";
        place();
        assert_eq!(get(&*cache, &key).await, None);
        place();
        assert_eq!(cache.acquire(&ask, soon()).await, [Ok(NoFill { suspect: None })], "{foreign:?}");
        assert!(gone());
        assert_eq!(cache.acquire(&ask, soon()).await, [Ok(Lease { suspect: None })], "{foreign:?}");
        place();
        assert_eq!(cache.mark(&ask, soon()).await, [Ok(Marked::Overflow)], "{foreign:?}");
        assert!(gone());
        place();
        assert_eq!(cache.settle(&[settle(&key, 1, record(1))], soon()).await, [Ok(Dropped)], "{foreign:?}");
        assert!(gone());
        place();
        assert_eq!(cache.put(&[put(&key, 1, record(1))], soon()).await, [Ok(Dropped)], "{foreign:?}");
        assert!(gone());
        place();
        assert_eq!(cache.unmark(&ask, soon()).await, [Ok(Dropped)], "{foreign:?}");
        assert!(gone());
    }
}

#[tokio::test]
async fn one_bad_entry_does_not_disturb_the_rest_of_a_batch() {
    let server = RedisServer::start();
    let cache = redis_at(&server).await;
    warm(&*cache, &key("a"), record(5)).await;
    server.cli(&["RPUSH", name(&key("b")), "x"]);
    let keys = [key("a"), key("b"), key("c")];
    assert_eq!(cache.get(&keys, soon()).await, [Ok(Some(record(5))), Ok(None), Ok(None)]);
    let asks = keys.map(|key| (key, id(1)));
    let replies = cache.acquire(&asks, soon()).await;
    assert_eq!(replies, [Ok(Hit(record(5))), Ok(NoFill { suspect: None }), Ok(Lease { suspect: None })]);
}

#[tokio::test]
async fn what_full_memory_refuses_is_answered_by_removal() {
    let server = RedisServer::start();
    let cache = redis_at(&server).await;
    warm(&*cache, &key("a"), record(5)).await;
    cache.acquire(&[(key("b"), id(1))], soon()).await;
    warm(&*cache, &key("c"), record(5)).await;
    cache.mark(&[(key("c"), id(1))], soon()).await;
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(get(&*cache, &key("a")).await, Some(record(5)), "hits go on");
    assert_eq!(cache.mark(&[(key("a"), id(1))], soon()).await, [Ok(Marked::Overflow)]);
    assert_eq!(cache.settle(&[settle(&key("b"), 1, record(5))], soon()).await, [Ok(Dropped)]);
    assert_eq!(cache.put(&[put(&key("c"), 1, record(6))], soon()).await, [Ok(Dropped)]);
    assert_eq!(cache.acquire(&[(key("d"), id(1))], soon()).await, [Ok(NoFill { suspect: None })]);
    assert_eq!(server.cli(&["DBSIZE"]), "2", "the marker and the id");
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    warm(&*cache, &key("a"), record(7)).await;
}

#[tokio::test]
async fn scripts_that_redis_forgot_are_loaded_again_within_the_call() {
    let server = RedisServer::start();
    let cache = redis_at(&server).await;
    warm(&*cache, &key("a"), record(5)).await;
    server.cli(&["SCRIPT", "FLUSH"]);
    let asks = [key("a"), key("b"), key("c")].map(|key| (key, id(1)));
    let (hit, lease) = (Ok(Hit(record(5))), Ok(Lease { suspect: None }));
    assert_eq!(cache.acquire(&asks, soon()).await, [hit, lease.clone(), lease]);
}

#[tokio::test]
async fn a_batch_of_hits_is_one_command_and_costs_no_ping() {
    let server = RedisServer::start();
    let cache = redis_at(&server).await;
    warm(&*cache, &key("a"), record(5)).await;
    let before = (server.calls("mget"), server.calls("ping"), server.calls("evalsha"));
    let keys: Vec<_> = (0..100).map(|n| key(if n % 2 == 0 { "a" } else { "b" })).collect();
    assert_eq!(cache.get(&keys, soon()).await.len(), 100);
    assert_eq!(
        (server.calls("mget"), server.calls("ping"), server.calls("evalsha")),
        (before.0 + 1, before.1, before.2)
    );
}

#[tokio::test]
async fn large_records_pass_unharmed() {
    let server = RedisServer::start();
    let cache = redis_at(&server).await;
    let (key, large) = (key("a"), record_of(5, &"ü".repeat(300_000)));
    warm(&*cache, &key, large.clone()).await;
    assert_eq!(cache.mark(&[(key.clone(), id(1))], soon()).await, [Ok(Marked::Granted)]);
    assert_eq!(cache.acquire(&[(key, id(2))], soon()).await, [Ok(NoFill { suspect: Some(large) })]);
}
