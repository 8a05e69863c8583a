//! L2 in MongoDB.
//!
//! Each record is one document in the collection `features`, which people can query: `_id: {view,
//! entity_id}`, `features` in natural BSON types, `kinds` (name -> number of the `Value` kind, if
//! BSON has no type for it), `model_version`, `rev`, `event_time`, `write_time`, `expire_at`
//! (absent: never), `deleted`, `gc_at` (a TTL index removes by it) and `requests` (the latest
//! writes, `{id, of, rev, outcome, number, at}`; `of` is a checksum of what a client's write was to
//! do). The collection `meta` holds the epoch, and the lease and position of the repairer
//! (`lease`).

mod address;
mod batch;
mod cause;
mod changes;
mod code;
mod compare;
mod connection;
mod document;
mod encode;
mod epoch;
mod failure;
mod identity;
mod keeper;
mod lease;
mod options;
mod pipeline;
mod prepared;
mod read;
mod recent;
mod remembered;
mod setup;
mod sound;
mod statement;
mod value;
mod walk;
mod write;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bson::doc;
use tokio::time::Instant;

pub use address::InvalidUri;
pub use options::{choose_database, warnings};
pub use statement::MAX_DOCUMENT_BYTES;

use self::{
    connection::{Command, Connection, Lane},
    epoch::Epochs,
    failure::Failure,
    identity::Identity,
};
use super::{
    Claim, EpochState, Finding, ReadConcern, Receipt, Store, StoreError, StoreInfo, TimeSeen, Write, WriteRules,
    changes::{Changes, FollowError, Leadership, Position},
};
use crate::{
    cache::{Epoch, L1Name},
    metrics::PoolReading,
    record::{RecordKey, State, TypicalSize},
};

/// The collection of the records.
const FEATURES: &str = "features";
/// The collection of what else the servers share.
const META: &str = "meta";

/// Where MongoDB is, and how it is used. An option of the URI has priority; `with_settings` rejects
/// contradictions.
#[derive(Clone)]
pub struct MongoConfig {
    /// A connection string; may hold credentials.
    pub uri: String,
    /// The database of all our collections.
    pub database: String,
    /// The rules for every write.
    pub rules: WriteRules,
    /// The most connections to one server, and the most operations at a time.
    pub max_pool: u32,
    /// The most connections that are opened at a time.
    pub max_connecting: u32,
    /// How long an operation waits for a primary.
    pub server_selection_timeout: Duration,
}

impl MongoConfig {
    /// The defaults: 64 connections, 8 opened at a time, 2 s for a primary.
    pub fn new(uri: impl Into<String>, database: impl Into<String>, rules: WriteRules) -> Self {
        Self {
            uri: uri.into(),
            database: database.into(),
            rules,
            max_pool: 64,
            max_connecting: 8,
            server_selection_timeout: Duration::from_secs(2),
        }
    }
}

impl fmt::Debug for MongoConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { uri: _, database, rules, max_pool, max_connecting, server_selection_timeout } = self;
        f.debug_struct("MongoConfig")
            .field("uri", &"(may hold credentials)")
            .field("database", database)
            .field("rules", rules)
            .field("max_pool", max_pool)
            .field("max_connecting", max_connecting)
            .field("server_selection_timeout", server_selection_timeout)
            .finish()
    }
}

/// L2 in MongoDB: a replica set, a sharded cluster, or one standalone server (for development).
pub struct MongoStore {
    connection: Connection,
    identity: Identity,
    /// Of documents.
    size: TypicalSize,
}

impl MongoStore {
    /// Checks the configuration without connecting, because the server may be unreachable until the
    /// first call. That call checks the collections and creates their index.
    pub fn new(config: MongoConfig) -> Result<Self, InvalidUri> {
        let uri = address::parse(&config.uri)?;
        options::check(&uri, config.max_pool)?;
        let (identity, size) = (Identity::default(), TypicalSize::new(read::UNSEEN_BYTES));
        Ok(Self { connection: Connection::new(config, uri), identity, size })
    }

    fn epochs(&self) -> Epochs<'_> {
        Epochs { connection: &self.connection, identity: &self.identity }
    }
}

