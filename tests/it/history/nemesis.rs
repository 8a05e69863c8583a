//! Breaks things by its seed: one fault after another, sometimes two at once, with healing between.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio::task::block_in_place;

use super::{
    event::{Class, Nanos, Window},
    world::{Mongo, Tiers, World},
};
use crate::harness::proxy::Line;

/// How long a slow line takes each way, at most.
const SLOW: Duration = Duration::from_millis(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    RedisKilled,
    RedisFrozen,
    RedisRestored,
    RedisFull,
    RedisFlushed,
    ScriptsFlushed,
    RedisCut(usize),
    RedisStalled(usize),
    RedisSlow(usize),
    RedisRepliesLost(usize),
    MongoKilled,
    MongoFrozen,
    MongoCut(usize),
    MongoStalled(usize),
    MongoSlow(usize),
    MongoRepliesLost(usize),
    PrimaryKilled,
    PrimaryFrozen,
    PrimarySteppedDown,
    ServerKilled(usize),
    ServerFrozen(usize),
    ServerRestarted(usize),
}

use Fault::*;

/// What a fault takes away. Two at once are of different ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Mongo,
    Redis,
    RedisLine,
    Server,
}

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            RedisKilled => "Redis killed, empty afterwards",
            RedisFrozen => "Redis frozen (SIGSTOP)",
            RedisRestored => "Redis restarted with old data",
            RedisFull => "Redis full, evicting",
            RedisFlushed => "FLUSHALL",
            ScriptsFlushed => "SCRIPT FLUSH",
            RedisCut(_) => "a server cut off from Redis",
            RedisStalled(_) => "a server's line to Redis stalled",
            RedisSlow(_) => "a server's line to Redis slow",
            RedisRepliesLost(_) => "Redis' replies to a server lost",
            MongoKilled => "MongoDB killed (one node)",
            MongoFrozen => "MongoDB frozen (one node)",
            MongoCut(_) => "a server cut off from MongoDB",
            MongoStalled(_) => "a server's line to MongoDB stalled",
            MongoSlow(_) => "a server's line to MongoDB slow",
            MongoRepliesLost(_) => "MongoDB's replies to a server lost",
            PrimaryKilled => "MongoDB's primary killed",
            PrimaryFrozen => "MongoDB's primary frozen",
            PrimarySteppedDown => "MongoDB's primary steps down",
            ServerKilled(_) => "a server killed (SIGKILL)",
            ServerFrozen(_) => "a server frozen (SIGSTOP)",
            ServerRestarted(_) => "a server restarted (SIGTERM)",
        }
    }

    /// What the fault table promises of it.
    pub fn class(self) -> Class {
        match self {
            PrimaryKilled | PrimaryFrozen | PrimarySteppedDown => Class::Election,
            _ => Class::Linearizable,
        }
    }

    fn place(self) -> Place {
        match self {
            RedisKilled | RedisFrozen | RedisRestored | RedisFull | RedisFlushed | ScriptsFlushed => Place::Redis,
            RedisCut(_) | RedisStalled(_) | RedisSlow(_) | RedisRepliesLost(_) => Place::RedisLine,
            ServerKilled(_) | ServerFrozen(_) | ServerRestarted(_) => Place::Server,
            _ => Place::Mongo,
        }
    }

    /// Those that a storm over these tiers can meet; `group` is all, redis, mongodb or servers.
    pub fn all(tiers: Tiers, group: &str) -> Vec<Self> {
        let mut faults = Vec::new();
        let servers = if tiers == Tiers::Embedded { 0..1 } else { 0..super::world::SERVERS };
        let has = |name: &str| group == "all" || group == name;
        if has("servers") {
            faults.extend(servers.clone().flat_map(|i| [ServerKilled(i), ServerFrozen(i), ServerRestarted(i)]));
        }
        if has("redis") && tiers != Tiers::Embedded {
            faults.extend([RedisKilled, RedisFrozen, RedisRestored, RedisFull, RedisFlushed, ScriptsFlushed]);
            faults.extend(
                servers.clone().flat_map(|i| [RedisCut(i), RedisStalled(i), RedisSlow(i), RedisRepliesLost(i)]),
            );
        }
        if has("mongodb") && tiers == Tiers::OneNode {
            faults.extend([MongoKilled, MongoFrozen]);
            faults.extend(servers.flat_map(|i| [MongoCut(i), MongoStalled(i), MongoSlow(i), MongoRepliesLost(i)]));
        }
        if has("mongodb") && tiers == Tiers::ThreeNodes {
            faults.extend([PrimaryKilled, PrimaryFrozen, PrimarySteppedDown]);
        }
        assert!(!faults.is_empty(), "no faults of {group:?} over {tiers:?}");
        faults
    }
}

