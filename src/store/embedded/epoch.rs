//! The epoch as it is stored: the id (8 bytes, little-endian), 1 if dirty, CRC-32 of both.

use std::time::Duration;

use crate::{cache::Epoch, store::EpochState};

/// Its name in the meta table.
pub(super) const NAME: &str = "epoch";

/// Nobody else uses this store, so nobody can be using an epoch before this one.
const AGE: Duration = Duration::MAX;

/// A new random one, not dirty.
pub(super) fn new() -> EpochState {
    EpochState { epoch: Epoch(rand::random()), dirty: false, age: AGE }
}

pub(super) fn encode(state: EpochState) -> Vec<u8> {
    let mut bytes = state.epoch.0.to_le_bytes().to_vec();
    bytes.push(u8::from(state.dirty));
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

/// None: it cannot be read.
pub(super) fn decode(bytes: &[u8]) -> Option<EpochState> {
    let (state, sum) = bytes.split_last_chunk::<4>()?;
    let (id, dirty) = state.split_first_chunk::<8>()?;
    (crc32fast::hash(state).to_le_bytes() == *sum).then(|| EpochState {
        epoch: Epoch(u64::from_le_bytes(*id)),
        dirty: dirty == [1],
        age: AGE,
    })
}
