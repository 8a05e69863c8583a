//! The stored bytes of a record, which the embedded L2 and every L1 keep and which rows contain.
//!
//! ```text
//! offset  size  field, little-endian
//!      0     1  format version, 1
//!      1     3  zero
//!      4     4  CRC-32 (IEEE) of all other bytes
//!      8     8  revision
//!     16     8  event time, ms since the Unix epoch
//!     24     8  expire time, ms since the Unix epoch; i64::MAX: never
//!     32     4  offset of segment 2
//!     36     .  segment 1: encoded field 3 of FeatureRow (the features), names sorted
//!      .     .  segment 2: its encoded fields 4, 6, 7, 8 (model version, times), in this order
//! ```
//!
//! The layout is final: a change gets a new format version, and this one stays readable. Features
//! are found by their tags, without decoding values (`FeatureEntries`, `Projection`).

mod features;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod kept;
mod matrix;
mod places;
mod projection;
#[cfg(test)]
mod properties;

use bytes::{Buf as _, BufMut, Bytes, BytesMut};
use prost::{
    Message,
    encoding::{self, WireType},
};
use prost_types::Timestamp;

use super::{FeatureName, Features, Millis, Revision, Snapshot};
use crate::proto::Value;

pub use features::{EncodedFeatures, PlainFeatures};
pub use matrix::{Cell, Columns};
pub use places::Places;
pub use projection::{Projection, Scratch};

const FORMAT_VERSION: u8 = 1;
const HEADER_BYTES: usize = 36;
const NEVER: i64 = i64::MAX;
/// The tag of `FeatureRow.features` with its wire type.
const FEATURES_TAG: u8 = (3 << 3) | 2;

