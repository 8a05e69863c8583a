//! Fuzzes what clients send: any bytes through the codec and the checks (`decode`), and well-formed
//! calls with odd contents through the checks, a store in a map, and back to what a client reads
//! (`validate`).

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use prost::Message;
use prost_types::{ListValue, Struct, Timestamp, value::Kind as JsonKind};
use tokio::time::Instant;
use tonic::{
    Code, Status, Streaming,
    codec::{Codec as _, EncodeBody},
};

use super::{Limits, convert, failure::Failure, rows};
use crate::{
    fuzzing::{Input, client},
    proto::{self, value::Kind, *},
    record::{
        FeatureRecord, Millis, RecordKey, Snapshot, State,
        encoding::{EncodedFeatures, StoredRecord, features_len, timestamp},
    },
    store::{
        Change, Outcome, Write, WriteRules,
        apply::{Content, Document, apply},
    },
    tiered::{BulkAnswer, ReadAnswer, Row, Tier, WriteAnswer},
};

/// Small limits, so that inputs of a few bytes reach them.
fn limits() -> Limits {
    Limits {
        max_entities: 4,
        max_features: 6,
        max_record_bytes: 512,
        max_bulk_records: 4,
        max_request_bytes: 1 << 16,
        max_response_bytes: 1 << 20,
        max_ttl: Duration::from_secs(36525 * 24 * 3600),
    }
}

/// The most bytes of a status in a header list: gRPC's clients for Python and Java accept 8 KiB in
/// all.
const MAX_STATUS_BYTES: usize = 7 << 10;

/// Decodes a message of one of the services' types, from a body that is cut into pieces.
pub fn decode(data: &[u8]) {
    let mut input = Input::new(data);
    let (which, piece) = (input.byte(), usize::from(input.byte()) + 1);
    let wire = input.rest();
    let limits = limits();
    match which % 5 {
        0 => message(wire, piece, |request| check_refusal(convert::read(request, &limits, |_| Instant::now()))),
        1 => message(wire, piece, |request| check_refusal(convert::upsert(request, &limits))),
        2 => message(wire, piece, |request| check_refusal(convert::chunk(request, None, &limits))),
        3 => message(wire, piece, |request| check_refusal(convert::delete(request, &limits))),
        _ => message(wire, piece, |InfoRequest {}| ()),
    }
}

/// Decodes as the server does, encodes again, and compares.
fn message<M>(wire: &[u8], piece: usize, check: impl FnOnce(M))
where
    M: Message + Default + Clone + PartialEq + std::fmt::Debug + Send + 'static,
{
    let mut codec = SizedCodec::<M, M>::default();
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(wire.len()).expect("inputs are short").to_be_bytes());
    framed.extend_from_slice(wire);
    let pieces: Vec<_> =
        framed.chunks(piece).map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(piece)))).collect();
    let body = StreamBody::new(stream::iter(pieces));
    let mut requests = Streaming::new_request(codec.decoder(), body, None, Some(limits().max_request_bytes));
    let received = requests.message().now_or_never().expect("all of it is there");

    let is_good = wire.len() <= limits().max_request_bytes && M::decode(wire).is_ok();
    assert_eq!(received.is_ok(), is_good, "{received:?}");
    let Ok(received) = received else { return };
    let request = received.expect("one was sent");
    assert!(matches!(requests.message().now_or_never(), Some(Ok(None))), "one only");

    let encoded = request.encode_to_vec();
    let sent = EncodeBody::new_client(codec.encoder(), stream::iter([Ok(request.clone())]), None, None);
    let sent = sent.collect().now_or_never().expect("nothing to wait for").expect("it has a size").to_bytes();
    assert_eq!(sent[..5], [&[0][..], &(encoded.len() as u32).to_be_bytes()].concat());
    assert_eq!(sent[5..], encoded);
    // Compared as bytes, because NaN equals nothing.
    let again = M::decode(&encoded[..]).expect("what was encoded");
    assert_eq!(again.encode_to_vec(), encoded);
    check(request);
}

fn check_refusal<T>(checked: Result<T, Failure>) {
    if let Err(failure) = checked {
        check_failure(failure, Code::InvalidArgument);
    }
}

