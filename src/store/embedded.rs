//! L2 on local disk, for one process. It has a folder of its own, one writer thread that commits
//! and fsyncs groups of writes, and readers that see only fsynced data.
//!
//! Reading order: `writer` (the thread), `queue` (how work reaches it), `group` (a group of
//! writes), `envelope` (the stored bytes), `engine` (the tables), `chain` (how lost groups are
//! noticed). Not here: what one write means (`apply`).

mod chain;
mod engine;
mod envelope;
mod epoch;
mod folder;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod group;
mod open;
mod queue;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use async_trait::async_trait;
use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, timeout, timeout_at},
};

pub use open::OpenError;

use self::{
    engine::{Engine, RecordKeys, record_key},
    queue::{Queue, Work},
    writer::Writer,
};
use super::{
    Claim, EpochState, READ_BYTES, ReadConcern, Receipt, Store, StoreError, StoreInfo, Write, WriteRules,
    changes::{Changes, FollowError, Leadership, Position},
};
use crate::{
    cache::{Epoch, L1Name},
    record::{Clock, RecordKey, State},
};

/// A read of at most this many keys runs on the caller's thread: about 7 us for each key, against
/// 14 us for a change of thread. More keys would block other tasks of the runtime (100 keys: 0.5 to
/// 0.9 ms, and far more from a cold disk).
const KEYS_READ_INLINE: usize = 4;
/// The most reads on other threads at once.
const READERS: usize = 32;
/// How long closing may take. Waiting writes are committed well before, unless the disk hangs.
const CLOSE: Duration = Duration::from_secs(30);

