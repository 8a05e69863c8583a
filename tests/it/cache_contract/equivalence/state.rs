//! All that an entry remembers, read off Redis and found out about the machine.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
};

use featurestore::{
    cache::{Acquired, CacheKey, CacheValue, Effect, PermitId, entry::Install},
    record::Revision,
};

use super::{LONG, Machine, OVER, id};

/// How much time may pass in Redis meanwhile; less than any two lifetimes of these tests differ by.
const LATENESS_MS: i64 = 10_000;

/// One entry. What lives is told with the time that it has left, in ms.
#[derive(Debug, Default)]
pub(super) struct Seen {
    life: i64,
    floor: i64,
    /// Tag and revision.
    value: Option<(char, i64, i64)>,
    lease: Option<(PermitId, i64)>,
    permits: Vec<(PermitId, i64)>,
}

impl Seen {
    /// Whether Redis, where time goes on, holds what the machine holds.
    pub(super) fn is_like(&self, machine: &Self) -> bool {
        let near = |left: i64, expected: i64| (expected.max(0) - LATENESS_MS..=expected.max(0)).contains(&left);
        let same = |a: Option<(PermitId, i64)>, b: Option<(PermitId, i64)>| match (a, b) {
            (Some((a, left)), Some((b, expected))) => a == b && near(left, expected),
            (a, b) => a == b,
        };
        let values = match (self.value, machine.value) {
            (Some((tag, revision, left)), Some((a_tag, a_revision, expected))) => {
                (tag, revision) == (a_tag, a_revision) && near(left, expected)
            }
            (a, b) => a == b,
        };
        values
            && near(self.life, machine.life)
            && self.floor == machine.floor
            && same(self.lease, machine.lease)
            && self.permits.len() == machine.permits.len()
            && self.permits.iter().zip(&machine.permits).all(|(a, b)| same(Some(*a), Some(*b)))
    }
}

/// Finds out what the machine remembers, by what copies of it do. `ids` are all that were ever used.
pub(super) fn of_machine(slot: &Option<Machine>, now: u64, ids: u8) -> Option<Seen> {
    let mut slot = slot.clone();
    // It forgets what is over when it is next asked something.
    Machine::settle(&mut slot, Revision::NONE, None, now);
    let entry = slot.as_ref()?;
    let left = |until: u64| until as i64 - now as i64;
    let is_listed = |permit: &PermitId| {
        let mut copy = slot.clone();
        Machine::unmark(&mut copy, *permit, now);
        copy.map_or(0, |entry| entry.permits()) < entry.permits()
    };
    let permits: Vec<PermitId> = (0..ids).map(id).filter(is_listed).collect();
    let holds_lease = |token: &PermitId| {
        let fill = (*token, Install { value: CacheValue::Absent(Revision(i64::MAX)), ttl_ms: 1 });
        Machine::settle(&mut slot.clone(), Revision(i64::MAX), Some(fill), now) == Effect::Installed
    };
    let lease = (0..ids).map(id).find(holds_lease);
    let value = entry.value().map(|value| {
        let mut copy = slot.clone();
        for permit in &permits {
            Machine::unmark(&mut copy, *permit, now);
        }
        let tag = if matches!(value, CacheValue::Record(_)) { 'V' } else { 'A' };
        (tag, value.revision().0, left(copy.expect("it is clean").until()))
    });
    let floor = match &value {
        Some((_, revision, _)) => *revision,
        None => (0..).find(|revision| installs(&slot, *revision, now)).unwrap_or_default(),
    };
    let permits = permits.iter().map(|permit| (*permit, permit_left(&slot, *permit, &permits, now))).collect();
    let lease = lease.map(|lease| (lease, if nobody_may_fill(&slot, now) { LONG.lease_ms as i64 } else { 0 }));
    Some(Seen { life: left(entry.until()), floor, value, lease, permits })
}

/// Whether a write that ends at this revision is not below the floor.
fn installs(slot: &Option<Machine>, revision: i64, now: u64) -> bool {
    let (mut copy, stranger) = (slot.clone(), id(u8::MAX));
    Machine::mark(&mut copy, stranger, now, &OVER);
    let install = Install { value: CacheValue::Absent(Revision(revision)), ttl_ms: 1 };
    Machine::put(&mut copy, stranger, Revision(revision), install, now) == Effect::Installed
}

