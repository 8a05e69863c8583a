//! The tour of docs/tour.md, on real Redis and MongoDB, looked at from three sides: through the API, in Redis, in MongoDB.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use mongodb::bson::{Document, doc};

use crate::harness::{
    client::*,
    redis::RedisServer,
    server::{Pair, Server, eventually},
    tools,
};

const WEEK: i64 = 7 * 24 * 3600;

fn customer(id: &str, payment_history: f64, utilization: f64, months: i64) -> FeatureRecord {
    let features = [
        ("payment_history_score", double(payment_history)),
        ("credit_utilization", double(utilization)),
        ("account_age_months", value(value::Kind::Int64Val(months))),
    ];
    FeatureRecord { model_version: "v1.0.0".to_owned(), ttl: Some(seconds(WEEK)), ..record(id, features) }
}

async fn read(client: &mut Client, id: &str) -> FeatureRow {
    client.get_features(get([id])).await.unwrap().into_inner().rows.remove(0)
}

/// What the tour reads, and where it came from.
async fn read_customer(client: &mut Client) -> Source {
    let row = read(client, "CUST12345").await;
    assert_eq!(row.status(), RowStatus::Found, "{row:?}");
    assert_eq!(row.features, customer("CUST12345", 0.85, 0.30, 36).features);
    assert_eq!(row.model_version, "v1.0.0");
    let (written, expires) = (row.write_time.unwrap(), row.expire_time.unwrap());
    assert_eq!(expires.seconds - written.seconds, WEEK);
    row.source()
}

