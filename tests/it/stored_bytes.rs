//! Bytes that the first release stored: every later version must read them. And what a newer version stored, which this one
//! cannot know: a clear error or a miss, never garbage.
//!
//! `stored_bytes/` holds what was written, by `write_the_files` at the end of this file: a data folder of the embedded store,
//! an entry of Redis, a document of MongoDB. A new format gets files of its own beside these, which stay. The single layouts are
//! held by unit tests too: `src/record/encoding/v1.hex`, `src/store/embedded/envelope/v1.hex`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use deadpool_redis::redis;
use featurestore::{cache::Epoch, tiered::trust::L1Use};
use mongodb::bson;
use prost::Message as _;
use prost_types::{ListValue, Struct, value::Kind as Json};
use value::Kind;

use crate::harness::{
    client::*,
    mongod::Mongod,
    process::temp_dir,
    redis::RedisServer,
    server::{PATIENCE, Server, eventually},
};

/// A part of the key of every entry in Redis.
const EPOCH: u64 = 0x0123_4567_89ab_cdef;
const KEY: &str = "{}fs:0123456789abcdef:7:default:KINDS";
/// In an entry: the format version, the checksum, and the record's own version.
const ENTRY_VERSION: usize = 1;
const ENTRY_SUM: std::ops::Range<usize> = 2..6;
const ENTRY_RECORD: usize = 22;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/stored_bytes").join(name)
}

