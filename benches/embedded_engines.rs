//! redb against fjall under the embedded store's access pattern: which engine L2 on local disk is built on.
//!
//! `cargo bench --bench embedded_engines [-- records]` prints one block of figures an engine. Each phase runs in a process
//! of its own that ends by SIGKILL, so that memory is told apart and every open is one after a crash.
//! What a write does here is what the store does: look at the stored value, put the new one, and move the key in
//! the second table, which is ordered by expiry. Not here: the features' encoding, gRPC.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use fjall::{KeyspaceCreateOptions, PersistMode, config::HashRatioPolicy};
use redb::{ReadableDatabase, TableDefinition};

const CACHE_BYTES: usize = 256 << 20;
const BATCH: usize = 1_000;
const READ_BATCH: usize = 100;

trait Engine: Send + Sync {
    fn commit(&self, writes: &[(Vec<u8>, Vec<u8>)]);
    fn read(&self, keys: &[Vec<u8>]) -> usize;
}

struct Redb(redb::Database);

const RECORDS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("records");
const EXPIRY: TableDefinition<&[u8], ()> = TableDefinition::new("expiry");

impl Redb {
    fn open(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        Self(redb::Builder::new().set_cache_size(CACHE_BYTES).create(dir.join("redb")).unwrap())
    }
}

impl Engine for Redb {
    fn commit(&self, writes: &[(Vec<u8>, Vec<u8>)]) {
        let mut txn = self.0.begin_write().unwrap();
        txn.set_quick_repair(true);
        {
            let mut records = txn.open_table(RECORDS).unwrap();
            let mut expiry = txn.open_table(EXPIRY).unwrap();
            for (key, value) in writes {
                if let Some(old) = records.insert(&key[..], &value[..]).unwrap() {
                    expiry.remove(&expiry_key(old.value(), key)[..]).unwrap();
                }
                expiry.insert(&expiry_key(value, key)[..], ()).unwrap();
            }
        }
        txn.commit().unwrap();
    }

    fn read(&self, keys: &[Vec<u8>]) -> usize {
        let txn = self.0.begin_read().unwrap();
        let Ok(table) = txn.open_table(RECORDS) else { return 0 };
        keys.iter()
            .filter_map(|key| table.get(&key[..]).unwrap().map(|value| value.value().to_vec()))
            .map(|value| value.len())
            .sum()
    }
}

struct Fjall {
    db: fjall::Database,
    records: fjall::Keyspace,
    expiry: fjall::Keyspace,
}

impl Fjall {
    fn open(dir: &Path) -> Self {
        // Small memtables and journals: an open after a crash replays all journals.
        let db = fjall::Database::builder(dir)
            .cache_size(CACHE_BYTES as u64)
            .worker_threads(2)
            .max_journaling_size(64 << 20)
            .open()
            .unwrap();
        let records = db
            .keyspace("records", || {
                KeyspaceCreateOptions::default()
                    .max_memtable_size(16 << 20)
                    .data_block_hash_ratio_policy(HashRatioPolicy::all(1.0))
            })
            .unwrap();
        let expiry = db.keyspace("expiry", || KeyspaceCreateOptions::default().max_memtable_size(2 << 20)).unwrap();
        Self { db, records, expiry }
    }
}

impl Engine for Fjall {
    fn commit(&self, writes: &[(Vec<u8>, Vec<u8>)]) {
        // The journal is fsynced before the batch enters the memtables, so readers see only what is durable.
        let mut batch = self.db.batch().durability(Some(PersistMode::SyncAll));
        for (key, value) in writes {
            if let Some(old) = self.records.get(key).unwrap() {
                batch.remove(&self.expiry, expiry_key(&old, key));
            }
            batch.insert(&self.expiry, expiry_key(value, key), b"");
            batch.insert(&self.records, &key[..], &value[..]);
        }
        batch.commit().unwrap();
    }

    fn read(&self, keys: &[Vec<u8>]) -> usize {
        keys.iter().filter_map(|key| self.records.get(key).unwrap()).map(|value| value.len()).sum()
    }
}

fn expiry_key(value: &[u8], key: &[u8]) -> Vec<u8> {
    [&value[..8], key].concat()
}

fn open(engine: &str, dir: &Path) -> Arc<dyn Engine> {
    match engine {
        "redb" => Arc::new(Redb::open(dir)),
        _ => Arc::new(Fjall::open(dir)),
    }
}

/// A small generator of numbers; the quality does not matter here.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn key(i: u64) -> Vec<u8> {
    format!("default\0CUST-{i:09}").into_bytes()
}

/// 20 features with names and random doubles, as they lie in a row: about 600 bytes.
fn value(numbers: &mut Numbers) -> Vec<u8> {
    let mut value = numbers.next().to_be_bytes().to_vec();
    for i in 0..20 {
        value.extend_from_slice(format!("\u{1a}\u{1b}\n\u{e}feature_col_{i:02}\u{12}\u{9}!").as_bytes());
        value.extend_from_slice(&(numbers.next() as f64 / 1e12).to_le_bytes());
    }
    value
}