/// A fault as it was.
#[derive(Clone, Debug)]
pub struct Injected {
    pub fault: Fault,
    pub from: Nanos,
    pub healed: Nanos,
    /// How long all servers took to be normal again, where that was waited for.
    pub recovery: Option<Duration>,
}

pub struct Nemesis {
    dice: StdRng,
    /// What is still to come of this round; every fault comes once before one comes twice.
    deck: Vec<Fault>,
    faults: Vec<Fault>,
    /// The primary that was killed or frozen.
    struck: Option<usize>,
    pub injected: Vec<Injected>,
    pub windows: Vec<Window>,
    /// How long a fault lasts, in milliseconds.
    pub hold: std::ops::Range<u64>,
}

impl Nemesis {
    pub fn new(faults: Vec<Fault>, seed: u64) -> Self {
        let dice = StdRng::seed_from_u64(seed ^ 0x6e65_6d65_7369_7300);
        let (deck, injected, windows) = (Vec::new(), Vec::new(), Vec::new());
        Self { dice, deck, faults, struck: None, injected, windows, hold: 200..1500 }
    }

    /// One round: breaks, holds, heals, and mostly waits until the servers have recovered. `now` is the history's clock.
    pub async fn strike(&mut self, world: &mut World, now: impl Fn() -> Nanos) {
        let first = self.draw();
        let mut faults = vec![first];
        if self.dice.random_ratio(1, 5) {
            let other = *self.faults.choose(&mut self.dice).unwrap();
            if first.place() != other.place() {
                faults.push(other);
            }
        }
        // What takes something away from the others first comes back first.
        faults.sort_by_key(|fault| fault.place());
        let (begun, healed_from) = (now(), self.injected.len());
        for fault in &faults {
            self.windows.push(Window { fault: fault.name(), class: fault.class(), from: now(), until: Nanos::MAX });
            block_in_place(|| self.begin(*fault, world));
            self.injected.push(Injected { fault: *fault, from: begun, healed: 0, recovery: None });
        }
        let mut hold = Duration::from_millis(self.dice.random_range(self.hold.clone()));
        let elects = faults.iter().any(|fault| fault.class() == Class::Election);
        if elects {
            hold += Duration::from_secs(4); // until another is elected
        }
        tokio::time::sleep(hold).await;
        for fault in &faults {
            block_in_place(|| self.heal(*fault, world));
        }
        let healed = now();
        let pause = (!self.dice.random_ratio(2, 5)).then(|| self.dice.random_range(0..700));
        // While an election's window is open, an older value is held to a bound only.
        let waits = elects || pause.is_none();
        match pause {
            Some(pause) if !elects => tokio::time::sleep(Duration::from_millis(pause)).await,
            _ => self.recover(world, &now).await,
        }
        for injected in &mut self.injected[healed_from..] {
            injected.healed = healed;
            injected.recovery = waits.then(|| Duration::from_nanos(now() - healed));
        }
    }

    /// Waits until all servers are normal, which closes all windows.
    pub async fn recover(&mut self, world: &World, now: impl Fn() -> Nanos) {
        world.until_all_normal().await;
        for window in self.windows.iter_mut().filter(|window| window.until == Nanos::MAX) {
            window.until = now();
        }
    }

    fn draw(&mut self) -> Fault {
        if self.deck.is_empty() {
            self.deck = self.faults.clone();
        }
        let place = self.dice.random_range(0..self.deck.len());
        self.deck.swap_remove(place)
    }