fn check_failure(failure: Failure, code: Code) {
    let item: proto::Error = failure.clone().into();
    assert!(item.encoded_len() <= MAX_STATUS_BYTES, "{} bytes of an item's error", item.encoded_len());
    assert!(
        !item.reason.is_empty()
            && item.reason.bytes().all(|b| b.is_ascii_uppercase() || b == b'_' || b.is_ascii_digit())
    );
    let status: Status = failure.into();
    assert_eq!(status.code(), code);
    assert!(!status.message().is_empty());
    let response = status.into_http::<()>();
    let bytes: usize = response.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
    assert!(bytes <= MAX_STATUS_BYTES, "{bytes} bytes of headers");
}

/// A store in a map, and the answers that clients get from it.
struct World {
    documents: BTreeMap<RecordKey, Document>,
    now: Millis,
    limits: Limits,
    rules: WriteRules,
}

/// Runs a sequence of calls.
pub fn validate(data: &[u8]) {
    let mut input = Input::new(data);
    let limits = limits();
    let rules = WriteRules {
        default_ttl: Duration::from_secs(60),
        tombstone_ttl: Duration::from_secs(600),
        max_features: limits.max_features,
        max_record_bytes: limits.max_record_bytes,
    };
    let mut world = World { documents: BTreeMap::new(), now: Millis(1_790_000_000_000), limits, rules };
    for _ in 0..16 {
        if input.is_over() {
            break;
        }
        match input.byte() % 5 {
            0 => world.upsert(&mut input),
            1 => world.read(&mut input),
            2 => world.bulk(&mut input),
            3 => world.delete(&mut input),
            _ => world.now = world.now.after(Duration::from_millis(input.number().unsigned_abs() >> 20)),
        }
    }
}

impl World {
    fn upsert(&mut self, input: &mut Input<'_>) {
        let record = if input.byte() == 0xff { None } else { Some(record(input)) };
        let request = UpsertFeaturesRequest { feature_view: view(input), record, request_id: input.text() };
        // As it arrives in the protocol.
        let request = UpsertFeaturesRequest::decode(&*request.encode_to_vec()).expect("just encoded");
        let write = match convert::upsert(request.clone(), &self.limits) {
            Ok(write) => write,
            Err(failure) => return check_failure(failure, Code::InvalidArgument),
        };
        let record = request.record.expect("no record is refused");
        assert_eq!(write.key.entity_id.as_str(), record.entity_id);
        let Change::Upsert(checked) = &write.change else { panic!("{write:?}") };
        let given = record.features.into_map();
        assert_eq!(checked.features.count(), given.len());
        for (name, value) in &checked.features.decode() {
            assert_eq!(value.encode_to_vec(), given[name.as_str()].encode_to_vec(), "it is never rewritten");
        }
        let again = checked.features.decode().into_iter().collect::<EncodedFeatures>();
        assert_eq!(again, checked.features, "there is one way to store them");
        // Then it may get the answer of another call.
        let is_repeatable = !request.request_id.is_empty();
        let answer = self.write(&write);
        match convert::upsert_response(answer.clone(), &self.limits) {
            Ok(response) => assert_eq!(response.revision, answer.receipt.revision.0),
            Err(failure) => {
                let code = match answer.receipt.outcome {
                    Outcome::RevisionMismatch { .. } => Code::Aborted,
                    Outcome::RequestIdReused => {
                        assert!(is_repeatable, "an id of ours was reused");
                        Code::InvalidArgument
                    }
                    // Only a merge can make a valid record too large.
                    Outcome::TooManyFeatures { .. } | Outcome::RecordTooLarge { .. } => {
                        let is_merge = checked.mode == crate::record::WriteMode::Merge;
                        assert!(is_merge || is_repeatable, "accepted, and cannot be stored");
                        Code::InvalidArgument
                    }
                    _ => panic!("{answer:?}"),
                };
                check_failure(failure, code);
            }
        }
    }

    fn bulk(&mut self, input: &mut Input<'_>) {
        let count = input.byte() % 6;
        let request = BulkUpsertRequest {
            feature_view: view(input),
            sequence: input.number() as u64,
            records: (0..count).map(|_| record(input)).collect(),
            model_version: input.text(),
            ttl: duration(input),
            warm_cache: input.flag(),
            all_results: input.flag(),
        };
        let request = BulkUpsertRequest::decode(&*request.encode_to_vec()).expect("just encoded");
        let chunk = match convert::chunk(request.clone(), None, &self.limits) {
            Ok(chunk) => chunk,
            Err(failure) => return check_failure(failure, Code::InvalidArgument),
        };
        assert_eq!((chunk.entity_ids.len(), chunk.sequence), (request.records.len(), request.sequence));
        let mut places: Vec<usize> = chunk.writes.iter().map(|(at, _)| *at).collect();
        places.extend(chunk.refused.iter().map(|(at, _)| *at));
        places.sort_unstable();
        assert!(places.into_iter().eq(0..request.records.len()), "each record is written or refused");
        for (_, write) in &chunk.writes {
            self.write(write);
        }
        for (at, failure) in chunk.refused {
            let item: proto::Error = failure.clone().into();
            assert!(item.field.starts_with(&format!("records[{at}]")), "{item:?}");
            check_failure(failure, Code::InvalidArgument);
        }
    }