fn load(engine: &dyn Engine, records: u64) {
    let mut numbers = Numbers(42);
    let start = Instant::now();
    for first in (0..records).step_by(BATCH) {
        // A stride that is prime to the count visits every key once, in no useful order.
        let batch: Vec<_> = (first..records.min(first + BATCH as u64))
            .map(|i| (key(i * 611_953 % records), value(&mut numbers)))
            .collect();
        engine.commit(&batch);
    }
    report("load, durable batches of 1,000", records, start);
}

fn overwrite(engine: &dyn Engine, records: u64) {
    let mut numbers = Numbers(7);
    let start = Instant::now();
    for _ in 0..50 {
        let batch: Vec<_> = (0..BATCH).map(|_| (key(numbers.next() % records), value(&mut numbers))).collect();
        engine.commit(&batch);
    }
    report("overwrite, durable batches of 1,000", 50 * BATCH as u64, start);
}

fn read(engine: &Arc<dyn Engine>, records: u64, threads: u64) {
    let done = AtomicU64::new(0);
    let slowest = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (done, slowest) = (&done, &slowest);
            scope.spawn(move || {
                let mut numbers = Numbers(thread + 1);
                while start.elapsed() < Duration::from_secs(6) {
                    let keys: Vec<_> = (0..READ_BATCH).map(|_| key(numbers.next() % records)).collect();
                    let call = Instant::now();
                    assert!(engine.read(&keys) > READ_BATCH * 400);
                    slowest.fetch_max(call.elapsed().as_micros() as u64, Ordering::Relaxed);
                    done.fetch_add(READ_BATCH as u64, Ordering::Relaxed);
                }
            });
        }
    });
    let done = done.into_inner();
    report(&format!("read, batches of 100, {threads} threads"), done, start);
    let call = 6e6 * threads as f64 / (done as f64 / READ_BATCH as f64);
    println!("    a batch of 100: mean {call:.0} us, slowest {} us", slowest.into_inner());
}

/// Many writers, one durable write each at a time, grouped by one thread.
fn grouped(engine: &Arc<dyn Engine>, records: u64, writers: u64) {
    let (queue, waiting) = mpsc::sync_channel::<((Vec<u8>, Vec<u8>), mpsc::SyncSender<()>)>(1024);
    let stop = AtomicBool::new(false);
    let done = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while let Ok(first) = waiting.recv() {
                let mut group = vec![first];
                group.extend(waiting.try_iter().take(4_000));
                let (writes, answers): (Vec<_>, Vec<_>) = group.into_iter().unzip();
                engine.commit(&writes);
                answers.into_iter().for_each(|answer| answer.send(()).unwrap());
            }
        });
        for writer in 0..writers {
            let (queue, stop, done) = (queue.clone(), &stop, &done);
            scope.spawn(move || {
                let mut numbers = Numbers(writer + 99);
                while !stop.load(Ordering::Relaxed) {
                    let (answer, answered) = mpsc::sync_channel(1);
                    queue.send(((key(numbers.next() % records), value(&mut numbers)), answer)).unwrap();
                    answered.recv().unwrap();
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        drop(queue);
        std::thread::sleep(Duration::from_secs(5));
        stop.store(true, Ordering::Relaxed);
    });
    report(&format!("single durable writes, {writers} writers"), done.into_inner(), start);
}

fn report(what: &str, count: u64, start: Instant) {
    let rate = count as f64 / start.elapsed().as_secs_f64();
    println!("  {what}: {:.1} k/s", rate / 1e3);
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn disk_mib(dir: &Path) -> u64 {
    let size = |path: PathBuf| if path.is_dir() { disk_mib(&path) << 20 } else { path.metadata().unwrap().len() };
    std::fs::read_dir(dir).unwrap().map(|entry| size(entry.unwrap().path())).sum::<u64>() >> 20
}

fn phase(engine: &str, phase: &str, dir: &Path, records: u64) {
    let start = Instant::now();
    let opened = open(engine, dir);
    assert!(phase == "load" || opened.read(&[key(1)]) > 400);
    if phase != "load" {
        println!("  open after SIGKILL ({} MiB on disk): {} ms", disk_mib(dir), start.elapsed().as_millis());
    }
    match phase {
        "load" => load(&*opened, records),
        "read" => {
            read(&opened, records, 1);
            read(&opened, records, 2);
        }
        "write" => {
            [1, 16, 128].into_iter().for_each(|writers| grouped(&opened, records, writers));
            overwrite(&*opened, records);
        }
        _ => {}
    }
    println!("  resident after {phase}: {} MiB; on disk {} MiB", resident_mib(), disk_mib(dir));
    let _ = Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [engine, name, dir, records] = &args[..] {
        return phase(engine, name, Path::new(dir), records.parse().unwrap());
    }
    let records = args.first().map_or(1_000_000, |records| records.parse().unwrap());
    let me = std::env::current_exe().unwrap();
    for engine in ["redb", "fjall"] {
        let dir = std::env::temp_dir().join(format!("embedded-engines-{engine}-{}", std::process::id()));
        println!("{engine}, {records} records");
        for phase in ["load", "read", "write", "reopen"] {
            let _ = Command::new(&me).args([engine, phase]).arg(&dir).arg(records.to_string()).status();
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