    fn begin(&mut self, fault: Fault, world: &mut World) {
        match fault {
            RedisKilled => world.redis().kill(),
            RedisFrozen => world.redis().freeze(),
            RedisRestored => drop(world.redis().cli(&["SAVE"])),
            RedisFull => {
                let info = world.redis().cli(&["INFO", "memory"]);
                let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
                let most = used.trim().parse::<u64>().unwrap() + self.dice.random_range(0..8192);
                world.redis().cli(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
                world.redis().cli(&["CONFIG", "SET", "maxmemory", &most.to_string()]);
            }
            RedisFlushed => drop(world.redis().cli(&["FLUSHALL"])),
            ScriptsFlushed => drop(world.redis().cli(&["SCRIPT", "FLUSH"])),
            RedisCut(i) => world.redis_lines[i].set(Line::Cut),
            RedisStalled(i) => world.redis_lines[i].set(Line::Stall),
            RedisSlow(i) => world.redis_lines[i].set(Line::Delay(self.slowness())),
            RedisRepliesLost(i) => world.redis_lines[i].set(Line::DropReplies),
            MongoCut(i) => world.mongo_lines[i].set(Line::Cut),
            MongoStalled(i) => world.mongo_lines[i].set(Line::Stall),
            MongoSlow(i) => world.mongo_lines[i].set(Line::Delay(self.slowness())),
            MongoRepliesLost(i) => world.mongo_lines[i].set(Line::DropReplies),
            MongoKilled => one(world).kill(),
            MongoFrozen => one(world).signal("STOP"),
            PrimaryKilled => self.struck = Some(three(world).kill_primary()),
            PrimaryFrozen => {
                let primary = three(world).wait_for_primary();
                three(world).node(primary).signal("STOP");
                self.struck = Some(primary);
            }
            PrimarySteppedDown => three(world).step_down(),
            ServerKilled(i) => world.servers[i].kill(),
            ServerFrozen(i) => world.servers[i].signal("STOP"),
            ServerRestarted(i) => world.servers[i].signal("TERM"),
        }
    }

    fn heal(&mut self, fault: Fault, world: &mut World) {
        match fault {
            RedisKilled => world.redis().start_again(),
            RedisFrozen => world.redis().thaw(),
            RedisRestored => world.redis().restart(),
            RedisFull => drop(world.redis().cli(&["CONFIG", "SET", "maxmemory", "0"])),
            RedisFlushed | ScriptsFlushed | PrimarySteppedDown => {}
            RedisCut(i) | RedisStalled(i) | RedisSlow(i) | RedisRepliesLost(i) => world.redis_lines[i].set(Line::Pass),
            MongoCut(i) | MongoStalled(i) | MongoSlow(i) | MongoRepliesLost(i) => world.mongo_lines[i].set(Line::Pass),
            MongoKilled => one(world).restart(),
            MongoFrozen => one(world).signal("CONT"),
            PrimaryKilled => three(world).node(self.struck.take().unwrap()).start_again(),
            PrimaryFrozen => three(world).node(self.struck.take().unwrap()).signal("CONT"),
            ServerKilled(i) => world.servers[i].start_again(),
            ServerFrozen(i) => world.servers[i].signal("CONT"),
            ServerRestarted(i) => {
                let code = world.servers[i].exit_code(Duration::from_secs(60));
                assert_eq!(code, 0, "{}", super::world::tail(&world.servers[i].log()));
                world.servers[i].start_again();
            }
        }
    }

    fn slowness(&mut self) -> Duration {
        self.dice.random_range(Duration::from_millis(5)..SLOW)
    }
}

fn one(world: &mut World) -> &mut crate::harness::mongod::Mongod {
    match &mut world.mongo {
        Mongo::One(mongod) => mongod,
        _ => unreachable!("one node"),
    }
}

fn three(world: &mut World) -> &mut crate::harness::mongod_set::MongodSet {
    match &mut world.mongo {
        Mongo::Three(set) => set,
        _ => unreachable!("three nodes"),
    }
}
