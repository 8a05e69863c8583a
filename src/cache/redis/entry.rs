//! A clean entry as one Redis string. Other programs do not store text that begins with its tag and
//! version.
//!
//! ```text
//! offset  size  field, little-endian
//!      0     1  tag: V (a record), A (absent); P is a pending entry, which only the scripts read
//!      1     1  format version, 1
//!      2     4  CRC-32 (IEEE) of the key and of all other bytes of the entry
//!      6     8  revision
//!     14     8  expire time, ms since the Unix epoch; i64::MAX: never
//!     22     .  V: the record's stored bytes
//! ```
//!
//! The scripts read tag, version and revision, and store the rest unchanged. The checksum includes
//! the key, so bytes under a wrong key are not a hit. A pending entry is `P`, the version, then
//! MessagePack (`cache/scripts/prelude.lua`).

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    cache::{CacheKey, CacheValue},
    record::{Revision, encoding::StoredRecord},
};

const FORMAT_VERSION: u8 = 1;
const HEADER_BYTES: usize = 22;
const NEVER: i64 = i64::MAX;

/// Whether the bytes begin as a pending entry does.
pub(super) fn is_pending(packed: &[u8]) -> bool {
    packed.starts_with(&[b'P', FORMAT_VERSION])
}

/// The string for a value under this key.
pub(super) fn pack(key: &CacheKey, value: &CacheValue) -> BytesMut {
    let (tag, record): (u8, &[u8]) = match value {
        CacheValue::Record(record) => (b'V', record.as_bytes()),
        CacheValue::Absent(_) => (b'A', &[]),
    };
    let mut packed = BytesMut::with_capacity(HEADER_BYTES + record.len());
    packed.put_u8(tag);
    packed.put_u8(FORMAT_VERSION);
    packed.put_bytes(0, 4);
    packed.put_i64_le(value.revision().0);
    packed.put_i64_le(value.expire_at().map_or(NEVER, |at| at.0));
    packed.put_slice(record);
    let sum = checksum(key, &packed);
    packed[2..6].copy_from_slice(&sum.to_le_bytes());
    packed
}

/// The value of a string. None: the string was not packed for this key.
pub(super) fn unpack(key: &CacheKey, packed: Bytes) -> Option<CacheValue> {
    if packed.len() < HEADER_BYTES
        || packed[1] != FORMAT_VERSION
        || packed[2..6] != checksum(key, &packed).to_le_bytes()
    {
        return None;
    }
    let mut revision = [0; 8];
    revision.copy_from_slice(&packed[6..14]);
    let revision = Revision(i64::from_le_bytes(revision));
    let rest = packed.slice(HEADER_BYTES..);
    match packed[0] {
        b'V' => {
            let record = StoredRecord::parse_summed(rest).ok()?;
            (record.revision() == revision).then_some(CacheValue::Record(record))
        }
        b'A' => rest.is_empty().then_some(CacheValue::Absent(revision)),
        _ => None,
    }
}

fn checksum(key: &CacheKey, packed: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(key.as_bytes());
    sum.update(&packed[..2]);
    sum.update(&packed[6..]);
    sum.finalize()
}

/// The bytes with a correct version and checksum.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn summed(key: &CacheKey, mut packed: Vec<u8>) -> Bytes {
    if packed.len() >= HEADER_BYTES {
        packed[1] = FORMAT_VERSION;
        let sum = checksum(key, &packed);
        packed[2..6].copy_from_slice(&sum.to_le_bytes());
    }
    packed.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cache::Epoch,
        record::{EntityId, FeatureView, Features, Millis, RecordKey, Snapshot},
    };

    fn key(id: &str) -> CacheKey {
        let view = FeatureView::parse("").unwrap();
        CacheKey::new(Epoch(7), &RecordKey { view, entity_id: EntityId::parse(id).unwrap() })
    }

    fn values() -> [CacheValue; 3] {
        let snapshot = Snapshot {
            features: Features::new(),
            model_version: "v1".to_owned(),
            revision: Revision(1_790_000_000_000_001),
            event_time: Millis(3),
            write_time: Millis(4),
            expire_at: Some(Millis(5)),
        };
        let record = CacheValue::Record(StoredRecord::encode(&snapshot));
        [record, CacheValue::Absent(Revision(9)), CacheValue::Absent(Revision::NONE)]
    }

    #[test]
    fn what_was_packed_is_read_back_under_its_own_key_only() {
        for value in values() {
            let packed = pack(&key("a"), &value).freeze();
            assert!(!is_pending(&packed));
            assert_eq!(unpack(&key("a"), packed.clone()), Some(value));
            assert_eq!(unpack(&key("b"), packed), None);
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_a_miss_and_so_is_a_piece() {
        for value in values() {
            let packed = pack(&key("a"), &value).freeze();
            for at in 0..packed.len() * 8 {
                let mut bad = packed.to_vec();
                bad[at / 8] ^= 1 << (at % 8);
                assert_eq!(unpack(&key("a"), bad.into()), None, "bit {at}");
            }
            for len in 0..packed.len() {
                assert_eq!(unpack(&key("a"), packed.slice(..len)), None, "cut to {len}");
            }
        }
    }

    #[test]
    fn text_is_no_entry() {
        for text in ["", "V", "Value of another program", "A", "Postponed until tomorrow, or later"] {
            assert!(!is_pending(text.as_bytes()));
            assert_eq!(unpack(&key("a"), text.into()), None);
        }
    }
}
