//! Bad reads and deletes.

use tonic::Code;

use super::small_server;
use crate::harness::client::*;

pub(super) fn bad_views() -> Vec<String> {
    let views = ["A", "1a", "_a", "a-b", "a b", "é", "a\0", "default\n", "a.b"];
    views.into_iter().map(str::to_owned).chain(["a".repeat(64)]).collect()
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_read_is_refused_with_the_path_of_its_field() {
    let server = small_server().await;
    let mut client = server.client().await;
    let good = || get(["A", "B"]);
    let mut cases = vec![
        (get::<&str>([]), "entity_ids", "MISSING_FIELD"),
        (get(["A", "B", ""]), "entity_ids[2]", "INVALID_ENTITY_ID"),
        (get(["A", "\u{1b}"]), "entity_ids[1]", "INVALID_ENTITY_ID"),
        (get([&"x".repeat(513)]), "entity_ids[0]", "INVALID_ENTITY_ID"),
        (GetFeaturesRequest { consistency: 3, ..good() }, "consistency", "UNKNOWN_ENUM_VALUE"),
        (GetFeaturesRequest { consistency: -1, ..good() }, "consistency", "UNKNOWN_ENUM_VALUE"),
        (GetFeaturesRequest { format: 4, ..good() }, "format", "UNKNOWN_ENUM_VALUE"),
        (
            GetFeaturesRequest { min_revisions: [("A".to_owned(), -1)].into(), ..good() },
            "min_revisions[\"A\"]",
            "INVALID_REVISION",
        ),
    ];
    for view in bad_views() {
        cases.push((GetFeaturesRequest { feature_view: view, ..good() }, "feature_view", "INVALID_FEATURE_VIEW"));
    }
    for name in ["", "1a", "a.b", "$a", "a b", "é", &"x".repeat(129)] {
        let feature_names = owned(&["a", "b", name]);
        cases.push((GetFeaturesRequest { feature_names, ..good() }, "feature_names[2]", "INVALID_FEATURE_NAME"));
    }
    for max_age in [seconds(0), seconds(-1), seconds(i64::MAX), prost_types::Duration { seconds: 0, nanos: 999_999 }] {
        cases.push((GetFeaturesRequest { max_age: Some(max_age), ..good() }, "max_age", "INVALID_DURATION"));
    }
    for format in [ResponseFormat::MatrixFloat64, ResponseFormat::MatrixFloat32] {
        let nameless = GetFeaturesRequest { format: format.into(), ..good() };
        cases.push((nameless, "feature_names", "MISSING_FIELD"));
    }
    for (request, field, reason) in cases {
        let what = format!("{request:?}");
        let refused = Refusal::of(&client.get_features(request).await.expect_err(&what));
        assert_eq!(refused.code, Code::InvalidArgument, "{what}");
        assert_eq!((refused.reason.as_str(), refused.fields), (reason, owned(&[field])), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_delete_is_refused_and_deletes_nothing() {
    let server = small_server().await;
    let mut client = server.client().await;
    let written = put(&mut client, record("A", [])).await;
    let mut cases = vec![
        (delete::<&str>([]), "entity_ids", "MISSING_FIELD"),
        (delete(["A", "B", ""]), "entity_ids[2]", "INVALID_ENTITY_ID"),
        (delete(["A", "\t"]), "entity_ids[1]", "INVALID_ENTITY_ID"),
        (DeleteFeaturesRequest { request_id: "é".repeat(65), ..delete(["A"]) }, "request_id", "INVALID_REQUEST_ID"),
    ];
    for view in bad_views() {
        let request = DeleteFeaturesRequest { feature_view: view, ..delete(["A"]) };
        cases.push((request, "feature_view", "INVALID_FEATURE_VIEW"));
    }
    for (request, field, reason) in cases {
        let what = format!("{request:?}");
        let refused = Refusal::of(&client.delete_features(request).await.expect_err(&what));
        assert_eq!(refused.code, Code::InvalidArgument, "{what}");
        assert_eq!((refused.reason.as_str(), refused.fields), (reason, owned(&[field])), "{what}");
        let row = row(&mut client, strong(["A"])).await;
        assert_eq!((row.status(), row.revision), (RowStatus::Found, written.revision), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_wrong_with_a_read_is_told_at_once() {
    let server = small_server().await;
    let mut client = server.client().await;
    let request = GetFeaturesRequest {
        feature_view: "No".into(),
        entity_ids: owned(&["", "good", "\n"]),
        feature_names: owned(&["a.b", "good", "$"]),
        consistency: 9,
        max_age: Some(seconds(0)),
        min_revisions: [("good".to_owned(), -1)].into(),
        format: 9,
        ..GetFeaturesRequest::default()
    };
    let mut refused = Refusal::of(&client.get_features(request).await.unwrap_err());
    refused.fields.sort();
    let fields = [
        "consistency",
        "entity_ids[0]",
        "entity_ids[2]",
        "feature_names[0]",
        "feature_names[2]",
        "feature_view",
        "format",
        "max_age",
        "min_revisions[\"good\"]",
    ];
    assert_eq!(refused.fields, owned(&fields));
    let request =
        DeleteFeaturesRequest { feature_view: "No".into(), request_id: "r".repeat(129), ..delete(["", "good"]) };
    let mut refused = Refusal::of(&client.delete_features(request).await.unwrap_err());
    refused.fields.sort();
    assert_eq!(refused.fields, owned(&["entity_ids[0]", "feature_view", "request_id"]));
}
