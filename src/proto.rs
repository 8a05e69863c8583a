//! The generated code of `featurestore.v1`, and the two messages of it that are written by hand: a row, and a record
//! to write, whose features stay the bytes they are stored as. And the codec that both go through.

#![allow(missing_docs, clippy::all, reason = "generated; the documentation is in the .proto file")]

mod codec;
mod encoded_row;
mod feature_record;

pub use codec::{SizedCodec, Unpacked};
pub use encoded_row::EncodedRow;
pub use feature_record::{FeatureRecord, GivenFeatures};

tonic::include_proto!("featurestore.v1");

/// Everything reflection needs to know, comments included.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("featurestore.v1.descriptors");
