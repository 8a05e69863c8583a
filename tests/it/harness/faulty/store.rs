//! L2 on disk, between a server and the store that it shares with others.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use featurestore::{
    cache::{Epoch, L1Name},
    record::{RecordKey, State},
    store::{
        changes::{Changes, FollowError, Leadership, Position},
        embedded::EmbeddedStore,
        *,
    },
};
use tokio::{runtime::Handle, task::spawn_blocking, time::Instant};

use super::{ChangeLog, Faults, Op};

/// A store that several servers share, and that tells how long its epoch has stood.
pub struct SharedStore {
    pub inner: EmbeddedStore,
    pub exclusive: bool,
    /// None: it cannot tell of changes.
    pub log: Option<Arc<ChangeLog>>,
    /// None: for ever.
    epoch_since: Mutex<Option<Instant>>,
    /// Until when servers say to use the named L1, and others.
    leased_until: Mutex<Option<Instant>>,
    beside_until: Mutex<Option<Instant>>,
}

impl SharedStore {
    pub fn new(inner: EmbeddedStore, exclusive: bool, log: Option<Arc<ChangeLog>>) -> Arc<Self> {
        let (leased_until, beside_until) = (Mutex::default(), Mutex::default());
        Arc::new(Self { inner, exclusive, log, epoch_since: Mutex::default(), leased_until, beside_until })
    }

    fn aged(&self, state: EpochState) -> EpochState {
        let age = self.epoch_since.lock().unwrap().map_or(Duration::MAX, |since| since.elapsed());
        let left = |until: &Mutex<Option<Instant>>| {
            until.lock().unwrap().map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
        };
        EpochState { age, leased: left(&self.leased_until), beside: left(&self.beside_until), ..state }
    }

    /// The epoch for who uses this L1.
    pub async fn use_l1(&self, l1: &L1Name, deadline: Instant) -> Result<EpochState, StoreError> {
        let state = self.inner.epoch(deadline).await?;
        let until = Some(Instant::now() + LEASE);
        if state.names(l1) {
            *self.leased_until.lock().unwrap() = until;
        } else if !l1.shared && state.l1.is_some() {
            *self.beside_until.lock().unwrap() = until;
        }
        Ok(self.aged(state))
    }

    pub async fn name_l1(&self, claim: Claim, deadline: Instant) -> Result<EpochState, StoreError> {
        let before = self.aged(self.inner.epoch(deadline).await?);
        if !claim.at_once && !before.leased.is_zero() {
            return Ok(before);
        }
        let state = self.inner.name_l1(claim.clone(), deadline).await?;
        if state.names(&claim.l1) {
            *self.epoch_since.lock().unwrap() = Some(Instant::now());
            *self.leased_until.lock().unwrap() = Some(Instant::now() + LEASE);
        }
        Ok(self.aged(state))
    }

    /// Has the epoch hold for this L1 as if it had for long.
    pub async fn settle_on(&self, l1: L1Name, deadline: Instant) {
        let seen = self.inner.epoch(deadline).await.unwrap();
        let claim = Claim { seen, l1, keep_epoch: true, at_once: true };
        self.name_l1(claim, deadline).await.unwrap();
        *self.epoch_since.lock().unwrap() = None;
    }

    /// Writes, and tells those who follow.
    pub async fn write(&self, write: Write, deadline: Instant) -> Result<(Receipt, State), StoreError> {
        let key = write.key.clone();
        let written = self.inner.write(write, deadline).await?;
        if let (Some(log), Outcome::Written | Outcome::Deleted) = (&self.log, written.0.outcome) {
            log.written(key, written.0.revision);
        }
        Ok(written)
    }

    pub async fn renew(&self, seen: Epoch, deadline: Instant) -> Result<EpochState, StoreError> {
        let before = self.inner.epoch(deadline).await?;
        let state = self.inner.renew_epoch(seen, deadline).await?;
        if before.epoch != state.epoch {
            *self.epoch_since.lock().unwrap() = Some(Instant::now());
        }
        Ok(self.aged(state))
    }
}

/// One server's way to a store that others share.
pub struct FaultyStore {
    pub faults: Arc<Faults>,
    pub shared: Arc<SharedStore>,
}

/// Drives this on a thread of its own, so that the paused clock stands still meanwhile.
pub async fn blocking<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let runtime = Handle::current();
    spawn_blocking(move || runtime.block_on(work)).await.unwrap()
}

fn unavailable() -> StoreError {
    StoreError::Unavailable("by order of a test".into())
}

fn lost_write(done: bool) -> StoreError {
    if done { StoreError::OutcomeUnknown("by order of a test".into()) } else { unavailable() }
}

