//! The coherence protocol, schedule by schedule: operations are stopped where they hurt, and what was answered
//! `cached = true` must be what every default read that begins afterwards sees, or something newer.
//!
//! Time is tokio's paused clock almost everywhere (`harness::faulty` tells how), so pauses of seconds cost nothing and
//! every schedule runs the same way each time.

mod cancelled;
mod flights;
mod held;
mod naming;
mod old_view;
mod pause;
mod permits;
mod recovery;
mod repair;
mod rules;
mod shedding;
mod slow;
mod stalled;
mod unconfirmed;

use std::{collections::HashMap, sync::Arc, time::Duration};

use featurestore::{
    cache::{Cache, CacheKey, Epoch, memory::MemoryCache},
    record::{Clock, EntityId, FeatureView, RecordKey, Revision},
    store::{Change, Store as _, Write, embedded::EmbeddedStore},
    tiered::{
        Consistency, OnL1Loss, ReadRequest, RowError, Settings, Tier, Tiered, WriteAnswer, WriteError, trust::L1Use,
    },
};
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    harness::{
        faulty::{ChangeLog, Faults, FaultyCache, FaultyStore, SharedStore, blocking, clock, shared},
        process::temp_dir,
    },
    store_contract::fixture,
};

/// Both tiers, for several servers.
struct World {
    memory: Arc<MemoryCache>,
    store: Arc<SharedStore>,
    _folder: TempDir,
}

impl World {
    /// Other servers may be there.
    fn shared() -> Self {
        Self::new(false, None)
    }

    /// The same, and L2 tells of its changes.
    fn followed() -> Self {
        Self::new(false, Some(ChangeLog::new()))
    }

    /// There is one server.
    fn exclusive() -> Self {
        Self::new(true, None)
    }

    /// The epoch holds for no L1 yet.
    fn unnamed(log: Option<Arc<ChangeLog>>) -> Self {
        let folder = temp_dir();
        let store = EmbeddedStore::open(folder.path(), 8 << 20, fixture::rules(), Clock::system()).unwrap();
        let memory = Arc::new(MemoryCache::new(1 << 20));
        Self { memory, store: SharedStore::new(store, false, log), _folder: folder }
    }

    /// An L1 that several servers share is named.
    fn new(exclusive: bool, log: Option<Arc<ChangeLog>>) -> Self {
        let folder = temp_dir();
        let store = EmbeddedStore::open(folder.path(), 8 << 20, fixture::rules(), Clock::system()).unwrap();
        let memory = Arc::new(MemoryCache::new(32 << 20));
        let store = SharedStore::new(store, exclusive, log);
        let (named, named_by) = (shared(memory.name().unwrap()), store.clone());
        let soon = Instant::now() + Duration::from_secs(9);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        std::thread::spawn(move || runtime.block_on(named_by.settle_on(named, soon))).join().unwrap();
        Self { memory, store, _folder: folder }
    }

    /// A server that has not looked at anything yet.
    fn unstarted(&self, on_l1_loss: OnL1Loss) -> Server {
        self.with_settings(|settings| settings.on_l1_loss = on_l1_loss)
    }

    /// The same with other settings.
    fn with_settings(&self, change: impl FnOnce(&mut Settings)) -> Server {
        let faults = Arc::new(Faults::default());
        let cache = FaultyCache { faults: faults.clone(), inner: self.memory.clone() };
        self.over_with(Arc::new(cache), faults, change)
    }

    /// A server over any L1.
    fn over(&self, cache: Arc<dyn Cache>, faults: Arc<Faults>) -> Server {
        self.over_with(cache, faults, |_| {})
    }

    fn over_with(&self, cache: Arc<dyn Cache>, faults: Arc<Faults>, change: impl FnOnce(&mut Settings)) -> Server {
        let mut settings = Settings {
            l1_ttl: Duration::from_secs(3600),
            l1_timeout: Duration::from_millis(50),
            // The machine's own pauses are not L1's.
            l1_slow: Duration::from_secs(10),
            on_l1_loss: OnL1Loss::Accept,
            tombstone_ttl: Duration::from_secs(24 * 3600),
            read_deadline: Duration::from_secs(2),
            write_deadline: Duration::from_secs(10),
            max_l2_reads: 48,
            max_writes: 4096,
            repair: Default::default(),
        };
        change(&mut settings);
        let store = FaultyStore { faults: faults.clone(), shared: self.store.clone() };
        Server { tiered: Tiered::new(cache, Arc::new(store), settings, clock()), faults }
    }

    /// A server that has looked at both tiers once.
    async fn server(&self) -> Server {
        let server = self.unstarted(OnL1Loss::Accept);
        server.look().await;
        server
    }

