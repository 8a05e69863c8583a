//! The numbers of the committed groups, kept among the records, so that a hole in the history shows at open.
//!
//! fjall cuts a damaged journal at the damage without a word, and replays those after it: whatever was only there, and in
//! no table yet, is gone. Each group therefore leaves its number in the table of the records, where it shares their
//! fate: it is flushed with them, or lost with them. An open wants to see every number up to the last.
//!
//! A group also confirms the number before it. fjall's checksums leave out the sequence number that it puts a group in its
//! place with; one that was changed would let an older value win over a newer one, and leaves a number unconfirmed.
//!
//! The numbers go round in `RING` slots, more than there are groups in memtables, and no number is ever removed.

use crate::record::Revision;

/// In the meta table: the first number of the chain, as folders from before there was one begin later than with 1.
pub(super) const FIRST: &str = "chain";
/// Of the slots' keys. A record's key begins with its view, which is not empty and holds no NUL.
pub(super) const PREFIX: [u8; 1] = [0];
/// A memtable of records holds fewer groups: 16 MiB, more than 256 bytes each.
const RING: u64 = 1 << 16;
/// The last byte of the value: the group itself left this, or it says that a later one came.
const HERE: u8 = 0;
const OPEN: u8 = 1;
const FOLLOWED: u8 = 2;

/// What the `number`th group leaves: that it was there, with the highest revision given so far; that none follows it; and
/// that it follows the one before.
pub(super) fn links(number: u64, highest: Revision) -> [(Vec<u8>, Vec<u8>); 3] {
    [link(number, HERE, highest), link(number, OPEN, Revision::NONE), link(number - 1, FOLLOWED, Revision::NONE)]
}

fn link(number: u64, what: u8, highest: Revision) -> (Vec<u8>, Vec<u8>) {
    let slot = u32::try_from(number % RING).expect("the ring is far smaller");
    let key = [&PREFIX[..], &slot.to_be_bytes(), &[u8::from(what != HERE)]].concat();
    (key, [&number.to_le_bytes()[..], &highest.0.to_le_bytes(), &[what]].concat())
}

/// Looks at all slots.
pub(super) struct Check {
    first: u64,
    count: u64,
    numbers: Vec<u64>,
    highest: Revision,
}

impl Check {
    /// For a store of which all else says that it has `count` groups, and numbers for those from the `first`.
    pub(super) fn new(first: u64, count: u64) -> Self {
        Self { first, count, numbers: Vec::new(), highest: Revision::NONE }
    }

    pub(super) fn see(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let Ok(value): Result<&[u8; 17], _> = value.try_into() else {
            return Err("the number of a group of writes cannot be read".to_owned());
        };
        let [number, highest] = [0, 8].map(|at| i64::from_le_bytes(std::array::from_fn(|i| value[at + i])));
        let (number, highest, what) = (number.cast_unsigned(), Revision(highest), value[16]);
        if link(number, what, highest) != (key.to_vec(), value.to_vec()) {
            return Err("the number of a group of writes is not where it belongs".to_owned());
        }
        match what {
            HERE => self.numbers.push(number),
            what if (what == FOLLOWED) == (number < self.count) => {}
            _ => return Err("the groups of writes are not whole or not in their order".to_owned()),
        }
        self.highest = self.highest.max(highest);
        Ok(())
    }

    /// The highest revision given, if no group is missing.
    pub(super) fn end(self) -> Result<Revision, String> {
        let first = self.first.max((self.count + 1).saturating_sub(RING));
        let seen = self.numbers.iter().filter(|number| **number >= first).count() as u64;
        let wanted = (self.count + 1).saturating_sub(first);
        match seen.cmp(&wanted) {
            std::cmp::Ordering::Equal => Ok(self.highest),
            std::cmp::Ordering::Less => Err(format!("{} committed groups of writes are gone", wanted - seen)),
            std::cmp::Ordering::Greater => Err("it counts fewer groups of writes than it holds".to_owned()),
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
