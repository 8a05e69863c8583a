//! What a request id identifies: one operation on one record. A retry is the same operation. For
//! any other operation the id was reused by mistake, and the outcome of the first one must not be
//! returned.

use super::{Change, Outcome, RequestId, Write};
use crate::record::{Lifetime, WriteMode};

/// The prefix of ids from clients. Our own ids are random, so clients cannot reuse them.
const CLIENTS: &str = "c:";

impl RequestId {
    /// An id from a client.
    pub fn of_client(id: &str) -> Self {
        Self(format!("{CLIENTS}{id}").into())
    }
}

/// A checksum of all that a write with a client's id is to do, to recognize a retry. It is stored,
/// so its computation must never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation(pub u32);

impl Operation {
    /// None: the id is one of ours.
    pub fn of(write: &Write) -> Option<Self> {
        if !write.request_id.0.starts_with(CLIENTS) {
            return None;
        }
        let mut sum = crc32fast::Hasher::new();
        let mut add = |tag: u8, number: Option<i64>| {
            sum.update(&[tag, u8::from(number.is_some())]);
            sum.update(&number.unwrap_or(0).to_le_bytes());
        };
        add(1, write.if_revision.map(|revision| revision.0));
        let Change::Upsert(record) = &write.change else {
            add(2, None);
            return Some(Self(sum.finalize()));
        };
        add(3, Some(i64::from(record.mode == WriteMode::Merge)));
        add(4, record.event_time.map(|at| at.0));
        add(
            5,
            record.lifetime.map(|lifetime| match lifetime {
                Lifetime::Forever => -1,
                Lifetime::Ttl(ttl) => i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX),
            }),
        );
        add(6, i64::try_from(record.model_version.len()).ok());
        sum.update(record.model_version.as_bytes());
        sum.update(record.features.as_bytes());
        Some(Self(sum.finalize()))
    }
}

/// The answer to a write whose id was used before. `remembered`: what the earlier one was to do, if
/// known.
pub fn repeated(write: &Write, remembered: Option<Operation>, outcome: Outcome) -> Outcome {
    let is_same = match (remembered, Operation::of(write)) {
        (Some(remembered), Some(operation)) => remembered == operation,
        // An older server remembered it, so only the outcome says what it was to do.
        (None, Some(_)) => match outcome {
            Outcome::Deleted | Outcome::NotFound => write.change == Change::Delete,
            Outcome::RevisionMismatch { .. } | Outcome::RequestIdReused => true,
            _ => write.change != Change::Delete,
        },
        (_, None) => true,
    };
    if is_same { outcome } else { Outcome::RequestIdReused }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        proto::{Value, value::Kind},
        record::{EntityId, FeatureName, FeatureView, Millis, Record, RecordKey, Revision},
    };

    fn upsert(change: impl FnOnce(&mut Write, &mut Record)) -> Write {
        let features = [(FeatureName::parse("a").unwrap(), Value { kind: Some(Kind::Int32Val(1)) })];
        let mut record = Record {
            mode: WriteMode::Replace,
            features: features.into_iter().collect(),
            model_version: "v".into(),
            event_time: Some(Millis(5)),
            lifetime: Some(Lifetime::Ttl(Duration::from_secs(1))),
        };
        let key = RecordKey { view: FeatureView::parse("").unwrap(), entity_id: EntityId::parse("e").unwrap() };
        let (request_id, if_revision) = (RequestId::of_client("r"), None);
        let mut write = Write { key, request_id, if_revision, change: Change::Delete };
        change(&mut write, &mut record);
        write.change = Change::Upsert(record);
        write
    }

    #[test]
    fn the_sum_is_final() {
        // Servers of other versions compare with it.
        let delete = Write { change: Change::Delete, ..upsert(|_, _| {}) };
        assert_eq!(Operation::of(&upsert(|_, _| {})), Some(Operation(0x7c73fbb8)));
        assert_eq!(Operation::of(&delete), Some(Operation(0x6e4770f6)));
    }

    #[test]
    fn whatever_differs_is_another_operation() {
        let value = |kind| [(FeatureName::parse("a").unwrap(), Value { kind: Some(kind) })].into_iter().collect();
        let first = Operation::of(&upsert(|_, _| {})).unwrap();
        let others = [
            upsert(|write, _| write.if_revision = Some(Revision(0))),
            upsert(|_, record| record.mode = WriteMode::Merge),
            upsert(|_, record| record.features = value(Kind::Int32Val(2))),
            upsert(|_, record| record.features = value(Kind::Int64Val(1))),
            upsert(|_, record| record.model_version = "w".into()),
            upsert(|_, record| record.event_time = None),
            upsert(|_, record| record.lifetime = None),
            upsert(|_, record| record.lifetime = Some(Lifetime::Forever)),
            Write { change: Change::Delete, ..upsert(|_, _| {}) },
        ];
        for other in others {
            assert_eq!(repeated(&other, Some(first), Outcome::Written), Outcome::RequestIdReused, "{other:?}");
        }
        assert_eq!(repeated(&upsert(|_, _| {}), Some(first), Outcome::SkippedStale), Outcome::SkippedStale);
        let ours = Write { request_id: RequestId("s:1".into()), ..upsert(|_, _| {}) };
        assert_eq!(Operation::of(&ours), None);
    }

    #[test]
    fn of_what_an_older_server_remembers_the_outcome_tells_the_kind() {
        let (upsert, delete) = (upsert(|_, _| {}), Write { change: Change::Delete, ..upsert(|_, _| {}) });
        assert_eq!(repeated(&delete, None, Outcome::Written), Outcome::RequestIdReused);
        assert_eq!(repeated(&upsert, None, Outcome::NotFound), Outcome::RequestIdReused);
        assert_eq!(repeated(&upsert, None, Outcome::Written), Outcome::Written);
        assert_eq!(repeated(&delete, None, Outcome::Deleted), Outcome::Deleted);
    }
}
