//! The slots of a Redis Cluster: the slot of a key, and the master of a slot.

use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

/// The number of slots of every cluster.
pub(in super::super) const SLOTS: u16 = 16384;
/// The slot has no master.
const NOBODY: u16 = u16::MAX;

/// The CRC-16 (XMODEM) of each byte.
const TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

fn crc(start: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(start, |crc, byte| (crc << 8) ^ TABLE[usize::from((crc >> 8) ^ u16::from(*byte))])
}

/// The slot of one of our keys. All of it is hashed, because it begins with `{}`.
pub(in super::super) fn slot_of(key: &[u8]) -> u16 {
    crc(0, key) % SLOTS
}

/// A key that begins with `prefix` and is in this slot.
pub(in super::super) fn key_in(prefix: &str, slot: u16) -> String {
    let start = crc(0, prefix.as_bytes());
    let is_in = |number: &u32| crc(start, number.to_string().as_bytes()) % SLOTS == slot;
    // Five digits reach every slot, as a test shows.
    (0..).find(is_in).map(|number| format!("{prefix}{number}")).unwrap_or_default()
}

/// The master of each slot, by index.
#[derive(Debug)]
pub(in super::super) struct Slots(Box<[AtomicU16]>);

impl Slots {
    /// From a function that returns the index of a slot's master.
    pub(super) fn new(owner: impl Fn(u16) -> Option<usize>) -> Self {
        let place = |slot| owner(slot).and_then(|place| u16::try_from(place).ok()).unwrap_or(NOBODY);
        Self((0..SLOTS).map(|slot| AtomicU16::new(place(slot))).collect())
    }

    /// The index of a slot's master.
    pub(in super::super) fn owner(&self, slot: u16) -> Option<usize> {
        let place = self.0[usize::from(slot)].load(Relaxed);
        (place != NOBODY).then_some(usize::from(place))
    }

    /// The slot has moved to this master.
    pub(in super::super) fn moved(&self, slot: u16, place: usize) {
        self.0[usize::from(slot)].store(u16::try_from(place).unwrap_or(NOBODY), Relaxed);
    }

    /// How many slots have no master.
    pub(super) fn unowned(&self) -> usize {
        self.0.iter().filter(|place| place.load(Relaxed) == NOBODY).count()
    }

    /// The first slots of a master, in an order that is the same in all processes and independent
    /// of the order in which slots are moved. So the first one rarely moves.
    pub(in super::super) fn first_of(&self, place: usize, most: usize) -> Vec<u16> {
        let mut owned: Vec<u16> = (0..SLOTS).filter(|slot| self.owner(*slot) == Some(place)).collect();
        owned.sort_unstable_by_key(|slot| u32::from(*slot).wrapping_mul(0x9E37_79B1));
        owned.truncate(most);
        owned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // The result of CLUSTER KEYSLOT.
        assert_eq!(slot_of(b"123456789"), 0x31C3);
        assert_eq!(slot_of(b"foo"), 12182);
    }

    #[test]
    fn every_slot_has_a_key() {
        for slot in (0..SLOTS).step_by(97) {
            let key = key_in("{}fs:00000000deadbeef#", slot);
            assert_eq!(slot_of(key.as_bytes()), slot);
        }
    }

    #[test]
    fn a_slot_that_moves_elsewhere_leaves_the_first_ones_as_they_are() {
        let slots = Slots::new(|slot| Some(usize::from(slot % 3)));
        let first = slots.first_of(1, 3);
        assert_eq!(first.len(), 3);
        let last = (0..SLOTS).rev().find(|slot| slot % 3 == 1 && !first.contains(slot)).unwrap();
        slots.moved(last, 0);
        assert_eq!(slots.owner(last), Some(0));
        assert_eq!(slots.first_of(1, 3), first);
    }
}
