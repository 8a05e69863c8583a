//! The scripts do what the state machine does, which is also what `MemoryCache` is: after any sequence of operations on one
//! entry every reply was equal, and so is all that Redis and the machine remember: floor, value or suspect, lease, permits,
//! and how long each of them has to live.
//!
//! Deadlines are in it almost without waiting: a lease or permit of a step is either long or over at once, and after a fill
//! that lives for a moment the moment is waited for by Redis's own clock. A failure tells the seed; `EQUIVALENCE_SEED`
//! repeats it.

mod state;

use featurestore::cache::{
    Acquired, Effect, Marked,
    entry::{Entry, Install, Lifetimes},
};
use proptest::{
    prelude::*,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};

use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Acquire {
        token: u8,
        over: bool,
    },
    Settle {
        token: u8,
        revision: i64,
        brief: bool,
    },
    Outdate {
        revision: i64,
    },
    Mark {
        permit: u8,
        over: bool,
    },
    Put {
        permit: u8,
        revision: i64,
        brief: bool,
    },
    Unmark {
        permit: u8,
    },
    Remove,
    /// Somebody else stores what is no entry: text behind a pending entry's tag, or another type.
    Spoil {
        pending: bool,
    },
}

#[derive(Debug, PartialEq)]
enum Reply {
    Acquired(Acquired),
    Effect(Effect),
    Marked(Marked),
    Removed,
}

/// Leases and permits have so many names.
const IDS: u8 = 3;

fn step() -> impl Strategy<Value = Step> {
    let (id, revision, brief) = (0..IDS, 0..5i64, prop::bool::weighted(0.1));
    prop_oneof![
        4 => (id.clone(), any::<bool>()).prop_map(|(token, over)| Step::Acquire { token, over }),
        4 => (id.clone(), revision.clone(), brief)
            .prop_map(|(token, revision, brief)| Step::Settle { token, revision, brief }),
        2 => revision.clone().prop_map(|revision| Step::Outdate { revision }),
        4 => (id.clone(), any::<bool>()).prop_map(|(permit, over)| Step::Mark { permit, over }),
        4 => (id.clone(), revision, brief)
            .prop_map(|(permit, revision, brief)| Step::Put { permit, revision, brief }),
        1 => id.prop_map(|permit| Step::Unmark { permit }),
        1 => Just(Step::Remove),
        1 => any::<bool>().prop_map(|pending| Step::Spoil { pending }),
    ]
}

/// What random sequences meet too rarely.
fn rare_sequences() -> Vec<Vec<Step>> {
    use Step::*;
    let (over, brief) = (true, false);
    vec![
        // A late PUT beside another permit voids the lease.
        vec![
            Mark { permit: 0, over },
            Mark { permit: 1, over },
            Acquire { token: 0, over: false },
            Put { permit: 0, revision: 2, brief },
            Settle { token: 0, revision: 2, brief },
            Unmark { permit: 1 },
        ],
        // A suspect that lives for less than its permit is clean again with what it had left.
        vec![Acquire { token: 0, over }, Settle { token: 0, revision: 1, brief }, Mark { permit: 0, over: false }],
        // A lease prolongs nothing.
        vec![
            Acquire { token: 0, over },
            Settle { token: 0, revision: 1, brief },
            Mark { permit: 0, over },
            Acquire { token: 1, over: false },
        ],
        // A suspect ends before its entry, and another is put beside a permit that is over.
        vec![
            Acquire { token: 0, over },
            Mark { permit: 0, over: false },
            Mark { permit: 1, over },
            Put { permit: 0, revision: 3, brief: true },
            Acquire { token: 0, over: false },
            Settle { token: 0, revision: 3, brief },
        ],
        // What is not newer than the value is not put, and a tombstone takes a record's place.
        vec![
            Mark { permit: 0, over: false },
            Mark { permit: 1, over: false },
            Mark { permit: 2, over: false },
            Put { permit: 0, revision: 3, brief },
            Put { permit: 1, revision: 3, brief },
            Put { permit: 2, revision: 4, brief },
        ],
    ]
}

/// Odd revisions are records, even ones absence.
fn value(revision: i64) -> CacheValue {
    if revision % 2 == 1 { record(revision) } else { CacheValue::Absent(Revision(revision)) }
}

/// Some values live for less than a permit, the others for more than a pending entry.
fn ttl_ms(revision: i64, brief: bool) -> u64 {
    match (brief, revision < 2) {
        (true, _) => BRIEF_MS,
        (false, true) => 30_000,
        (false, false) => 600_000,
    }
}

const BRIEF_MS: u64 = 1;

const LONG: Lifetimes = Lifetimes { lease_ms: 45_000, permit_ms: 45_000, pending_ms: 60_000 };
const OVER: Lifetimes = Lifetimes { lease_ms: 0, permit_ms: 0, pending_ms: 60_000 };

fn lives(over: bool) -> &'static Lifetimes {
    if over { &OVER } else { &LONG }
}

type Machine = Entry<CacheValue, PermitId>;

