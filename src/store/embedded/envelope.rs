//! The stored value of a key: a small envelope around the record's own bytes.
//!
//! ```text
//! offset  size  field, little-endian
//!      0     1  format version, 1
//!      1     1  what it holds: 0 a record, 1 a tombstone
//!      2     1  how many requests are remembered
//!      3     1  zero
//!      4     4  CRC-32 (IEEE) of the key's bytes and of all other bytes here
//!      8     8  when it may be collected, ms since the Unix epoch; i64::MAX: never
//!     16     .  the requests, oldest first: length of the id (4), id, outcome (1), argument (8);
//!               after a client's id a zero byte and 8 hex digits, the checksum of what it
//!               was to do (releases before 1.1 wrote the id alone)
//!      .     .  a record: `StoredRecord`, verbatim; a tombstone: its revision (8)
//! ```
//!
//! The checksum includes the key, so a value under a wrong key is noticed. A read takes a slice and
//! decodes nothing. The layout is final: a change gets a new format version, and this one stays
//! readable.

use bytes::{Buf, BufMut, Bytes};

use crate::{
    record::{
        Millis, Revision, State,
        encoding::{Corrupt, StoredRecord},
    },
    store::{
        Operation, Outcome, RequestId,
        apply::{Content, Document, Remembered},
    },
};

const FORMAT_VERSION: u8 = 1;
const HEADER_BYTES: usize = 16;
const TOMBSTONE: u8 = 1;
const NEVER: i64 = i64::MAX;
/// The size of what follows the id of a client.
const SUM_BYTES: usize = 9;

/// The bytes to store under `key`.
pub(super) fn encode(document: &Document, key: &[u8]) -> Vec<u8> {
    let requests: usize = document.requests.iter().map(|request| 13 + request.id.0.len() + SUM_BYTES).sum();
    let content = if let Content::Record(record) = &document.content { record.as_bytes().len() } else { 8 };
    let mut buf = Vec::with_capacity(HEADER_BYTES + requests + content);
    buf.put_u8(FORMAT_VERSION);
    buf.put_u8(if matches!(document.content, Content::Tombstone(_)) { TOMBSTONE } else { 0 });
    buf.put_u8(u8::try_from(document.requests.len()).expect("a document remembers 8 requests"));
    buf.put_bytes(0, 5);
    buf.put_i64_le(document.collect_at.map_or(NEVER, |at| at.0));
    for Remembered { id, operation, outcome } in &document.requests {
        let sum = operation.map_or(String::new(), |Operation(sum)| format!("\0{sum:08x}"));
        buf.put_u32_le(u32::try_from(id.0.len() + sum.len()).expect("a request id is far below 4 GiB"));
        buf.put_slice(id.0.as_bytes());
        buf.put_slice(sum.as_bytes());
        let (tag, argument) = outcome_code(*outcome);
        buf.put_u8(tag);
        buf.put_i64_le(argument);
    }
    match &document.content {
        Content::Record(record) => buf.put_slice(record.as_bytes()),
        Content::Tombstone(revision) => buf.put_i64_le(revision.0),
    }
    let sum = checksum(key, &buf);
    buf[4..8].copy_from_slice(&sum.to_le_bytes());
    buf
}

/// Checks and reads what was stored under `key`.
pub(super) fn decode(key: &[u8], bytes: Bytes) -> Result<Document, Corrupt> {
    let mut rest = check(key, bytes)?;
    let (is_tombstone, count) = (rest[1] == TOMBSTONE, rest[2]);
    rest.advance(8);
    let collect_at = Some(rest.get_i64_le()).filter(|at| *at != NEVER).map(Millis);
    let requests = (0..count).map(|_| take_request(&mut rest)).collect::<Result<_, _>>()?;
    Ok(Document { content: content(is_tombstone, rest)?, requests, collect_at })
}

