//! Limits: exactly the maximum is allowed, one more is not.

use std::collections::BTreeMap;

use prost::Message as _;
use prost_types::{Duration, Timestamp};
use tonic::Code;
use value::Kind;

use super::{SETTINGS, TEN_DAYS, small_server};
use crate::harness::{
    client::*,
    server::{Pair, Server},
};

fn text(bytes: usize) -> Value {
    value(Kind::StringVal("x".repeat(bytes)))
}

fn counts(count: usize, maximum: usize) -> BTreeMap<String, String> {
    [("count".to_owned(), count.to_string()), ("maximum".to_owned(), maximum.to_string())].into()
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_the_maximum_is_allowed_of_every_field() {
    let server = small_server().await;
    let mut client = server.client().await;
    let record = |id: &str| self::record(id, [("a", double(1.0))]);
    let names = ["a".to_owned(), "_".to_owned(), "x".repeat(128)];
    let good = [
        record(&"x".repeat(512)),
        record(&"é".repeat(256)),
        record("a b{c}:\u{a0}\u{2028}"),
        self::record("EMPTY", []),
        self::record("NAMES", names.each_ref().map(|name| (name.as_str(), double(1.0)))),
        FeatureRecord { ttl: Some(seconds(TEN_DAYS)), ..record("TTL") },
        FeatureRecord { ttl: Some(Duration { seconds: 0, nanos: 1_000_000 }), ..record("SHORT") },
        FeatureRecord { event_time: Some(timestamp(-62_135_596_800)), ..record("FIRST") },
        FeatureRecord {
            event_time: Some(Timestamp { seconds: 253_402_300_799, nanos: 999_999_999 }),
            ..record("LAST")
        },
        FeatureRecord { if_revision: Some(0), ..record("NEW") },
    ];
    for record in good {
        let what = format!("{record:?}");
        let request = UpsertFeaturesRequest {
            feature_view: "v".repeat(63),
            request_id: "r".repeat(128),
            record: Some(record.clone()),
        };
        client.upsert_features(request).await.expect(&what);
        let read = GetFeaturesRequest {
            feature_view: "v".repeat(63),
            feature_names: names.to_vec(),
            max_age: Some(Duration { seconds: 315_576_000_000, nanos: 0 }),
            ..get([record.entity_id])
        };
        row(&mut client, read).await;
    }
    assert_eq!(rows(&mut client, get(["A", "B", "C"])).await.len(), 3);
    let deleted = client.delete_features(delete(["A", "B", "C"])).await.unwrap().into_inner();
    assert_eq!(deleted.results.len(), 3);
    let records = ["A", "B", "C"].map(|id| self::record(id, []));
    assert_eq!(bulk(&mut client, [chunk(1, records)]).await.0[0].written, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn times_at_both_ends_of_the_range_read_back_on_every_pair_of_tiers() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        for (id, seconds, nanos) in [("FIRST", -62_135_596_800, 0), ("LAST", 253_402_300_799, 999_000_000)] {
            let at = Timestamp { seconds, nanos };
            put(&mut client, FeatureRecord { event_time: Some(at), ..record(id, []) }).await;
            for request in [get([id]), strong([id])] {
                assert_eq!(row(&mut client, request).await.event_time, Some(at), "{} {id}", pair.name());
            }
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_entities_or_names_than_allowed_are_refused_with_their_count() {
    let server = small_server().await;
    let mut client = server.client().await;
    let four = ["A", "B", "C", "D"];
    let too_many_names = GetFeaturesRequest { feature_names: four.map(str::to_owned).into(), ..get(["A"]) };
    let refused = [
        ("TOO_MANY_ENTITIES", client.get_features(get(four)).await.unwrap_err()),
        ("TOO_MANY_FEATURES", client.get_features(too_many_names).await.unwrap_err()),
        ("TOO_MANY_ENTITIES", client.delete_features(delete(four)).await.unwrap_err()),
        (
            "TOO_MANY_FEATURES",
            client.upsert_features(upsert(record("LEFT", four.map(|n| (n, double(1.0)))))).await.unwrap_err(),
        ),
    ];
    for (reason, status) in refused {
        let refused = Refusal::of(&status);
        assert_eq!((refused.code, refused.reason.as_str()), (Code::InvalidArgument, reason));
        assert_eq!(refused.metadata, counts(4, 3), "{reason}");
    }
    super::nothing_is_left(&mut client, "too many features").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_exactly_the_maximum_is_allowed_and_one_more_byte_is_not() {
    let server = small_server().await;
    let mut client = server.client().await;
    let of = |bytes| record("R", [("a", text(bytes))]);
    let stored = |record: &FeatureRecord| FeatureRow { features: record.features.clone(), ..FeatureRow::default() };
    let fits = 2000 + (3 << 10) - stored(&of(2000)).encoded_len();
    put(&mut client, of(fits)).await;
    let refused = Refusal::of(&client.upsert_features(upsert(of(fits + 1))).await.unwrap_err());
    assert_eq!((refused.code, refused.reason.as_str()), (Code::InvalidArgument, "RECORD_TOO_LARGE"));
    assert_eq!((&*refused.metadata["bytes"], &*refused.metadata["maximum"]), ("3073", "3072"));
    // The model version counts too.
    let versioned = FeatureRecord { model_version: "v".into(), ..of(fits) };
    let refused = Refusal::of(&client.upsert_features(upsert(versioned)).await.unwrap_err());
    assert_eq!(refused.reason, "RECORD_TOO_LARGE");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_for_the_merged_record_on_every_pair_of_tiers() {
    for pair in Pair::all() {
        let server = pair.serve_with(&[&SETTINGS[..], &[("FEATURESTORE_TTL_DEFAULT", "1h")]].concat()).await;
        let mut client = server.client().await;
        let written = put(&mut client, record("R", [("a", text(900)), ("b", text(900))])).await;
        let merge = |record| FeatureRecord { write_mode: WriteMode::Merge.into(), ..record };
        let four = merge(record("R", [("c", double(1.0)), ("d", double(1.0))]));
        let large = merge(record("R", [("c", text(1500))]));
        for (record, reason) in [(four, "TOO_MANY_FEATURES"), (large, "RECORD_TOO_LARGE")] {
            let what = format!("{} {reason}", pair.name());
            let refused = Refusal::of(&client.upsert_features(upsert(record.clone())).await.expect_err(&what));
            assert_eq!((refused.code, refused.reason.as_str()), (Code::InvalidArgument, reason), "{what}");
            let maximum = if reason == "TOO_MANY_FEATURES" { "3" } else { "3072" };
            assert_eq!(refused.metadata["maximum"], maximum, "{what}");
            let (answers, ended) = bulk(&mut client, [chunk(1, [record])]).await;
            assert!(ended.is_none() && answers[0].failed == 1, "{what}: {answers:?} {ended:?}");
            assert_eq!(answers[0].results[0].error.as_ref().unwrap().reason, reason, "{what}");
            let omit = |request| GetFeaturesRequest { feature_names: vec!["c".into()], ..request };
            for request in [omit(get(["R"])), omit(strong(["R"]))] {
                let row = row(&mut client, request).await;
                assert_eq!((row.revision, row.missing_features), (written.revision, vec!["c".to_owned()]), "{what}");
            }
        }
        // A third one, and one in the place of another, are not too many.
        put(&mut client, merge(record("R", [("b", double(1.0)), ("c", text(900))]))).await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_of_exactly_the_maximum_is_sent_and_one_more_byte_is_refused() {
    let server = small_server().await;
    let mut client = server.client().await;
    let of = |bytes| record("R", [("a", text(bytes)), ("b", double(1.0))]);
    // Without times, whose lengths differ.
    let request = || GetFeaturesRequest { omit_metadata: true, ..get(["R", "S"]) };
    put(&mut client, record("S", [("a", text(2000)), ("b", double(1.0))])).await;
    put(&mut client, of(1500)).await;
    let length = client.get_features(request()).await.unwrap().into_inner().encoded_len();
    let fits = 1500 + (4 << 10) - length;
    put(&mut client, of(fits)).await;
    assert_eq!(client.get_features(request()).await.unwrap().into_inner().encoded_len(), 4 << 10);
    put(&mut client, of(fits + 1)).await;
    let refused = Refusal::of(&client.get_features(request()).await.unwrap_err());
    assert_eq!((refused.code, refused.reason.as_str()), (Code::ResourceExhausted, "RESPONSE_TOO_LARGE"));
    assert_eq!((&*refused.metadata["bytes"], &*refused.metadata["maximum"]), ("4097", "4096"));
    // What the message advises helps.
    let named = GetFeaturesRequest { feature_names: vec!["b".into()], ..request() };
    assert!(rows(&mut client, named).await.iter().all(|row| row.status() == RowStatus::Found));
}

/// Names that a record lacks come back with each row, so a small request has a large answer.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_too_large_is_not_built_to_its_end() {
    const MAX: usize = 4 << 20;
    let server = Server::start(&[("FEATURESTORE_LIMITS_MAX_RESPONSE_BYTES", "4MiB")]).await;
    let mut client = server.client().await;
    put(&mut client, record("R", [("a", double(1.0))])).await;
    let names: Vec<String> = (0..1000).map(|i| format!("{i:a>120}")).collect();
    let request = GetFeaturesRequest { feature_names: names, ..get(vec!["R"; 1000]) };
    let told = |refused: Refusal| {
        assert_eq!((refused.code, refused.reason.as_str()), (Code::ResourceExhausted, "RESPONSE_TOO_LARGE"));
        refused.metadata["bytes"].parse::<usize>().unwrap()
    };
    let rows = told(Refusal::of(&client.get_features(request.clone()).await.unwrap_err()));
    assert!(rows < MAX + (200 << 10), "one row more than fits: {rows}");
    // Of a matrix it is known before anything of it is built.
    let matrix = GetFeaturesRequest { format: ResponseFormat::MatrixFloat64.into(), ..request };
    let matrix = told(Refusal::of(&client.get_features(matrix).await.unwrap_err()));
    assert_eq!(matrix, 1000 * 1000 * 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_message_larger_than_allowed_is_refused_and_the_connection_goes_on() {
    let server = Server::start(&[("FEATURESTORE_LIMITS_MAX_REQUEST_BYTES", "2MiB")]).await;
    let mut client = server.client().await;
    let large = upsert(record("LEFT", [("a", text(2 << 20))]));
    let refuses = |status: &tonic::Status| {
        let refused = Refusal::of(status);
        (refused.code, refused.reason.as_str()) == (Code::InvalidArgument, "REQUEST_TOO_LARGE")
            && refused.metadata["maximum"] == (2 << 20).to_string()
    };
    let refused = client.upsert_features(large.clone()).await.unwrap_err();
    assert!(refuses(&refused), "{refused:?}");
    let message = BulkUpsertRequest { records: vec![large.record.unwrap()], ..chunk(2, []) };
    let (answers, ended) = bulk(&mut client, [chunk(1, [record("A", [])]), message]).await;
    assert_eq!((answers.len(), answers[0].written), (1, 1), "{answers:?}");
    assert!(ended.as_ref().is_some_and(refuses), "{ended:?}");
    super::nothing_is_left(&mut client, "too large").await;
}

/// What is told of a call fits into what clients take of a header list: 16 KiB here, 8 KiB in Python and Java.
#[tokio::test(flavor = "multi_thread")]
async fn of_very_much_that_is_wrong_clients_are_told_the_first_and_how_much_more() {
    let server = Server::start(&[]).await;
    let mut client = server.client().await;
    let status = client.get_features(get([""; 1000])).await.unwrap_err();
    let refused = Refusal::of(&status);
    assert_eq!((refused.code, refused.reason.as_str()), (Code::InvalidArgument, "INVALID_ENTITY_ID"));
    assert_eq!(refused.fields[..2], ["entity_ids[0]", "entity_ids[1]"]);
    let rest = format!("; and {} more", 1000 - refused.fields.len());
    assert!(status.message().ends_with(&rest), "{}", status.message());

    let name = |number| format!("\u{1}{number}{}", "é".repeat(10_000));
    let features = (0..100).map(|number| (name(number), double(1.0))).collect();
    let bad = FeatureRecord { features, ..record("LEFT", []) };
    let status = client.upsert_features(upsert(bad)).await.unwrap_err();
    let refused = Refusal::of(&status);
    assert_eq!((refused.code, refused.reason.as_str()), (Code::InvalidArgument, "INVALID_FEATURE_NAME"));
    assert!(status.message().ends_with(" more") && !refused.fields.is_empty());

    let view = GetFeaturesRequest { feature_view: "V".repeat(1 << 20), ..get(["A"]) };
    let refused = Refusal::of(&client.get_features(view).await.unwrap_err());
    assert_eq!((refused.code, refused.fields), (Code::InvalidArgument, vec!["feature_view".to_owned()]));
    let negative = (0..100_000).map(|number| (format!("A{number}"), -1)).collect();
    let refused = client.get_features(GetFeaturesRequest { min_revisions: negative, ..get(["A"]) }).await.unwrap_err();
    assert_eq!(Refusal::of(&refused).reason, "INVALID_REVISION");
    super::nothing_is_left(&mut client, "much that is wrong").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_version_may_have_128_bytes_wherever_it_is_given() {
    let server = Pair::embedded().serve().await;
    let mut client = server.client().await;
    for (length, fits) in [(128, true), (129, false), (1 << 20, false)] {
        let text = "v".repeat(length);
        let versioned = FeatureRecord { model_version: text.clone(), ..record("R", []) };
        let written = client.upsert_features(upsert(versioned.clone())).await.map(drop);
        let read = GetFeaturesRequest { expected_model_version: text.clone(), ..get(["R"]) };
        let read = client.get_features(read).await.map(drop);
        for answer in [written, read] {
            match answer.map_err(|status| Refusal::of(&status)) {
                Ok(()) => assert!(fits, "{length}"),
                Err(refused) => {
                    assert_eq!((refused.code, &*refused.reason), (Code::InvalidArgument, "INVALID_MODEL_VERSION"));
                    assert!(!fits, "{length}");
                }
            }
        }
        let (answers, ended) = bulk(&mut client, [chunk(1, [versioned])]).await;
        assert!(ended.is_none(), "{ended:?}");
        assert_eq!((answers[0].written == 1, answers[0].failed == 0), (fits, fits), "{length}: {answers:?}");
        let message = BulkUpsertRequest { model_version: text, ..chunk(1, [record("R", [])]) };
        let (answers, ended) = bulk(&mut client, [message]).await;
        let refused = ended.map(|status| Refusal::of(&status).reason);
        assert_eq!((answers.len() == 1, refused.as_deref() != Some("INVALID_MODEL_VERSION")), (fits, fits), "{length}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_mongodb_cannot_hold_is_refused_with_both_sizes() {
    let server = Pair::new(false, true).serve().await;
    let mut client = server.client().await;
    // A byte each as they are stored, and sixteen in a document.
    let zeros = value(Kind::Int64ListVal(Int64List { val: vec![0; 1_048_400] }));
    let record =
        |write_mode: WriteMode| FeatureRecord { write_mode: write_mode.into(), ..record("R", [("a", zeros.clone())]) };
    let check = |metadata: &BTreeMap<String, String>| {
        let [bytes, document, maximum] =
            ["bytes", "document_bytes", "maximum"].map(|name| metadata[name].parse::<usize>().unwrap());
        assert!(bytes < 1 << 20 && document > maximum && maximum > 15 << 20, "{metadata:?}");
    };
    for mode in [WriteMode::Replace, WriteMode::Merge] {
        let refused = Refusal::of(&client.upsert_features(upsert(record(mode))).await.unwrap_err());
        assert_eq!((refused.code, &*refused.reason), (Code::InvalidArgument, "RECORD_TOO_LARGE"));
        check(&refused.metadata);
        let (answers, ended) = bulk(&mut client, [chunk(1, [record(mode)])]).await;
        assert!(ended.is_none() && answers[0].failed == 1, "{ended:?}");
        let error = answers[0].results[0].error.as_ref().unwrap();
        assert_eq!((error.code, &*error.reason), (Code::InvalidArgument as i32, "RECORD_TOO_LARGE"));
        check(&error.metadata.clone().into_iter().collect());
    }
    server.stop().await;
}
