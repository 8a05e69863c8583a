//! The positions of the wanted features in a record.
//!
//! Records of one feature view mostly have the same features. So the positions in the last record
//! are tried first in the next one: the entries between are skipped by their lengths, unread. If
//! anything differs, the record is searched.

use super::{Corrupt, FEATURES_TAG, FeatureEntry, StoredRecord};
use crate::record::FeatureName;

/// A feature that a read asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Wanted {
    pub(super) name: FeatureName,
    /// Its position in the request.
    pub(super) place: usize,
    /// What an entry of this name begins with, after its own tag and length; with the tag of the
    /// value.
    head: Box<[u8]>,
}

impl Wanted {
    /// All wanted features, in the order of the records.
    pub(super) fn all(names: &[FeatureName]) -> Vec<Self> {
        let of_name = |(place, name): (usize, &FeatureName)| {
            // A name has at most 128 bytes, but its length may need two.
            let mut head = Vec::with_capacity(name.as_str().len() + 4);
            head.push((1 << 3) | 2);
            prost::encoding::encode_varint(name.as_str().len() as u64, &mut head);
            head.extend_from_slice(name.as_str().as_bytes());
            head.push((2 << 3) | 2);
            Self { name: name.clone(), place, head: head.into() }
        };
        let mut all: Vec<_> = names.iter().enumerate().map(of_name).collect();
        all.sort();
        all
    }

    fn name(&self) -> &[u8] {
        self.name.as_str().as_bytes()
    }
}

/// Shared by the rows of a call, so that a batch is searched once.
#[derive(Debug, Default)]
pub struct Places {
    /// The number of entries to skip before each wanted one. Fewer than are wanted: not known.
    skips: Vec<usize>,
}

impl Places {
    /// Passes each wanted entry, and what follows its head, from the position in the last record.
    /// None: one is not there, or was not accepted.
    pub(super) fn step<'a>(
        &self,
        record: &'a StoredRecord,
        wanted: &[Wanted],
        mut take: impl FnMut(&Wanted, &'a [u8], &'a [u8]) -> Option<()>,
    ) -> Option<()> {
        if self.skips.len() != wanted.len() {
            return None;
        }
        let mut rest = record.features();
        for (skip, wanted) in self.skips.iter().zip(wanted) {
            for _ in 0..*skip {
                rest = &rest[entry_len(rest)?..];
            }
            let (entry, tail) = rest.split_at_checked(entry_len(rest)?)?;
            let body = &entry[if entry[1] < 0x80 { 2 } else { 3 }..];
            take(wanted, entry, body.strip_prefix(&*wanted.head)?)?;
            rest = tail;
        }
        Some(())
    }

    /// Searches the whole record, and notes the positions if all wanted entries are there. Both are
    /// sorted, so one pass is enough.
    pub(super) fn search<'a, 'w>(
        &mut self,
        record: &'a StoredRecord,
        wanted: &'w [Wanted],
        mut found: impl FnMut(&'w Wanted, FeatureEntry<'a>) -> Result<(), Corrupt>,
        mut missing: impl FnMut(&'w Wanted),
    ) -> Result<(), Corrupt> {
        self.skips.clear();
        let (mut wanted, mut skipped, mut all) = (wanted.iter().peekable(), 0_usize, true);
        for entry in record.entries() {
            if wanted.peek().is_none() {
                break;
            }
            let entry = entry?;
            while let Some(wanted) = wanted.next_if(|wanted| wanted.name() < entry.name) {
                missing(wanted);
                all = false;
            }
            skipped += 1;
            while let Some(wanted) = wanted.next_if(|wanted| wanted.name() == entry.name) {
                found(wanted, entry)?;
                // The next `step` does not find a name again that is wanted twice, so it gives up.
                self.skips.push(std::mem::take(&mut skipped).saturating_sub(1));
            }
        }
        for wanted in wanted {
            missing(wanted);
            all = false;
        }
        if !all {
            self.skips.clear();
        }
        Ok(())
    }
}

/// The length of the map entry at the beginning, if it is complete and its length field has at most
/// two bytes.
fn entry_len(rest: &[u8]) -> Option<usize> {
    let len = match *rest {
        [FEATURES_TAG, len, ..] if len < 0x80 => 2 + usize::from(len),
        [FEATURES_TAG, low, high, ..] if high < 0x80 => 3 + (usize::from(low & 0x7f) | usize::from(high) << 7),
        _ => return None,
    };
    (len <= rest.len()).then_some(len)
}