/// The state that a read returns for the bytes under `key`. The record is a slice; nothing is
/// decoded.
pub(super) fn state(key: &[u8], bytes: Bytes) -> Result<State, Corrupt> {
    let mut rest = check(key, bytes)?;
    let (is_tombstone, count) = (rest[1] == TOMBSTONE, rest[2]);
    rest.advance(HEADER_BYTES);
    for _ in 0..count {
        let len = rest.try_get_u32_le().map_err(|_| CUT_OFF)? as usize;
        if rest.len() < len + 9 {
            return Err(CUT_OFF);
        }
        rest.advance(len + 9);
    }
    content(is_tombstone, rest).map(|content| content.state())
}

const CUT_OFF: Corrupt = Corrupt("the envelope is cut off");

fn check(key: &[u8], bytes: Bytes) -> Result<Bytes, Corrupt> {
    if bytes.len() < HEADER_BYTES {
        return Err(CUT_OFF);
    }
    if bytes[0] != FORMAT_VERSION {
        return Err(Corrupt("an envelope of a newer featurestore"));
    }
    if bytes[4..8] != checksum(key, &bytes).to_le_bytes() {
        return Err(Corrupt("the envelope's checksum differs"));
    }
    Ok(bytes)
}

fn content(is_tombstone: bool, mut rest: Bytes) -> Result<Content, Corrupt> {
    if is_tombstone {
        rest.try_get_i64_le().map(|revision| Content::Tombstone(Revision(revision))).map_err(|_| CUT_OFF)
    } else {
        StoredRecord::parse_summed(rest).map(Content::Record)
    }
}

fn take_request(rest: &mut Bytes) -> Result<Remembered, Corrupt> {
    let len = rest.try_get_u32_le().map_err(|_| CUT_OFF)? as usize;
    if rest.len() < len + 9 {
        return Err(CUT_OFF);
    }
    let id = rest.split_to(len);
    let id = std::str::from_utf8(&id).map_err(|_| Corrupt("a request id is not UTF-8"))?;
    let (tag, argument) = (rest.get_u8(), rest.get_i64_le());
    let outcome = outcome(tag, argument).ok_or(Corrupt("unknown outcome of a request"))?;
    let (id, operation) = split_sum(id);
    Ok(Remembered { id: RequestId(id.into()), operation, outcome })
}

/// Splits a stored id.
fn split_sum(stored: &str) -> (&str, Option<Operation>) {
    let sum = stored.len().checked_sub(SUM_BYTES).and_then(|at| stored.split_at_checked(at));
    let sum = sum.and_then(|(id, sum)| Some((id, u32::from_str_radix(sum.strip_prefix('\0')?, 16).ok()?)));
    sum.map_or((stored, None), |(id, sum)| (id, Some(Operation(sum))))
}

fn outcome_code(outcome: Outcome) -> (u8, i64) {
    let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    match outcome {
        Outcome::Written => (1, 0),
        Outcome::SkippedStale => (2, 0),
        Outcome::Deleted => (3, 0),
        Outcome::NotFound => (4, 0),
        Outcome::RevisionMismatch { stored } => (5, stored.0),
        Outcome::TooManyFeatures { count } => (6, number(count)),
        Outcome::RecordTooLarge { bytes } => (7, number(bytes)),
        // This store holds every record within the limits and never returns this outcome, so it is
        // remembered as the one that clients see.
        Outcome::DocumentTooLarge { bytes, .. } => (7, number(bytes)),
        // Never remembered: the outcome of the first request is.
        Outcome::RequestIdReused => (8, 0),
    }
}

fn outcome(tag: u8, argument: i64) -> Option<Outcome> {
    let number = usize::try_from(argument);
    Some(match tag {
        1 => Outcome::Written,
        2 => Outcome::SkippedStale,
        3 => Outcome::Deleted,
        4 => Outcome::NotFound,
        5 => Outcome::RevisionMismatch { stored: Revision(argument) },
        6 => Outcome::TooManyFeatures { count: number.ok()? },
        7 => Outcome::RecordTooLarge { bytes: number.ok()? },
        _ => return None,
    })
}

