//! Features as they are stored: encoded, sorted by name, without repeats. A write passes them from
//! the request to the stored bytes, and a merge joins both sides entry by entry. No value is
//! decoded.

use std::ops::Range;

use bytes::BufMut as _;
use prost::encoding::{self, WireType};

use super::{FEATURES_TAG, FeatureEntries, entry_len, put_entry, take_byte, take_delimited};
use crate::{
    proto::Value,
    record::{FeatureName, Features},
};

/// Checked features, as in segment 1 of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodedFeatures {
    bytes: Vec<u8>,
    count: usize,
}

impl EncodedFeatures {
    /// The features of a stored record, which were checked when they were written.
    pub(super) fn stored(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), count: FeatureEntries(bytes).count() }
    }

    /// The number of features.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The encoded features. Their length is compared with `limits.max_record_bytes`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The encoded features one by one, sorted by name.
    pub fn entries(&self) -> FeatureEntries<'_> {
        FeatureEntries(&self.bytes)
    }

    /// These features, and those of `base` with other names.
    pub fn over(self, base: &Self) -> Self {
        if base.count == 0 {
            return self;
        }
        let mut merged = Self { bytes: Vec::with_capacity(self.bytes.len() + base.bytes.len()), count: 0 };
        let (mut new, mut old) = (self.entries().flatten().peekable(), base.entries().flatten().peekable());
        loop {
            let entry = match (new.peek(), old.peek()) {
                (None, None) => break,
                (Some(a), Some(b)) if a.name == b.name => {
                    old.next();
                    new.next()
                }
                (Some(a), Some(b)) if a.name > b.name => old.next(),
                (None, Some(_)) => old.next(),
                (Some(_), _) => new.next(),
            };
            if let Some(entry) = entry {
                merged.bytes.put_slice(entry.encoded);
                merged.count += 1;
            }
        }
        merged
    }

    /// The decoded features.
    pub fn decode(&self) -> Features {
        let feature = |entry: super::FeatureEntry<'_>| {
            let name = FeatureName::parse(std::str::from_utf8(entry.name).ok()?).ok()?;
            Some((name, prost::Message::decode(entry.value).ok()?))
        };
        // All were checked, so none is left out.
        self.entries().flatten().filter_map(feature).collect()
    }
}

impl From<&Features> for EncodedFeatures {
    fn from(features: &Features) -> Self {
        let len = features.iter().map(|(name, value)| entry_len(name, value)).sum();
        let mut bytes = Vec::with_capacity(len);
        features.iter().for_each(|(name, value)| put_entry(name, value, &mut bytes));
        Self { bytes, count: features.len() }
    }
}

impl FromIterator<(FeatureName, Value)> for EncodedFeatures {
    fn from_iter<I: IntoIterator<Item = (FeatureName, Value)>>(features: I) -> Self {
        Self::from(&features.into_iter().collect::<Features>())
    }
}

/// The size of twenty numbers with their names.
const TYPICAL_BYTES: usize = 640;

/// Collects features as they arrive, while each is encoded as it would be stored: its name is
/// allowed, its value is of a plain kind and in our encoding.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlainFeatures {
    taken: EncodedFeatures,
    /// The name of the last one.
    last: Range<usize>,
    is_unsorted: bool,
}

impl PlainFeatures {
    /// Takes one map entry without its tag and length. False: it is not plain.
    pub fn take(&mut self, body: &[u8]) -> bool {
        let Some(name) = plain_entry(body) else { return false };
        let taken = &mut self.taken;
        self.is_unsorted |= taken.count > 0 && name <= &taken.bytes[self.last.clone()];
        if taken.count == 0 {
            taken.bytes.reserve(TYPICAL_BYTES.max(body.len() + 8));
        }
        taken.bytes.put_u8(FEATURES_TAG);
        encoding::encode_varint(body.len() as u64, &mut taken.bytes);
        // After the tag of the name and its length, which takes one or two bytes.
        let at = taken.bytes.len() + if name.len() < 0x80 { 2 } else { 3 };
        self.last = at..at + name.len();
        taken.bytes.put_slice(body);
        taken.count += 1;
        true
    }

