//! `FeatureRow` as the server sends it: the stored bytes of a record, passed through.
//!
//! Protobuf fields may be concatenated in any order, so a row is the stored segments (fields 3 and 4, 6, 7, 8) plus
//! the few fields that depend on the request. Nothing here decodes a row: servers only send them.

use bytes::{Buf, BufMut, Bytes};
use prost::{
    DecodeError, Message,
    encoding::{self, DecodeContext, WireType},
};

use super::{Error, RowStatus, Source};

/// A `FeatureRow` whose features and metadata are already encoded. Each field is set once at most, as its length is added
/// up then: an answer's length is asked for several times, and a batch has many rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EncodedRow {
    /// Field 1, as it was asked for.
    entity_id: String,
    /// Field 2, a `RowStatus`.
    status: i32,
    /// Encoded fields that a record is stored with: 3, 4, 6, 7 and 8, or some of them.
    stored: Bytes,
    /// Encoded field 3 where only some features are wanted.
    projected: Bytes,
    /// Field 5.
    revision: i64,
    /// Field 9, a `Source`.
    source: i32,
    /// Field 10.
    missing_features: Vec<String>,
    /// Field 11; boxed, as it is rare.
    error: Option<Box<Error>>,
    /// Of all of them.
    len: usize,
}

impl EncodedRow {
    /// A row of this status and nothing else.
    pub fn new(entity_id: String, status: RowStatus) -> Self {
        let (status, mut len) = (status as i32, 0);
        if !entity_id.is_empty() {
            len += encoding::string::encoded_len(1, &entity_id);
        }
        if status != 0 {
            len += encoding::int32::encoded_len(2, &status);
        }
        Self { entity_id, status, len, ..Self::default() }
    }

    /// With the revision of what was found.
    pub fn at_revision(mut self, revision: i64) -> Self {
        self.revision = revision;
        if revision != 0 {
            self.len += encoding::int64::encoded_len(5, &revision);
        }
        self
    }

    /// With the tier that answered.
    pub fn from_source(mut self, source: Source) -> Self {
        self.source = source as i32;
        if self.source != 0 {
            self.len += encoding::int32::encoded_len(9, &self.source);
        }
        self
    }

    /// With encoded fields 3, 4, 6, 7 and 8, or some of them.
    pub fn with_stored(mut self, fields: Bytes) -> Self {
        self.len += fields.len();
        self.stored = fields;
        self
    }

    /// With encoded field 3 of the features that were asked for by name, and the names that the record lacks.
    pub fn with_projected(mut self, features: Bytes, missing: Vec<String>) -> Self {
        self.len += features.len() + encoding::string::encoded_len_repeated(10, &missing);
        (self.projected, self.missing_features) = (features, missing);
        self
    }

    /// With what went wrong.
    pub fn with_error(mut self, error: Error) -> Self {
        self.len += encoding::message::encoded_len(11, &error);
        self.error = Some(Box::new(error));
        self
    }
}

/// A few small fields beside each other: a buffer takes them at once in a fraction of the time that it takes single bytes.
#[derive(Default)]
struct Fields {
    bytes: [u8; 24],
    len: usize,
}

impl Fields {
    /// A field's key, which is one byte up to field 15, and a number. Two of them fit, whatever the numbers.
    fn put(&mut self, key: u8, mut number: u64) {
        self.push(key);
        while number >= 0x80 {
            self.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.push(number as u8);
    }

    fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Message for EncodedRow {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if !self.entity_id.is_empty() {
            let mut head = Fields::default();
            head.put(1 << 3 | WireType::LengthDelimited as u8, self.entity_id.len() as u64);
            buf.put_slice(head.bytes());
            buf.put_slice(self.entity_id.as_bytes());
        }
        if self.status != 0 {
            let mut status = Fields::default();
            status.put(2 << 3, self.status as u64);
            buf.put_slice(status.bytes());
        }
        buf.put_slice(&self.projected);
        buf.put_slice(&self.stored);
        let mut tail = Fields::default();
        if self.revision != 0 {
            tail.put(5 << 3, self.revision as u64);
        }
        if self.source != 0 {
            tail.put(9 << 3, self.source as u64);
        }
        buf.put_slice(tail.bytes());
        encoding::string::encode_repeated(10, &self.missing_features, buf);
        if let Some(error) = &self.error {
            encoding::message::encode(11, error.as_ref(), buf);
        }
    }

    fn encoded_len(&self) -> usize {
        self.len
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        // No request holds a row; one that did would be an unknown field.
        encoding::skip_field(wire_type, tag, buf, ctx)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}