    async fn trusting<const N: usize>(&self) -> [Server; N] {
        let servers: [Server; N] = std::array::from_fn(|_| self.unstarted(OnL1Loss::Accept));
        for server in &servers {
            server.look().await;
            assert!(matches!(server.l1(), L1Use::Trusted(_)), "{:?}", server.l1());
        }
        servers
    }

    async fn epoch(&self) -> Epoch {
        self.store.inner.epoch(Instant::now()).await.unwrap().epoch
    }

    async fn is_dirty(&self) -> bool {
        self.store.inner.epoch(Instant::now()).await.unwrap().dirty
    }

    /// Somebody makes a new epoch.
    async fn renew_epoch(&self) {
        let (store, seen) = (self.store.clone(), self.epoch().await);
        blocking(async move { store.renew(seen, Instant::now() + Duration::from_secs(9)).await }).await.unwrap();
    }

    async fn l1_key(&self, id: &str) -> CacheKey {
        CacheKey::new(self.epoch().await, &key(id))
    }

    async fn evict(&self, id: &str) {
        self.memory.remove(&[self.l1_key(id).await], Instant::now()).await;
    }

    /// What L1 holds clean.
    async fn in_l1(&self, id: &str) -> Option<Revision> {
        let found = self.memory.get(&[self.l1_key(id).await], Instant::now()).await.pop().unwrap();
        found.unwrap().map(|value| value.revision())
    }
}

/// One server, and what may happen to it.
#[derive(Clone)]
struct Server {
    tiered: Arc<Tiered>,
    faults: Arc<Faults>,
}

/// What a reader was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    revision: Revision,
    tier: Tier,
    degraded: bool,
}

impl Server {
    /// Looks at both tiers once.
    async fn look(&self) {
        let enough = CancellationToken::new();
        enough.cancel();
        self.tiered.clone().watch(enough).await;
        self.tiered.look_at_l1().await;
    }

    /// Looks after both tiers until the token is cancelled.
    fn watch(&self) -> CancellationToken {
        let end = CancellationToken::new();
        tokio::spawn(self.tiered.clone().watch(end.clone()));
        end
    }

    fn l1(&self) -> L1Use {
        self.tiered.trust().l1()
    }

    fn remembered(&self) -> usize {
        self.tiered.trust().remembered()
    }

    async fn write(&self, id: &str) -> WriteAnswer {
        self.try_write(write(id)).await.unwrap()
    }

    async fn try_write(&self, write: Write) -> Result<WriteAnswer, WriteError> {
        self.tiered.upsert(write).await
    }

    /// A write that was answered `cached = true`.
    async fn cached_write(&self, id: &str) -> Revision {
        let answer = self.write(id).await;
        assert!(answer.cached);
        answer.receipt.revision
    }

    fn begin_write(&self, id: &str) -> JoinHandle<WriteAnswer> {
        let (server, id) = (self.clone(), id.to_owned());
        tokio::spawn(async move { server.write(&id).await })
    }

    async fn try_read(&self, id: &str, consistency: Consistency) -> Result<Seen, RowError> {
        let deadline = Instant::now() + Duration::from_secs(2);
        let request = ReadRequest { keys: vec![key(id)], consistency, min_revisions: HashMap::new(), deadline };
        let mut answer = self.tiered.read(&request).await;
        let row = answer.rows.pop().unwrap()?;
        Ok(Seen { revision: row.state.revision(), tier: row.tier, degraded: answer.degraded })
    }

    async fn read(&self, id: &str) -> Seen {
        self.try_read(id, Consistency::Cached).await.unwrap()
    }

    async fn read_strong(&self, id: &str) -> Seen {
        self.try_read(id, Consistency::Strong).await.unwrap()
    }

    fn begin_read(&self, id: &str) -> JoinHandle<Seen> {
        let (server, id) = (self.clone(), id.to_owned());
        tokio::spawn(async move { server.read(&id).await })
    }
}

/// Default reads that begin now, twice, as the first may fill L1.
async fn nobody_sees_older<const N: usize>(servers: [&Server; N], id: &str, revision: Revision) {
    for server in servers.into_iter().chain(servers) {
        let seen = server.read(id).await;
        assert!(seen.revision >= revision, "{seen:?} is older than {revision}");
    }
}

fn key(id: &str) -> RecordKey {
    RecordKey { view: FeatureView::parse("v").unwrap(), entity_id: EntityId::parse(id).unwrap() }
}

fn write(id: &str) -> Write {
    fixture::put(&key(id)).0
}

fn delete(id: &str) -> Write {
    Write { change: Change::Delete, ..write(id) }
}
