//! `FeatureRow` as the server sends it, with the stored bytes of a record.
//!
//! Protobuf fields may be concatenated in any order. So a row is the stored segments (fields 3 and
//! 4, 6, 7, 8) and the few fields that depend on the request. Servers only send rows, so nothing
//! here decodes one.

use bytes::{Buf, BufMut, Bytes};
use prost::{
    DecodeError, Message,
    encoding::{self, DecodeContext, WireType},
};

use super::{Error, RowStatus, SharedText, Source};

/// A `FeatureRow` whose features and metadata are already encoded. Each field is set once at most.
/// The length is added up then, because it is asked for several times, and a batch has many rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EncodedRow {
    /// Field 1, as in the request.
    entity_id: SharedText,
    /// Encoded fields 3, 4, 6, 7 and 8 of the stored record, or some of them.
    stored: Bytes,
    /// Encoded field 3, if only some features are wanted.
    projected: Bytes,
    /// Fields 2, 5 and 9: a `RowStatus`, the revision, a `Source`.
    small: Fields,
    /// Fields 10 and 11. They are boxed because they are rare.
    rare: Option<Box<Rare>>,
    /// The length of all fields.
    len: u32,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Rare {
    /// Encoded field 10.
    missing_features: Bytes,
    error: Option<Error>,
}

impl EncodedRow {
    // The work for each row is inlined: as calls it takes 70 instructions more for each row.

    /// A row with this status only.
    #[inline(always)]
    pub fn new(entity_id: SharedText, status: RowStatus) -> Self {
        let id_len = entity_id.as_bytes().len();
        let len = if id_len > 0 { 1 + encoding::encoded_len_varint(id_len as u64) + id_len } else { 0 };
        let row = Self {
            entity_id,
            stored: Bytes::new(),
            projected: Bytes::new(),
            small: Fields::default(),
            rare: None,
            len: len as u32,
        };
        row.with_number(2, status as u64)
    }

    /// With the revision of what was found.
    #[inline]
    pub fn at_revision(self, revision: i64) -> Self {
        self.with_number(5, revision as u64)
    }

    /// With the tier that answered.
    #[inline]
    pub fn from_source(self, source: Source) -> Self {
        self.with_number(9, source as u64)
    }

    #[inline(always)]
    fn with_number(mut self, field: u8, number: u64) -> Self {
        if number != 0 {
            let before = self.small.len;
            self.small.put(field << 3, number);
            self.len += u32::from(self.small.len - before);
        }
        self
    }

    /// With encoded fields 3, 4, 6, 7 and 8, or some of them.
    #[inline(always)]
    pub fn with_stored(mut self, fields: Bytes) -> Self {
        self.len += fields.len() as u32;
        self.stored = fields;
        self
    }

    /// With encoded field 3 (the requested features), and encoded field 10 (the names that are
    /// missing).
    pub fn with_projected(mut self, features: Bytes, missing: Option<Bytes>) -> Self {
        self.len += features.len() as u32;
        self.projected = features;
        if let Some(missing) = missing {
            self.len += missing.len() as u32;
            self.rare.get_or_insert_default().missing_features = missing;
        }
        self
    }

    /// With the error of this row.
    pub fn with_error(mut self, error: Error) -> Self {
        self.len += encoding::message::encoded_len(11, &error) as u32;
        self.rare.get_or_insert_default().error = Some(error);
        self
    }

    /// Encodes it as one of the rows of a message.
    pub(super) fn encode_as(&self, field: u8, buf: &mut impl BufMut) {
        let mut head = Fields::default();
        head.put(field << 3 | WireType::LengthDelimited as u8, u64::from(self.len));
        self.encode_after(head, buf);
    }

    /// Its length as one of the rows of a message.
    pub fn encoded_len_as(&self) -> usize {
        1 + encoding::encoded_len_varint(u64::from(self.len)) + self.len as usize
    }

    fn encode_after(&self, mut head: Fields, buf: &mut impl BufMut) {
        let entity_id = self.entity_id.as_bytes();
        if !entity_id.is_empty() {
            head.put(1 << 3 | WireType::LengthDelimited as u8, entity_id.len() as u64);
        }
        buf.put_slice(head.bytes());
        buf.put_slice(entity_id);
        buf.put_slice(self.small.bytes());
        if !self.projected.is_empty() {
            buf.put_slice(&self.projected);
        }
        buf.put_slice(&self.stored);
        if let Some(rare) = &self.rare {
            buf.put_slice(&rare.missing_features);
            if let Some(error) = &rare.error {
                encoding::message::encode(11, error, buf);
            }
        }
    }
}

/// A few small fields in one array, which a buffer takes much faster than single bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Fields {
    /// Enough for the fields here (a status, a revision, a source; lengths of a row and an id) and
    /// eight bytes more.
    bytes: [u8; 24],
    len: u8,
}

impl Fields {
    /// A field with a number. `key` is one byte, so the field is 15 at most.
    #[inline]
    fn put(&mut self, key: u8, mut number: u64) {
        self.push(key);
        if (1 << 21..1 << 56).contains(&number) {
            // Seven bits in each byte, eight bytes at once; a revision needs all of them.
            let mut spread = number & 0x0fff_ffff | (number & 0x00ff_ffff_f000_0000) << 4;
            spread = spread & 0x0000_3fff_0000_3fff | (spread & 0x0fff_c000_0fff_c000) << 2;
            spread = spread & 0x007f_007f_007f_007f | (spread & 0x3f80_3f80_3f80_3f80) << 1;
            let last = (63 - (number | 1).leading_zeros()) / 7;
            let more = 0x8080_8080_8080_8080 & ((1 << (8 * last)) - 1);
            let at = usize::from(self.len);
            self.bytes[at..at + 8].copy_from_slice(&(spread | more).to_le_bytes());
            self.len += last as u8 + 1;
            return;
        }
        while number >= 0x80 {
            self.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.push(number as u8);
    }

    fn push(&mut self, byte: u8) {
        self.bytes[usize::from(self.len)] = byte;
        self.len += 1;
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl Message for EncodedRow {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        self.encode_after(Fields::default(), buf);
    }

    fn encoded_len(&self) -> usize {
        self.len as usize
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        // No request has a row, so it is skipped like an unknown field.
        encoding::skip_field(wire_type, tag, buf, ctx)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_number_is_put_as_the_library_puts_it(number in any::<u64>(), bits in 0_u32..64) {
            let mut fields = Fields::default();
            fields.put(1 << 3, number >> bits);
            let mut library = Vec::new();
            encoding::uint64::encode(1, &(number >> bits), &mut library);
            prop_assert_eq!(fields.bytes(), library);
        }
    }

    #[test]
    fn the_widest_fields_have_room() {
        let row = EncodedRow::new("id".into(), RowStatus::Error).at_revision(-1).from_source(Source::L2);
        assert_eq!(row.encode_to_vec().len(), row.encoded_len());
        let long = EncodedRow::new(SharedText::from("x".repeat(1 << 21).as_str()), RowStatus::Found);
        assert_eq!(long.encode_to_vec().len(), long.encoded_len());
    }
}