/// Stored bytes that cannot be read. This is never the same as an absent record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stored bytes cannot be read: {0}")]
pub struct Corrupt(pub &'static str);

/// The stored bytes of one record with a checked header. Cloning is cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord(Bytes);

impl StoredRecord {
    /// Encodes a record.
    pub fn encode(snapshot: &Snapshot) -> Self {
        let features = features_len(&snapshot.features);
        let mut encoder = Encoder::with_capacity(features + snapshot.model_version.len());
        for (name, value) in &snapshot.features {
            put_entry(name, value, &mut encoder.buf);
        }
        let Snapshot { revision, event_time, write_time, expire_at, .. } = *snapshot;
        encoder.finish(Head { model_version: &snapshot.model_version, revision, event_time, write_time, expire_at })
    }

    /// Checks stored bytes: version, checksum and bounds.
    pub fn parse(bytes: Bytes) -> Result<Self, Corrupt> {
        let record = Self::parse_summed(bytes)?;
        if record.0[4..8] != checksum(&record.0).to_le_bytes() {
            return Err(Corrupt("checksum differs"));
        }
        Ok(record)
    }

    /// Checks version and bounds only, for bytes with another checksum (those of an L1 entry).
    pub fn parse_summed(bytes: Bytes) -> Result<Self, Corrupt> {
        if bytes.len() < HEADER_BYTES {
            return Err(Corrupt("shorter than the header"));
        }
        if bytes[0] != FORMAT_VERSION {
            return Err(Corrupt("a format version of a newer featurestore"));
        }
        let record = Self(bytes);
        if !(HEADER_BYTES..=record.0.len()).contains(&record.segment2()) {
            return Err(Corrupt("segment 2 is out of bounds"));
        }
        Ok(record)
    }

    /// A copy in its own buffer. The bytes may be part of a larger buffer, which they keep alive.
    pub fn detached(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }

    /// The bytes to store.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The revision of the record.
    pub fn revision(&self) -> Revision {
        Revision(self.i64_at(8))
    }

    /// When the features were true.
    pub fn event_time(&self) -> Millis {
        Millis(self.i64_at(16))
    }

    /// When the record expires. None: never.
    pub fn expire_at(&self) -> Option<Millis> {
        Some(self.i64_at(24)).filter(|at| *at != NEVER).map(Millis)
    }

    /// Whether it counts as absent at `now`.
    pub fn is_expired(&self, now: Millis) -> bool {
        self.i64_at(24) <= now.0 && self.i64_at(24) != NEVER
    }

    /// Segment 1: the encoded features.
    pub fn into_features(mut self) -> Bytes {
        self.0.truncate(self.segment2());
        self.0.advance(HEADER_BYTES);
        self.0
    }

    /// Segment 2: the encoded model version and times.
    pub fn into_metadata(mut self) -> Bytes {
        self.0.advance(self.segment2());
        self.0
    }

    /// Both segments, which are adjacent.
    #[inline(always)]
    pub fn into_segments(mut self) -> Bytes {
        self.0.advance(HEADER_BYTES);
        self.0
    }

    /// The encoded features one by one, sorted by name.
    pub fn entries(&self) -> FeatureEntries<'_> {
        FeatureEntries(self.features())
    }

    fn features(&self) -> &[u8] {
        &self.0[HEADER_BYTES..self.segment2()]
    }

    /// The encoded features, for a merge.
    pub fn encoded_features(&self) -> EncodedFeatures {
        EncodedFeatures::stored(self.features())
    }

    /// The model version. It is the first field of segment 2 if there is one.
    pub fn model_version(&self) -> Result<&str, Corrupt> {
        let mut rest = &self.0[self.segment2()..];
        match encoding::decode_key(&mut rest) {
            Ok((4, WireType::LengthDelimited)) => {
                let text = take_delimited(&mut rest).ok_or(Corrupt("segment 2 is cut off"))?;
                std::str::from_utf8(text).map_err(|_| Corrupt("the model version is not UTF-8"))
            }
            Ok(_) => Ok(""),
            Err(_) => Err(Corrupt("segment 2 cannot be read")),
        }
    }

    /// Decodes everything; only writes (MERGE) need it.
    pub fn decode(&self) -> Result<Snapshot, Corrupt> {
        let mut features = Features::new();
        for entry in self.entries() {
            let entry = entry?;
            let name = std::str::from_utf8(entry.name).ok().and_then(|name| FeatureName::parse(name).ok());
            let name = name.ok_or(Corrupt("a feature's name is not allowed"))?;
            let value = Value::decode(entry.value).map_err(|_| Corrupt("a value cannot be decoded"))?;
            features.insert(name, value);
        }
        Ok(Snapshot {
            features,
            model_version: self.model_version()?.to_owned(),
            revision: self.revision(),
            event_time: self.event_time(),
            write_time: self.write_time()?,
            expire_at: self.expire_at(),
        })
    }

    fn write_time(&self) -> Result<Millis, Corrupt> {
        let mut rest = &self.0[self.segment2()..];
        while !rest.is_empty() {
            let (tag, _) = encoding::decode_key(&mut rest).map_err(|_| Corrupt("segment 2 cannot be read"))?;
            let field = take_delimited(&mut rest).ok_or(Corrupt("segment 2 is cut off"))?;
            if tag == 7 {
                let at = Timestamp::decode(field).map_err(|_| Corrupt("the write time cannot be read"))?;
                let millis =
                    at.seconds.checked_mul(1000).and_then(|ms| ms.checked_add(i64::from(at.nanos) / 1_000_000));
                return millis.map(Millis).ok_or(Corrupt("the write time is out of bounds"));
            }
        }
        Err(Corrupt("there is no write time"))
    }

    fn segment2(&self) -> usize {
        let mut offset = [0; 4];
        offset.copy_from_slice(&self.0[32..36]);
        u32::from_le_bytes(offset) as usize
    }

    fn i64_at(&self, at: usize) -> i64 {
        let mut number = [0; 8];
        number.copy_from_slice(&self.0[at..at + 8]);
        i64::from_le_bytes(number)
    }
}

/// The fields of a record beside its features; see `Snapshot`.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Empty: none.
    pub model_version: &'a str,
    /// The revision of this state.
    pub revision: Revision,
    /// When the features were true.
    pub event_time: Millis,
    /// When this state was written.
    pub write_time: Millis,
    /// None: it never expires.
    pub expire_at: Option<Millis>,
}

/// Builds the bytes of a record from features in another form than `Value`.
#[derive(Debug)]
pub struct Encoder {
    buf: Vec<u8>,
}

