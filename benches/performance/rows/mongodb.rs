//! MongoDB under the service against the bare driver: reads that L1 does not answer, single writes, bulk.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize},
};

use mongodb::bson::Document;
use serde_json::json;

use super::{
    embedded::{L1_OFF, ROW_SLACK},
    hits::NO_REDIS,
    mongodb_driver::{BulkUpdate, Find, FindOneAndUpdate, Put, Recorded, features},
    share,
};
use crate::{
    backends::{Mongod, Redis},
    bench::Bench,
    bulk::{self, Bulk},
    compare::{Plan, compare},
    data::{self, Ask, Chunks, Set, Shape},
    pb::Source,
    report::{Outcome, Row},
    server::{CHUNK, Server},
};

const SET: Set = Set { view: "documents", shape: Shape::Doubles(20), entities: 50_000 };
const BULK: Set = Set { view: "bulk", shape: Shape::Doubles(20), entities: u64::MAX };
const CALLS: usize = 1_000;
/// New documents of the driver's, away from ours.
const DRIVERS_FIRST: u64 = 500_000_000;

pub(crate) const NO_MONGOD: &str = "there is no mongod in MONGOD_BIN or PATH";

const READS: [(&str, usize, usize, &str); 2] = [("read 100", 100, 32, ">= 0.80"), ("read 1", 1, 48, "")];
const READ_REDIS: &str = "mongodb read 100 under an empty Redis";
const BULKS: [(&str, &str); 2] = [("bulk", ">= 0.80"), ("bulk, against plain documents", "")];

pub(crate) fn names() -> Vec<String> {
    let reads = READS.iter().map(|(name, ..)| format!("mongodb {name}"));
    let others = ["write 1", "bulk", "bulk, against plain documents"].map(|name| format!("mongodb {name}"));
    reads.chain([READ_REDIS.to_owned()]).chain(others).collect()
}

pub(crate) async fn run(bench: Arc<Bench>) -> Result<(), String> {
    let Some(mongod) = Mongod::start(&bench.folder()?).await? else {
        bench.leave_out(&names(), NO_MONGOD);
        return Ok(());
    };
    let settings = vec![("MONGO_URI", mongod.uri()), (L1_OFF.0, L1_OFF.1.to_owned())];
    let server = Server::start(&bench.folder()?.join("data"), settings).await?;
    server.load(&SET, 0..SET.entities, false).await?;
    let database = mongod.driver().await?.database("featurestore");

    server.until_answered_by(Source::L2, &Set { entities: 500, ..SET }).await?;
    for (name, entities, in_flight, target) in READS {
        let row = Row::new(format!("mongodb {name}")).against("the driver's find").target(target);
        bench.row(row, read(&bench, &server, features(&database), entities, in_flight)).await;
    }
    bench
        .row(Row::new(READ_REDIS).against("the driver's find"), async {
            // So small that what was read is gone when it is read again.
            let small = ["--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru"];
            let Some(redis) = Redis::start(&bench.folder()?, &small).await? else {
                return Ok(Outcome::LeftOut(NO_REDIS.to_owned()));
            };
            let settings = vec![("MONGO_URI", mongod.uri()), ("REDIS_URL", redis.url())];
            let server = Server::start(&bench.folder()?.join("data"), settings).await?;
            server.until_answered_by(Source::L1, &Set { entities: 1, ..SET }).await?;
            share::of_l1(&server, 0.0..=10.0, read(&bench, &server, features(&database), 100, 32)).await
        })
        .await;
    bench
        .row(Row::new("mongodb write 1").against("the driver's findOneAndUpdate").target(">= 0.80"), async {
            let chunks = Chunks::of(&SET);
            let requests: Vec<_> = (0..SET.entities).map(|number| chunks.upsert(number)).collect();
            let mut ours = server.wire("UpsertFeatures", bench.args.connections, &requests).await?;
            let recorded = Recorded::during(&database, async { ours.learn(16).await.map(drop) }).await?;
            let (collection, next) = (features(&database), AtomicU64::new(SET.entities / 2));
            let writes = FindOneAndUpdate { collection, view: SET.view, recorded, entities: SET.entities, next };
            Ok(Outcome::Compared(bench.against(Plan::in_flight(32), writes, ours).await?))
        })
        .await;
    for (name, target) in BULKS {
        let row = Row::new(format!("mongodb {name}")).against("the driver's update command").target(target);
        let facts = json!({ "unit": "records" });
        bench.row(row.facts(facts), bulk_row(&bench, &server, &database, name == BULKS[0].0)).await;
    }
    Ok(())
}

async fn read(
    bench: &Bench,
    server: &Server,
    collection: mongodb::Collection<mongodb::bson::RawDocumentBuf>,
    entities: usize,
    in_flight: usize,
) -> Result<Outcome, String> {
    let keys = data::keys(CALLS, entities, SET.entities);
    let requests: Vec<_> = keys.iter().map(|keys| Ask::rows(entities).request(SET.view, keys)).collect();
    let mut ours = server.wire("GetFeatures", bench.args.connections, &requests).await?;
    ours.learn(ROW_SLACK * entities).await?;
    let find = Find { collection, view: SET.view, keys, next: AtomicUsize::new(0) };
    Ok(Outcome::Compared(bench.against(Plan::in_flight(in_flight), find, ours).await?))
}

async fn bulk_row(
    bench: &Bench,
    server: &Server,
    database: &mongodb::Database,
    same_pipeline: bool,
) -> Result<Outcome, String> {
    // Each row writes documents that no other has written.
    let first = if same_pipeline { 0 } else { 250_000_000 };
    let one = std::iter::once(Chunks::of(&BULK).chunk(first..first + 1));
    let recorded = Recorded::during(database, async { bulk::load(server.raw(), one).await.map(drop) }).await?;
    let put = if same_pipeline {
        Put::Pipeline(recorded)
    } else {
        let ours: mongodb::Collection<Document> = database.collection("features");
        let id = mongodb::bson::doc! { "_id.view": BULK.view };
        let document = ours.find_one(id).await.map_err(|e| e.to_string())?;
        let mut document = document.ok_or("the server's document is not there")?;
        for field in ["_id", "requests"] {
            document.remove(field);
        }
        Put::Plain(document)
    };
    let next = Arc::new(AtomicU64::new(DRIVERS_FIRST + first));
    let driver = BulkUpdate { database: database.clone(), view: BULK.view, put, documents: CHUNK, next };
    let next = Arc::new(AtomicU64::new(first + 1));
    let ours = Bulk::open(server, Chunks::of(&BULK), next).await?;
    // The client sends two chunks ahead of the answers; the driver knows no such thing.
    let plan = Plan { in_flight: [1, 3], ..Plan::in_flight(1).closed().per_call(CHUNK as f64) };
    Ok(Outcome::Compared(compare(&bench.args, plan, driver, ours).await?))
}
