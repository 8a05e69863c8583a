//! The repairer, step by step: what was told to nobody is made good, and the stored position never passes a change that L1
//! did not confirm twice.

use super::*;
use crate::harness::faulty::{Fault, Op};
use featurestore::store::changes::Event;

/// As long as a leader that died is waited for.
const LEASE: Duration = Duration::from_secs(5);
const SECOND_PASS: Duration = Duration::from_secs(30);
/// A little more than anybody waits between two tries.
const MOMENT: Duration = Duration::from_secs(2);

impl World {
    fn log(&self) -> &Arc<ChangeLog> {
        self.store.log.as_ref().unwrap()
    }

    /// Somebody writes to L2 and tells nobody, as a server does that crashes there.
    async fn untold_write(&self, id: &str) -> Revision {
        let (store, write) = (self.store.clone(), write(id));
        let written = blocking(async move { store.write(write, Instant::now() + MOMENT).await });
        written.await.unwrap().0.revision
    }

    /// Everything that was done up to now is made good, twice.
    async fn is_done(&self) -> bool {
        self.log().stored() == Some(self.log().len())
    }
}

impl Server {
    /// Looks after both tiers and repairs until the token is cancelled.
    fn serve(&self) -> CancellationToken {
        let end = self.watch();
        tokio::spawn(self.tiered.clone().repair(end.clone()));
        end
    }

    fn leads(&self) -> bool {
        self.tiered.repairs().reading().leading
    }
}

/// A leader for whom L1 is as ever, past the epoch's first moments.
async fn leader(world: &World) -> (Server, CancellationToken) {
    let (a, end) = serving(world).await;
    while !a.leads() || world.log().stored().is_none() || !matches!(a.l1(), L1Use::Trusted(_)) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    (a, end)
}

/// A server that trusts L1.
async fn serving(world: &World) -> (Server, CancellationToken) {
    let server = world.unstarted(OnL1Loss::Accept);
    let end = server.serve();
    while !matches!(server.l1(), L1Use::Trusted(_)) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    (server, end)
}

#[tokio::test(start_paused = true)]
async fn a_write_that_nobody_was_told_of_is_seen_a_moment_later() {
    let world = World::followed();
    let (a, end) = leader(&world).await;
    let old = a.cached_write("x").await;
    let seen = a.read("x").await;
    assert_eq!((seen.revision, seen.tier), (old, Tier::L1), "it would be answered for as long as nobody repairs");
    let new = world.untold_write("x").await;
    tokio::time::sleep(MOMENT).await;
    nobody_sees_older([&a], "x", new).await;
    end.cancel();
}

#[tokio::test(start_paused = true)]
async fn an_edit_removes_the_entry_whatever_its_revision() {
    let world = World::followed();
    let (a, end) = leader(&world).await;
    a.cached_write("x").await;
    world.log().add(Event::Edited { key: key("x") });
    tokio::time::sleep(MOMENT).await;
    assert_eq!(world.in_l1("x").await, None);
    end.cancel();
}