    fn delete(&mut self, input: &mut Input<'_>) {
        let request =
            DeleteFeaturesRequest { feature_view: view(input), entity_ids: ids(input), request_id: input.text() };
        let mut deletes = match convert::delete(request.clone(), &self.limits) {
            Ok(deletes) => deletes,
            Err(failure) => return check_failure(failure, Code::InvalidArgument),
        };
        let writes = std::mem::take(&mut deletes.writes);
        let items = writes.iter().map(|write| Ok((self.write(write).receipt, true))).collect();
        let response = convert::delete_response(deletes, BulkAnswer { items }, &self.limits).expect("nothing failed");
        assert!(response.results.iter().map(|result| &result.entity_id).eq(&request.entity_ids));
        for result in response.results.iter().filter(|_| request.request_id.is_empty()) {
            let outcome = WriteOutcome::try_from(result.outcome);
            assert!(matches!(outcome, Ok(WriteOutcome::Deleted | WriteOutcome::NotFound)), "{result:?}");
        }
    }

    /// Applies a write, as the embedded store does.
    fn write(&mut self, write: &Write) -> WriteAnswer {
        let stored = self.documents.get(&write.key);
        let before = stored.map_or(0, |document| document.revision().0);
        let (receipt, document) = apply(stored, write.clone(), self.now, &self.rules);
        if let Some(document) = document {
            assert!(document.revision().0 >= before, "revisions grow");
            if let Content::Record(record) = &document.content {
                let read = StoredRecord::parse(record.as_bytes().clone()).expect("just written");
                let snapshot = read.decode().expect("just written");
                assert!(snapshot.features.len() <= self.limits.max_features);
                assert!(features_len(&snapshot.features) <= self.limits.max_record_bytes);
                assert_eq!(StoredRecord::encode(&snapshot), *record);
            }
            self.documents.insert(write.key.clone(), document);
        }
        WriteAnswer { receipt, state: self.state(&write.key), cached: true }
    }

    fn state(&self, key: &RecordKey) -> State {
        self.documents.get(key).map_or(State::Absent, |document| document.content.state())
    }

    fn read(&mut self, input: &mut Input<'_>) {
        let count = input.byte() % 4;
        let request = GetFeaturesRequest {
            feature_view: view(input),
            entity_ids: ids(input).into_iter().collect(),
            feature_names: (0..count).map(|_| name(input)).collect(),
            consistency: i32::from(input.byte() % 4),
            expected_model_version: input.text(),
            max_age: duration(input),
            min_revisions: if input.flag() { [(id(input), input.number())].into() } else { BTreeMap::new() },
            format: i32::from(input.byte() % 6),
            omit_metadata: input.flag(),
        };
        let read = match convert::read(request.clone(), &self.limits, |_| Instant::now()) {
            Ok(read) => read,
            Err(failure) => return check_failure(failure, Code::InvalidArgument),
        };
        let keys = read.request.keys.clone();
        assert!(keys.iter().map(|key| key.entity_id.as_str().as_bytes()).eq(request.entity_ids.iter()));
        let rows = keys.iter().map(|key| Ok(Row { state: self.state(key), tier: Tier::L2 })).collect();
        let answer = ReadAnswer { rows, ..ReadAnswer::default() };
        let (response, bytes, _) = rows::response(read, answer, self.now, usize::MAX).expect("nothing failed");
        let wire = response.encode_to_vec();
        assert_eq!(wire.len(), bytes);
        assert_eq!(wire.len(), response.encoded_len());
        let seen = client::GetFeaturesResponse::decode(&wire[..]).expect("clients read it");
        match &seen.matrix {
            None => {
                assert_eq!(seen.rows.len(), keys.len());
                for (key, row) in keys.iter().zip(&seen.rows) {
                    self.check_row(key, row, &request);
                }
            }
            Some(matrix) => self.check_matrix(&keys, matrix, &request),
        }
    }

