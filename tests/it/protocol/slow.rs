//! An L1 that answers, but slowly: reads leave it alone, writes go on telling it, and it is used again once it is fast.

use featurestore::{proto::value::Kind, store::Outcome, tiered::mode::TierMode};

use super::*;
use crate::harness::faulty::{Fault, Op};

#[tokio::test(start_paused = true)]
async fn reads_leave_a_slow_l1_alone_until_it_is_fast_again() {
    let world = World::exclusive();
    let a = world.with_settings(|settings| settings.l1_slow = Duration::from_millis(20));
    a.look().await;
    let end = a.watch();
    let written = a.cached_write("x").await;
    for op in [Op::Get, Op::Mark, Op::Put] {
        a.faults.always(op, Fault::Slow(Duration::from_millis(30)));
    }
    let start = Instant::now();
    while a.tiered.l1_mode() == TierMode::Healthy {
        assert!(start.elapsed() < Duration::from_secs(3), "it is not noticed");
        let readers: Vec<_> = (0..20).map(|_| a.begin_read("x")).collect();
        for reader in readers {
            assert_eq!(reader.await.unwrap(), Seen { revision: written, tier: Tier::L1, degraded: false });
        }
    }
    assert_eq!(a.tiered.l1_mode(), TierMode::Slow);
    assert!(start.elapsed() >= Duration::from_millis(500), "a hiccup is no slowness");

    let (asked, start) = (a.faults.count(Op::Get), Instant::now());
    assert_eq!(a.read("x").await, Seen { revision: written, tier: Tier::L2, degraded: true });
    assert_eq!((a.faults.count(Op::Get), start.elapsed()), (asked, Duration::ZERO));
    let written = a.cached_write("x").await;
    assert_eq!(world.in_l1("x").await, Some(written), "writes tell it as ever");
    assert_eq!(a.read("x").await.revision, written);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(a.tiered.l1_mode(), TierMode::Slow, "as long as it is");
    // While L2 does not answer either, what L1 holds is still served.
    a.tiered.l2_breaker().trip();
    assert_eq!(a.read("x").await.tier, Tier::L1);

    a.faults.heal();
    let start = Instant::now();
    while a.tiered.l1_mode() == TierMode::Slow {
        assert!(start.elapsed() < Duration::from_secs(5), "it is not used again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(start.elapsed() > Duration::from_secs(2), "it must be fast for a while");
    assert_eq!(a.read("x").await, Seen { revision: written, tier: Tier::L1, degraded: false });
    end.cancel();
}

fn large_write(id: &str, bytes: usize) -> Write {
    fixture::put(&key(id)).kind("text", Kind::StringVal("x".repeat(bytes))).0
}

/// Batches of large records take long because of their bytes: L1 is neither slow for that, nor lost.
#[tokio::test(start_paused = true)]
async fn large_records_make_no_l1_slow() {
    const RECORDS: usize = 60;
    // Less than the rules of the tests allow for a record, and together so many that moving them takes longer than a look.
    const BYTES: usize = 60 << 10;
    let world = World::exclusive();
    let a = world.with_settings(|settings| settings.l1_slow = Duration::from_millis(20));
    a.look().await;
    let end = a.watch();
    let ids: Vec<String> = (0..RECORDS).map(|id| format!("L{id}")).collect();
    for id in &ids {
        let answer = a.try_write(large_write(id, BYTES)).await.unwrap();
        assert!(answer.receipt.outcome == Outcome::Written && answer.cached, "{:?}", answer.receipt);
    }
    let keys = ids.iter().map(|id| key(id)).collect();
    let far = Instant::now() + Duration::from_secs(600);
    let request = ReadRequest { keys, consistency: Consistency::Cached, min_revisions: HashMap::new(), deadline: far };
    a.faults.always(Op::Get, Fault::Slow(Duration::from_millis(35)));
    a.faults.always(Op::Settle, Fault::Slow(Duration::from_millis(35)));
    for tier in [[Tier::L1; 10], [Tier::L2; 10]].concat() {
        if tier == Tier::L2 {
            // So that it is filled with all of them again.
            for id in &ids {
                world.evict(id).await;
            }
        }
        let reads: Vec<_> = (0..40)
            .map(|_| {
                let (tiered, request) = (a.tiered.clone(), request.clone());
                tokio::spawn(async move { tiered.read(&request).await })
            })
            .collect();
        for read in reads {
            let answer = read.await.unwrap();
            assert!(!answer.degraded, "{:?}", a.tiered.l1_mode());
            assert!(answer.rows.iter().all(|row| row.as_ref().unwrap().tier == tier));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(a.tiered.l1_mode(), TierMode::Healthy);
    }
    end.cancel();
}
