//! The epoch as stored, in two entries of the meta table. `epoch`: the id (8 bytes, little-endian),
//! 1 if dirty, CRC-32 of both. `l1`: the id of its epoch, the identity of the folder, the named L1,
//! CRC-32 of all of it; each text follows its length (4 bytes, little-endian). Versions that know
//! only the first entry leave the second one unchanged, and then it belongs to another epoch.

use std::time::Duration;

use crate::{
    cache::{Epoch, L1Name},
    store::{Claim, EpochState},
};

/// The keys in the meta table.
pub(super) const EPOCH: &str = "epoch";
pub(super) const L1: &str = "l1";

/// A new random epoch that is not dirty.
pub(super) fn new(l1: Option<L1Name>) -> EpochState {
    EpochState { l1, ..EpochState::new(Epoch(rand::random())) }
}

/// The epoch after a claim.
pub(super) fn claimed(state: EpochState, claim: Claim) -> EpochState {
    let is_seen = |l1: &L1Name| claim.seen.names(l1);
    if state.epoch != claim.seen.epoch || state.l1.as_ref().map_or(claim.seen.l1.is_some(), |l1| !is_seen(l1)) {
        return state;
    }
    match claim.keep_epoch {
        true => EpochState { l1: Some(claim.l1), ..state },
        false => new(Some(claim.l1)),
    }
}

pub(super) fn encode(state: &EpochState) -> Vec<u8> {
    let mut bytes = state.epoch.0.to_le_bytes().to_vec();
    bytes.push(u8::from(state.dirty));
    sealed(bytes)
}

/// None: it cannot be read.
pub(super) fn decode(bytes: &[u8]) -> Option<EpochState> {
    let (id, dirty) = opened(bytes)?.split_first_chunk::<8>()?;
    // No other process uses this store, so none can be using an earlier epoch.
    let age = Duration::MAX;
    Some(EpochState { dirty: dirty == [1], age, ..EpochState::new(Epoch(u64::from_le_bytes(*id))) })
}

/// The L1 that the epoch names, in the folder with this identity.
pub(super) fn encode_l1(state: &EpochState, folder: &str) -> Vec<u8> {
    let mut bytes = state.epoch.0.to_le_bytes().to_vec();
    put(&mut bytes, folder);
    if let Some(L1Name { id, histories, shared, address }) = &state.l1 {
        for text in [&**id, address, if *shared { "shared" } else { "" }] {
            put(&mut bytes, text);
        }
        histories.iter().for_each(|history| put(&mut bytes, history));
    }
    sealed(bytes)
}

/// None: no L1 is named, the entry belongs to another epoch or folder, or it cannot be read.
pub(super) fn decode_l1(bytes: &[u8], epoch: Epoch, folder: &str) -> Option<L1Name> {
    let (id, mut rest) = opened(bytes)?.split_first_chunk::<8>()?;
    if u64::from_le_bytes(*id) != epoch.0 || take(&mut rest)? != folder {
        return None;
    }
    let (id, address, shared) = (take(&mut rest)?.into(), take(&mut rest)?.into(), take(&mut rest)? == "shared");
    let mut histories = Vec::new();
    while !rest.is_empty() {
        histories.push(take(&mut rest)?.to_owned());
    }
    Some(L1Name { id, histories: histories.into(), shared, address })
}

fn put(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

fn take<'a>(bytes: &mut &'a [u8]) -> Option<&'a str> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    *bytes = rest;
    str::from_utf8(text).ok()
}

fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = crc32fast::hash(&bytes).to_le_bytes();
    bytes.extend_from_slice(&sum);
    bytes
}

fn opened(bytes: &[u8]) -> Option<&[u8]> {
    let (bytes, sum) = bytes.split_last_chunk::<4>()?;
    (crc32fast::hash(bytes).to_le_bytes() == *sum).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_names_its_l1_in_its_own_folder_only() {
        let name = |histories: &[&str]| L1Name {
            id: "ab".into(),
            histories: histories.iter().map(|history| (*history).to_owned()).collect(),
            shared: !histories.is_empty(),
            address: "redis://host/0".into(),
        };
        for l1 in [None, Some(name(&[])), Some(name(&["h1", "h2"]))] {
            let state = new(l1.clone());
            let bytes = encode_l1(&state, "folder");
            assert_eq!(decode_l1(&bytes, state.epoch, "folder"), l1);
            assert_eq!(decode_l1(&bytes, state.epoch, "copy"), None);
            assert_eq!(decode_l1(&bytes, Epoch(state.epoch.0 ^ 1), "folder"), None, "made by a version before");
            for cut in 0..bytes.len() {
                assert_eq!(decode_l1(&bytes[..cut], state.epoch, "folder"), None);
            }
            assert_eq!(decode(&encode(&state)), Some(EpochState { l1: None, ..state }));
        }
    }
}
