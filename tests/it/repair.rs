//! The repairer through real servers, a real Redis and a real MongoDB: what L1 was not told of, or cannot know, is seen by
//! default reads a moment later.

mod audit;
mod private;
mod second_pass;
mod shared;
mod terms;

use std::time::{Duration, Instant};

use bson::{Document, doc};

use crate::harness::{
    client::*,
    server::{Pair, Server, eventually},
};

/// How soon a change has to be seen; some milliseconds on an idle machine.
const LAG: Duration = Duration::from_secs(5);
/// The same where a dead leader's lease has to end first, or L1 to be trusted again.
const HANDOVER: Duration = Duration::from_secs(30);

async fn write(client: &mut Client, id: &str, n: f64) -> UpsertFeaturesResponse {
    put(client, record(id, [("n", double(n))])).await
}

/// What a default read finds: the feature `n`; None: there is no such record.
async fn read(client: &mut Client, id: &str) -> Option<f64> {
    let row = row(client, get([id])).await;
    match row.features.get("n")?.kind {
        Some(value::Kind::DoubleVal(n)) => Some(n),
        _ => None,
    }
}

/// Reads until it finds this, and says how long that took.
async fn until_read(client: &mut Client, id: &str, n: Option<f64>, bound: Duration) -> Duration {
    let start = Instant::now();
    loop {
        let found = read(client, id).await;
        if found == n {
            return start.elapsed();
        }
        assert!(start.elapsed() < bound, "{id} still reads {found:?} and not {n:?} after {bound:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Makes sure that a hit answers.
async fn until_hit(client: &mut Client, id: &str) {
    eventually("a hit", async || row(client, get([id])).await.source() == Source::L1).await;
}

/// Waits until somebody repairs.
async fn until_leads(server: &Server) {
    eventually("this server to repair", async || server.tiered.repairs().reading().leading).await;
}

/// A database as people see it.
struct ByHand {
    features: mongodb::Collection<Document>,
    meta: mongodb::Collection<Document>,
}

impl ByHand {
    async fn of(pair: &Pair) -> Self {
        let database = pair.mongod.unwrap().database(pair.database()).await;
        Self { features: database.collection("features"), meta: database.collection("meta") }
    }

    async fn set(&self, id: &str, n: f64) {
        self.features.update_one(at(id), doc! { "$set": { "features.n": n } }).await.unwrap();
    }

    async fn epoch(&self) -> String {
        let epoch = self.meta.find_one(doc! { "_id": "epoch" }).await.unwrap().unwrap();
        epoch.get_str("epoch").unwrap().to_owned()
    }

    async fn is_dirty(&self) -> bool {
        let epoch = self.meta.find_one(doc! { "_id": "epoch" }).await.unwrap().unwrap();
        epoch.get_bool("dirty").unwrap()
    }

    async fn lease(&self) -> Document {
        self.meta.find_one(doc! { "_id": "repairer" }).await.unwrap().unwrap()
    }
}

fn at(id: &str) -> Document {
    doc! { "_id": { "view": "default", "entity_id": id } }
}
