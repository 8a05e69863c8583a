//! What is stored and cannot be read is DATA_LOSS for its own row alone, and never absence.

use mongodb::bson::{Bson, doc, oid::ObjectId};
use tonic::Code;

use crate::harness::{client::*, server::Pair};

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_read_is_data_loss_and_the_others_are_answered() {
    for pair in [Pair::new(false, true), Pair::real()] {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let load = |id| record(id, [("a", double(1.0))]);
        assert_eq!(bulk(&mut client, [chunk(1, [load("GOOD"), load("BAD")])]).await.0[0].written, 2);
        let documents =
            pair.mongod.unwrap().database(pair.database()).await.collection::<mongodb::bson::Document>("features");
        // Somebody put in by hand what no kind of value stands for.
        let update = doc! { "$set": { "features.a": Bson::ObjectId(ObjectId::new()) } };
        let updated = documents.update_one(doc! { "_id.entity_id": "BAD" }, update).await.unwrap();
        assert_eq!(updated.matched_count, 1, "{}", pair.name());
        let lost = |error: &Error| (error.code, error.reason.as_str()) == (Code::DataLoss as i32, "RECORD_UNREADABLE");
        // The first of these would fill L1; an error is never cached as anything.
        for request in [get(["BAD", "GOOD", "GONE"]), get(["BAD", "GOOD"]), strong(["BAD", "GOOD"])] {
            let response = client.get_features(request).await.unwrap().into_inner();
            let row = &response.rows[0];
            assert_eq!((row.status(), row.revision), (RowStatus::Error, 0), "{}", pair.name());
            assert!(row.features.is_empty() && row.error.as_ref().is_some_and(lost), "{} {row:?}", pair.name());
            assert_eq!(response.rows[1].status(), RowStatus::Found, "{}", pair.name());
            assert!(response.degraded, "{}", pair.name());
        }
        // No retry helps, so the call is OK even if it is the only row.
        assert_eq!(row(&mut client, get(["BAD"])).await.status(), RowStatus::Error, "{}", pair.name());
        let format = ResponseFormat::MatrixFloat64.into();
        let request = GetFeaturesRequest { format, feature_names: vec!["a".into()], ..get(["GOOD", "BAD"]) };
        let matrix = client.get_features(request).await.unwrap().into_inner().matrix.unwrap();
        assert_eq!(matrix.row_statuses, [RowStatus::Found as i32, RowStatus::Error as i32], "{}", pair.name());
        assert!(lost(&matrix.row_errors[&1]) && matrix.row_errors.len() == 1, "{}", pair.name());
        assert_eq!(matrix.field_statuses, [FieldStatus::Present as u8, FieldStatus::Error as u8], "{}", pair.name());
        // A write puts it right.
        put(&mut client, load("BAD")).await;
        assert_eq!(row(&mut client, get(["BAD"])).await.status(), RowStatus::Found, "{}", pair.name());
        server.stop().await;
    }
}