/// One step of the machine.
fn transition(slot: &mut Option<Machine>, step: Step, now: u64) -> Reply {
    let install = |revision, brief| Install { value: value(revision), ttl_ms: ttl_ms(revision, brief) };
    match step {
        Step::Acquire { token, over } => Reply::Acquired(Machine::acquire(slot, id(token), now, lives(over))),
        Step::Mark { permit, over } => Reply::Marked(Machine::mark(slot, id(permit), now, lives(over))),
        Step::Settle { token, revision, brief } => {
            let fill = (id(token), install(revision, brief));
            Reply::Effect(Machine::settle(slot, Revision(revision), Some(fill), now))
        }
        Step::Outdate { revision } => Reply::Effect(Machine::settle(slot, Revision(revision), None, now)),
        Step::Put { permit, revision, brief } => {
            Reply::Effect(Machine::put(slot, id(permit), Revision(revision), install(revision, brief), now))
        }
        Step::Unmark { permit } => Reply::Effect(Machine::unmark(slot, id(permit), now)),
        Step::Remove | Step::Spoil { .. } => {
            *slot = None;
            Reply::Removed
        }
    }
}

/// What is answered where the entry was no entry, and had to be removed.
fn instead(step: Step) -> Reply {
    match step {
        Step::Acquire { .. } => Reply::Acquired(Acquired::NoFill { suspect: None }),
        Step::Mark { .. } => Reply::Marked(Marked::Overflow),
        Step::Settle { .. } | Step::Outdate { .. } | Step::Put { .. } | Step::Unmark { .. } => {
            Reply::Effect(Effect::Dropped)
        }
        Step::Remove | Step::Spoil { .. } => Reply::Removed,
    }
}

fn timed_settle(key: &CacheKey, token: u8, revision: i64, brief: bool) -> Settle {
    let mut settle = settle(key, token, value(revision));
    settle.fill.as_mut().unwrap().1.ttl = Duration::from_millis(ttl_ms(revision, brief));
    settle
}

fn timed_put(key: &CacheKey, permit: u8, revision: i64, brief: bool) -> Put {
    let mut put = put(key, permit, value(revision));
    put.fill.ttl = Duration::from_millis(ttl_ms(revision, brief));
    put
}

/// The same step in Redis.
async fn command(line: &mut state::Line, [long, over]: &[RedisCache; 2], key: &CacheKey, step: Step) -> Reply {
    let pick = |is_over: bool| if is_over { over } else { long };
    match step {
        Step::Acquire { token, over } => {
            Reply::Acquired(only(pick(over).acquire(&[(key.clone(), id(token))], soon()).await).unwrap())
        }
        Step::Mark { permit, over } => {
            Reply::Marked(only(pick(over).mark(&[(key.clone(), id(permit))], soon()).await).unwrap())
        }
        Step::Settle { token, revision, brief } => {
            Reply::Effect(only(long.settle(&[timed_settle(key, token, revision, brief)], soon()).await).unwrap())
        }
        Step::Outdate { revision } => {
            Reply::Effect(only(long.settle(&[outdate(key, revision)], soon()).await).unwrap())
        }
        Step::Put { permit, revision, brief } => {
            Reply::Effect(only(long.put(&[timed_put(key, permit, revision, brief)], soon()).await).unwrap())
        }
        Step::Unmark { permit } => {
            Reply::Effect(only(long.unmark(&[(key.clone(), id(permit))], soon()).await).unwrap())
        }
        Step::Remove => {
            only(long.remove(std::slice::from_ref(key), soon()).await).unwrap();
            Reply::Removed
        }
        Step::Spoil { pending } => {
            line.spoil(key, pending);
            Reply::Removed
        }
    }
}

/// The seed of the sequences: another each time, or the one that is asked for.
fn seed() -> u64 {
    std::env::var("EQUIVALENCE_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().expect("a number"))
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
        runtime.block_on(cache.probe_any(EPOCH, soon())).unwrap();
    }
    let line = std::cell::RefCell::new(state::Line::new(server.port()));
    let key = key("a");
    let agree = |steps: Vec<Step>| {
        let mut line = line.borrow_mut();
        runtime.block_on(command(&mut line, &caches, &key, Step::Remove));
        let (mut slot, mut now, mut is_spoiled) = (None, 0, false);
        for (at, step) in steps.into_iter().enumerate() {
            let done = |what: &str| format!("{what} of step {at}, {step:?}");
            let started = line.now();
            let reply = runtime.block_on(command(&mut line, &caches, &key, step));
            let expected = if is_spoiled {
                slot = None;
                instead(step)
            } else {
                transition(&mut slot, step, now)
            };
            prop_assert_eq!(&reply, &expected, "{}", done("reply"));
            is_spoiled = matches!(step, Step::Spoil { .. });
            if is_spoiled {
                continue;
            }
            if let Step::Settle { brief: true, .. } | Step::Put { brief: true, .. } = step {
                now += 2 * BRIEF_MS;
                let over = line.now().max(started) + 2 * BRIEF_MS;
                while line.now() < over {}
            }
            let hit = slot.as_ref().and_then(|entry| entry.hit(now)).cloned();
            prop_assert_eq!(runtime.block_on(get(&caches[0], &key)), hit, "{}", done("hit"));
            let (stored, remembered) = (line.ask(&key), state::of_machine(&slot, now, IDS));
            let agree = match (&stored, &remembered) {
                (Some(stored), Some(remembered)) => stored.is_like(remembered),
                (stored, remembered) => stored.is_none() && remembered.is_none(),
            };
            prop_assert!(agree, "{}: Redis has {:?}, the machine {:?}", done("state"), stored, remembered);
        }
        Ok(())
    };
    for sequence in rare_sequences() {
        agree(sequence).unwrap();
    }
    let seed = seed();
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let sequences = proptest::collection::vec(step(), 1..30);
    if let Err(failure) = runner.run(&sequences, agree) {
        panic!("EQUIVALENCE_SEED={seed}: {failure}");
    }
}
