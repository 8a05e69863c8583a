//! Features by name: the wanted map entries of the stored bytes are copied, their values never decoded.

use bytes::{Bytes, BytesMut};

use super::{Corrupt, StoredRecord};
use crate::record::FeatureName;

/// The names that a read asked for, made ready once per call.
#[derive(Clone, Debug)]
pub struct Projection {
    /// Sorted, each once, with its place in the request.
    wanted: Vec<(FeatureName, usize)>,
}

impl Projection {
    /// Of these names; a name asked for twice counts once.
    pub fn new(names: &[FeatureName]) -> Self {
        let mut wanted: Vec<_> = names.iter().cloned().enumerate().map(|(place, name)| (name, place)).collect();
        wanted.sort();
        wanted.dedup_by(|later, earlier| later.0 == earlier.0);
        Self { wanted }
    }

    /// The encoded features of `record` that are wanted, and the wanted names that it lacks, as they were asked for.
    /// `scratch` is a buffer that the rows of a call share, so that a batch allocates rarely.
    pub fn apply(&self, record: &StoredRecord, scratch: &mut BytesMut) -> Result<(Bytes, Vec<String>), Corrupt> {
        let mut missing: Vec<&(FeatureName, usize)> = Vec::new();
        let mut wanted = self.wanted.iter().peekable();
        for entry in record.entries() {
            if wanted.peek().is_none() {
                break;
            }
            let entry = entry?;
            while let Some(lacked) = wanted.next_if(|(name, _)| name.as_str() < entry.name) {
                missing.push(lacked);
            }
            if wanted.next_if(|(name, _)| name.as_str() == entry.name).is_some() {
                scratch.extend_from_slice(entry.encoded);
            }
        }
        missing.extend(wanted);
        missing.sort_by_key(|(_, place)| *place);
        let missing = missing.into_iter().map(|(name, _)| name.as_str().to_owned()).collect();
        Ok((scratch.split().freeze(), missing))
    }
}