/// A permit alone keeps others from filling as long as it lives; here they live for long, or are over.
fn permit_left(slot: &Option<Machine>, permit: PermitId, all: &[PermitId], now: u64) -> i64 {
    let (mut copy, stranger) = (slot.clone(), id(u8::MAX));
    Machine::mark(&mut copy, stranger, now, &OVER); // voids a lease
    for other in all.iter().filter(|other| **other != permit) {
        Machine::unmark(&mut copy, *other, now);
    }
    if nobody_may_fill(&copy, now) { LONG.permit_ms as i64 } else { 0 }
}

fn nobody_may_fill(slot: &Option<Machine>, now: u64) -> bool {
    matches!(Machine::acquire(&mut slot.clone(), id(u8::MAX), now, &OVER), Acquired::NoFill { .. })
}

/// A line to Redis that asks what the scripts stored.
pub(super) struct Line(BufReader<TcpStream>);

/// A line for each thing that an entry remembers.
const TELL: &str = "
local packed = redis.call('GET', KEYS[1])
if not packed then return '' end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local life = redis.call('PTTL', KEYS[1])
local lines = {string.format('life %d', life)}
local function tell(...) lines[#lines + 1] = string.format(...) end
local function hex(id) return (string.gsub(id, '.', function(c) return string.format('%02x', string.byte(c)) end)) end
local function value(packed, left)
  tell('value %s %d %d', string.sub(packed, 1, 1), (struct.unpack('<I8', packed, 7)), left)
end
if string.sub(packed, 1, 1) ~= 'P' then
  tell('floor %d', (struct.unpack('<I8', packed, 7)))
  value(packed, life)
else
  local e = cmsgpack.unpack(string.sub(packed, 3))
  -- What is over is forgotten when a script next looks.
  if e.value and e.ends <= now then e.value = nil end
  if not e.value and not e.lease and not next(e.permits) then return '' end
  tell('floor %d', e.floor)
  if e.value then value(e.value, e.ends - now) end
  if e.lease then tell('lease %s %d', hex(e.lease), e.lease_ends - now) end
  for permit, ends in pairs(e.permits) do tell('permit %s %d', hex(permit), ends - now) end
end
return table.concat(lines, '\\n')";

impl Line {
    pub(super) fn new(port: u16) -> Self {
        Self(BufReader::new(TcpStream::connect(("127.0.0.1", port)).unwrap()))
    }

    /// What is stored under the key.
    pub(super) fn ask(&mut self, key: &CacheKey) -> Option<Seen> {
        let told = self.command(&[b"EVAL", TELL.as_bytes(), b"1", key.as_bytes()]);
        let mut seen = Seen::default();
        for line in told.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| words[at].parse::<i64>().unwrap();
            let named = || (PermitId(u64::from_str_radix(words[1], 16).unwrap().to_be_bytes()), number(2));
            match words[0] {
                "life" => seen.life = number(1),
                "floor" => seen.floor = number(1),
                "value" => seen.value = Some((words[1].parse().unwrap(), number(2), number(3))),
                "lease" => seen.lease = Some(named()),
                "permit" => seen.permits.push(named()),
                _ => panic!("{told}"),
            }
        }
        seen.permits.sort();
        (!told.is_empty()).then_some(seen)
    }

    /// Redis's own clock, in ms.
    pub(super) fn now(&mut self) -> u64 {
        let clock = "local clock = redis.call('TIME') return clock[1] .. string.sub(clock[2] + 1e6, 2, 4)";
        self.command(&[b"EVAL", clock.as_bytes(), b"0"]).parse().unwrap()
    }

    /// Stores what is no entry.
    pub(super) fn spoil(&mut self, key: &CacheKey, pending: bool) {
        let store = if pending {
            "redis.call('SET', KEYS[1], 'P\\1is for postponed') return ''"
        } else {
            "redis.call('DEL', KEYS[1]) redis.call('RPUSH', KEYS[1], 'a list') return ''"
        };
        self.command(&[b"EVAL", store.as_bytes(), b"1", key.as_bytes()]);
    }

    fn command(&mut self, words: &[&[u8]]) -> String {
        let mut sent = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            sent.extend(format!("${}\r\n", word.len()).bytes());
            sent.extend([word, b"\r\n".as_slice()].concat());
        }
        self.0.get_mut().write_all(&sent).unwrap();
        let mut head = String::new();
        self.0.read_line(&mut head).unwrap();
        let length: usize = head.trim_end().strip_prefix('$').and_then(|n| n.parse().ok()).expect(&head);
        let mut body = vec![0; length + 2];
        self.0.read_exact(&mut body).unwrap();
        body.truncate(length);
        String::from_utf8(body).unwrap()
    }
}
