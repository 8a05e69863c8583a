//! Every bad input: its code, the path of each bad field, its reason, and that nothing is left behind.

mod limits;
mod reads;
mod unreadable;

use prost_types::{Duration, ListValue, Struct, Timestamp, value::Kind as Json};
use tonic::Code;
use value::Kind;

use crate::harness::{
    client::*,
    server::{Pair, Server},
};

/// Small limits.
const SETTINGS: [(&str, &str); 6] = [
    ("FEATURESTORE_LIMITS_MAX_ENTITIES", "3"),
    ("FEATURESTORE_LIMITS_MAX_FEATURES", "3"),
    ("FEATURESTORE_LIMITS_MAX_BULK_RECORDS", "3"),
    ("FEATURESTORE_LIMITS_MAX_RECORD_BYTES", "3KiB"),
    ("FEATURESTORE_LIMITS_MAX_RESPONSE_BYTES", "4KiB"),
    ("FEATURESTORE_LIMITS_MAX_TTL", "10days"),
];
const TEN_DAYS: i64 = 10 * 24 * 3600;

/// The embedded pair; most is checked before a tier is asked.
async fn small_server() -> Server {
    let server = SETTINGS.into_iter().chain([("FEATURESTORE_TTL_DEFAULT", "1h")]).collect::<Vec<_>>();
    Server::start(&server).await
}

fn json(kind: Option<Json>) -> prost_types::Value {
    prost_types::Value { kind }
}

fn object(key: &str, value: prost_types::Value) -> Struct {
    Struct { fields: [(key.to_owned(), value)].into() }
}

