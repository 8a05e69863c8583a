//! The engine of the embedded store, fjall, and its three tables. Why fjall:
//! `docs/embedded-engine.md`.
//!
//! - `records`: key -> envelope; also the numbers of the groups (`chain`).
//! - `expiry`: (when it may be removed, key) -> nothing; an index of `records` by time.
//! - `meta`: the epoch, and how many groups were committed.
//!
//! A group is in the journal and fsynced before it enters the memtables
//! (`fjall::OwnedWriteBatch::commit`), so readers see only durable data. Not here: what a write
//! means (`group`), when groups are committed (`writer`).

use std::{
    fs::{File, OpenOptions},
    ops::Bound,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use fjall::{
    AbstractTree as _, Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode,
    compaction::Leveled,
    config::{FilterPolicy, HashRatioPolicy},
};

use super::{chain, open, open::OpenError};
use crate::{
    record::{Millis, RecordKey, Revision},
    store::StoreError,
};

const COMMITS: &str = "commits";
/// fjall counts only the bytes of blocks. Measured with 1 M records, 256 MiB of them took 340 MiB
/// of memory (rounding of the allocator and the cache's own tables), and small tables take some
/// more. `l2.cache` promises what the process takes.
const BLOCKS_OF_CACHE: f64 = 0.55;
/// Small memtables and journals: an open after a crash replays all journals, and 64 MiB take well
/// below a second.
const JOURNAL_BYTES: u64 = 64 << 20;
const RECORDS_MEMTABLE_BYTES: u64 = 16 << 20;
/// So that the first level, which holds four of these, is as large as what is merged into it: four
/// flushed memtables. Each of them overlaps the whole level, because of the numbers in `chain`, so
/// all of it is rewritten.
const RECORDS_TABLE_BYTES: u64 = 16 << 20;
const SMALL_MEMTABLE_BYTES: u64 = 2 << 20;
/// An idle memtable of at least this size is flushed. Smaller tables would cost more merging than
/// they save.
const IDLE_FLUSH_BYTES: u64 = 4 << 20;
/// A flush needs this much free space: a flush or merge that finds none ends all writes until a
/// restart.
const FLUSH_ROOM_BYTES: u64 = 256 << 20;

pub(super) struct Engine {
    database: Database,
    records: Keyspace,
    expiry: Keyspace,
    meta: Keyspace,
    /// The number of committed groups again, outside of the journal and not fsynced. If the engine
    /// knows of fewer when it is opened, some were lost: fjall treats a damaged journal as one that
    /// was not written to its end, and cuts it there.
    commits: File,
    dir: PathBuf,
}

/// The changes of one group, and its number.
pub(super) struct Changes {
    batch: OwnedWriteBatch,
    number: u64,
    highest: Revision,
}

impl Engine {
    /// Opens or creates it. Also returns how many groups were ever committed, and their highest
    /// revision.
    pub(super) fn open(dir: &Path, cache_bytes: u64) -> Result<(Self, u64, Revision), OpenError> {
        let folder = dir.join("fjall");
        std::fs::create_dir_all(&folder).map_err(|e| OpenError::io(dir, &e))?;
        let commits = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join(COMMITS))
            .map_err(|e| OpenError::io(dir, &e))?;
        let expected = read_count(&commits);
        open::check_version(dir, &folder, expected)?;
        // fjall trusts some of what it reads at open, so a panic there means damage too.
        let opened = open::guarded(dir, || Self::open_tables(&folder, cache_bytes, expected));
        let (database, [records, expiry, meta]) = opened
            .unwrap_or_else(|| Err(fjall::Error::Unrecoverable))
            .map_err(|error| OpenError::engine(dir, &error))?;
        let engine = Self { database, records, expiry, meta, commits, dir: dir.to_owned() };
        let corrupt = |reason: &str| OpenError::corrupt(dir, reason);
        let count = engine.get_meta(COMMITS).map_err(|e| corrupt(&e.to_string()))?;
        let count = count.and_then(|bytes| bytes.first_chunk().copied()).map_or(0, u64::from_le_bytes);
        if count < expected {
            return Err(corrupt(&format!("the last {} committed groups of writes are gone", expected - count)));
        }
        let first = engine.get_meta(chain::FIRST).map_err(|e| corrupt(&e.to_string()))?;
        match first.and_then(|bytes| bytes.first_chunk().copied()).map(u64::from_le_bytes) {
            Some(first) => {
                let highest = engine.check_chain(first, count).map_err(|reason| corrupt(&reason))?;
                Ok((engine, count, highest))
            }
            // There are links: the first of them is gone.
            None if engine.records.prefix(chain::PREFIX).next().is_some() => {
                Err(corrupt("the first committed groups of writes are gone"))
            }
            // New, or from before there was a chain.
            None => {
                let first = count + 1;
                let mut changes = engine.changes(first, Revision::NONE);
                engine.put_meta(&mut changes, chain::FIRST, first.to_le_bytes().to_vec());
                let unusable = |e: StoreError| OpenError::Unusable { dir: dir.to_owned(), reason: e.to_string() };
                engine.commit(changes).map_err(unusable)?;
                Ok((engine, first, Revision::NONE))
            }
        }
    }

    /// The highest revision, if no group from `first` to `count` is missing among the records.
    fn check_chain(&self, first: u64, count: u64) -> Result<Revision, String> {
        let mut chain = chain::Check::new(first, count);
        for guard in self.records.prefix(chain::PREFIX) {
            match guard.into_inner() {
                Ok((key, value)) => chain.see(&key, &value)?,
                Err(error) => {
                    // A block of a table is damaged. Reads of other records in it will return the
                    // same error.
                    let folder = self.dir.display();
                    tracing::warn!(
                        %folder, %error,
                        "the local store is damaged, and it cannot be checked whether writes are missing"
                    );
                    return Ok(Revision::NONE);
                }
            }
        }
        chain.end()
    }

    /// The folder of the store.
    pub(super) fn folder(&self) -> &Path {
        &self.dir
    }

    /// Why nothing can be written into the folder, if so. It is tested with a file that is removed
    /// again.
    pub(super) fn refuses_data(&self) -> Option<std::io::Error> {
        let path = self.dir.join("probe");
        let probe = File::create(&path).and_then(|file| {
            file.write_all_at(&[1; 256 << 10], 0)?;
            file.sync_all()
        });
        let _ = std::fs::remove_file(&path);
        probe.err()
    }

    fn open_tables(folder: &PathBuf, cache_bytes: u64, commits: u64) -> fjall::Result<(Database, [Keyspace; 3])> {
        let database = Database::builder(folder)
            .cache_size((cache_bytes as f64 * BLOCKS_OF_CACHE) as u64)
            .max_journaling_size(JOURNAL_BYTES)
            // With two threads, one of them is busy while the other compacts: it defers compactions
            // by sending them to itself again.
            .worker_threads(3)
            .open()?;
        // fjall empties a table without a marker, because it looks like one that was not fully
        // created.
        if commits > 0 && !["records", "expiry", "meta"].iter().all(|name| database.keyspace_exists(name)) {
            return Err(fjall::Error::Unrecoverable);
        }
        let records = database.keyspace("records", || {
            KeyspaceCreateOptions::default()
                .compaction_strategy(Arc::new(Leveled::default().with_table_target_size(RECORDS_TABLE_BYTES)))
                .max_memtable_size(RECORDS_MEMTABLE_BYTES)
                .data_block_hash_ratio_policy(HashRatioPolicy::all(1.0))
        })?;
        let expiry = database.keyspace("expiry", || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(SMALL_MEMTABLE_BYTES)
                .filter_policy(FilterPolicy::disabled()) // read by ranges only
        })?;
        let meta = database.keyspace("meta", || KeyspaceCreateOptions::default().max_memtable_size(1 << 20))?;
        Ok((database, [records, expiry, meta]))
    }

    /// The envelope under a key. It is copied, because a slice would keep its block of 4 KiB alive
    /// in a cache that keeps the record.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let found = self.records.get(key).map_err(|e| read_error(&e))?;
        Ok(found.map(|bytes| Bytes::copy_from_slice(&bytes)))
    }

    pub(super) fn get_meta(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let found = self.meta.get(name).map_err(|e| read_error(&e))?;
        Ok(found.map(|bytes| bytes.to_vec()))
    }

    /// At most `limit` expiry keys after `cursor` that are due.
    pub(super) fn due(&self, cursor: &[u8], now: Millis, limit: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        let end = expiry_key(now.after(std::time::Duration::from_millis(1)), b"");
        let range: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Excluded(cursor), Bound::Excluded(&end));
        if cursor >= &end[..] {
            return Ok(Vec::new());
        }
        let keys = self.expiry.range::<&[u8], _>(range).take(limit).map(|guard| guard.key());
        keys.map(|key| key.map(|key| key.to_vec()).map_err(|e| read_error(&e))).collect()
    }

    /// Flushes the records in memory while the store is idle. Reads find a record faster in a table
    /// with a filter than in a memtable that is half full.
    pub(super) fn flush(&self) {
        if self.records.tree.active_memtable().size() < IDLE_FLUSH_BYTES {
            return;
        }
        let room = rustix::fs::statvfs(&self.dir).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        if room < FLUSH_ROOM_BYTES {
            return;
        }
        if let Err(error) = self.records.rotate_memtable() {
            tracing::warn!(%error, "the idle local store could not flush records into a table; none is lost");
        }
    }

    /// Starts group `number`; `highest` is the highest revision including this group.
    pub(super) fn changes(&self, number: u64, highest: Revision) -> Changes {
        Changes { batch: self.database.batch().durability(Some(PersistMode::SyncAll)), number, highest }
    }

    pub(super) fn put(&self, changes: &mut Changes, key: &[u8], envelope: Vec<u8>) {
        changes.batch.insert(&self.records, key, envelope);
    }

    pub(super) fn remove(&self, changes: &mut Changes, key: &[u8]) {
        changes.batch.remove(&self.records, key);
    }

    pub(super) fn put_expiry(&self, changes: &mut Changes, expiry_key: Vec<u8>) {
        changes.batch.insert(&self.expiry, expiry_key, b"".as_slice());
    }

    pub(super) fn remove_expiry(&self, changes: &mut Changes, expiry_key: Vec<u8>) {
        changes.batch.remove(&self.expiry, expiry_key);
    }

    pub(super) fn put_meta(&self, changes: &mut Changes, name: &str, value: Vec<u8>) {
        changes.batch.insert(&self.meta, name, value);
    }

    /// Commits the group. After Ok it is on disk. `Unavailable`: certainly nothing happened.
    pub(super) fn commit(&self, mut changes: Changes) -> Result<(), StoreError> {
        let number = changes.number;
        self.put_meta(&mut changes, COMMITS, number.to_le_bytes().to_vec());
        for (key, link) in chain::links(number, changes.highest) {
            changes.batch.insert(&self.records, key, link);
        }
        changes.batch.commit().map_err(|error| match error {
            // fjall returns this before it writes anything.
            fjall::Error::Poisoned => {
                StoreError::Unavailable("an earlier write to the disk failed; restart the server".into())
            }
            error => StoreError::OutcomeUnknown(format!("the commit failed: {error}").into()),
        })?;
        let mut line = number.to_le_bytes().to_vec();
        line.extend_from_slice(&crc32fast::hash(&line).to_le_bytes());
        if let Err(error) = self.commits.write_all_at(&line, 0) {
            tracing::warn!(%error, "the count of commits was not written; it only helps to notice a damaged journal");
        }
        Ok(())
    }
}

