//! No value of a feature is in the log or in an answer, whatever MongoDB says of a write that it refuses.

use mongodb::bson::doc;

use super::*;
use crate::harness::mongod::Mongod;

const VALUE: &str = "SECRETVALUE";

fn secret(id: &str) -> FeatureRecord {
    record(id, [("secret", value(value::Kind::StringVal(VALUE.repeat(50))))])
}

#[tokio::test(flavor = "multi_thread")]
async fn no_value_is_logged_or_answered_when_mongodb_refuses_a_write() {
    let (mongod, name) = (Mongod::shared_replica_set(), Mongod::database_name());
    let database = mongod.database(&name).await;
    let uri = mongod.uri();
    let server = Binary::start(&[("MONGO_URI", &uri), ("MONGO_DB", &name), ("RUST_LOG", "info,featurestore=trace")]);
    server.until_serving().await;
    let mut client = server.client().await;
    put(&mut client, secret("first")).await;
    let unique = doc! { "createIndexes": "features", "indexes": [{
        "key": { "features.secret": 1 }, "name": "theirs", "unique": true,
        "partialFilterExpression": { "features.secret": { "$exists": true } },
    }] };
    let validator = doc! { "collMod": "features", "validator": { "features.secret": { "$exists": false } } };
    let mut told = Vec::new();
    for (what, code, command) in [("index", "11000", unique), ("validator", "121", validator)] {
        database.run_command(command).await.unwrap();
        let merged = FeatureRecord { write_mode: WriteMode::Merge.into(), ..secret("merged") };
        for record in [secret("alone"), merged] {
            told.push(format!("{:?}", client.upsert_features(upsert(record)).await.expect_err(what)));
        }
        let (answers, ended) = bulk(&mut client, [chunk(1, [secret("one"), secret("two"), secret("two")])]).await;
        told.push(format!("{answers:?} {ended:?}"));
        // Refusals that come one after the other are logged once in a while.
        eventually(&format!("code {code} to be logged"), async || {
            let refused = client.clone().upsert_features(upsert(secret("again"))).await.unwrap_err();
            told.push(format!("{refused:?}"));
            server.log().contains(&format!("(code {code})"))
        })
        .await;
    }
    let log = server.log();
    assert!(!log.contains(VALUE), "{}", log.lines().find(|line| line.contains(VALUE)).unwrap_or_default());
    assert!(told.iter().all(|told| !told.contains(VALUE)), "{told:?}");
}