#[async_trait]
impl Store for FaultyStore {
    async fn read(
        &self,
        keys: &[RecordKey],
        concern: ReadConcern,
        deadline: Instant,
    ) -> Vec<Result<State, StoreError>> {
        let (shared, keys, count) = (self.shared.clone(), keys.to_vec(), keys.len());
        let work = blocking(async move { shared.inner.read(&keys, concern, deadline).await });
        self.faults.call(Op::Read, deadline, work, |_| vec![Err(unavailable()); count]).await
    }

    async fn write(&self, write: Write, deadline: Instant) -> Result<(Receipt, State), StoreError> {
        let shared = self.shared.clone();
        let work = blocking(async move { shared.write(write, deadline).await });
        self.faults.call(Op::Write, deadline, work, |done| Err(lost_write(done))).await
    }

    async fn write_batch(&self, writes: Vec<Write>, deadline: Instant) -> Vec<Result<Receipt, StoreError>> {
        let (shared, count) = (self.shared.clone(), writes.len());
        let work = blocking(async move { shared.inner.write_batch(writes, deadline).await });
        self.faults.call(Op::WriteBatch, deadline, work, |done| vec![Err(lost_write(done)); count]).await
    }

    async fn epoch(&self, deadline: Instant) -> Result<EpochState, StoreError> {
        let shared = self.shared.clone();
        let work = async move { shared.inner.epoch(deadline).await.map(|state| shared.aged(state)) };
        self.faults.call(Op::Epoch, deadline, work, |_| Err(unavailable())).await
    }

    async fn use_l1(&self, l1: &L1Name, deadline: Instant) -> Result<EpochState, StoreError> {
        let (shared, l1) = (self.shared.clone(), l1.clone());
        let work = async move { shared.use_l1(&l1, deadline).await };
        self.faults.call(Op::Epoch, deadline, work, |_| Err(unavailable())).await
    }

    async fn name_l1(&self, claim: Claim, deadline: Instant) -> Result<EpochState, StoreError> {
        let shared = self.shared.clone();
        let work = blocking(async move { shared.name_l1(claim, deadline).await });
        self.faults.call(Op::NameL1, deadline, work, |done| Err(lost_write(done))).await
    }

    async fn new_epoch(&self, l1: Option<&L1Name>, deadline: Instant) -> Result<EpochState, StoreError> {
        let (shared, l1) = (self.shared.clone(), l1.cloned());
        blocking(async move { shared.inner.new_epoch(l1.as_ref(), deadline).await.map(|state| shared.aged(state)) })
            .await
    }

    async fn renew_epoch(&self, seen: Epoch, deadline: Instant) -> Result<EpochState, StoreError> {
        let shared = self.shared.clone();
        let work = blocking(async move { shared.renew(seen, deadline).await });
        self.faults.call(Op::RenewEpoch, deadline, work, |done| Err(lost_write(done))).await
    }

    async fn mark_dirty(&self, deadline: Instant) -> Result<EpochState, StoreError> {
        let shared = self.shared.clone();
        let work = blocking(async move { shared.inner.mark_dirty(deadline).await.map(|state| shared.aged(state)) });
        self.faults.call(Op::MarkDirty, deadline, work, |done| Err(lost_write(done))).await
    }

    async fn changes(
        &self,
        after: Option<Position>,
        deadline: Instant,
    ) -> Result<Option<Box<dyn Changes>>, FollowError> {
        let log = self.shared.log.clone();
        let work = async move { log.map(|log| log.follow(after)).transpose() };
        self.faults.call(Op::Changes, deadline, work, |_| Err(unavailable().into())).await
    }

    async fn lead(
        &self,
        me: &str,
        lease: Duration,
        position: Option<Position>,
        deadline: Instant,
    ) -> Result<Leadership, StoreError> {
        let (log, me) = (self.shared.log.clone(), me.to_owned());
        let work = async move { Ok(log.unwrap().lead(&me, lease, position)) };
        self.faults.call(Op::Lead, deadline, work, |_| Err(unavailable())).await
    }

    async fn resign(&self, me: &str, _: Instant) -> Result<(), StoreError> {
        self.shared.log.iter().for_each(|log| log.resign(me));
        Ok(())
    }

    async fn ping(&self, deadline: Instant) -> Result<(), StoreError> {
        let shared = self.shared.clone();
        blocking(async move { shared.inner.ping(deadline).await }).await
    }

    async fn close(&self) {
        self.shared.inner.close().await;
    }

    fn info(&self) -> StoreInfo {
        let (exclusive, silent) = (self.shared.exclusive, self.shared.log.is_none());
        StoreInfo { exclusive, silent: silent && !exclusive, ..self.shared.inner.info() }
    }
}
