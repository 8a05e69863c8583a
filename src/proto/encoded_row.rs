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

/// A `FeatureRow` whose features and metadata are already encoded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EncodedRow {
    /// Field 1, as it was asked for.
    pub entity_id: String,
    /// Field 2, a `RowStatus`.
    pub status: i32,
    /// Encoded field 3: the features, whole or projected.
    pub features: Bytes,
    /// Encoded fields 4, 6, 7 and 8: model version and times.
    pub metadata: Bytes,
    /// Field 5.
    pub revision: i64,
    /// Field 9, a `Source`.
    pub source: i32,
    /// Field 10.
    pub missing_features: Vec<String>,
    /// Field 11; boxed, as it is rare.
    pub error: Option<Box<Error>>,
}

impl EncodedRow {
    /// A row of this status and nothing else.
    pub fn new(entity_id: String, status: RowStatus) -> Self {
        Self { entity_id, status: status as i32, ..Self::default() }
    }

    /// The same row, with the tier that answered.
    pub fn from_source(mut self, source: Source) -> Self {
        self.source = source as i32;
        self
    }
}

impl Message for EncodedRow {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if !self.entity_id.is_empty() {
            encoding::string::encode(1, &self.entity_id, buf);
        }
        if self.status != 0 {
            encoding::int32::encode(2, &self.status, buf);
        }
        buf.put_slice(&self.features);
        buf.put_slice(&self.metadata);
        if self.revision != 0 {
            encoding::int64::encode(5, &self.revision, buf);
        }
        if self.source != 0 {
            encoding::int32::encode(9, &self.source, buf);
        }
        encoding::string::encode_repeated(10, &self.missing_features, buf);
        if let Some(error) = &self.error {
            encoding::message::encode(11, error.as_ref(), buf);
        }
    }

    fn encoded_len(&self) -> usize {
        let mut len = self.features.len() + self.metadata.len();
        if !self.entity_id.is_empty() {
            len += encoding::string::encoded_len(1, &self.entity_id);
        }
        if self.status != 0 {
            len += encoding::int32::encoded_len(2, &self.status);
        }
        if self.revision != 0 {
            len += encoding::int64::encoded_len(5, &self.revision);
        }
        if self.source != 0 {
            len += encoding::int32::encoded_len(9, &self.source);
        }
        len += encoding::string::encoded_len_repeated(10, &self.missing_features);
        if let Some(error) = &self.error {
            len += encoding::message::encoded_len(11, error.as_ref());
        }
        len
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
