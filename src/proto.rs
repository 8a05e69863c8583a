//! The generated code of `featurestore.v1`, and the one message of it that is written by hand: a row whose features
//! stay the bytes they are stored as. And the codec that both go through.

#![allow(missing_docs, clippy::all, reason = "generated; the documentation is in the .proto file")]

mod codec;
mod encoded_row;

pub use codec::{SizedCodec, Unpacked};
pub use encoded_row::EncodedRow;

tonic::include_proto!("featurestore.v1");

/// Everything reflection needs to know, comments included.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("featurestore.v1.descriptors");
