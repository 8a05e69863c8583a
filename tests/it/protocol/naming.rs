//! One L2 has one L1: the one that its epoch names.

use featurestore::{
    cache::{CacheError, L1Name},
    store::{Claim, LEASE},
};

use super::*;
use crate::harness::faulty::{Fault, Op};

const PAUSE: Duration = Duration::from_secs(3);

impl World {
    /// A server with an L1 that no other one has.
    fn elsewhere(&self) -> Server {
        let faults = Arc::new(Faults::default());
        let cache = FaultyCache { faults: faults.clone(), inner: Arc::new(MemoryCache::new(32 << 20)) };
        self.over(Arc::new(cache), faults)
    }

    /// A server with an L1 in its own process, that looks after its tiers.
    fn private(&self) -> Server {
        let server = self.over(Arc::new(MemoryCache::new(32 << 20)), Arc::default());
        tokio::spawn(server.tiered.clone().repair(CancellationToken::new()));
        server.watch();
        server
    }

    async fn named(&self) -> L1Name {
        self.store.inner.epoch(Instant::now()).await.unwrap().l1.unwrap()
    }

    /// The epoch stays, and holds for another L1.
    async fn name(&self, l1: L1Name) {
        let (store, seen) = (self.store.clone(), self.store.inner.epoch(Instant::now()).await.unwrap());
        let claim = Claim { seen, l1, keep_epoch: true, at_once: true };
        blocking(async move { store.name_l1(claim, Instant::now() + PAUSE).await }).await.unwrap();
    }
}

