//! What others make of the collections: it is found at start and while the server runs, and said in words that say what to
//! do. What makes answers wrong stops the store; nothing of it is called a bug.

use featurestore::store::Severity;
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::*;
use crate::harness::{
    client::{self, Refusal, double, get, put, rows},
    server::{Server, eventually},
};

fn insensitive() -> Document {
    doc! { "locale": "en", "strength": 2 }
}

/// What somebody may have made in place of a collection: how, and what is said of it.
fn wrong(name: &str) -> [(Document, &'static str); 4] {
    [
        (doc! { "create": name, "collation": insensitive() }, "collation"),
        (doc! { "create": name, "capped": true, "size": 1 << 20 }, "capped"),
        (doc! { "create": name, "viewOn": "others", "pipeline": [] }, "view"),
        (doc! { "create": name, "timeseries": { "timeField": "write_time" } }, "timeseries"),
    ]
}

impl Bench {
    fn found(&self, severity: Severity) -> Vec<String> {
        let findings = self.store.findings();
        findings.iter().filter(|finding| finding.severity == severity).map(|finding| finding.text.clone()).collect()
    }

    async fn index_names(&self) -> Vec<String> {
        self.features().list_index_names().await.unwrap_or_default()
    }
}

#[tokio::test]
async fn what_would_make_answers_wrong_is_refused_at_start_until_it_is_gone() {
    let cases = ["features", "meta"].into_iter().flat_map(|name| wrong(name).map(|case| (name, case)));
    let tries = cases.map(async |(name, (create, what))| {
        let bench = Bench::new().await;
        bench.database.run_command(create).await.unwrap();
        let refused = |error: &StoreError| {
            matches!(error, StoreError::Unusable(text) if [name, what, "drop it"].iter().all(|word| text.contains(*word)))
        };
        let answers = [
            bench.store.epoch(soon()).await.err(),
            bench.store.read(&[key("a")], ReadConcern::Majority, soon()).await.remove(0).err(),
            bench.store.read(&[key("a")], ReadConcern::Linearizable, soon()).await.remove(0).err(),
            bench.store.write(upsert("a", record([])), soon()).await.err(),
            bench.store.write_batch(vec![upsert("a", record([]))], soon()).await.remove(0).err(),
        ];
        for answer in answers {
            assert!(answer.as_ref().is_some_and(refused), "{name} {what}: {answer:?}");
        }
        bench.database.collection::<Document>(name).drop().await.unwrap();
        eventually("the store to be used", async || bench.store.epoch(soon()).await.is_ok()).await;
        assert_eq!(bench.write(upsert("a", record([]))).await.0.outcome, Outcome::Written);
    });
    futures_util::future::join_all(tries).await;
}

#[tokio::test]
async fn a_collation_that_somebody_gives_a_collection_never_mixes_up_entities() {
    let bench = Bench::new().await;
    bench.write(upsert("abc", record([("n", Kind::Int32Val(1))]))).await;
    bench.features().drop().await.unwrap();
    bench.database.run_command(doc! { "create": "features", "collation": insensitive() }).await.unwrap();
    let started = Instant::now();
    for round in 0.. {
        assert!(started.elapsed() < Duration::from_secs(60), "it was not found");
        let ids = ["Abc", "abc", "ABC"];
        let mut written = Vec::new();
        for (number, id) in (0..).zip(ids) {
            let write = upsert(id, record([("n", Kind::Int32Val(number))]));
            let answer = match round % 2 {
                0 => bench.store.write(write, soon()).await.map(|(receipt, _)| receipt),
                _ => bench.store.write_batch(vec![write], soon()).await.remove(0),
            };
            match answer {
                Ok(receipt) if receipt.outcome == Outcome::Written => written.push((number, id)),
                Ok(receipt) => panic!("{receipt:?}"),
                Err(StoreError::Refused(_) | StoreError::Unusable(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        for concern in BOTH {
            for (number, id) in (0..).zip(ids) {
                match bench.store.read(&[key(id)], concern, soon()).await.remove(0) {
                    Ok(State::Record(record)) => {
                        assert_eq!(record.decode().unwrap().features["n"].kind, Some(Kind::Int32Val(number)), "{id}");
                    }
                    Ok(State::Absent) => assert!(!written.contains(&(number, id)), "{id} is not found"),
                    Ok(State::Tombstone(_)) => panic!("nobody deleted {id}"),
                    Err(StoreError::Unusable(text)) => return assert!(text.contains("collation"), "{text}"),
                    Err(error) => panic!("{error}"),
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn odd_indexes_and_validators_are_reported_while_the_store_goes_on() {
    let bench = Bench::new().await;
    bench.write(upsert("a", record([("n", Kind::Int32Val(1))]))).await;
    eventually("the index to be made", async || bench.index_names().await.contains(&"gc_at_ttl".to_owned())).await;
    eventually("no finding", async || bench.store.findings().is_empty()).await;
    let index = |name: &str, key: Document, options: Document| {
        let mut index = doc! { "name": name, "key": key };
        index.extend(options);
        index
    };
    let indexes = vec![
        index("plain", doc! { "features.x": 1 }, doc! {}),
        index("one_each", doc! { "features.x": -1 }, doc! { "unique": true, "sparse": true }),
        index("sweeper", doc! { "write_time": 1 }, doc! { "expireAfterSeconds": 1_000_000 }),
        index("words", doc! { "features.t": "text" }, doc! {}),
    ];
    bench.database.run_command(doc! { "createIndexes": "features", "indexes": indexes }).await.unwrap();
    let validator = doc! { "$nor": [{ "features.forbidden": { "$exists": true } }] };
    bench.database.run_command(doc! { "collMod": "features", "validator": validator }).await.unwrap();

    eventually("all to be found", async || bench.found(Severity::Odd).len() == 4).await;
    let (odd, extra) = (bench.found(Severity::Odd).join("\n"), bench.found(Severity::Extra).join("\n"));
    for words in ["one_each", "sweeper", "words", "validator", "unique", "TTL", "drop it", "collMod"] {
        assert!(odd.contains(words), "{words}: {odd}");
    }
    assert!(extra.contains("plain"), "{extra}");
    assert!(bench.found(Severity::Wrong).is_empty());

    // What the validator or the index does not take is refused as such, alone and in a batch.
    let forbidden = || upsert("b", record([("forbidden", Kind::BoolVal(true))]));
    bench.write(upsert("a", record([("x", Kind::Int32Val(1))]))).await;
    let twin = || upsert("c", record([("x", Kind::Int32Val(1))]));
    for write in [forbidden(), twin()] {
        let alone = bench.store.write(write.clone(), soon()).await;
        assert!(matches!(alone, Err(StoreError::Refused(_))), "{alone:?}");
        let answers = bench.store.write_batch(vec![write, upsert("d", record([]))], soon()).await;
        assert!(matches!(answers[0], Err(StoreError::Refused(_))) && answers[1].is_ok(), "{answers:?}");
    }
    bench.database.run_command(doc! { "collMod": "features", "validator": {} }).await.unwrap();
    for name in ["plain", "one_each", "sweeper", "words"] {
        bench.features().drop_index(name).await.unwrap();
    }
    eventually("nothing to be left", async || bench.store.findings().is_empty()).await;
}

#[tokio::test]
async fn the_ttl_index_is_made_again_whenever_it_is_gone() {
    let bench = Bench::new().await;
    let has_index = async || bench.index_names().await.contains(&"gc_at_ttl".to_owned());
    bench.write(upsert("a", record([]))).await;
    eventually("the index", async || has_index().await).await;
    bench.features().drop_index("gc_at_ttl").await.unwrap();
    eventually("the dropped index", async || has_index().await).await;
    bench.features().drop().await.unwrap();
    eventually("the index of a dropped collection", async || has_index().await).await;
    let admin = bench.database.client().database("admin");
    let (from, to) = (format!("{}.features", bench.database.name()), format!("{}.old", bench.database.name()));
    admin.run_command(doc! { "renameCollection": from, "to": to }).await.unwrap();
    eventually("the index of a renamed collection", async || has_index().await).await;

    // Somebody's own index in its place is not overwritten, and is reported.
    bench.features().drop_index("gc_at_ttl").await.unwrap();
    let index = doc! { "name": "theirs", "key": { "gc_at": 1 }, "expireAfterSeconds": 5 };
    bench.database.run_command(doc! { "createIndexes": "features", "indexes": [index] }).await.unwrap();
    eventually("it to be reported", async || bench.found(Severity::Odd).join("\n").contains("theirs")).await;
    assert_eq!(bench.write(upsert("a", record([]))).await.0.outcome, Outcome::Written);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_ready_while_the_index_is_being_made() {
    let mongod = tokio::task::spawn_blocking(Mongod::replica_set).await.unwrap();
    let (uri, admin) = (mongod.uri(), mongod.database("admin").await);
    let settings = [("MONGO_URI", uri.as_str()), ("MONGO_DB", "slow")];
    let features = mongod.database("slow").await.collection::<Document>("features");
    let server = Server::start(&settings).await;
    put(&mut server.client().await, client::record("a", [("x", double(1.0))])).await;
    let has_index = async || features.list_index_names().await.unwrap().contains(&"gc_at_ttl".to_owned());
    eventually("the index", async || has_index().await).await;
    server.stop().await;
    features.drop_index("gc_at_ttl").await.unwrap();
    let fail_point = |mode: &str| doc! { "configureFailPoint": "hangAfterStartingIndexBuild", "mode": mode };
    admin.run_command(fail_point("alwaysOn")).await.unwrap();

    let server = Server::start(&settings).await;
    let mut client = server.client().await;
    let row = rows(&mut client, get(["a"])).await.remove(0);
    assert_eq!(row.status(), client::RowStatus::Found);
    put(&mut client, client::record("b", [("x", double(1.0))])).await;
    eventually("the server to have MongoDB begin", async || {
        let builds = doc! { "currentOp": 1, "command.createIndexes": { "$exists": true } };
        !admin.run_command(builds).await.unwrap().get_array("inprog").unwrap().is_empty()
    })
    .await;
    admin.run_command(fail_point("off")).await.unwrap();
    eventually("the index", async || has_index().await).await;
    assert_eq!(server.metric(r#"featurestore_l2_setup_findings{severity="wrong"}"#).await, 0.0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_health_and_metrics_are_told_what_others_did_and_never_of_a_bug() {
    let mongod = Mongod::shared_replica_set();
    let (uri, name) = (mongod.uri(), Mongod::database_name());
    let database = mongod.database(&name).await;
    let server = Server::start(&[("MONGO_URI", uri.as_str()), ("MONGO_DB", name.as_str())]).await;
    let mut client = server.client().await;
    let validator = doc! { "$nor": [{ "features.forbidden": { "$exists": true } }] };
    put(&mut client, client::record("a", [])).await;
    database.run_command(doc! { "collMod": "features", "validator": validator }).await.unwrap();
    let forbidden = || client::record("b", [("forbidden", double(1.0))]);
    let refused = Refusal::of(&client.upsert_features(client::upsert(forbidden())).await.unwrap_err());
    assert_eq!((refused.code, refused.reason.as_str()), (Code::FailedPrecondition, "L2_REFUSED"));
    let (answers, status) = client::bulk(&mut client, [client::chunk(1, [forbidden(), client::record("c", [])])]).await;
    assert!(status.is_none() && (answers[0].failed, answers[0].written) == (1, 1), "{answers:?} {status:?}");
    eventually("the metric of a validator", async || {
        server.metric(r#"featurestore_l2_setup_findings{severity="odd"}"#).await == 1.0
    })
    .await;

    let channel = Endpoint::from_shared(server.url()).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel);
    let mut l2 = async || {
        let request = HealthCheckRequest { service: "l2".to_owned() };
        health.check(request).await.unwrap().into_inner().status()
    };
    assert_eq!(l2().await, ServingStatus::Serving);
    database.collection::<Document>("features").drop().await.unwrap();
    database.run_command(doc! { "create": "features", "collation": insensitive() }).await.unwrap();
    eventually("health to say so", async || l2().await == ServingStatus::NotServing).await;
    assert_eq!(server.metric(r#"featurestore_l2_setup_findings{severity="wrong"}"#).await, 1.0);
    let refused = Refusal::of(&client.upsert_features(client::upsert(client::record("a", []))).await.unwrap_err());
    assert_eq!((refused.code, refused.reason.as_str()), (Code::Unavailable, "L2_UNUSABLE"));
    let refused = Refusal::of(&client.get_features(client::strong(["z"])).await.unwrap_err());
    assert_eq!((refused.code, refused.reason.as_str()), (Code::Unavailable, "L2_UNUSABLE"));
    let metrics = server.metrics().await;
    let bugs = metrics.lines().filter(|line| line.contains(r#"status_code="INTERNAL""#) && line.contains("_count{"));
    assert!(
        bugs.clone().count() > 0 && bugs.clone().all(|line| line.ends_with(" 0")),
        "{:?}",
        bugs.collect::<Vec<_>>()
    );

    database.collection::<Document>("features").drop().await.unwrap();
    eventually("health to come back", async || l2().await == ServingStatus::Serving).await;
    eventually("writes", async || client.upsert_features(client::upsert(client::record("a", []))).await.is_ok()).await;
    server.stop().await;
}
