//! Features by name: the wanted map entries of the stored bytes are copied without decoding values.

use bytes::{Bytes, BytesMut};
use prost::encoding::{self, WireType};

use super::{
    Corrupt, FeatureEntry, StoredRecord,
    places::{Places, Wanted},
};
use crate::record::FeatureName;

/// The number of FeatureRow.missing_features.
const MISSING_FEATURES: u32 = 10;
/// The most bytes that are allocated at once for rows to come.
const ROOM: usize = 256 << 10;

/// The requested names, prepared once for each call.
#[derive(Clone, Debug)]
pub struct Projection {
    /// Sorted, without repeats.
    wanted: Vec<Wanted>,
}

/// Shared by the rows of a call, so that a batch allocates rarely and searches once.
#[derive(Debug, Default)]
pub struct Scratch {
    copied: BytesMut,
    /// Rows that are still to come.
    rows: usize,
    places: Places,
    /// The missing names of the last row that had any: most rows lack the same.
    missing: Bytes,
}

impl Scratch {
    /// For this many rows.
    pub fn for_rows(rows: usize) -> Self {
        Self { rows, ..Self::default() }
    }

    /// The bytes that were copied for a row. Room for the next rows is made once, by the size of
    /// this one.
    fn take_row(&mut self) -> Bytes {
        let row = self.copied.split().freeze();
        self.rows = self.rows.saturating_sub(1);
        if self.copied.capacity() < row.len() {
            self.copied.reserve(row.len().saturating_mul(self.rows).min(ROOM));
        }
        row
    }

    /// The missing names of a row, as requested.
    // Separate from `apply`, which would otherwise save registers for it at every row.
    #[inline(never)]
    fn encode_missing(&mut self, mut missing: Vec<&Wanted>) -> Bytes {
        missing.sort_by_key(|wanted| wanted.place);
        let mut encoded = Vec::new();
        for wanted in missing {
            let name = wanted.name.as_str().as_bytes();
            encoding::encode_key(MISSING_FEATURES, WireType::LengthDelimited, &mut encoded);
            encoding::encode_varint(name.len() as u64, &mut encoded);
            encoded.extend_from_slice(name);
        }
        if encoded != self.missing {
            self.missing = encoded.into();
        }
        self.missing.clone()
    }
}

impl Projection {
    /// With these names; a repeated name counts once.
    pub fn new(names: &[FeatureName]) -> Self {
        let mut wanted = Wanted::all(names);
        wanted.dedup_by(|later, earlier| later.name == earlier.name);
        Self { wanted }
    }

    /// The wanted features of `record`, encoded, and the wanted names that it lacks as an encoded
    /// field 10 of FeatureRow. None: it lacks none.
    pub fn apply(&self, record: &StoredRecord, scratch: &mut Scratch) -> Result<(Bytes, Option<Bytes>), Corrupt> {
        let Scratch { copied, places, .. } = scratch;
        // An unreadable record may have left something.
        copied.clear();
        let copy = |_: &Wanted, entry: &[u8], _: &[u8]| {
            copied.extend_from_slice(entry);
            Some(())
        };
        if places.step(record, &self.wanted, copy).is_some() {
            return Ok((scratch.take_row(), None));
        }
        copied.clear();
        let mut missing = Vec::new();
        let copy = |_: &Wanted, entry: FeatureEntry<'_>| {
            copied.extend_from_slice(entry.encoded);
            Ok(())
        };
        places.search(record, &self.wanted, copy, |wanted| missing.push(wanted))?;
        if missing.is_empty() {
            return Ok((scratch.take_row(), None));
        }
        let missing = scratch.encode_missing(missing);
        Ok((scratch.take_row(), Some(missing)))
    }
}

/// The names that `apply` found missing.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn missing_names(mut encoded: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    while let Ok((MISSING_FEATURES, wire_type)) = encoding::decode_key(&mut encoded) {
        let context = encoding::DecodeContext::default();
        encoding::string::merge_repeated(wire_type, &mut names, &mut encoded, context).expect("a name");
    }
    names
}
