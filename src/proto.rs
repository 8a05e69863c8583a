//! The generated code of `featurestore.v1`, and what of it is written by hand: a read whose ids stay in one piece, and its answer,
//! in which a row's features stay the bytes they are stored as. And the codec that all go through. One more is by hand, the record
//! that is written: it is in `record`, as its features are checked while they are received.

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

/// Everything reflection needs to know, comments included.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("featurestore.v1.descriptors");