/// A bad record, the path of what is wrong inside it, and the reason.
type Bad = (FeatureRecord, String, &'static str);

/// Every bad record that fails for one field. All but those with a bad id have the id LEFT.
fn bad_records() -> Vec<Bad> {
    let mut bad: Vec<Bad> = Vec::new();
    let good = || record("LEFT", [("a", double(1.0))]);
    for id in ["", "a\0", "a\nb", "\u{7f}", "\u{85}", &"x".repeat(513), &"é".repeat(257)] {
        bad.push((record(id, []), "entity_id".into(), "INVALID_ENTITY_ID"));
    }
    for name in ["", "1a", "a.b", "$a", "mean radius", "é", "a/b", &"x".repeat(129)] {
        let record = record("LEFT", [("good", double(1.0)), (name, double(2.0))]);
        bad.push((record, format!("features[{name:?}]"), "INVALID_FEATURE_NAME"));
    }
    let list =
        |value| json(Some(Json::ListValue(ListValue { values: vec![json(Some(Json::BoolValue(true))), value] })));
    let deep = object("x", list(json(Some(Json::StructValue(object("y", json(None)))))));
    let kinds = [
        None,
        Some(Kind::NullVal(1)),
        Some(Kind::StructVal(object("x", json(None)))),
        Some(Kind::StructVal(object("x", json(Some(Json::NullValue(7)))))),
        Some(Kind::StructVal(object("x", list(json(None))))),
        Some(Kind::StructVal(deep)),
    ];
    for kind in kinds {
        bad.push((record("LEFT", [("f", Value { kind })]), "features[\"f\"]".into(), "INVALID_VALUE"));
    }
    let ttls =
        [(0, 0), (-1, 0), (1, -1), (0, 999_999), (TEN_DAYS, 1_000_000), (i64::MAX, 0), (i64::MIN, 0), (1, i32::MAX)];
    for (seconds, nanos) in ttls {
        let ttl = Some(Duration { seconds, nanos });
        bad.push((FeatureRecord { ttl, ..good() }, "ttl".into(), "INVALID_TTL"));
    }
    let both = FeatureRecord { ttl: Some(seconds(1)), never_expires: true, ..good() };
    bad.push((both, "ttl".into(), "INVALID_TTL"));
    let times =
        [(-62_135_596_801, 0), (253_402_300_800, 0), (0, -1), (0, 1_000_000_000), (i64::MAX, 0), (i64::MIN, i32::MIN)];
    for (seconds, nanos) in times {
        let event_time = Some(Timestamp { seconds, nanos });
        bad.push((FeatureRecord { event_time, ..good() }, "event_time".into(), "INVALID_TIME"));
    }
    for write_mode in [3, -1, i32::MAX] {
        bad.push((FeatureRecord { write_mode, ..good() }, "write_mode".into(), "UNKNOWN_ENUM_VALUE"));
    }
    let model_version = "é".repeat(64) + "v";
    bad.push((FeatureRecord { model_version, ..good() }, "model_version".into(), "INVALID_MODEL_VERSION"));
    for revision in [-1, i64::MIN] {
        let if_revision = Some(revision);
        bad.push((FeatureRecord { if_revision, ..good() }, "if_revision".into(), "INVALID_REVISION"));
    }
    bad
}

/// Records that are refused as a whole, with the reason.
fn excessive_records() -> Vec<(FeatureRecord, &'static str)> {
    let four = ["a", "b", "c", "d"].map(|name| (name, double(1.0)));
    let large = value(Kind::BytesVal(vec![0; 3 << 10]));
    vec![(record("LEFT", four), "TOO_MANY_FEATURES"), (record("LEFT", [("a", large)]), "RECORD_TOO_LARGE")]
}

async fn nothing_is_left(client: &mut Client, what: &str) {
    let row = row(client, strong(["LEFT"])).await;
    assert_eq!((row.status(), row.revision), (RowStatus::NotFound, 0), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_record_is_refused_with_the_path_of_its_field_and_leaves_nothing_behind() {
    for pair in [Pair::embedded(), Pair::real()] {
        let server = pair.serve_with(&[&SETTINGS[..], &[("FEATURESTORE_TTL_DEFAULT", "1h")]].concat()).await;
        let mut client = server.client().await;
        for (record, field, reason) in bad_records() {
            let what = format!("{}: {field} {reason} {record:?}", pair.name());
            let refused = Refusal::of(&client.upsert_features(upsert(record)).await.expect_err(&what));
            assert_eq!(refused.code, Code::InvalidArgument, "{what}");
            assert_eq!((refused.reason.as_str(), refused.fields), (reason, vec![format!("record.{field}")]), "{what}");
            assert!(!refused.retry, "{what}");
            nothing_is_left(&mut client, &what).await;
        }
        for (record, reason) in excessive_records() {
            let refused = Refusal::of(&client.upsert_features(upsert(record)).await.expect_err(reason));
            assert_eq!((refused.code, refused.reason.as_str()), (Code::InvalidArgument, reason));
            nothing_is_left(&mut client, reason).await;
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_record_in_a_bulk_message_fails_alone_with_the_path_of_its_field() {
    let server = small_server().await;
    let mut client = server.client().await;
    let excessive = excessive_records().into_iter().map(|(record, reason)| (record, None, reason));
    let bad = bad_records().into_iter().map(|(record, field, reason)| (record, Some(field), reason));
    for (sequence, (record, field, reason)) in (1..).zip(bad.chain(excessive)) {
        let what = format!("{field:?} {reason} {record:?}");
        let (before, after) = (format!("BEFORE{sequence}"), format!("AFTER{sequence}"));
        let good = |id: &str| self::record(id, [("a", double(1.0))]);
        let entity_id = record.entity_id.clone();
        let message = chunk(sequence, [good(&before), record, good(&after)]);
        let (answers, ended) = bulk(&mut client, [message]).await;
        assert!(ended.is_none(), "{what}: {ended:?}");
        let [answer] = &answers[..] else { panic!("{what}: {answers:?}") };
        assert_eq!((answer.sequence, answer.written, answer.failed), (sequence, 2, 1), "{what}");
        let [result] = &answer.results[..] else { panic!("{what}: {answers:?}") };
        assert_eq!((result.index, &result.entity_id), (1, &entity_id), "{what}");
        assert_eq!((result.outcome(), result.revision), (WriteOutcome::Failed, 0), "{what}");
        let error = result.error.as_ref().unwrap();
        let path = field.map_or_else(|| "records[1]".to_owned(), |field| format!("records[1].{field}"));
        assert_eq!((error.code, error.reason.as_str()), (Code::InvalidArgument as i32, reason), "{what}");
        assert_eq!(error.field, path, "{what}");
        assert!(!error.message.is_empty());
        let found = rows(&mut client, strong([before, after])).await;
        assert!(found.iter().all(|row| row.status() == RowStatus::Found), "{what}");
        nothing_is_left(&mut client, &what).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_upsert_is_refused_outside_its_record_too() {
    let server = small_server().await;
    let mut client = server.client().await;
    let good = || upsert(record("LEFT", [("a", double(1.0))]));
    let mut cases = vec![
        (UpsertFeaturesRequest { record: None, ..good() }, "record", "MISSING_FIELD"),
        (UpsertFeaturesRequest { request_id: "r".repeat(129), ..good() }, "request_id", "INVALID_REQUEST_ID"),
    ];
    for view in reads::bad_views() {
        cases.push((UpsertFeaturesRequest { feature_view: view, ..good() }, "feature_view", "INVALID_FEATURE_VIEW"));
    }
    for (request, field, reason) in cases {
        let what = format!("{request:?}");
        let refused = Refusal::of(&client.upsert_features(request).await.expect_err(&what));
        assert_eq!(refused.code, Code::InvalidArgument, "{what}");
        assert_eq!((refused.reason.as_str(), refused.fields), (reason, vec![field.to_owned()]), "{what}");
        nothing_is_left(&mut client, &what).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_wrong_with_an_upsert_is_told_at_once() {
    let server = small_server().await;
    let mut client = server.client().await;
    let record = FeatureRecord {
        features: features([("a.b", double(1.0)), ("ok", double(1.0)), ("empty", Value { kind: None })]),
        ttl: Some(seconds(0)),
        event_time: Some(Timestamp { seconds: 0, nanos: -1 }),
        write_mode: 9,
        if_revision: Some(-5),
        ..record("", [])
    };
    let request =
        UpsertFeaturesRequest { feature_view: "No".into(), record: Some(record), request_id: "r".repeat(129) };
    let status = client.upsert_features(request).await.unwrap_err();
    let mut refused = Refusal::of(&status);
    refused.fields.sort();
    let fields = [
        "feature_view",
        "record.entity_id",
        "record.event_time",
        "record.features[\"a.b\"]",
        "record.features[\"empty\"]",
        "record.if_revision",
        "record.ttl",
        "record.write_mode",
        "request_id",
    ];
    assert_eq!((refused.code, &refused.fields[..]), (Code::InvalidArgument, &fields.map(str::to_owned)[..]));
    // Each is in the words for people too.
    assert!(fields[2..].iter().all(|field| status.message().contains(field.trim_start_matches("record."))));
}
