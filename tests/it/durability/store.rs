//! A store in a folder, what it acknowledged, and a process of its own that looks at a damaged copy, as some damage ends
//! the process.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use featurestore::{
    proto::value::Kind,
    record::{Clock, EntityId, FeatureView, RecordKey, State},
    store::{
        ReadConcern, Store, StoreError,
        embedded::{EmbeddedStore, OpenError},
    },
};

use crate::{harness::process::temp_dir, store_contract::fixture::*};

/// What the store acknowledged, as a file in its folder: revision and entity id.
const ACKNOWLEDGED: &str = "acknowledged";
const PROBE: &str = "FEATURESTORE_TEST_DAMAGED_FOLDER";
/// Ten times what an open takes on a loaded machine.
const PROBE_TIME: Duration = Duration::from_secs(60);

pub(super) fn open(dir: &Path) -> Result<Arc<dyn Store>, OpenError> {
    EmbeddedStore::open(dir, 8 << 20, rules(), Clock::system()).map(|store| Arc::new(store) as Arc<dyn Store>)
}

/// A store of `count` records, each text of 16 letters a word, written in groups of `group`, closed.
pub(super) async fn filled(count: usize, words: usize, group: usize) -> tempfile::TempDir {
    let dir = temp_dir();
    let store = open(dir.path()).unwrap();
    let keys: Vec<_> = (0..count).map(|i| key(&format!("{i}"))).collect();
    let mut acknowledged = String::new();
    for keys in keys.chunks(group) {
        let writes = keys.iter().map(|key| put(key).kind("a", random_text(words)).0).collect();
        for (key, receipt) in keys.iter().zip(store.write_batch(writes, deadline()).await) {
            acknowledged += &format!("{} {}\n", receipt.unwrap().revision, key.entity_id);
        }
    }
    fs::write(dir.path().join(ACKNOWLEDGED), acknowledged).unwrap();
    store.close().await;
    dir
}

/// A store of one record, written so many times.
pub(super) async fn rewritten(times: i64) -> tempfile::TempDir {
    let (dir, key) = (temp_dir(), key("again"));
    let store = open(dir.path()).unwrap();
    let mut revision = None;
    for n in 0..times {
        revision = Some(put(&key).int("a", n).written(&store).await);
    }
    fs::write(dir.path().join(ACKNOWLEDGED), format!("{} {}\n", revision.unwrap(), key.entity_id)).unwrap();
    store.close().await;
    dir
}

fn random_text(words: usize) -> Kind {
    Kind::StringVal((0..words).map(|_| format!("{:016x}", rand::random::<u64>())).collect())
}

/// Every file of the folder, relative to it.
pub(super) fn files(dir: &Path) -> Vec<PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let mut found = Vec::new();
    walk(dir, &mut found);
    let mut found: Vec<_> = found.iter().map(|path| path.strip_prefix(dir).unwrap().to_owned()).collect();
    found.retain(|path| path != Path::new(ACKNOWLEDGED));
    found.sort();
    found
}

/// The length without the zeros at the end: a journal is 64 MiB of which most is a hole.
pub(super) fn used(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

/// One fault of a file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Damage {
    /// Of the bit with this number.
    Flip(u64),
    /// To so many bytes.
    Cut(u64),
    Remove,
}

impl Damage {
    pub(super) fn to(self, path: &Path) {
        let file = || OpenOptions::new().read(true).write(true).open(path).unwrap();
        match self {
            Self::Flip(bit) => {
                let (file, mut byte): (File, _) = (file(), [0]);
                file.read_exact_at(&mut byte, bit / 8).unwrap();
                file.write_all_at(&[byte[0] ^ (1 << (bit % 8))], bit / 8).unwrap();
            }
            Self::Cut(len) => file().set_len(len).unwrap(),
            Self::Remove => fs::remove_file(path).unwrap(),
        }
    }
}

/// What came of a damaged folder. Anything else fails the test.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Seen {
    /// All that was acknowledged is there.
    Whole,
    /// All that was acknowledged is there, but for rows that answer that they cannot be read.
    Rows,
    /// It did not open, in these words.
    Refused(String),
}

/// A copy of the folder. `cp` keeps the holes.
pub(super) fn copy(whole: &Path) -> tempfile::TempDir {
    let dir = temp_dir();
    let copied = Command::new("cp").arg("-r").arg(whole.join(".")).arg(dir.path()).status().unwrap();
    assert!(copied.success());
    dir
}

/// Opens the folder in a process of its own, and compares it with what was acknowledged.
pub(super) fn look(dir: &Path, what: &str) -> Seen {
    let output = temp_dir();
    let [out, err] = ["out", "err"].map(|name| output.path().join(name));
    let mut probe = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "durability::store::probe_of_a_damaged_folder", "--nocapture"])
        .env(PROBE, dir)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(&err).unwrap())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let status = loop {
        match probe.try_wait().unwrap() {
            Some(status) => break status,
            None if start.elapsed() > PROBE_TIME => {
                let _ = probe.kill();
                panic!("{what}: it hangs");
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let [out, err] = [out, err].map(|path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned());
    let refusal = err.lines().find_map(|line| line.strip_prefix("featurestore: data_dir: "));
    let panicked = err.contains("panicked at") || out.contains("panicked at");
    match (status.code(), refusal) {
        (Some(0), None) if !panicked && out.contains("probe: whole") => Seen::Whole,
        (Some(0), None) if !panicked && out.contains("probe: rows") => Seen::Rows,
        (Some(1), Some(words)) if !panicked => {
            assert_eq!(err.lines().count(), 1, "{what}: more than one line: {err}");
            assert!(words.contains(&dir.display().to_string()), "{what}: {words}");
            // A flipped bit of the version marker looks like a newer version.
            assert!(
                ["restore a backup", "newer version"].iter().any(|advice| words.contains(advice)),
                "{what}: {words}"
            );
            let reason = words.split_once("is damaged: ").map_or(words, |(_, reason)| reason);
            Seen::Refused(reason.split("; restore").next().unwrap().to_owned())
        }
        (code, _) => panic!("{what}: exit code {code:?}: {out} {err}"),
    }
}

/// The other half of `look`; alone, it has nothing to do.
#[tokio::test]
async fn probe_of_a_damaged_folder() {
    let Some(dir) = std::env::var_os(PROBE).map(PathBuf::from) else { return };
    let store = match open(&dir) {
        Ok(store) => store,
        Err(error) => {
            // As the binary says it.
            eprintln!("featurestore: data_dir: {error}");
            std::process::exit(1);
        }
    };
    let mut seen = "whole";
    for line in fs::read_to_string(dir.join(ACKNOWLEDGED)).unwrap().lines() {
        let (revision, id) = line.split_once(' ').unwrap();
        let key = RecordKey { view: FeatureView::parse("contract").unwrap(), entity_id: EntityId::parse(id).unwrap() };
        match store.read(&[key], ReadConcern::Majority, deadline()).await.remove(0) {
            Ok(State::Record(stored)) => {
                assert_eq!(stored.revision().to_string(), revision, "another revision");
                stored.decode().unwrap();
            }
            Err(StoreError::Corrupt(_)) => seen = "rows",
            lost => panic!("{id}: {lost:?}"),
        }
    }
    println!("probe: {seen}");
    store.close().await;
}

/// Does `work` on each item, some at a time.
pub(super) fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let share = items.len().div_ceil(3).max(1);
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            items.chunks(share).map(|items| scope.spawn(move || items.iter().map(work).collect::<Vec<_>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}