#[tokio::test(start_paused = true)]
async fn the_stored_position_passes_only_what_l1_confirmed_twice() {
    let world = World::followed();
    let (a, end) = leader(&world).await;
    a.cached_write("x").await;
    let before = world.log().stored().unwrap();
    tokio::time::sleep(SECOND_PASS - MOMENT).await;
    assert_eq!(world.log().stored().unwrap(), before, "the second pass is still to come");
    // One that L1 does not confirm is done again, and nothing is stored meanwhile.
    let settles = a.faults.count(Op::Settle);
    a.faults.once(Op::Settle, Fault::LoseReply);
    a.faults.once(Op::Settle, Fault::LoseReply);
    let mut lost = 0;
    while !world.is_done().await {
        let asked = a.faults.count(Op::Settle) - settles;
        if asked <= 2 {
            assert_eq!(world.log().stored().unwrap(), before);
            lost = asked;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(lost, 2);
    assert!(a.leads());
    end.cancel();
}

#[tokio::test(start_paused = true)]
async fn the_second_pass_removes_what_came_back_after_the_first() {
    let world = World::followed();
    let (a, end) = leader(&world).await;
    let old = a.cached_write("x").await;
    tokio::time::sleep(MOMENT + SECOND_PASS).await; // long past
    let epoch = world.epoch().await;
    let new = world.untold_write("x").await;
    tokio::time::sleep(MOMENT).await;
    assert_eq!(world.in_l1("x").await, None);
    // What a failover of L1 to a replica that lagged behind does.
    bring_back(&world, "x", old).await;
    assert_eq!(a.read("x").await.revision, old);
    tokio::time::sleep(SECOND_PASS).await;
    nobody_sees_older([&a], "x", new).await;
    assert_eq!(world.epoch().await, epoch);
    end.cancel();
}

/// Puts an older value into L1 by force.
async fn bring_back(world: &World, id: &str, revision: Revision) {
    use featurestore::cache::{CacheValue, Fill, PermitId, Settle};
    let (key, token) = (world.l1_key(id).await, PermitId::random());
    world.memory.acquire(&[(key.clone(), token)], Instant::now()).await;
    let fill = Fill { value: CacheValue::Absent(revision), ttl: Duration::from_secs(3600) };
    world.memory.settle(&[Settle { key, revision, fill: Some((token, fill)) }], Instant::now()).await;
}

#[tokio::test(start_paused = true)]
async fn one_unconfirmed_write_costs_no_epoch_and_a_crash_afterwards_hides_nothing() {
    let world = World::followed();
    let (a, end) = leader(&world).await;
    let (b, b_end) = serving(&world).await;
    tokio::time::sleep(MOMENT).await;
    let (epoch, old) = (world.epoch().await, b.cached_write("x").await);
    for op in [Op::Put, Op::Settle, Op::Remove] {
        b.faults.always(op, Fault::Lose);
    }
    let unconfirmed = b.write("x").await;
    assert!(!unconfirmed.cached && unconfirmed.receipt.revision > old);
    b_end.cancel(); // it crashes
    tokio::time::sleep(MOMENT).await;
    nobody_sees_older([&a], "x", unconfirmed.receipt.revision).await;
    assert_eq!((world.epoch().await, world.is_dirty().await, b.faults.count(Op::MarkDirty)), (epoch, false, 0));
    end.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_loses_l1_resigns_and_the_next_one_goes_on_from_what_was_done() {
    let world = World::followed();
    let (a, a_end) = leader(&world).await;
    let (b, b_end) = serving(&world).await;
    let old = b.cached_write("x").await;
    for op in [Op::Settle, Op::Remove, Op::Probe] {
        a.faults.always(op, Fault::Lose);
    }
    let new = world.untold_write("x").await;
    assert_eq!(b.read("x").await.revision, old);
    tokio::time::sleep(LEASE).await;
    assert!(!a.leads() && b.leads());
    nobody_sees_older([&b], "x", new).await;
    a_end.cancel();
    b_end.cancel();
}

#[tokio::test(start_paused = true)]
async fn where_history_is_lost_l1_starts_cold_once() {
    let world = World::followed();
    let (a, end) = leader(&world).await;
    let old = a.cached_write("x").await;
    end.cancel();
    tokio::time::sleep(LEASE).await;
    let epoch = world.epoch().await;
    world.untold_write("x").await;
    world.log().forget();
    let end = a.serve();
    tokio::time::sleep(2 * LEASE).await;
    assert_ne!(world.epoch().await, epoch);
    let epoch = world.epoch().await;
    assert!(a.read("x").await.revision > old && a.leads());
    tokio::time::sleep(2 * LEASE).await;
    assert_eq!(world.epoch().await, epoch, "from there it goes on");
    end.cancel();
}

#[tokio::test(start_paused = true)]
async fn one_hit_in_ten_thousand_is_looked_at_again() {
    let world = World::shared();
    let [a] = world.trusting().await;
    let end = a.watch();
    tokio::spawn(a.tiered.clone().keep_auditing(end.clone()));
    a.cached_write("x").await;
    for _ in 0..9_999 {
        a.read("x").await;
    }
    tokio::time::sleep(MOMENT).await;
    assert_eq!(a.tiered.audit().checks(), 0);
    while a.read("x").await.tier != Tier::L1 {}
    tokio::time::sleep(MOMENT).await;
    assert_eq!((a.tiered.audit().checks(), a.tiered.audit().disagreements()), (1, 0));
    end.cancel();
}

#[tokio::test(start_paused = true)]
async fn only_while_somebody_repairs_an_unconfirmed_write_leaves_the_epoch_clean() {
    let world = World::followed();
    let (a, end) = leader(&world).await;
    for (is_repaired, marks) in [(true, 0), (false, 1)] {
        if !is_repaired {
            end.cancel();
            // The stored position is still there, and nobody moves it on.
            tokio::time::sleep(3 * LEASE).await;
            a.look().await;
        }
        a.faults.once(Op::Put, Fault::Lose);
        assert!(!a.write("x").await.cached);
        assert_eq!(a.faults.count(Op::MarkDirty), marks, "somebody repairs: {is_repaired}");
    }
}
