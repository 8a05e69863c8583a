//! The scripts do what the state machine does, which is also what `MemoryCache` is: any sequence of operations on one entry
//! gives equal replies, the same hits, and the same time to live in Redis as in the machine.
//!
//! Deadlines are in it without waiting: a lease or permit of a step is either long or over at once.

use featurestore::cache::{
    Acquired, Effect, Marked,
    entry::{Entry, Install, Lifetimes},
};
use proptest::{prelude::*, test_runner::TestRunner};

use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Acquire { token: u8, over: bool },
    Settle { token: u8, revision: i64 },
    Outdate { revision: i64 },
    Mark { permit: u8, over: bool },
    Put { permit: u8, revision: i64 },
    Unmark { permit: u8 },
    Remove,
}

#[derive(Debug, PartialEq)]
enum Reply {
    Acquired(Acquired),
    Effect(Effect),
    Marked(Marked),
    Removed,
}

fn step() -> impl Strategy<Value = Step> {
    let (id, revision) = (0..2u8, 0..5i64);
    prop_oneof![
        4 => (id.clone(), any::<bool>()).prop_map(|(token, over)| Step::Acquire { token, over }),
        4 => (id.clone(), revision.clone()).prop_map(|(token, revision)| Step::Settle { token, revision }),
        2 => revision.clone().prop_map(|revision| Step::Outdate { revision }),
        4 => (id.clone(), any::<bool>()).prop_map(|(permit, over)| Step::Mark { permit, over }),
        4 => (id.clone(), revision).prop_map(|(permit, revision)| Step::Put { permit, revision }),
        1 => id.prop_map(|permit| Step::Unmark { permit }),
        1 => Just(Step::Remove),
    ]
}

/// What random sequences meet too rarely.
fn rare_sequences() -> Vec<Vec<Step>> {
    use Step::*;
    let over = true;
    vec![
        // A late PUT beside another permit voids the lease.
        vec![
            Mark { permit: 0, over },
            Mark { permit: 1, over },
            Acquire { token: 0, over: false },
            Put { permit: 0, revision: 2 },
            Settle { token: 0, revision: 2 },
            Unmark { permit: 1 },
        ],
        // A suspect that lives for less than its permit is clean again with what it had left.
        vec![Acquire { token: 0, over }, Settle { token: 0, revision: 1 }, Mark { permit: 0, over: false }],
        // A lease prolongs nothing.
        vec![
            Acquire { token: 0, over },
            Settle { token: 0, revision: 1 },
            Mark { permit: 0, over },
            Acquire { token: 1, over: false },
        ],
    ]
}

/// Odd revisions are records, even ones absence.
fn value(revision: i64) -> CacheValue {
    if revision % 2 == 1 { record(revision) } else { CacheValue::Absent(Revision(revision)) }
}

/// Some values live for less than a permit, the others for more than a pending entry.
fn ttl_ms(revision: i64) -> u64 {
    if revision < 2 { 30_000 } else { 600_000 }
}

const LONG: Lifetimes = Lifetimes { lease_ms: 45_000, permit_ms: 45_000, pending_ms: 60_000 };
const OVER: Lifetimes = Lifetimes { lease_ms: 0, permit_ms: 0, pending_ms: 60_000 };

fn lives(over: bool) -> &'static Lifetimes {
    if over { &OVER } else { &LONG }
}

type Machine = Entry<CacheValue, PermitId>;

/// One step of the machine, at the time 0.
fn transition(slot: &mut Option<Machine>, step: Step) -> Reply {
    let install = |revision| Install { value: value(revision), ttl_ms: ttl_ms(revision) };
    match step {
        Step::Acquire { token, over } => Reply::Acquired(Machine::acquire(slot, id(token), 0, lives(over))),
        Step::Mark { permit, over } => Reply::Marked(Machine::mark(slot, id(permit), 0, lives(over))),
        Step::Settle { token, revision } => {
            Reply::Effect(Machine::settle(slot, Revision(revision), Some((id(token), install(revision))), 0))
        }
        Step::Outdate { revision } => Reply::Effect(Machine::settle(slot, Revision(revision), None, 0)),
        Step::Put { permit, revision } => {
            Reply::Effect(Machine::put(slot, id(permit), Revision(revision), install(revision), 0))
        }
        Step::Unmark { permit } => Reply::Effect(Machine::unmark(slot, id(permit), 0)),
        Step::Remove => {
            *slot = None;
            Reply::Removed
        }
    }
}