#[async_trait]
impl Store for MongoStore {
    async fn read(
        &self,
        keys: &[RecordKey],
        concern: ReadConcern,
        deadline: Instant,
    ) -> Vec<Result<State, StoreError>> {
        read::read(&self.connection, &self.size, keys, concern, deadline).await
    }

    async fn write(&self, write: Write, deadline: Instant) -> Result<(Receipt, State), StoreError> {
        write::write(&self.connection, write, deadline).await
    }

    async fn write_batch(&self, writes: Vec<Write>, deadline: Instant) -> Vec<Result<Receipt, StoreError>> {
        batch::write_batch(&self.connection, writes, deadline).await
    }

    async fn epoch(&self, deadline: Instant) -> Result<EpochState, StoreError> {
        self.epochs().read(deadline).await
    }

    async fn use_l1(&self, l1: &L1Name, deadline: Instant) -> Result<EpochState, StoreError> {
        self.epochs().use_l1(l1, deadline).await
    }

    async fn name_l1(&self, claim: Claim, deadline: Instant) -> Result<EpochState, StoreError> {
        self.epochs().name_l1(claim, deadline).await
    }

    async fn renew_epoch(&self, seen: Epoch, deadline: Instant) -> Result<EpochState, StoreError> {
        self.epochs().renew(seen, deadline).await
    }

    async fn new_epoch(&self, l1: Option<&L1Name>, deadline: Instant) -> Result<EpochState, StoreError> {
        self.epochs().replace(l1, deadline).await
    }

    async fn mark_dirty(&self, deadline: Instant) -> Result<EpochState, StoreError> {
        self.epochs().mark_dirty(deadline).await
    }

    async fn changes(
        &self,
        after: Option<Position>,
        deadline: Instant,
    ) -> Result<Option<Box<dyn Changes>>, FollowError> {
        let from_now_on = after.is_none();
        let changes = changes::follow(&self.connection, after, deadline).await?;
        if from_now_on && changes.is_some() {
            // The stream begins after what the primary has applied, which majority reads may not
            // show yet. A linearizable read waits until they do, so no later read is older than the
            // beginning.
            self.epochs().read(deadline).await?;
        }
        Ok(changes)
    }

    async fn lead(
        &self,
        me: &str,
        lease: Duration,
        position: Option<Position>,
        deadline: Instant,
    ) -> Result<Leadership, StoreError> {
        lease::lead(&self.connection, me, lease, position, deadline).await
    }

    async fn resign(&self, me: &str, deadline: Instant) -> Result<(), StoreError> {
        lease::resign(&self.connection, me, deadline).await
    }

    async fn ping(&self, deadline: Instant) -> Result<(), StoreError> {
        let read = self.connection.run(Command::new("find", META), Lane::Reserved, deadline, |prepared, left| {
            let meta = prepared.majority(META);
            async move { meta.find_one(doc! { "_id": "epoch" }).max_time(left).await }
        });
        read.await.map(drop).map_err(Failure::of_read)
    }

    fn unfolds_to(&self, writes: &[Write]) -> usize {
        // The command, two copies of it in the driver, and its bytes on their way; one command at a
        // time.
        const COPIES: usize = 4;
        // The number of these at a time has another limit.
        const UNCOUNTED: usize = 64 << 10;
        let sizes = writes.iter().map(|write| pipeline::document_bytes(write) + statement::USUAL_STAGES_BYTES);
        let (all, largest) = sizes.fold((0, 0), |(all, largest), bytes| (all + bytes, bytes.max(largest)));
        let bytes = all.min(batch::MAX_COMMAND_BYTES.max(largest)).min(statement::MAX_DOCUMENT_BYTES);
        if bytes > UNCOUNTED { COPIES * bytes } else { 0 }
    }

    async fn close(&self) {
        self.connection.close().await;
    }

    fn info(&self) -> StoreInfo {
        let address = address::describe(self.connection.uri(), &self.connection.config().database);
        // A standalone server has no change streams, and one that was not reached may be
        // standalone.
        StoreInfo { kind: "mongodb", address, exclusive: false, silent: self.connection.is_standalone() != Some(false) }
    }

    fn findings(&self) -> Arc<Vec<Finding>> {
        self.connection.findings()
    }

    fn time(&self) -> Option<TimeSeen> {
        self.connection.time()
    }

    fn pool(&self) -> Option<PoolReading> {
        Some(self.connection.pool())
    }
}
