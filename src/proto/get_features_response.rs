//! `GetFeaturesResponse` as the server sends it: rows know their lengths, and what precedes the
//! stored bytes of a row is written in few pieces.

use std::sync::Arc;

use bytes::{Buf, BufMut};
use prost::{
    DecodeError, Message,
    encoding::{self, DecodeContext, WireType},
};

use super::{EncodedRow, FeatureMatrix};
use crate::in_flight::{Holding, Share};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct GetFeaturesResponse {
    pub rows: Vec<EncodedRow>,
    pub matrix: Option<FeatureMatrix>,
    pub degraded: bool,
    pub held: Held,
}

/// Counts the memory of an answer until it is encoded, as it waits for its client to read.
#[derive(Clone, Debug, Default)]
pub struct Held(#[expect(dead_code, reason = "held, not read")] Option<Arc<(Share, Holding)>>);

impl Held {
    /// For its own bytes, and those of the records in it.
    pub fn by(share: Share, records: Holding) -> Self {
        Self(Some(Arc::new((share, records))))
    }
}

/// It is not part of the message.
impl PartialEq for Held {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Message for GetFeaturesResponse {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        for row in &self.rows {
            row.encode_as(1, buf);
        }
        if let Some(matrix) = &self.matrix {
            encoding::message::encode(2, matrix, buf);
        }
        if self.degraded {
            encoding::bool::encode(3, &self.degraded, buf);
        }
    }

    fn encoded_len(&self) -> usize {
        let rows: usize = self.rows.iter().map(EncodedRow::encoded_len_as).sum();
        let matrix = self.matrix.as_ref().map_or(0, |matrix| encoding::message::encoded_len(2, matrix));
        rows + matrix + if self.degraded { encoding::bool::encoded_len(3, &self.degraded) } else { 0 }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        // No client sends this message to a server.
        encoding::skip_field(wire_type, tag, buf, ctx)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}
