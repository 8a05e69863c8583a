//! Features by name: the wanted map entries of the stored bytes are copied, their values never decoded.
//!
//! Records of one feature view mostly have the same features, so where the wanted ones were found in the last record is
//! tried first in the next: the entries before them are stepped over by their lengths, unread. Where anything is not as it
//! was, the record is searched.

use bytes::{Bytes, BytesMut};

use super::{Corrupt, FEATURES_TAG, StoredRecord};
use crate::record::FeatureName;

/// Room that is made at once for the rows to come, at most.
const ROOM: usize = 256 << 10;

/// The names that a read asked for, made ready once per call.
#[derive(Clone, Debug)]
pub struct Projection {
    /// Sorted, each once.
    wanted: Vec<Wanted>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    name: FeatureName,
    /// Its place in the request.
    place: usize,
    /// What an entry of this name begins with, after its own tag and length; with the tag of the value.
    head: Box<[u8]>,
}

/// What the rows of a call share, so that a batch allocates rarely and searches once.
#[derive(Debug, Default)]
pub struct Scratch {
    copied: BytesMut,
    /// Rows that are still to come.
    rows: usize,
    /// How many entries stand before each wanted one, counted from the one before it; fewer than are wanted: not known.
    skips: Vec<usize>,
}

impl Scratch {
    /// For so many rows.
    pub fn for_rows(rows: usize) -> Self {
        Self { rows, ..Self::default() }
    }

    /// What was copied for a row. Room for the rows to come is made once, as large as for this one.
    fn take_row(&mut self) -> Bytes {
        let row = self.copied.split().freeze();
        self.rows = self.rows.saturating_sub(1);
        if self.copied.capacity() < row.len() {
            self.copied.reserve(row.len().saturating_mul(self.rows).min(ROOM));
        }
        row
    }
}

impl Projection {
    /// Of these names; a name asked for twice counts once.
    pub fn new(names: &[FeatureName]) -> Self {
        let of_name = |(place, name): (usize, &FeatureName)| {
            // A name has at most 128 bytes, but its length may need two.
            let mut head = Vec::with_capacity(name.as_str().len() + 4);
            head.push((1 << 3) | 2);
            prost::encoding::encode_varint(name.as_str().len() as u64, &mut head);
            head.extend_from_slice(name.as_str().as_bytes());
            head.push((2 << 3) | 2);
            Wanted { name: name.clone(), place, head: head.into() }
        };
        let mut wanted: Vec<_> = names.iter().enumerate().map(of_name).collect();
        wanted.sort();
        wanted.dedup_by(|later, earlier| later.name == earlier.name);
        Self { wanted }
    }

    /// The encoded features of `record` that are wanted, and the wanted names that it lacks, as they were asked for.
    pub fn apply(&self, record: &StoredRecord, scratch: &mut Scratch) -> Result<(Bytes, Vec<String>), Corrupt> {
        // What an unreadable record may have left is no other's.
        scratch.copied.clear();
        if self.apply_as_before(record, scratch).is_some() {
            return Ok((scratch.take_row(), Vec::new()));
        }
        scratch.copied.clear();
        let missing = self.search(record, scratch)?;
        Ok((scratch.take_row(), missing))
    }

    /// Copies the wanted entries from where they stood in the last record. None: they do not stand there.
    fn apply_as_before(&self, record: &StoredRecord, scratch: &mut Scratch) -> Option<()> {
        if scratch.skips.len() != self.wanted.len() {
            return None;
        }
        let mut rest = record.features();
        for (skip, wanted) in scratch.skips.iter().zip(&self.wanted) {
            for _ in 0..*skip {
                rest = &rest[entry_len(rest)?..];
            }
            let (entry, tail) = rest.split_at_checked(entry_len(rest)?)?;
            let body = &entry[if entry[1] < 0x80 { 2 } else { 3 }..];
            if !body.starts_with(&wanted.head) {
                return None;
            }
            scratch.copied.extend_from_slice(entry);
            rest = tail;
        }
        Some(())
    }

    /// Searches the whole record. Both are sorted, so one walk is enough.
    fn search(&self, record: &StoredRecord, scratch: &mut Scratch) -> Result<Vec<String>, Corrupt> {
        scratch.skips.clear();
        let (mut missing, mut skipped) = (Vec::new(), 0);
        let mut wanted = self.wanted.iter().peekable();
        for entry in record.entries() {
            if wanted.peek().is_none() {
                break;
            }
            let entry = entry?;
            missing
                .extend(std::iter::from_fn(|| wanted.next_if(|wanted| wanted.name.as_str().as_bytes() < entry.name)));
            if wanted.next_if(|wanted| wanted.name.as_str().as_bytes() == entry.name).is_some() {
                scratch.copied.extend_from_slice(entry.encoded);
                scratch.skips.push(skipped);
                skipped = 0;
            } else {
                skipped += 1;
            }
        }
        missing.extend(wanted);
        if !missing.is_empty() {
            scratch.skips.clear();
        }
        missing.sort_by_key(|wanted| wanted.place);
        Ok(missing.into_iter().map(|wanted| wanted.name.as_str().to_owned()).collect())
    }
}

/// The length of the map entry that these bytes begin with, if it is one that has its length in at most two bytes and is
/// whole.
fn entry_len(rest: &[u8]) -> Option<usize> {
    let len = match *rest {
        [FEATURES_TAG, len, ..] if len < 0x80 => 2 + usize::from(len),
        [FEATURES_TAG, low, high, ..] if high < 0x80 => 3 + (usize::from(low & 0x7f) | usize::from(high) << 7),
        _ => return None,
    };
    (len <= rest.len()).then_some(len)
}
