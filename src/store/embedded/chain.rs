//! The numbers of the committed groups, stored among the records, so that missing groups are
//! noticed when the store is opened.
//!
//! fjall silently cuts a damaged journal at the damage and replays later journals, so data that was
//! only there, and not yet in a table, is lost. Each group therefore leaves its number in the table
//! of the records, where it is flushed or lost together with them. When the store is opened, every
//! number up to the last must be there.
//!
//! A group also confirms the number before it. The checksums of fjall do not cover the sequence
//! number of a group. A changed one would let an older value win over a newer one, and leaves a
//! number unconfirmed.
//!
//! The numbers use `RING` slots in turn, which are more than there are groups in memtables. No
//! number is ever removed.

use crate::record::Revision;

/// In the meta table: the first number. Folders from before the chain begin later than with 1.
pub(super) const FIRST: &str = "chain";
/// Of the keys of the slots. The key of a record begins with its view, which has no NUL.
pub(super) const PREFIX: [u8; 1] = [0];
/// A memtable of records holds fewer groups: 16 MiB, each with more than 256 bytes.
const RING: u64 = 1 << 16;
/// The last byte of a value: written by the group itself, or by a later group.
const HERE: u8 = 0;
const OPEN: u8 = 1;
const FOLLOWED: u8 = 2;

/// What group `number` writes: that it exists, with the highest revision so far; that none follows
/// it; and that it follows the previous one.
pub(super) fn links(number: u64, highest: Revision) -> [(Vec<u8>, Vec<u8>); 3] {
    [link(number, HERE, highest), link(number, OPEN, Revision::NONE), link(number - 1, FOLLOWED, Revision::NONE)]
}

fn link(number: u64, what: u8, highest: Revision) -> (Vec<u8>, Vec<u8>) {
    let slot = u32::try_from(number % RING).expect("the ring is far smaller");
    let key = [&PREFIX[..], &slot.to_be_bytes(), &[u8::from(what != HERE)]].concat();
    (key, [&number.to_le_bytes()[..], &highest.0.to_le_bytes(), &[what]].concat())
}

/// Checks all slots.
pub(super) struct Check {
    first: u64,
    count: u64,
    numbers: Vec<u64>,
    highest: Revision,
}

impl Check {
    /// For a store with `count` groups by all other evidence, and numbers from `first` on.
    pub(super) fn new(first: u64, count: u64) -> Self {
        Self { first, count, numbers: Vec::new(), highest: Revision::NONE }
    }

    pub(super) fn see(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let Ok(value): Result<&[u8; 17], _> = value.try_into() else {
            return Err("the number of a committed group of writes cannot be read".to_owned());
        };
        let [number, highest] = [0, 8].map(|at| i64::from_le_bytes(std::array::from_fn(|i| value[at + i])));
        let (number, highest, what) = (number.cast_unsigned(), Revision(highest), value[16]);
        if link(number, what, highest) != (key.to_vec(), value.to_vec()) {
            return Err("the number of a committed group of writes is in the wrong place".to_owned());
        }
        match what {
            HERE => self.numbers.push(number),
            what if (what == FOLLOWED) == (number < self.count) => {}
            _ => return Err("the committed groups of writes are incomplete or out of order".to_owned()),
        }
        self.highest = self.highest.max(highest);
        Ok(())
    }

    /// The highest revision, if no group is missing.
    pub(super) fn end(self) -> Result<Revision, String> {
        let first = self.first.max((self.count + 1).saturating_sub(RING));
        let seen = self.numbers.iter().filter(|number| **number >= first).count() as u64;
        let wanted = (self.count + 1).saturating_sub(first);
        match seen.cmp(&wanted) {
            std::cmp::Ordering::Equal => Ok(self.highest),
            std::cmp::Ordering::Less => Err(format!("{} committed groups of writes are gone", wanted - seen)),
            std::cmp::Ordering::Greater => Err("it counts fewer committed groups of writes than it has".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(first: u64, count: u64, numbers: impl IntoIterator<Item = u64>) -> Result<Revision, String> {
        let mut slots = std::collections::BTreeMap::new();
        for number in numbers {
            slots.extend(links(number, Revision(i64::try_from(number).unwrap() * 10)));
        }
        let mut check = Check::new(first, count);
        for (key, value) in slots {
            check.see(&key, &value)?;
        }
        check.end()
    }

    #[test]
    fn a_whole_chain_gives_the_highest_revision() {
        assert_eq!(check(1, 0, []), Ok(Revision::NONE));
        assert_eq!(check(1, 3, 1..=3), Ok(Revision(30)));
        assert_eq!(check(1, 1, [1]), Ok(Revision(10)));
        assert_eq!(check(50, 90, 50..=90), Ok(Revision(900)), "a folder from before there was a chain");
        let many = 2 * RING + 7;
        assert_eq!(check(1, many, 1..=many), Ok(Revision(i64::try_from(many).unwrap() * 10)));
    }

    #[test]
    fn a_hole_anywhere_shows() {
        for gone in 1..=9 {
            assert!(check(1, 9, (1..=9).filter(|n| *n != gone)).is_err(), "{gone}");
        }
        assert!(check(1, 9, 1..=6).is_err(), "the table of records lags behind");
        assert!(check(1, 6, 1..=9).is_err(), "the count lags behind");
        assert!(check(1, 9, 4..=9).is_err(), "the oldest are gone");
        assert!(check(1, 9, []).unwrap_err().starts_with("9 committed"), "all are gone");
        let many = 2 * RING + 7;
        for gone in [RING + 8, many - 1] {
            assert!(check(1, many, (1..=many).filter(|n| *n != gone)).is_err(), "{gone}");
        }
    }

    #[test]
    fn a_group_in_a_wrong_place_shows() {
        for order in [[1, 2, 4, 3, 5], [2, 1, 3, 4, 5], [1, 3, 4, 5, 2], [1, 5, 2, 3, 4]] {
            assert!(check(1, 5, order).is_err(), "{order:?}");
        }
    }
}