/// Looks as the watcher would, for so long.
async fn look_for(servers: &[&Server], time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        for server in servers {
            server.look().await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_with_another_l1_leaves_it_alone_until_nobody_uses_the_named_one() {
    let world = World::followed();
    let [a] = world.trusting().await;
    let b = world.elsewhere();
    for server in [&a, &b] {
        tokio::spawn(server.tiered.clone().repair(CancellationToken::new()));
    }
    // Until the repairer is known to be at work; it begins with a new epoch.
    look_for(&[&a, &b], Duration::from_secs(15)).await;
    a.cached_write("x").await;
    for _ in 0..10 {
        look_for(&[&a, &b], Duration::from_secs(1)).await;
        assert_eq!(b.l1(), L1Use::Bypassed);
        assert!(b.tiered.l1_is_another() && !b.tiered.reach().borrow().l1);
        let written = a.cached_write("x").await;
        let seen = b.read("x").await;
        assert!(seen.revision >= written && seen.degraded && seen.tier == Tier::L2, "{seen:?}");
        assert!(!b.write("y").await.cached);
    }
    let (before, named) = (world.epoch().await, world.named().await);
    // The last one that used it is gone.
    look_for(&[&b], LEASE).await;
    look_for(&[&b], Duration::from_secs(1)).await;
    assert!(world.epoch().await != before && !world.named().await.is(&named), "a new epoch for the other L1");
    assert!(matches!(b.l1(), L1Use::Paused(_)), "{:?}", b.l1());
    look_for(&[&b], PAUSE).await;
    let written = b.cached_write("x").await;
    // Who comes back leaves its own alone.
    let seen = a.read("x").await;
    assert!(seen.revision >= written || seen.degraded, "{seen:?}");
    look_for(&[&a, &b], PAUSE).await;
    assert!(a.tiered.l1_is_another() && !b.tiered.l1_is_another());
    nobody_sees_older([&a, &b], "x", written).await;
}

#[tokio::test(start_paused = true)]
async fn what_an_l1_confirmed_that_was_not_named_all_the_time_is_told_again() {
    let world = World::shared();
    let a = world.with_settings(|settings| settings.l1_timeout = Duration::from_secs(60));
    a.look().await;
    let (ours, settled) = (world.named().await, a.faults.count(Op::Settle));
    let held = a.faults.hold(Op::Put);
    let write = a.begin_write("x");
    held.done().await;
    // It goes to a replica and back, as after two failovers, while the write waits.
    world.name(L1Name { histories: ["promoted".to_owned()].into(), ..ours.clone() }).await;
    look_for(&[&a], PAUSE).await;
    assert_eq!(a.l1(), L1Use::Bypassed);
    world.name(ours).await;
    look_for(&[&a], PAUSE + Duration::from_secs(1)).await;
    held.let_go();
    let written = write.await.unwrap();
    assert!(a.faults.count(Op::Settle) > settled, "the confirmation from before counts for nothing");
    nobody_sees_older([&a], "x", written.receipt.revision).await;
}

#[tokio::test(start_paused = true)]
async fn over_a_store_of_ones_own_another_l1_is_used_at_once_in_a_new_epoch() {
    let world = World::exclusive();
    let [a] = world.trusting().await;
    a.cached_write("x").await;
    let before = world.epoch().await;
    let b = world.elsewhere();
    b.look().await;
    assert!(world.epoch().await != before);
    let written = b.cached_write("x").await;
    let again = world.server().await;
    nobody_sees_older([&again], "x", written).await;
    assert!(again.read("x").await.revision >= written, "what the first L1 held is worth nothing");
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_answer_is_lost_uses_nothing() {
    let world = World::shared();
    let b = world.elsewhere();
    b.faults.once(Op::NameL1, Fault::LoseReply);
    b.look().await;
    assert_eq!(b.l1(), L1Use::Bypassed);
    look_for(&[&b], LEASE + PAUSE + Duration::from_secs(2)).await;
    assert!(matches!(b.l1(), L1Use::Trusted(_)), "{:?}", b.l1());
    assert!(b.write("x").await.cached);
}

#[tokio::test(start_paused = true)]
async fn without_a_repairer_a_write_beside_the_named_l1_costs_a_new_epoch() {
    let world = World::shared();
    let [a] = world.trusting().await;
    let b = world.elsewhere();
    look_for(&[&a, &b], Duration::from_secs(1)).await;
    let before = a.cached_write("x").await;
    assert_eq!(a.read("x").await.revision, before);
    let epoch = world.epoch().await;
    let written = b.write("x").await;
    assert!(!written.cached && world.epoch().await != epoch);
    look_for(&[&a, &b], Duration::from_secs(1)).await;
    nobody_sees_older([&a, &b], "x", written.receipt.revision).await;
}

#[tokio::test(start_paused = true)]
async fn l1s_in_their_own_processes_answer_cached_only_where_one_is_alone() {
    for world in [World::unnamed(None), World::unnamed(Some(ChangeLog::new()))] {
        let a = world.private();
        until("a alone to be used", async || a.write("x").await.cached).await;
        let b = world.private();
        until("b to be used", async || matches!(b.l1(), L1Use::Trusted(_))).await;
        for server in [&a, &b, &a, &b] {
            assert!(!server.write("x").await.cached, "the other one reads from its own");
        }
        assert!(!b.tiered.l1_is_another() && b.tiered.reach().borrow().l1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_shared_l1_is_named_at_once_whoever_has_one_in_its_process() {
    let world = World::unnamed(Some(ChangeLog::new()));
    let a = world.private();
    until("a alone to be used", async || a.write("x").await.cached).await;
    let b = world.elsewhere();
    look_for(&[&b], Duration::from_secs(1)).await;
    assert!(world.named().await.shared);
    look_for(&[&b], PAUSE).await;
    assert!(b.write("x").await.cached && !a.write("x").await.cached);
    until("a to be used beside it", async || matches!(a.l1(), L1Use::Trusted(_))).await;
    assert!(!a.write("x").await.cached);
    look_for(&[&b], Duration::from_secs(20)).await;
    assert!(world.named().await.shared, "it stays while it is used");
}

#[tokio::test(start_paused = true)]
async fn who_refuses_what_is_not_cached_refuses_it_beside_others() {
    let world = World::unnamed(None);
    let a = world.private();
    until("a alone to be used", async || a.write("x").await.cached).await;
    let b = world.over_with(Arc::new(MemoryCache::new(1 << 20)), Arc::default(), |settings| {
        settings.on_l1_loss = OnL1Loss::Reject;
    });
    tokio::spawn(b.tiered.clone().repair(CancellationToken::new()));
    b.watch();
    until("b to be used", async || matches!(b.l1(), L1Use::Trusted(_))).await;
    assert_eq!(b.try_write(write("x")).await.unwrap_err(), WriteError::L1Lost);
}

#[tokio::test(start_paused = true)]
async fn a_probe_of_another_l1_makes_it_usable_for_nobody() {
    let cache = MemoryCache::new(1 << 20);
    let (epoch, soon) = (Epoch(1), Instant::now() + PAUSE);
    let found = cache.probe(epoch, None, soon).await;
    let Ok(featurestore::cache::Probe::Another { found, goes_on: false }) = found else { panic!("{found:?}") };
    assert_eq!(cache.probe(epoch, Some(&found), soon).await, Ok::<_, CacheError>(featurestore::cache::Probe::Intact));
    let another = MemoryCache::new(1 << 20).name().unwrap();
    assert!(matches!(
        cache.probe(epoch, Some(&another), soon).await,
        Ok(featurestore::cache::Probe::Another { goes_on: false, .. })
    ));
}

/// Waits on the paused clock.
async fn until(what: &str, mut ready: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !ready().await {
        assert!(start.elapsed() < Duration::from_secs(60), "waited a minute for {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