fn timed_settle(key: &CacheKey, token: u8, revision: i64) -> Settle {
    let mut settle = settle(key, token, value(revision));
    settle.fill.as_mut().unwrap().1.ttl = Duration::from_millis(ttl_ms(revision));
    settle
}

fn timed_put(key: &CacheKey, permit: u8, revision: i64) -> Put {
    let mut put = put(key, permit, value(revision));
    put.fill.ttl = Duration::from_millis(ttl_ms(revision));
    put
}

/// The same step in Redis.
async fn command([long, over]: &[RedisCache; 2], key: &CacheKey, step: Step) -> Reply {
    let pick = |is_over: bool| if is_over { over } else { long };
    match step {
        Step::Acquire { token, over } => {
            Reply::Acquired(only(pick(over).acquire(&[(key.clone(), id(token))], soon()).await).unwrap())
        }
        Step::Mark { permit, over } => {
            Reply::Marked(only(pick(over).mark(&[(key.clone(), id(permit))], soon()).await).unwrap())
        }
        Step::Settle { token, revision } => {
            Reply::Effect(only(long.settle(&[timed_settle(key, token, revision)], soon()).await).unwrap())
        }
        Step::Outdate { revision } => {
            Reply::Effect(only(long.settle(&[outdate(key, revision)], soon()).await).unwrap())
        }
        Step::Put { permit, revision } => {
            Reply::Effect(only(long.put(&[timed_put(key, permit, revision)], soon()).await).unwrap())
        }
        Step::Unmark { permit } => {
            Reply::Effect(only(long.unmark(&[(key.clone(), id(permit))], soon()).await).unwrap())
        }
        Step::Remove => {
            only(long.remove(std::slice::from_ref(key), soon()).await).unwrap();
            Reply::Removed
        }
    }
}

#[test]
fn the_scripts_do_what_the_machine_does() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = RedisServer::start();
    agree(&runtime, &server.url(), &server, 200);
}

#[test]
fn the_scripts_do_the_same_in_a_cluster_and_behind_sentinels() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cluster = runtime.block_on(empty_cluster());
    agree(&runtime, &cluster.url(), &cluster.nodes[cluster.master_of(name(&key("a")))], 30);
    let sentinels = runtime.block_on(empty_sentinels());
    agree(&runtime, &sentinels.url(), &sentinels.servers[0], 30);
}

/// Holds what is at an address to the machine; `server` has the key.
fn agree(runtime: &tokio::runtime::Runtime, url: &str, server: &RedisServer, cases: u32) {
    let caches = [LONG, OVER].map(|lives| unprobed_of(url).with_lifetimes(lives));
    for cache in &caches {
        runtime.block_on(cache.probe(EPOCH, soon())).unwrap();
    }
    let key = key("a");
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let sequences = proptest::collection::vec(step(), 1..30);
    let agree = |steps: Vec<Step>| {
        server.cli(&["DEL", name(&key)]);
        let mut slot = None;
        for (at, step) in steps.into_iter().enumerate() {
            let expected = transition(&mut slot, step);
            let reply = runtime.block_on(command(&caches, &key, step));
            prop_assert_eq!(&reply, &expected, "step {}: {:?}", at, step);
            let hit = slot.as_ref().and_then(|entry| entry.hit(0)).cloned();
            prop_assert_eq!(runtime.block_on(get(&caches[0], &key)), hit, "after step {}: {:?}", at, step);
        }
        // Redis's clock goes on, by far less than these lifetimes differ.
        let left: i64 = server.cli(&["PTTL", name(&key)]).parse().unwrap();
        match slot {
            Some(entry) => {
                let until = entry.until() as i64;
                prop_assert!((until - 8_000..=until).contains(&left), "{left} ms left, {until} expected");
            }
            None => prop_assert_eq!(left, -2, "there is no such key"),
        }
        Ok(())
    };
    for sequence in rare_sequences() {
        agree(sequence).unwrap();
    }
    TestRunner::new(config).run(&sequences, agree).unwrap();
}