    /// In the order of arrival.
    pub fn entries(&self) -> FeatureEntries<'_> {
        self.taken.entries()
    }

    /// Of equal names the last one counts.
    pub fn finish(self) -> EncodedFeatures {
        if !self.is_unsorted {
            return self.taken;
        }
        let mut entries: Vec<_> = self.taken.entries().flatten().collect();
        entries.sort_by_key(|entry| entry.name); // stable
        let mut sorted = EncodedFeatures { bytes: Vec::with_capacity(self.taken.bytes.len()), count: 0 };
        for (i, entry) in entries.iter().enumerate() {
            if entries.get(i + 1).is_none_or(|next| next.name != entry.name) {
                sorted.bytes.put_slice(entry.encoded);
                sorted.count += 1;
            }
        }
        sorted
    }
}

/// The name in a map entry, if the whole entry is plain.
fn plain_entry(mut body: &[u8]) -> Option<&[u8]> {
    let rest = &mut body;
    if take_byte(rest)? != (1 << 3) | 2 {
        return None;
    }
    let name = take_shortest(rest)?;
    let is_allowed = FeatureName::is_allowed(name);
    if !is_allowed || take_byte(rest)? != (2 << 3) | 2 {
        return None;
    }
    let value = take_shortest(rest)?;
    (rest.is_empty() && is_plain_value(value)).then_some(name)
}

/// Whether a `Value` of one kind is encoded as prost would do it.
fn is_plain_value(value: &[u8]) -> bool {
    let Some((tag, mut rest)) = value.split_first() else { return false };
    let Ok(wire_type) = WireType::try_from(u64::from(tag & 7)) else { return false };
    let rest = &mut rest;
    let is_plain = match (tag >> 3, wire_type) {
        // double_val, float_val
        (5, WireType::SixtyFourBit) => return rest.len() == 8,
        (6, WireType::ThirtyTwoBit) => return rest.len() == 4,
        // int32_val, which is written as an int64
        (3, WireType::Varint) => take_shortest_varint(rest).is_some_and(|bits| i32::try_from(bits as i64).is_ok()),
        // int64_val, unix_timestamp_val
        (4 | 8, WireType::Varint) => take_shortest_varint(rest).is_some(),
        // bool_val
        (7, WireType::Varint) => return matches!(rest, [0 | 1]),
        // bytes_val, string_val
        (1, WireType::LengthDelimited) => take_shortest(rest).is_some(),
        (2, WireType::LengthDelimited) => take_shortest(rest).is_some_and(|text| std::str::from_utf8(text).is_ok()),
        // double_list_val, and float_list_val, whose tag has two bytes
        (15, WireType::LengthDelimited) => return is_plain_list(rest, 8),
        (16, WireType::LengthDelimited) => return take_byte(rest) == Some(1) && is_plain_list(rest, 4),
        _ => false,
    };
    is_plain && rest.is_empty()
}

/// A list whose numbers are packed in one piece, or an empty one.
fn is_plain_list(rest: &mut &[u8], width: usize) -> bool {
    let Some(mut list) = take_shortest(rest).filter(|_| rest.is_empty()) else { return false };
    if list.is_empty() {
        return true;
    }
    take_byte(&mut list) == Some((1 << 3) | 2)
        && take_shortest(&mut list).is_some_and(|packed| !packed.is_empty() && packed.len() % width == 0)
        && list.is_empty()
}

/// The bytes after a length, if the length is encoded in the fewest bytes.
fn take_shortest<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let before = *rest;
    let taken = take_delimited(rest)?;
    (before.len() - rest.len() == encoding::encoded_len_varint(taken.len() as u64) + taken.len()).then_some(taken)
}

fn take_shortest_varint(rest: &mut &[u8]) -> Option<u64> {
    let before = rest.len();
    let number = encoding::decode_varint(rest).ok()?;
    (before - rest.len() == encoding::encoded_len_varint(number)).then_some(number)
}