    fn snapshot(&self, key: &RecordKey) -> Option<Snapshot> {
        match self.state(key) {
            State::Record(record) => Some(record.decode().expect("just written")),
            _ => None,
        }
    }

    fn status(&self, key: &RecordKey, request: &GetFeaturesRequest) -> RowStatus {
        let Some(snapshot) = self.snapshot(key) else { return RowStatus::NotFound };
        let (wanted, max_age) = (&request.expected_model_version, request.max_age.as_ref());
        let max_age = max_age.map(|age| age.seconds * 1000 + i64::from(age.nanos) / 1_000_000);
        if snapshot.expire_at.is_some_and(|at| at <= self.now) {
            RowStatus::Expired
        } else if !wanted.is_empty() && *wanted != snapshot.model_version {
            RowStatus::VersionMismatch
        } else if max_age.is_some_and(|max_age| snapshot.event_time.0 < self.now.0 - max_age) {
            RowStatus::TooOld
        } else {
            RowStatus::Found
        }
    }

    fn check_row(&self, key: &RecordKey, row: &client::FeatureRow, request: &GetFeaturesRequest) {
        let status = self.status(key, request);
        assert_eq!((row.entity_id.as_str(), row.status), (key.entity_id.as_str(), status as i32));
        assert_eq!(row.revision, self.state(key).revision().0);
        let Some(snapshot) = self.snapshot(key) else { return };
        if !request.omit_metadata {
            assert_eq!(row.model_version, snapshot.model_version);
            let times = [Some(snapshot.event_time), Some(snapshot.write_time), snapshot.expire_at];
            assert_eq!([row.event_time, row.write_time, row.expire_time], times.map(|at| at.map(timestamp)));
        }
        let wanted = |name: &str| request.feature_names.is_empty() || request.feature_names.iter().any(|n| n == name);
        let expected = snapshot.features.iter().filter(|(name, _)| status == RowStatus::Found && wanted(name.as_str()));
        let expected: BTreeMap<_, _> = expected.map(|(name, value)| (name.as_str(), value.encode_to_vec())).collect();
        let seen: BTreeMap<_, _> =
            row.features.iter().map(|(name, value)| (name.as_str(), value.encode_to_vec())).collect();
        assert_eq!(seen, expected);
        if status == RowStatus::Found {
            let lacked = |name: &&String| !snapshot.features.contains_key(name.as_str());
            let lacked: std::collections::BTreeSet<_> = request.feature_names.iter().filter(lacked).collect();
            assert!(
                row.missing_features.len() == lacked.len() && row.missing_features.iter().all(|n| lacked.contains(n))
            );
        }
    }

    fn check_matrix(&self, keys: &[RecordKey], matrix: &client::FeatureMatrix, request: &GetFeaturesRequest) {
        let cells = keys.len() * request.feature_names.len();
        let width = if request.format == ResponseFormat::MatrixFloat32 as i32 { 4 } else { 8 };
        assert_eq!((matrix.row_count as usize, &matrix.feature_names), (keys.len(), &request.feature_names));
        assert_eq!((matrix.values.len(), matrix.field_statuses.len()), (cells * width, cells));
        assert!(matrix.row_statuses.iter().copied().eq(keys.iter().map(|key| self.status(key, request) as i32)));
        for (value, status) in matrix.values.chunks(width).zip(&matrix.field_statuses) {
            let number = match value {
                [a, b, c, d] => f64::from(f32::from_le_bytes([*a, *b, *c, *d])),
                _ => f64::from_le_bytes(value.try_into().expect("8 bytes")),
            };
            assert!(i32::from(*status) == FieldStatus::Present as i32 || number.is_nan());
        }
    }
}

fn view(input: &mut Input<'_>) -> String {
    match input.byte() {
        0..=0xdf => String::new(),
        0xe0..=0xef => "risk".to_owned(),
        _ => input.text(),
    }
}

/// One of a few ids, so that calls meet on the same key; or any text.
fn id(input: &mut Input<'_>) -> String {
    match input.byte() {
        few @ 0..=0xdf => format!("CUST{}", few % 4),
        0xe0..=0xe7 => "é".repeat(256),
        0xe8..=0xef => "x".repeat(513),
        _ => input.text(),
    }
}

fn ids(input: &mut Input<'_>) -> Vec<String> {
    (0..input.byte() % 6).map(|_| id(input)).collect()
}

fn name(input: &mut Input<'_>) -> String {
    match input.byte() {
        few @ 0..=0xdf => ["a", "b_1", "income", "_:-", "Z", "zeta", "m", "n"][usize::from(few % 8)].to_owned(),
        0xe0..=0xe7 => "n".repeat(128),
        0xe8..=0xef => "n".repeat(100_000),
        _ => input.text(),
    }
}

