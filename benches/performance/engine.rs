//! The embedded store's engine alone, with the settings of `src/store/embedded/engine.rs`. Shared with the bench
//! `embedded_store`.

#![allow(dead_code, reason = "each bench uses what it needs")]

use std::{path::Path, sync::Arc};

use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, PersistMode,
    compaction::Leveled,
    config::{FilterPolicy, HashRatioPolicy},
};

/// The default of l2.cache.
pub(crate) const L2_CACHE: u64 = 256 << 20;
/// What the store gives the engine of it.
const CACHE_BYTES: u64 = L2_CACHE / 100 * 55;

/// A small generator of numbers; the quality does not matter here.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// The tables that records are in.
pub(crate) struct Engine {
    database: Database,
    pub(crate) records: Keyspace,
    expiry: Keyspace,
}

impl Engine {
    /// Opens or creates what lies in a store's folder.
    pub(crate) fn open(dir: &Path) -> fjall::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let database = Database::builder(dir.join("fjall"))
            .cache_size(CACHE_BYTES)
            .max_journaling_size(64 << 20)
            .worker_threads(3)
            .open()?;
        let records = database.keyspace("records", || {
            KeyspaceCreateOptions::default()
                .compaction_strategy(Arc::new(Leveled::default().with_table_target_size(16 << 20)))
                .max_memtable_size(16 << 20)
                .data_block_hash_ratio_policy(HashRatioPolicy::all(1.0))
        })?;
        let expiry = database.keyspace("expiry", || {
            KeyspaceCreateOptions::default().max_memtable_size(2 << 20).filter_policy(FilterPolicy::disabled())
        })?;
        Ok(Self { database, records, expiry })
    }

    /// Flushes the records in memory, as the store does when it is idle.
    pub(crate) fn flush(&self) -> fjall::Result<()> {
        self.records.rotate_memtable_and_wait()
    }

    /// Writes a batch durably as the store does: each key is looked at, put, and entered where expiry is ordered.
    pub(crate) fn write(&self, envelopes: impl IntoIterator<Item = (Vec<u8>, Arc<[u8]>)>) -> fjall::Result<()> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        for (key, envelope) in envelopes {
            assert!(self.records.get(&key)?.is_none(), "written twice");
            batch.insert(&self.expiry, [&envelope[8..16], &key].concat(), b"".as_slice());
            batch.insert(&self.records, key, &*envelope);
        }
        batch.commit()
    }
}

/// The key of a record in a view.
pub(crate) fn engine_key(view: &str, number: u64) -> Vec<u8> {
    format!("{view}\0CUST-{number:09}").into_bytes()
}
