//! Fuzzes the envelope of a stored record: no bytes from the disk may make a reader panic, and the
//! fast way to read must agree with the complete one.

use bytes::Bytes;

use super::envelope;
use crate::fuzzing::Input;

/// A key and its bytes, with a correct version and checksum.
pub fn envelope(data: &[u8]) {
    let mut input = Input::new(data);
    let key = input.piece();
    let raw = input.rest();
    let _ = envelope::state(key, Bytes::copy_from_slice(raw));

    let bytes = envelope::summed(key, raw.to_vec());
    let state = envelope::state(key, bytes.clone());
    let Ok(stored) = envelope::decode(key, bytes) else { return };
    assert_eq!(state, Ok(stored.content.state()), "the quick way");
    let again = envelope::decode(key, envelope::encode(&stored, key).into());
    assert_eq!(again, Ok(stored), "what is written is read");
}