fn record(input: &mut Input<'_>) -> FeatureRecord {
    let count = input.byte() % 8;
    FeatureRecord {
        entity_id: id(input),
        features: (0..count).map(|_| (name(input), Value { kind: kind(input, 6) })).collect(),
        model_version: input.text(),
        event_time: input.flag().then(|| Timestamp { seconds: number(input), nanos: input.number() as i32 }),
        ttl: duration(input),
        never_expires: input.byte() > 0xf0,
        write_mode: i32::from(input.byte() % 4),
        if_revision: (input.byte() > 0xc0).then(|| input.number()),
    }
}

/// Small, at an edge of what a Timestamp or a Duration may hold, or any number.
fn number(input: &mut Input<'_>) -> i64 {
    const EDGES: [i64; 8] = [
        -62_135_596_800,
        -62_135_596_801,
        253_402_300_799,
        253_402_300_800,
        315_576_000_000,
        3_155_760_000,
        1_790_000_000,
        60,
    ];
    if input.flag() { input.one_of(&EDGES) } else { input.number() }
}

fn duration(input: &mut Input<'_>) -> Option<prost_types::Duration> {
    let nanos = [0, 1, 999_999, 1_000_000, 999_999_999, -1, i32::MIN, i32::MAX];
    input.flag().then(|| prost_types::Duration { seconds: number(input), nanos: input.one_of(&nanos) })
}

fn kind(input: &mut Input<'_>, depth: u8) -> Option<Kind> {
    let doubles = [0.5, -0.0, f64::NAN, f64::INFINITY, f64::MAX, 9_007_199_254_740_993.0];
    let few = |input: &mut Input<'_>| 0..input.byte() % 4;
    Some(match input.byte() % 20 {
        0 => return None,
        1 => Kind::BytesVal(input.piece().to_vec().into()),
        2 => Kind::StringVal(input.text()),
        3 => Kind::Int32Val(input.number() as i32),
        4 => Kind::Int64Val(input.number()),
        5 => Kind::DoubleVal(input.one_of(&doubles)),
        6 => Kind::FloatVal(input.one_of(&doubles) as f32),
        7 => Kind::BoolVal(input.flag()),
        8 => Kind::UnixTimestampVal(input.number()),
        9 => Kind::BytesListVal(BytesList { val: few(input).map(|_| input.piece().to_vec().into()).collect() }),
        10 => Kind::StringListVal(StringList { val: few(input).map(|_| input.text()).collect() }),
        11 => Kind::Int32ListVal(Int32List { val: few(input).map(|_| input.number() as i32).collect() }),
        12 => Kind::Int64ListVal(Int64List { val: few(input).map(|_| input.number()).collect() }),
        13 => Kind::DoubleListVal(DoubleList { val: few(input).map(|_| input.one_of(&doubles)).collect() }),
        14 => Kind::FloatListVal(FloatList { val: few(input).map(|_| input.one_of(&doubles) as f32).collect() }),
        15 => Kind::BoolListVal(BoolList { val: few(input).map(|_| input.flag()).collect() }),
        16 => Kind::UnixTimestampListVal(Int64List { val: few(input).map(|_| input.number()).collect() }),
        17 => Kind::NullVal(i32::from(input.byte() > 0xf0)),
        _ => Kind::StructVal(json_object(input, depth)),
    })
}

fn json_object(input: &mut Input<'_>, depth: u8) -> Struct {
    let count = input.byte() % 3;
    Struct { fields: (0..count).map(|_| (input.text(), json(input, depth))).collect() }
}

fn json(input: &mut Input<'_>, depth: u8) -> prost_types::Value {
    let kind = match input.byte() % 8 {
        0 => None,
        1 => Some(JsonKind::NullValue(i32::from(input.byte() > 0xf0))),
        2 => Some(JsonKind::NumberValue(input.number() as f64)),
        3 => Some(JsonKind::StringValue(input.text())),
        4 => Some(JsonKind::BoolValue(input.flag())),
        _ if depth == 0 => Some(JsonKind::BoolValue(true)),
        5 => Some(JsonKind::ListValue(ListValue {
            values: (0..input.byte() % 3).map(|_| json(input, depth - 1)).collect(),
        })),
        _ => Some(JsonKind::StructValue(json_object(input, depth - 1))),
    };
    prost_types::Value { kind }
}
