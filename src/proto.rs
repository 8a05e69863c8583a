//! The generated code of `featurestore.v1`, and the messages written by hand: a read whose ids stay
//! in one buffer, and its answer, whose rows contain the stored bytes of features. Also the codec
//! of all messages. The written record is in `record`, because its features are checked as they
//! arrive.

#![allow(missing_docs, clippy::all, reason = "generated; the documentation is in the .proto file")]

mod codec;
mod encoded_row;
mod entity_ids;
mod get_features_request;
mod get_features_response;
mod unfolded;

pub use codec::{SizedCodec, Unpacked};
pub use encoded_row::EncodedRow;
pub use entity_ids::{EntityIds, SharedText};
pub use get_features_request::GetFeaturesRequest;
pub use get_features_response::{GetFeaturesResponse, Held};

tonic::include_proto!("featurestore.v1");

/// The descriptors for reflection, with comments.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("featurestore.v1.descriptors");
