//! Matrices: dense numbers, what each cell says, and what each row says. (Values of every kind: `values`.)

use value::Kind;

use crate::harness::{
    client::*,
    server::{Pair, eventually},
};

async fn matrix(client: &mut Client, request: GetFeaturesRequest) -> FeatureMatrix {
    let response = client.get_features(request).await.unwrap().into_inner();
    assert!(response.rows.is_empty());
    response.matrix.unwrap()
}

fn asking(format: ResponseFormat, names: &[&str], request: GetFeaturesRequest) -> GetFeaturesRequest {
    let feature_names = names.iter().map(|name| (*name).to_owned()).collect();
    GetFeaturesRequest { feature_names, format: format.into(), ..request }
}

fn doubles(matrix: &FeatureMatrix) -> Vec<f64> {
    matrix.values.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn floats(matrix: &FeatureMatrix) -> Vec<f32> {
    matrix.values.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn statuses(matrix: &FeatureMatrix) -> Vec<FieldStatus> {
    matrix.field_statuses.iter().map(|status| FieldStatus::try_from(i32::from(*status)).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_columns_stand_in_the_order_asked_for_on_every_pair_of_tiers() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let one = put(&mut client, record("ONE", [("a", double(1.5)), ("b", double(2.0)), ("z", double(9.0))])).await;
        let two = put(&mut client, record("TWO", [("b", value(Kind::Int32Val(-3)))])).await;
        // A name asked for twice is two columns; an id asked for twice is two rows.
        let names = ["b", "nope", "a", "b"];
        let ids = ["TWO", "GONE", "ONE", "TWO"];
        for request in [get(ids), strong(ids)] {
            let matrix = matrix(&mut client, asking(ResponseFormat::MatrixFloat64, &names, request)).await;
            assert_eq!(matrix.feature_names, names);
            assert_eq!(matrix.row_count, 4);
            let two_row = [-3.0, f64::NAN, f64::NAN, -3.0];
            let wanted = [two_row, [f64::NAN; 4], [2.0, f64::NAN, 1.5, 2.0], two_row].concat();
            let bits = |numbers: Vec<f64>| numbers.into_iter().map(f64::to_bits).collect::<Vec<_>>();
            assert_eq!(bits(doubles(&matrix)), bits(wanted), "{}", pair.name());
            let (present, absent) = (FieldStatus::Present, FieldStatus::NotFound);
            let two_row = [present, absent, absent, present];
            let wanted = [two_row, [absent; 4], [present, absent, present, present], two_row].concat();
            assert_eq!(statuses(&matrix), wanted, "{}", pair.name());
            let (found, not_found) = (RowStatus::Found, RowStatus::NotFound);
            assert_eq!(matrix.row_statuses().collect::<Vec<_>>(), [found, not_found, found, found]);
            assert_eq!(matrix.revisions, [two.revision, 0, one.revision, two.revision]);
            assert!(matrix.row_errors.is_empty());
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_convert_to_the_nearest_and_overflow_to_infinity() {
    let server = Pair::embedded().serve().await;
    let mut client = server.client().await;
    let two_53 = 1_i64 << 53;
    let names = ["big", "half", "huge", "neg", "time", "tiny", "yes"];
    let record = record(
        "N",
        [
            ("big", value(Kind::Int64Val(two_53 + 1))),
            ("half", value(Kind::FloatVal(0.1))),
            ("huge", double(1e300)),
            ("neg", double(-1e39)),
            ("time", value(Kind::UnixTimestampVal(i64::MAX))),
            ("tiny", double(1e-300)),
            ("yes", value(Kind::BoolVal(true))),
        ],
    );
    put(&mut client, record).await;
    let matrix64 = matrix(&mut client, asking(ResponseFormat::MatrixFloat64, &names, get(["N"]))).await;
    let wanted = [9_007_199_254_740_992.0, f64::from(0.1_f32), 1e300, -1e39, 9_223_372_036_854_775_808.0, 1e-300, 1.0];
    assert_eq!(doubles(&matrix64), wanted);
    let matrix32 = matrix(&mut client, asking(ResponseFormat::MatrixFloat32, &names, get(["N"]))).await;
    let infinity = f32::INFINITY;
    assert_eq!(floats(&matrix32), [two_53 as f32, 0.1, infinity, -infinity, i64::MAX as f32, 0.0, 1.0]);
    for matrix in [matrix64, matrix32] {
        assert_eq!(statuses(&matrix), [FieldStatus::Present; 7]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_number_is_nan_with_the_reason() {
    let server = Pair::embedded().serve().await;
    let mut client = server.client().await;
    let names = ["absent", "bytes", "list", "nan", "null", "object", "text"];
    let record = record(
        "N",
        [
            ("bytes", value(Kind::BytesVal(vec![0; 8]))),
            ("list", value(Kind::DoubleListVal(DoubleList { val: vec![1.0] }))),
            ("nan", double(f64::NAN)),
            ("null", value(Kind::NullVal(0))),
            ("object", value(Kind::StructVal(prost_types::Struct::default()))),
            ("text", value(Kind::StringVal("1.5".into()))),
        ],
    );
    put(&mut client, record).await;
    let not_numeric = FieldStatus::NotNumeric;
    let wanted = [
        FieldStatus::NotFound,
        not_numeric,
        not_numeric,
        FieldStatus::Present,
        FieldStatus::NullValue,
        not_numeric,
        not_numeric,
    ];
    let matrix64 = matrix(&mut client, asking(ResponseFormat::MatrixFloat64, &names, get(["N"]))).await;
    let matrix32 = matrix(&mut client, asking(ResponseFormat::MatrixFloat32, &names, get(["N"]))).await;
    assert!(doubles(&matrix64).into_iter().all(f64::is_nan) && doubles(&matrix64).len() == 7);
    assert!(floats(&matrix32).into_iter().all(f32::is_nan) && floats(&matrix32).len() == 7);
    assert_eq!((statuses(&matrix64), statuses(&matrix32)), (wanted.into(), wanted.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cell_of_a_row_without_features_says_why_on_every_pair_of_tiers() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let of = |id: &str, version: &str, event_time| FeatureRecord {
            model_version: version.into(),
            event_time,
            ..record(id, [("a", double(1.0))])
        };
        let mut revisions = Vec::new();
        let expiring = FeatureRecord { ttl: Some(millis(1)), ..of("EXPIRED", "v1", None) };
        for record in [of("FOUND", "v1", None), of("OTHER", "v2", None), of("OLD", "v1", Some(timestamp(1))), expiring]
        {
            revisions.push(put(&mut client, record).await.revision);
        }
        let deleted = put(&mut client, of("DELETED", "v1", None)).await;
        let deleted = {
            let results = client.delete_features(delete(["DELETED"])).await.unwrap().into_inner().results;
            assert!(results[0].revision > deleted.revision);
            results[0].revision
        };
        eventually("the record to expire", async || {
            row(&mut client.clone(), strong(["EXPIRED"])).await.status() == RowStatus::Expired
        })
        .await;
        let ids = ["FOUND", "OTHER", "OLD", "EXPIRED", "DELETED", "SHORT"];
        put(&mut client, of("SHORT", "v1", None)).await;
        for request in [get(ids), strong(ids)] {
            let request = GetFeaturesRequest {
                expected_model_version: "v1".into(),
                max_age: Some(seconds(3600)),
                min_revisions: [("SHORT".to_owned(), i64::MAX)].into(),
                ..request
            };
            let matrix = matrix(&mut client, asking(ResponseFormat::MatrixFloat64, &["a", "b"], request)).await;
            let rows = [
                (RowStatus::Found, FieldStatus::Present),
                (RowStatus::VersionMismatch, FieldStatus::VersionMismatch),
                (RowStatus::TooOld, FieldStatus::OutsideMaxAge),
                (RowStatus::Expired, FieldStatus::OutsideMaxAge),
                (RowStatus::NotFound, FieldStatus::NotFound),
                (RowStatus::Error, FieldStatus::Error),
            ];
            assert_eq!(matrix.row_statuses().collect::<Vec<_>>(), rows.map(|(row, _)| row), "{}", pair.name());
            let mut cells: Vec<_> = rows.iter().flat_map(|(_, cell)| [*cell; 2]).collect();
            cells[1] = FieldStatus::NotFound; // FOUND has no "b"
            assert_eq!(statuses(&matrix), cells, "{}", pair.name());
            assert!(doubles(&matrix)[1..].iter().all(|number| number.is_nan()), "{}", pair.name());
            assert_eq!(matrix.revisions, [&revisions[..], &[deleted, 0]].concat(), "{}", pair.name());
            assert_eq!(matrix.row_errors.keys().collect::<Vec<_>>(), [&5], "{}", pair.name());
            let error = &matrix.row_errors[&5];
            assert_eq!((error.code, error.reason.as_str()), (9, "REVISION_NOT_REACHED"), "{}", pair.name());
        }
        server.stop().await;
    }
}