fn remove_from_redis(redis: &RedisServer, id: &str) {
    let key = redis.cli(&["KEYS", &format!("*:{id}")]);
    assert!(key.ends_with(&format!(":{id}")), "{key:?}");
    assert_eq!(redis.cli(&["DEL", &key]), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_is_written_read_through_both_tiers_queried_and_deleted() {
    let pair = Pair::real();
    let (server, redis) = (pair.serve().await, pair.redis.as_ref().unwrap());
    let mut client = server.client().await;
    let features = pair.mongod.unwrap().database(pair.database()).await.collection::<Document>("features");

    let written = client.upsert_features(upsert(customer("CUST12345", 0.85, 0.30, 36))).await.unwrap().into_inner();
    assert_eq!(written.outcome(), WriteOutcome::Written);
    assert!(written.cached && written.revision > 0, "{written:?}");

    assert_eq!(read_customer(&mut client).await, Source::L1);
    remove_from_redis(redis, "CUST12345");
    assert_eq!(read_customer(&mut client).await, Source::L2);
    assert_eq!(read_customer(&mut client).await, Source::L1);

    let info = client.info(InfoRequest {}).await.unwrap().into_inner();
    let (l1, l2) = (info.l1.unwrap(), info.l2.unwrap());
    assert_eq!((l1.kind.as_str(), l1.hits, l1.misses, l1.errors), ("redis", 2, 1, 0));
    assert_eq!((l2.kind.as_str(), l2.hits, l2.misses, l2.errors), ("mongodb", 1, 0, 0));
    assert!((l1.hit_ratio - 2.0 / 3.0).abs() < 1e-9 && l2.hit_ratio == 1.0, "{l1:?} {l2:?}");

    let found = features.find_one(doc! { "features.credit_utilization": { "$lt": 0.5 } }).await.unwrap().unwrap();
    let id = found.get_document("_id").unwrap();
    assert_eq!((id.get_str("view").unwrap(), id.get_str("entity_id").unwrap()), ("default", "CUST12345"));
    assert_eq!(features.count_documents(doc! { "features.credit_utilization": { "$gt": 0.5 } }).await.unwrap(), 0);

    let records = vec![customer("CUST001", 0.91, 0.12, 84), customer("CUST002", 0.42, 0.77, 9)];
    let chunk = BulkUpsertRequest { records, ..BulkUpsertRequest::default() };
    let mut answers = client.bulk_upsert(tokio_stream::iter([chunk])).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    assert_eq!((answer.written, answer.skipped_stale, answer.failed), (2, 0, 0), "{answer:?}");
    let rows = client.get_features(get(["CUST002", "CUST001"])).await.unwrap().into_inner().rows;
    assert_eq!(rows[0].features, customer("", 0.42, 0.77, 9).features);
    assert_eq!(rows[1].features, customer("", 0.91, 0.12, 84).features);

    let deleted = client.delete_features(delete(["CUST12345"])).await.unwrap().into_inner();
    assert_eq!(deleted.results[0].outcome(), WriteOutcome::Deleted);
    for (consistency, source) in [(Consistency::Cached, Source::L1), (Consistency::Strong, Source::L2)] {
        let request = GetFeaturesRequest { consistency: consistency.into(), ..get(["CUST12345"]) };
        let row = client.get_features(request).await.unwrap().into_inner().rows.remove(0);
        assert_eq!((row.status(), row.source()), (RowStatus::NotFound, source), "{row:?}");
        assert!(row.features.is_empty());
    }
    let left = features.find_one(doc! { "_id.entity_id": "CUST12345" }).await.unwrap();
    assert!(left.is_none_or(|left| left.get_bool("deleted").unwrap() && !left.contains_key("features")));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_restarts_empty_fails_no_read_and_is_filled_again() {
    let mut pair = Pair::real();
    let server = pair.serve().await;
    let mut client = server.client().await;
    client.upsert_features(upsert(customer("CUST12345", 0.85, 0.30, 36))).await.unwrap();
    assert_eq!(read_customer(&mut client).await, Source::L1);

    // Somebody reads all the time; a read that fails or finds nothing panics in `read_customer`.
    let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let reader = tokio::spawn({
        let (stop, reads, mut client) = (stop.clone(), reads.clone(), server.client().await);
        async move {
            while !stop.load(Relaxed) {
                read_customer(&mut client).await;
                reads.fetch_add(1, Relaxed);
            }
        }
    });
    let restarted = Instant::now();
    pair.redis().restart();
    let before = reads.load(Relaxed);
    eventually("a read from L2", async || read_customer(&mut client).await == Source::L2).await;
    eventually("L1 to answer again", async || read_customer(&mut client).await == Source::L1).await;
    println!("L1 answered again {:?} after its restart began", restarted.elapsed());
    stop.store(true, Relaxed);
    reader.await.unwrap();
    assert!(reads.load(Relaxed) > before, "nobody read meanwhile");

    remove_from_redis(pair.redis(), "CUST12345");
    assert_eq!(read_customer(&mut client).await, Source::L2);
    assert_eq!(read_customer(&mut client).await, Source::L1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_past_its_ttl_is_not_served_though_mongodb_still_holds_it() {
    let pair = Pair::real();
    let (server, redis) = (pair.serve().await, pair.redis.as_ref().unwrap());
    let mut client = server.client().await;
    let features = pair.mongod.unwrap().database(pair.database()).await.collection::<Document>("features");
    let begin = Instant::now();
    let short = FeatureRecord { ttl: Some(seconds(2)), ..customer("CUST777", 0.5, 0.5, 1) };
    client.upsert_features(upsert(short)).await.unwrap();
    assert_eq!(read(&mut client, "CUST777").await.status(), RowStatus::Found);

    let mut status = RowStatus::Found;
    eventually("the record to expire", async || {
        status = read(&mut client, "CUST777").await.status();
        status != RowStatus::Found
    })
    .await;
    assert!(begin.elapsed() >= Duration::from_millis(1900), "expired after {:?}", begin.elapsed());
    assert!(matches!(status, RowStatus::Expired | RowStatus::NotFound), "{status:?}");
    assert_eq!(features.count_documents(doc! { "_id.entity_id": "CUST777" }).await.unwrap(), 1);
    // And with nothing in L1.
    redis.cli(&["FLUSHALL"]);
    let row = read(&mut client, "CUST777").await;
    assert_eq!((row.status(), row.source()), (RowStatus::Expired, Source::L2), "{row:?}");
    assert!(row.features.is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_knows_nothing_but_reflection_takes_the_tour() {
    let pair = Pair::real();
    let (server, redis) = (pair.serve().await, pair.redis.as_ref().unwrap());
    let target = server.address.to_string();
    let take = async |steps: &[&str]| {
        let ended = tools::python("reflection_tour.py", &[&["--target", &target], steps].concat()).await;
        ended.map(tools::Ended::unwrap)
    };
    let Some(services) = take(&["services", "upsert"]).await else { return };
    assert!(services.contains("featurestore.v1.FeatureStoreService"), "{services}");
    take(&["--expect-source", "L1", "read"]).await;
    remove_from_redis(redis, "CUST12345");
    take(&["--expect-source", "L2", "read"]).await;
    take(&["--expect-source", "L1", "read"]).await;
    let rest = take(&["bulk", "delete", "expire", "info"]).await.unwrap();
    assert!(rest.contains("CONSISTENCY_CACHED: ROW_STATUS_NOT_FOUND"), "{rest}");
    assert!(rest.contains("info l1 (redis)") && rest.contains("info l2 (mongodb)"), "{rest}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcurl_lists_describes_writes_and_reads() {
    let server = Pair::embedded().serve().await;
    let Some(listed) = grpcurl(&server, &[], &["list"]).await else { return };
    let services: Vec<&str> = listed.lines().collect();
    for service in
        ["featurestore.v1.FeatureStoreService", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"]
    {
        assert!(services.contains(&service), "{service} is not in {services:?}");
    }
    for symbol in ["featurestore.v1.FeatureStoreService", "featurestore.v1.FeatureRecord", "featurestore.v1.RowStatus"]
    {
        let described = grpcurl(&server, &[], &["describe", symbol]).await.unwrap();
        let comments = described.lines().filter(|line| line.trim_start().starts_with("//")).count();
        assert!(comments >= 3, "{described}");
    }
    let record = r#"{"record": {"entity_id": "CUST12345", "features": {"credit_utilization": {"double_val": 0.3}}}}"#;
    let service = "featurestore.v1.FeatureStoreService";
    let written = grpcurl(&server, &["-d", record], &[&format!("{service}/UpsertFeatures")]).await.unwrap();
    assert!(written.contains("WRITE_OUTCOME_WRITTEN"), "{written}");
    let ids = r#"{"entity_ids": ["CUST12345"]}"#;
    let read = grpcurl(&server, &["-d", ids], &[&format!("{service}/GetFeatures")]).await.unwrap();
    assert!(read.contains("ROW_STATUS_FOUND") && read.contains("SOURCE_L1") && read.contains("0.3"), "{read}");
    server.stop().await;
}

async fn grpcurl(server: &Server, options: &[&str], words: &[&str]) -> Option<String> {
    let address = server.address.to_string();
    let args = [&["-plaintext"], options, &[address.as_str()], words].concat();
    tools::grpcurl(&args).await.map(tools::Ended::unwrap)
}