impl Encoder {
    /// With room for features and a model version of `bytes` bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut encoder = Self { buf: Vec::with_capacity(HEADER_BYTES + bytes + 64) };
        encoder.clear();
        encoder
    }

    /// Starts a new record.
    pub fn clear(&mut self) {
        self.buf.clear();
        self.buf.resize(HEADER_BYTES, 0);
    }

    /// Adds a feature. The caller must pass allowed names, sorted and without repeats, and `value`
    /// must be an encoded `Value`.
    pub fn put(&mut self, name: &str, value: &[u8]) {
        let body = 4 + name.len() + value.len();
        if body < 0x80 {
            // Each length takes one byte, as nearly always.
            self.buf.reserve(2 + body);
            self.buf.extend_from_slice(&[FEATURES_TAG, body as u8, (1 << 3) | 2, name.len() as u8]);
            self.buf.extend_from_slice(name.as_bytes());
            self.buf.extend_from_slice(&[(2 << 3) | 2, value.len() as u8]);
            self.buf.extend_from_slice(value);
        } else {
            put_head(name, value.len(), &mut self.buf);
            self.buf.put_slice(value);
        }
    }

    /// Adds features to a record that has none yet.
    pub fn put_all(&mut self, features: &EncodedFeatures) {
        self.buf.put_slice(features.as_bytes());
    }

    /// The record.
    pub fn finish(mut self, head: Head<'_>) -> StoredRecord {
        self.end(head);
        StoredRecord(self.buf.into())
    }

    /// The record as a part of `buf`, which other records share. Then starts a new record.
    pub fn finish_in(&mut self, head: Head<'_>, buf: &mut BytesMut) -> StoredRecord {
        self.end(head);
        buf.extend_from_slice(&self.buf);
        self.clear();
        StoredRecord(buf.split().freeze())
    }

    fn end(&mut self, head: Head<'_>) {
        let buf = &mut self.buf;
        let segment2 = u32::try_from(buf.len()).expect("records are far below 4 GiB");
        if !head.model_version.is_empty() {
            put_delimited_head(4, head.model_version.len(), buf);
            buf.put_slice(head.model_version.as_bytes());
        }
        encoding::message::encode(6, &timestamp(head.event_time), buf);
        encoding::message::encode(7, &timestamp(head.write_time), buf);
        if let Some(at) = head.expire_at {
            encoding::message::encode(8, &timestamp(at), buf);
        }
        buf[0] = FORMAT_VERSION;
        buf[8..16].copy_from_slice(&head.revision.0.to_le_bytes());
        buf[16..24].copy_from_slice(&head.event_time.0.to_le_bytes());
        buf[24..32].copy_from_slice(&head.expire_at.map_or(NEVER, |at| at.0).to_le_bytes());
        buf[32..36].copy_from_slice(&segment2.to_le_bytes());
        let sum = checksum(buf);
        buf[4..8].copy_from_slice(&sum.to_le_bytes());
    }
}

/// The size of these features in bytes as stored, for `limits.max_record_bytes`.
pub fn features_len(features: &Features) -> usize {
    features.iter().map(|(name, value)| entry_len(name, value)).sum()
}

/// One encoded feature of segment 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureEntry<'a> {
    /// The whole map entry with tag and length, as a row contains it.
    pub encoded: &'a [u8],
    /// The name in UTF-8. It is not checked, because it is only compared.
    pub name: &'a [u8],
    /// The encoded `Value`.
    pub value: &'a [u8],
}

/// Iterates over segment 1 by its tags.
#[derive(Clone, Debug)]
pub struct FeatureEntries<'a>(&'a [u8]);

impl<'a> Iterator for FeatureEntries<'a> {
    type Item = Result<FeatureEntry<'a>, Corrupt>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let entry = next_entry(&mut self.0);
        if entry.is_none() {
            self.0 = &[]; // what follows cannot be told apart
        }
        Some(entry.ok_or(Corrupt("a feature cannot be read")))
    }
}

fn next_entry<'a>(rest: &mut &'a [u8]) -> Option<FeatureEntry<'a>> {
    let start = *rest;
    if take_byte(rest)? != FEATURES_TAG {
        return None;
    }
    let mut body = take_delimited(rest)?;
    if take_byte(&mut body)? != (1 << 3) | 2 {
        return None;
    }
    let name = take_delimited(&mut body)?;
    if take_byte(&mut body)? != (2 << 3) | 2 {
        return None;
    }
    let value = take_delimited(&mut body)?;
    body.is_empty().then_some(FeatureEntry { encoded: &start[..start.len() - rest.len()], name, value })
}

fn take_byte(rest: &mut &[u8]) -> Option<u8> {
    let (first, tail) = rest.split_first()?;
    *rest = tail;
    Some(*first)
}

fn take_delimited<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = match rest.split_first()? {
        // Most lengths take one byte.
        (len @ ..0x80, tail) => {
            *rest = tail;
            usize::from(*len)
        }
        _ => usize::try_from(encoding::decode_varint(rest).ok()?).ok()?,
    };
    let (head, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(head)
}