fn unhex(name: &str) -> Vec<u8> {
    let text = std::fs::read_to_string(file(name)).unwrap();
    let text = text.trim();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// A feature of each kind.
fn kinds() -> FeatureRecord {
    let json = |kind| prost_types::Value { kind: Some(kind) };
    let list = ListValue { values: vec![json(Json::NullValue(0)), json(Json::BoolValue(true))] };
    let fields = [("list", json(Json::ListValue(list))), ("a.b", json(Json::NumberValue(-0.0)))];
    let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let features = features([
        ("bytes", value(Kind::BytesVal(vec![0, 255]))),
        ("text", value(Kind::StringVal("é 🦀".to_owned()))),
        ("int32", value(Kind::Int32Val(i32::MIN))),
        ("int64", value(Kind::Int64Val(i64::MAX))),
        ("double", double(0.1)),
        ("float", value(Kind::FloatVal(-0.0))),
        ("bool", value(Kind::BoolVal(true))),
        ("time", value(Kind::UnixTimestampVal(1_790_000_000))),
        ("bytes_list", value(Kind::BytesListVal(BytesList { val: vec![vec![], vec![1]] }))),
        ("text_list", value(Kind::StringListVal(StringList { val: vec![String::new(), "b".to_owned()] }))),
        ("int32_list", value(Kind::Int32ListVal(Int32List { val: vec![-1, 1] }))),
        ("int64_list", value(Kind::Int64ListVal(Int64List { val: vec![i64::MIN] }))),
        ("double_list", value(Kind::DoubleListVal(DoubleList { val: vec![f64::INFINITY, 1.5] }))),
        ("float_list", value(Kind::FloatListVal(FloatList { val: vec![0.25; 3] }))),
        ("bool_list", value(Kind::BoolListVal(BoolList { val: vec![false, true] }))),
        ("time_list", value(Kind::UnixTimestampListVal(Int64List { val: vec![0, 1] }))),
        ("null", value(Kind::NullVal(0))),
        ("object", value(Kind::StructVal(Struct { fields }))),
    ]);
    let model_version = "v1.0.0".to_owned();
    let event_time = Some(timestamp(1_789_000_000));
    FeatureRecord { features, model_version, event_time, ..lasting("KINDS") }
}

fn lasting(id: &str) -> FeatureRecord {
    FeatureRecord { entity_id: id.to_owned(), never_expires: true, ..FeatureRecord::default() }
}

/// The write that is remembered with its request id.
fn remembered() -> UpsertFeaturesRequest {
    UpsertFeaturesRequest { request_id: "first-release".to_owned(), ..upsert(lasting("REMEMBERED")) }
}

async fn write_all(client: &mut Client) {
    put(client, kinds()).await;
    let merge = |record| FeatureRecord { write_mode: WriteMode::Merge.into(), ..record };
    put(client, FeatureRecord { features: features([("a", double(1.0))]), ..lasting("MERGED") }).await;
    put(client, merge(FeatureRecord { features: features([("b", double(2.0))]), ..lasting("MERGED") })).await;
    client.upsert_features(remembered()).await.unwrap();
}

/// Sees that a row is what `kinds` wrote.
fn is_kinds(row: &FeatureRow) {
    let written = kinds();
    assert_eq!(row.status(), RowStatus::Found, "{row:?}");
    // Encoded, as -0.0 equals 0.0.
    let encoded = |record: FeatureRecord| record.encode_to_vec();
    let read = FeatureRecord { features: row.features.clone(), ..FeatureRecord::default() };
    assert_eq!(encoded(read), encoded(FeatureRecord { features: written.features, ..FeatureRecord::default() }));
    assert_eq!((&row.model_version, &row.event_time), (&written.model_version, &written.event_time));
    assert!(row.revision > 0 && row.write_time.is_some() && row.expire_time.is_none(), "{row:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_of_the_first_release_is_served_and_written() {
    let dir = temp_dir();
    let unpacked =
        Command::new("tar").args(["-xzf"]).arg(file("embedded-v1.tar.gz")).arg("-C").arg(dir.path()).status();
    assert!(unpacked.unwrap().success());
    let data = dir.path().join("data");
    let server = Server::start(&[("FEATURESTORE_DATA_DIR", data.to_str().unwrap())]).await;
    let mut client = server.client().await;
    let found = rows(&mut client, get(["KINDS", "MERGED", "REMEMBERED"])).await;
    is_kinds(&found[0]);
    assert_eq!(found[1].features, features([("a", double(1.0)), ("b", double(2.0))]));
    // A retry of a write of that time is known to have happened.
    let repeated = client.upsert_features(remembered()).await.unwrap().into_inner();
    assert_eq!(repeated.revision, found[2].revision);
    let merged = FeatureRecord { write_mode: WriteMode::Merge.into(), ..record("MERGED", [("c", double(3.0))]) };
    assert!(put(&mut client, merged).await.revision > found[1].revision);
    assert_eq!(row(&mut client, get(["MERGED"])).await.features.len(), 3);
    server.stop().await;
}

/// A server over its own Redis and a database with the known epoch.
async fn known_epoch() -> (Server, RedisServer, &'static Mongod, String) {
    let (redis, mongod) = (RedisServer::start(), Mongod::shared_replica_set());
    let database = mongod.settled_database();
    let (url, uri) = (redis.url(), mongod.uri());
    let server = Server::start(&[("REDIS_URL", &url), ("MONGO_URI", &uri), ("MONGO_DB", &database)]).await;
    let meta = mongod.database(&database).await.collection::<bson::Document>("meta");
    let known = bson::doc! { "$set": { "epoch": format!("{EPOCH:016x}") } };
    meta.update_one(bson::doc! { "_id": "epoch" }, known).await.unwrap();
    eventually("the epoch to be known", async || server.tiered.trust().l1() == L1Use::Trusted(Epoch(EPOCH))).await;
    (server, redis, mongod, database)
}

fn set(redis: &RedisServer, bytes: &[u8]) {
    let mut connection = redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
    redis::cmd("SET").arg(KEY).arg(bytes).exec(&mut connection).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_of_the_first_release_is_a_hit_and_one_of_a_newer_release_is_a_miss() {
    let (server, redis, ..) = known_epoch().await;
    let mut client = server.client().await;
    let first = unhex("redis-entry-v1.hex");
    set(&redis, &first);
    let hit = row(&mut client, get(["KINDS"])).await;
    assert_eq!(hit.source(), Source::L1);
    is_kinds(&hit);

    let newer = |at: usize| {
        let mut bytes = first.clone();
        bytes[at] += 1;
        let mut sum = crc32fast::Hasher::new();
        [KEY.as_bytes(), &bytes[..ENTRY_SUM.start], &bytes[ENTRY_SUM.end..]].iter().for_each(|part| sum.update(part));
        bytes[ENTRY_SUM].copy_from_slice(&sum.finalize().to_le_bytes());
        bytes
    };
    for bytes in [newer(ENTRY_VERSION), newer(ENTRY_RECORD), b"P\x02 pending, in a way to come".to_vec()] {
        set(&redis, &bytes);
        let response = client.get_features(get(["KINDS"])).await.unwrap().into_inner();
        let row = &response.rows[0];
        // L2 has no such record.
        assert_eq!((row.status(), row.source()), (RowStatus::NotFound, Source::L2), "{row:?}");
        assert!(!response.degraded, "{row:?}");
    }
    // A write meets it, and wins.
    set(&redis, &newer(ENTRY_VERSION));
    let written = put(&mut client, lasting("KINDS")).await;
    let row = row(&mut client, get(["KINDS"])).await;
    assert_eq!((row.status(), row.revision, row.features.len()), (RowStatus::Found, written.revision, 0), "{row:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_of_the_first_release_is_read() {
    let (server, _redis, mongod, database) = known_epoch().await;
    let document = bson::Document::from_reader(&unhex("mongodb-document-v1.hex")[..]).unwrap();
    mongod.database(&database).await.collection("features").insert_one(document).await.unwrap();
    let mut client = server.client().await;
    let read = row(&mut client, strong(["KINDS"])).await;
    assert_eq!(read.source(), Source::L2);
    is_kinds(&read);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes the files that every later version must read; for a new format only, beside the old files"]
async fn write_the_files() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    let dir = temp_dir();
    let data = dir.path().join("data");
    let server = Server::start(&[("FEATURESTORE_DATA_DIR", data.to_str().unwrap())]).await;
    write_all(&mut server.client().await).await;
    server.stop().await;
    let args = ["--sparse", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "-czf"];
    let to = file("embedded-new.tar.gz");
    let packed = Command::new("tar").args(args).arg(to).arg("-C").arg(dir.path()).arg("data").status();
    assert!(packed.unwrap().success());

    let (server, redis, mongod, database) = known_epoch().await;
    write_all(&mut server.client().await).await;
    let mut connection = redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
    let entry: Vec<u8> = redis::cmd("GET").arg(KEY).query(&mut connection).unwrap();
    std::fs::write(file("redis-entry-new.hex"), hex(&entry)).unwrap();
    let features = mongod.database(&database).await.collection::<bson::RawDocumentBuf>("features");
    let found = features.find_one(bson::doc! { "_id.entity_id": "KINDS" });
    let document = tokio::time::timeout(PATIENCE, found).await.unwrap().unwrap().unwrap();
    std::fs::write(file("mongodb-document-new.hex"), hex(document.as_bytes())).unwrap();
    server.stop().await;
}