/// 0 if there is none, or if it is incomplete: then it proves nothing.
fn read_count(file: &File) -> u64 {
    let mut line = [0; 12];
    let (count, sum) = match file.read_exact_at(&mut line, 0) {
        Ok(()) => line.split_at(8),
        Err(_) => return 0,
    };
    if crc32fast::hash(count).to_le_bytes() != sum {
        return 0;
    }
    count.first_chunk().copied().map_or(0, u64::from_le_bytes)
}

fn read_error(error: &fjall::Error) -> StoreError {
    match error {
        fjall::Error::Io(e) | fjall::Error::Storage(fjall::LsmError::Io(e))
            if e.kind() != std::io::ErrorKind::UnexpectedEof =>
        {
            StoreError::Unavailable(format!("reading failed: {e}").into())
        }
        error => StoreError::Corrupt(error.to_string().into()),
    }
}

pub(super) fn record_key(key: &RecordKey) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(key.view.as_str().len() + 1 + key.entity_id.as_bytes().len());
    put_record_key(key, &mut bytes);
    bytes
}

/// A view has no NUL, so the keys of different records differ.
fn put_record_key(key: &RecordKey, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(key.view.as_str().as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(key.entity_id.as_bytes());
}

/// The stored keys of a batch, in one buffer, because they are freed on another thread.
pub(super) struct RecordKeys {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl RecordKeys {
    pub(super) fn of(keys: &[RecordKey]) -> Self {
        let (mut bytes, mut ends) = (Vec::with_capacity(32 * keys.len()), Vec::with_capacity(keys.len()));
        for key in keys {
            put_record_key(key, &mut bytes);
            ends.push(bytes.len());
        }
        Self { bytes, ends }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[start..*end])
    }
}

/// Sorts by time, then key.
pub(super) fn expiry_key(at: Millis, key: &[u8]) -> Vec<u8> {
    let time = (at.0 as u64) ^ (1 << 63); // so that negative times sort first
    [&time.to_be_bytes()[..], key].concat()
}

/// The time and the key of the record in an expiry key. None: it is not one.
pub(super) fn parse_expiry_key(expiry_key: &[u8]) -> Option<(Millis, &[u8])> {
    let (time, key) = expiry_key.split_first_chunk()?;
    Some((Millis((u64::from_be_bytes(*time) ^ (1 << 63)) as i64), key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_a_batch_are_those_of_its_records() {
        let key = |id: &str| RecordKey {
            view: crate::record::FeatureView::parse("v").unwrap(),
            entity_id: crate::record::EntityId::parse(id).unwrap(),
        };
        let keys = ["a", "ü", &"n".repeat(512)].map(key);
        assert!(RecordKeys::of(&keys).iter().eq(keys.iter().map(record_key)));
    }

    #[test]
    fn expiry_keys_sort_by_time() {
        let times = [i64::MIN, -1, 0, 1, 1_790_000_000_000, i64::MAX];
        let keys: Vec<_> = times.iter().map(|at| expiry_key(Millis(*at), b"k")).collect();
        assert!(keys.is_sorted());
        for (at, key) in times.iter().zip(&keys) {
            assert_eq!(parse_expiry_key(key), Some((Millis(*at), &b"k"[..])));
        }
    }
}