fn entry_body_len(name: &str, value_len: usize) -> usize {
    1 + encoding::encoded_len_varint(name.len() as u64)
        + name.len()
        + 1
        + encoding::encoded_len_varint(value_len as u64)
        + value_len
}

fn entry_len(name: &FeatureName, value: &Value) -> usize {
    let body = entry_body_len(name.as_str(), value.encoded_len());
    1 + encoding::encoded_len_varint(body as u64) + body
}

fn put_entry(name: &FeatureName, value: &Value, buf: &mut Vec<u8>) {
    put_head(name.as_str(), value.encoded_len(), buf);
    value.encode_raw(buf);
}

/// Everything of an entry that precedes its value.
fn put_head(name: &str, value_len: usize, buf: &mut Vec<u8>) {
    put_delimited_head(3, entry_body_len(name, value_len), buf);
    put_delimited_head(1, name.len(), buf);
    buf.put_slice(name.as_bytes());
    put_delimited_head(2, value_len, buf);
}

fn put_delimited_head(field: u8, len: usize, buf: &mut Vec<u8>) {
    buf.put_u8((field << 3) | 2);
    encoding::encode_varint(len as u64, buf);
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..4]);
    hasher.update(&bytes[8..]);
    hasher.finalize()
}

/// A point in time as a message.
pub fn timestamp(at: Millis) -> Timestamp {
    Timestamp { seconds: at.0.div_euclid(1000), nanos: (at.0.rem_euclid(1000) * 1_000_000) as i32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::value::Kind;

    fn sample() -> Snapshot {
        let value = |kind| Value { kind: Some(kind) };
        let features = [
            ("zeta", Kind::DoubleVal(-0.0)),
            ("alpha", Kind::StringVal(String::new())),
            ("beta", Kind::NullVal(0)),
            ("gamma", Kind::FloatListVal(crate::proto::FloatList { val: vec![1.5, f32::NAN] })),
        ];
        Snapshot {
            features: features.into_iter().map(|(n, k)| (FeatureName::parse(n).unwrap(), value(k))).collect(),
            model_version: "v1".to_owned(),
            revision: Revision(1_790_000_000_000_000),
            event_time: Millis(-1),
            write_time: Millis(1_790_000_000_123),
            expire_at: None,
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let bytes = StoredRecord::encode(&sample()).0;
        for at in 0..bytes.len() * 8 {
            let mut bad = bytes.to_vec();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(StoredRecord::parse(bad.into()).is_err(), "bit {at}");
        }
        for len in 0..bytes.len() {
            assert!(StoredRecord::parse(bytes.slice(..len)).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn the_layout_is_final() {
        // The first release wrote these bytes. They must be read and written like this forever.
        let bytes = StoredRecord::encode(&sample()).0;
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, include_str!("encoding/v1.hex").trim());
    }

    #[test]
    fn a_newer_version_is_called_that_and_never_read() {
        let mut bytes = StoredRecord::encode(&sample()).0.to_vec();
        bytes[0] += 1;
        let sum = checksum(&bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        let newer = Err(Corrupt("a format version of a newer featurestore"));
        assert_eq!(StoredRecord::parse(bytes.clone().into()), newer);
        assert_eq!(StoredRecord::parse_summed(bytes.into()), newer);
    }

    #[test]
    fn a_write_time_beyond_all_times_is_corrupt() {
        let mut bytes = StoredRecord::encode(&Snapshot { features: Features::new(), ..sample() }).0.to_vec();
        bytes.truncate(HEADER_BYTES);
        encoding::message::encode(7, &Timestamp { seconds: i64::MAX, nanos: 0 }, &mut bytes);
        let record = StoredRecord::parse_summed(bytes.into()).unwrap();
        assert_eq!(record.decode(), Err(Corrupt("the write time is out of bounds")));
    }

    #[test]
    fn a_decoded_record_encodes_to_the_same_bytes() {
        let stored = StoredRecord::encode(&sample());
        let decoded = stored.decode().unwrap();
        assert_eq!(decoded.event_time, Millis(-1));
        assert_eq!(decoded.write_time, Millis(1_790_000_000_123));
        assert_eq!(StoredRecord::encode(&decoded), stored);
        assert_eq!(stored.model_version(), Ok("v1"));
    }
}