fn checksum(key: &[u8], bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(&bytes[..4]);
    hasher.update(&bytes[8..]);
    hasher.finalize()
}

/// The bytes with a correct version and checksum.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn summed(key: &[u8], mut bytes: Vec<u8>) -> Bytes {
    if bytes.len() >= HEADER_BYTES {
        bytes[0] = FORMAT_VERSION;
        let sum = checksum(key, &bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    }
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Snapshot;

    fn samples() -> [Document; 2] {
        let outcomes = [
            Outcome::Written,
            Outcome::SkippedStale,
            Outcome::Deleted,
            Outcome::NotFound,
            Outcome::RevisionMismatch { stored: Revision(7) },
            Outcome::TooManyFeatures { count: 8 },
            Outcome::RecordTooLarge { bytes: 9 },
        ];
        let requests: Vec<_> = outcomes
            .into_iter()
            .enumerate()
            .map(|(i, outcome)| Remembered { id: RequestId(format!("ü{i}").into()), operation: None, outcome })
            .collect();
        let snapshot = Snapshot {
            features: Default::default(),
            model_version: "v1".to_owned(),
            revision: Revision(3),
            event_time: Millis(4),
            write_time: Millis(5),
            expire_at: Some(Millis(6)),
        };
        [
            Document {
                content: Content::Tombstone(Revision(12)),
                requests: requests.clone(),
                collect_at: Some(Millis(99)),
            },
            Document { content: Content::Record(StoredRecord::encode(&snapshot)), requests, collect_at: None },
        ]
    }

    #[test]
    fn what_was_stored_reads_back() {
        for stored in samples() {
            let bytes = Bytes::from(encode(&stored, b"key"));
            assert_eq!(decode(b"key", bytes.clone()), Ok(stored.clone()));
            assert_eq!(state(b"key", bytes), Ok(stored.content.state()));
        }
    }

    #[test]
    fn what_a_clients_request_was_to_do_is_remembered() {
        for sum in [0, 1, u32::MAX] {
            let [mut stored, _] = samples();
            stored.requests[0].id = RequestId::of_client("a\0b");
            stored.requests[0].operation = Some(Operation(sum));
            assert_eq!(decode(b"key", encode(&stored, b"key").into()), Ok(stored));
        }
        assert_eq!(split_sum("c:written by an older one"), ("c:written by an older one", None));
        assert_eq!(split_sum("ü"), ("ü", None));
    }

    #[test]
    fn the_layout_is_final() {
        // The first release wrote these bytes. They must be read and written like this forever.
        let hex = |stored: &Document| encode(stored, b"key").iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(samples().each_ref().map(hex)[..], include_str!("envelope/v1.hex").lines().collect::<Vec<_>>());
    }

    #[test]
    fn a_newer_version_is_called_that_and_never_read() {
        for stored in samples() {
            let mut bytes = encode(&stored, b"key");
            bytes[0] += 1;
            let sum = checksum(b"key", &bytes);
            bytes[4..8].copy_from_slice(&sum.to_le_bytes());
            let newer = Corrupt("an envelope of a newer featurestore");
            assert_eq!(state(b"key", bytes.clone().into()), Err(newer.clone()));
            assert_eq!(decode(b"key", bytes.into()), Err(newer));
        }
    }

    #[test]
    fn a_flipped_bit_a_cut_or_another_key_is_noticed() {
        for stored in samples() {
            let bytes = encode(&stored, b"key");
            for at in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[at / 8] ^= 1 << (at % 8);
                assert!(decode(b"key", bad.clone().into()).is_err(), "bit {at}");
                assert!(state(b"key", bad.into()).is_err(), "bit {at}");
            }
            for len in 0..bytes.len() {
                assert!(state(b"key", bytes[..len].to_vec().into()).is_err(), "cut to {len}");
            }
            assert!(state(b"kez", bytes.into()).is_err());
        }
    }
}
