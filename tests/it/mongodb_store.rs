//! What only the MongoDB store can show: its documents, hand edits, outages, and that its pipeline equals `apply`.

mod changes;
mod contract;
mod documents;
mod epochs;
mod equals_apply;
mod interruptions;
mod outages;
mod setup;
mod sizes;
mod unreadable;

use std::{sync::Arc, time::Duration};

use bson::{Document, doc};
use featurestore::{
    proto::{Value, value::Kind},
    record::{EntityId, FeatureName, FeatureView, Lifetime, Record, RecordKey, Revision, Snapshot, State, WriteMode},
    store::{
        Change, Outcome, ReadConcern, Receipt, RequestId, Store as _, StoreError, Write, WriteRules,
        mongodb::{MongoConfig, MongoStore},
    },
};
use tokio::time::Instant;

use crate::harness::mongod::Mongod;

const BOTH: [ReadConcern; 2] = [ReadConcern::Majority, ReadConcern::Linearizable];

/// A store on a database of its own, and the database as people see it.
struct Bench {
    store: Arc<MongoStore>,
    database: mongodb::Database,
}

impl Bench {
    async fn new() -> Self {
        Self::on(Mongod::shared_replica_set(), rules()).await
    }

    async fn on(mongod: &Mongod, rules: WriteRules) -> Self {
        let name = Mongod::database_name();
        let store = MongoStore::new(MongoConfig::new(mongod.uri(), &name, rules)).unwrap();
        Self { store: Arc::new(store), database: mongod.database(&name).await }
    }

    async fn write(&self, write: Write) -> (Receipt, State) {
        self.store.write(write, soon()).await.unwrap()
    }

    async fn read(&self, id: &str) -> Result<State, StoreError> {
        let mut answers = Vec::new();
        for concern in BOTH {
            answers.push(self.store.read(&[key(id)], concern, soon()).await.remove(0));
        }
        assert_eq!(answers[0], answers[1]);
        answers.remove(0)
    }

    async fn snapshot(&self, id: &str) -> Snapshot {
        snapshot(&self.read(id).await.unwrap())
    }

    fn features(&self) -> mongodb::Collection<Document> {
        self.database.collection("features")
    }

    async fn document(&self, id: &str) -> Option<Document> {
        self.features().find_one(by_id(id)).await.unwrap()
    }

    /// What a person with a shell would do.
    async fn edit(&self, id: &str, update: Document) {
        let edited = self.features().update_one(by_id(id), update).await.unwrap();
        assert_eq!(edited.modified_count, 1);
    }
}

fn by_id(id: &str) -> Document {
    doc! { "_id": { "view": "customers", "entity_id": id } }
}

fn rules() -> WriteRules {
    WriteRules {
        default_ttl: Duration::from_secs(3600),
        tombstone_ttl: Duration::from_secs(24 * 3600),
        max_features: 1000,
        max_record_bytes: 1024 * 1024,
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn key(id: &str) -> RecordKey {
    RecordKey { view: FeatureView::parse("customers").unwrap(), entity_id: EntityId::parse(id).unwrap() }
}

fn request_id() -> RequestId {
    RequestId(format!("{:032x}", rand::random::<u128>()).into())
}

fn record<const N: usize>(features: [(&str, Kind); N]) -> Record {
    let value = |(name, kind)| (FeatureName::parse(name).unwrap(), Value { kind: Some(kind) });
    Record {
        mode: WriteMode::Replace,
        features: features.into_iter().map(value).collect(),
        model_version: "".into(),
        event_time: None,
        lifetime: None,
    }
}

fn merge<const N: usize>(features: [(&str, Kind); N]) -> Record {
    Record { mode: WriteMode::Merge, ..record(features) }
}

fn upsert(id: &str, record: Record) -> Write {
    Write { key: key(id), request_id: request_id(), if_revision: None, change: Change::Upsert(record) }
}

fn delete(id: &str) -> Write {
    Write { key: key(id), request_id: request_id(), if_revision: None, change: Change::Delete }
}

fn snapshot(state: &State) -> Snapshot {
    match state {
        State::Record(record) => record.decode().unwrap(),
        other => panic!("no record: {other:?}"),
    }
}

fn kind_of<'a>(snapshot: &'a Snapshot, name: &str) -> &'a Kind {
    snapshot.features[name].kind.as_ref().unwrap()
}
