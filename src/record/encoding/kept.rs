//! Records reduced to what an answer needs, so that the rest is not held until all rows are there.

use bytes::Bytes;

use super::{Cell, Columns, Corrupt, HEADER_BYTES, Places, Projection, Scratch, StoredRecord, checksum};

/// The kind of a cell, and its number.
const CELL_BYTES: usize = 9;

impl StoredRecord {
    /// The size of its features in bytes.
    pub fn features_len(&self) -> usize {
        self.segment2() - HEADER_BYTES
    }

    /// A copy without features, in its own buffer.
    #[must_use]
    pub fn without_features(&self) -> Self {
        self.with_features(&[])
    }

    /// A copy with other features, in its own buffer.
    fn with_features(&self, features: &[u8]) -> Self {
        let metadata = &self.0[self.segment2()..];
        let mut bytes = Vec::with_capacity(HEADER_BYTES + features.len() + metadata.len());
        bytes.extend_from_slice(&self.0[..HEADER_BYTES]);
        bytes.extend_from_slice(features);
        let segment2 = u32::try_from(bytes.len()).expect("no longer than the record, or than a row of cells");
        bytes[32..36].copy_from_slice(&segment2.to_le_bytes());
        bytes.extend_from_slice(metadata);
        let sum = checksum(&bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        Self(Bytes::from(bytes))
    }
}

impl Projection {
    /// A record with only the wanted features.
    pub fn keep(&self, record: &StoredRecord, scratch: &mut Scratch) -> Result<StoredRecord, Corrupt> {
        let (features, _) = self.apply(record, scratch)?;
        Ok(record.with_features(&features))
    }
}

impl Columns {
    /// A record with its row of cells in place of features; only `read_kept` can read it.
    pub fn keep(&self, record: &StoredRecord, places: &mut Places, row: &mut [Cell]) -> Result<StoredRecord, Corrupt> {
        self.read(record, places, row)?;
        let mut cells = Vec::with_capacity(row.len() * CELL_BYTES);
        for cell in row {
            let (kind, number) = cell.packed();
            cells.push(kind);
            cells.extend_from_slice(&number);
        }
        Ok(record.with_features(&cells))
    }

    /// The row that `keep` stored. A record without features has no cells.
    pub fn read_kept(record: &StoredRecord, row: &mut [Cell]) {
        row.fill(Cell::Missing);
        for (cell, packed) in row.iter_mut().zip(record.features().as_chunks::<CELL_BYTES>().0) {
            let [kind, number @ ..] = *packed;
            *cell = Cell::unpacked(kind, number);
        }
    }
}

impl Cell {
    fn packed(self) -> (u8, [u8; 8]) {
        match self {
            Self::Missing => (0, [0; 8]),
            Self::Null => (1, [0; 8]),
            Self::NotNumeric => (2, [0; 8]),
            Self::Number(number) => (3, number.to_bits().to_le_bytes()),
            Self::Integer(number) => (4, number.to_le_bytes()),
        }
    }

    fn unpacked(kind: u8, number: [u8; 8]) -> Self {
        match kind {
            1 => Self::Null,
            2 => Self::NotNumeric,
            3 => Self::Number(f64::from_bits(u64::from_le_bytes(number))),
            4 => Self::Integer(i64::from_le_bytes(number)),
            _ => Self::Missing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        proto::{Value, value::Kind},
        record::{FeatureName, Features, Millis, Revision, Snapshot},
    };

    fn record() -> StoredRecord {
        let value = |kind| Value { kind: Some(kind) };
        let name = |name: &str| FeatureName::parse(name).unwrap();
        let features = [
            (name("large"), value(Kind::StringVal("x".repeat(1 << 16)))),
            (name("null"), value(Kind::NullVal(0))),
            (name("number"), value(Kind::DoubleVal(-1.5))),
            (name("small"), value(Kind::StringVal("y".to_owned()))),
        ];
        let snapshot = Snapshot {
            features: Features::from(features),
            model_version: "v1".to_owned(),
            revision: Revision(7),
            event_time: Millis(1),
            write_time: Millis(2),
            expire_at: Some(Millis(3)),
        };
        StoredRecord::encode(&snapshot)
    }

    fn names(names: &[&str]) -> Vec<FeatureName> {
        names.iter().map(|name| FeatureName::parse(name).unwrap()).collect()
    }

    #[test]
    fn a_record_keeps_what_is_wanted_and_all_that_is_said_of_it() {
        let (record, mut scratch) = (record(), Scratch::default());
        let kept = Projection::new(&names(&["small", "absent", "null"])).keep(&record, &mut scratch).unwrap();
        for kept in [&kept, &record.without_features()] {
            let kept = StoredRecord::parse(kept.as_bytes().clone()).expect("it is whole");
            assert!(kept.as_bytes().len() < 200);
            assert_eq!(kept.clone().into_metadata(), record.clone().into_metadata());
            assert_eq!((kept.revision(), kept.event_time()), (record.revision(), record.event_time()));
            assert_eq!((kept.expire_at(), kept.model_version()), (record.expire_at(), Ok("v1")));
        }
        let left: Vec<_> = kept.decode().unwrap().features.into_keys().collect();
        assert_eq!(left, names(&["null", "small"]));
        assert_eq!(record.without_features().decode().unwrap().features, Features::new());
    }

    #[test]
    fn a_row_of_cells_is_read_as_it_was_kept() {
        let (record, columns) = (record(), Columns::new(&names(&["number", "absent", "large", "null", "number"])));
        let (mut row, mut seen) = ([Cell::Missing; 5], [Cell::Null; 5]);
        let kept = columns.keep(&record, &mut Places::default(), &mut row).unwrap();
        assert!(kept.as_bytes().len() < 200);
        Columns::read_kept(&kept, &mut seen);
        let number = Cell::Number(-1.5);
        assert_eq!((row, seen), ([number, Cell::Missing, Cell::NotNumeric, Cell::Null, number], row));
        Columns::read_kept(&record.without_features(), &mut seen);
        assert_eq!(seen, [Cell::Missing; 5]);
    }
}