/// L2 on local disk. Dropping it without `close` loses no answered write, because those are
/// fsynced.
pub struct EmbeddedStore {
    dir: PathBuf,
    /// None after `close`.
    engine: ArcSwapOption<Engine>,
    epoch: Arc<ArcSwap<EpochState>>,
    queue: Queue,
    readers: Arc<Semaphore>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl EmbeddedStore {
    /// Opens the store in `dir`, or creates it. Blocks for tens of milliseconds; after a crash for
    /// about a second at most.
    ///
    /// `cache_bytes` limits the engine's cache of blocks. Memtables take up to about 80 MiB more.
    pub fn open(dir: &Path, cache_bytes: u64, rules: WriteRules, clock: Clock) -> Result<Self, OpenError> {
        let (engine, mut commits, highest) = Engine::open(dir, cache_bytes)?;
        let folder = folder::identity(dir).map_err(|e| OpenError::io(dir, &e))?;
        let stored = |name| engine.get_meta(name).map_err(|e| OpenError::corrupt(dir, &e.to_string()));
        let (known, l1) = (stored(epoch::EPOCH)?, stored(epoch::L1)?);
        let is_unreadable = known.as_ref().is_some_and(|bytes| epoch::decode(bytes).is_none());
        if is_unreadable {
            let folder = dir.display();
            tracing::warn!(%folder, "the epoch in the local store cannot be read: L1 starts cold, in a new epoch");
        }
        let epoch = match known.and_then(|bytes| epoch::decode(&bytes)) {
            Some(state) => {
                let l1 = l1.and_then(|bytes| epoch::decode_l1(&bytes, state.epoch, &folder));
                EpochState { l1, ..state }
            }
            None => {
                let first = epoch::new(None);
                commits += 1;
                let mut changes = engine.changes(commits, highest);
                engine.put_meta(&mut changes, epoch::EPOCH, epoch::encode(&first));
                engine
                    .commit(changes)
                    .map_err(|e| OpenError::Unusable { dir: dir.to_owned(), reason: e.to_string() })?;
                first
            }
        };
        let (engine, epoch) = (Arc::new(engine), Arc::new(ArcSwap::from_pointee(epoch)));
        let halt = queue::Halt::default();
        let (queue, jobs) = queue::queue(Arc::clone(&halt));
        let writer = Writer {
            engine: Arc::clone(&engine),
            rules,
            clock,
            commits,
            highest,
            epoch: Arc::clone(&epoch),
            folder,
            halt,
            swept: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(&jobs))
            .map_err(|e| OpenError::io(dir, &e))?;
        Ok(Self {
            dir: dir.to_owned(),
            engine: ArcSwapOption::new(Some(engine)),
            epoch,
            queue,
            readers: Arc::new(Semaphore::new(READERS)),
            writer: Mutex::new(Some(thread)),
        })
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn read(&self, keys: &[RecordKey], _: ReadConcern, deadline: Instant) -> Vec<Result<State, StoreError>> {
        // There is one copy, and readers see only fsynced data, so every read is linearizable.
        let Some(engine) = self.engine.load_full() else { return vec![Err(closed()); keys.len()] };
        if keys.len() <= KEYS_READ_INLINE {
            let records = keys.iter().map(record_key);
            return name_unreadable(keys, read_all(&engine, records));
        }
        let stored_keys = RecordKeys::of(keys);
        let readers = Arc::clone(&self.readers);
        let reading = async move {
            let turn = readers.acquire_owned().await;
            spawn_blocking(move || {
                let _turn = turn;
                read_all(&engine, stored_keys.iter())
            })
            .await
        };
        match timeout_at(deadline, reading).await {
            Ok(Ok(states)) => name_unreadable(keys, states),
            Ok(Err(_)) => vec![Err(StoreError::Internal("a read panicked".into())); keys.len()],
            Err(_) => vec![Err(StoreError::Timeout("the disk did not answer".into())); keys.len()],
        }
    }

    async fn write(&self, write: Write, deadline: Instant) -> Result<(Receipt, State), StoreError> {
        self.queue.submit(1, deadline, |reply| Work::Write(Box::new(write), reply)).await?
    }

    async fn write_batch(&self, writes: Vec<Write>, deadline: Instant) -> Vec<Result<Receipt, StoreError>> {
        let count = writes.len();
        let receipts = self.queue.submit(count, deadline, |reply| Work::Batch(writes, reply)).await;
        receipts.unwrap_or_else(|error| vec![Err(error); count])
    }

    async fn epoch(&self, _: Instant) -> Result<EpochState, StoreError> {
        self.engine.load().as_ref().map(|_| EpochState::clone(&self.epoch.load())).ok_or_else(closed)
    }

    async fn use_l1(&self, _: &L1Name, deadline: Instant) -> Result<EpochState, StoreError> {
        // No other process could name another L1.
        self.epoch(deadline).await
    }

    async fn name_l1(&self, claim: Claim, deadline: Instant) -> Result<EpochState, StoreError> {
        self.queue.submit(1, deadline, |reply| Work::NameL1(Box::new(claim), reply)).await
    }

    async fn renew_epoch(&self, seen: Epoch, deadline: Instant) -> Result<EpochState, StoreError> {
        self.queue.submit(1, deadline, |reply| Work::RenewEpoch(seen, reply)).await
    }

    async fn new_epoch(&self, l1: Option<&L1Name>, deadline: Instant) -> Result<EpochState, StoreError> {
        let l1 = l1.cloned();
        self.queue.submit(1, deadline, |reply| Work::NewEpoch(l1, reply)).await
    }

    async fn mark_dirty(&self, deadline: Instant) -> Result<EpochState, StoreError> {
        self.queue.submit(1, deadline, Work::MarkDirty).await
    }

    async fn changes(&self, _: Option<Position>, _: Instant) -> Result<Option<Box<dyn Changes>>, FollowError> {
        Ok(None)
    }

    async fn lead(&self, _: &str, _: Duration, _: Option<Position>, _: Instant) -> Result<Leadership, StoreError> {
        Err(StoreError::Internal("there is nothing to repair".into()))
    }

    async fn resign(&self, _: &str, _: Instant) -> Result<(), StoreError> {
        Ok(())
    }

    async fn ping(&self, deadline: Instant) -> Result<(), StoreError> {
        self.queue.submit(1, deadline, Work::Ping).await
    }

    async fn close(&self) {
        self.queue.close();
        let engine = self.engine.swap(None);
        let thread = self.writer.lock().unwrap_or_else(|e| e.into_inner()).take();
        // Dropping the last reference stops the engine's threads and releases the folder, which
        // blocks.
        let ending = spawn_blocking(move || {
            let panicked = thread.is_some_and(|thread| thread.join().is_err());
            drop(engine);
            panicked
        });
        match timeout(CLOSE, ending).await {
            Ok(Ok(false)) => {}
            Ok(_) => tracing::error!("the writer of the local store panicked"),
            Err(_) => tracing::error!("the local store did not close within {CLOSE:?}"),
        }
    }

    fn info(&self) -> StoreInfo {
        StoreInfo { kind: "embedded", address: self.dir.display().to_string(), exclusive: true, silent: false }
    }
}

/// Reads as many keys as fit into one read.
fn read_all<K: AsRef<[u8]>>(engine: &Engine, keys: impl Iterator<Item = K>) -> Vec<Result<State, StoreError>> {
    let mut brought = 0;
    let read = |key: K| {
        if brought >= READ_BYTES {
            return Err(StoreError::LeftOut);
        }
        let state = read_one(engine, key.as_ref());
        if let Ok(State::Record(record)) = &state {
            brought += record.as_bytes().len();
        }
        state
    };
    keys.map(read).collect()
}

/// Adds the names of records that cannot be read.
fn name_unreadable(keys: &[RecordKey], states: Vec<Result<State, StoreError>>) -> Vec<Result<State, StoreError>> {
    let named = |(key, state): (&RecordKey, Result<State, StoreError>)| state.map_err(|error| error.of_record(key));
    keys.iter().zip(states).map(named).collect()
}

fn read_one(engine: &Engine, key: &[u8]) -> Result<State, StoreError> {
    match engine.get(key)? {
        Some(envelope) => envelope::state(key, envelope).map_err(|e| StoreError::Corrupt(e.to_string().into())),
        None => Ok(State::Absent),
    }
}

fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".into())
}
