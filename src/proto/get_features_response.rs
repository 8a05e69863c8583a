//! `GetFeaturesResponse` as the server sends it: rows know their lengths, and what comes before a row's stored bytes goes out
//! in few pieces.

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

/// Counts what an answer has until it is encoded: where its client does not read, it waits for that.
#[derive(Clone, Debug, Default)]
pub struct Held(#[expect(dead_code, reason = "held, not read")] Option<Arc<(Share, Holding)>>);

impl Held {
    /// By its own bytes, and by those of the records that it is made of.
    pub fn by(share: Share, records: Holding) -> Self {
        Self(Some(Arc::new((share, records))))
    }
}

/// It is no part of the message.
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
        // Nobody sends a server an answer.
        encoding::skip_field(wire_type, tag, buf, ctx)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}
