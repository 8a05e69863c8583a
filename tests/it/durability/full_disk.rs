//! No room on the disk: writes fail clearly and are never acknowledged and lost, reads go on, and once there is room and
//! the server was restarted all goes on.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use tonic::Code;

use super::room::Disk;
use crate::harness::{
    binary::{Binary, SERVICE},
    client::*,
    process::temp_dir,
    server::eventually,
};

/// What makes a disk full, and what makes room.
enum Full {
    /// A real one, with a file that takes up a part of it.
    Disk(Disk),
    /// A limit on the size of files, where there is nothing better (and always, so that it is known to work).
    Limit(tempfile::TempDir),
}

impl Full {
    fn data_dir(&self) -> PathBuf {
        match self {
            Self::Disk(disk) => disk.path().join("data"),
            Self::Limit(dir) => dir.path().join("data"),
        }
    }

    fn start(&self, limited: bool) -> Binary {
        let dir = self.data_dir();
        let settings = [("FEATURESTORE_DATA_DIR", dir.to_str().unwrap())];
        // Without the trap the kernel would end the process.
        let limit = ["sh", "-c", r#"trap '' XFSZ; ulimit -f 4096; exec "$0" "$@""#];
        Binary::start_under(if limited && matches!(self, Self::Limit(_)) { &limit } else { &[] }, &settings)
    }

    fn make_room(&self) {
        if let Self::Disk(disk) = self {
            fs::remove_file(disk.path().join("ballast")).unwrap();
        }
    }

    /// What the log says: the system's words, and what to do. Under the limit there is room for another file.
    fn words(&self) -> [&'static str; 2] {
        match self {
            Self::Disk(_) => ["No space left on device", "make room"],
            Self::Limit(_) => ["File too large", "restart"],
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_writes_fail_and_none_that_was_acknowledged_is_lost() {
    if let Some(disk) = Disk::new("14m") {
        fs::write(disk.path().join("ballast"), vec![1; 8 << 20]).unwrap();
        fill_and_recover(&Full::Disk(disk)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_limit_of_the_size_of_files_writes_fail_and_none_that_was_acknowledged_is_lost() {
    let full = Full::Limit(temp_dir());
    // A new store makes a file of 64 MiB.
    let mut server = full.start(false);
    server.until_serving().await;
    server.signal("TERM");
    assert_eq!(server.exit_code(Duration::from_secs(30)), 0, "{}", server.log());
    fill_and_recover(&full).await;
}

async fn fill_and_recover(full: &Full) {
    let mut server = full.start(true);
    server.until_serving().await;
    let mut client = server.client().await;
    let mut acknowledged = BTreeMap::new();
    let refused = loop {
        let id = format!("{}", acknowledged.len());
        match client.upsert_features(upsert(large(&id))).await {
            Ok(written) => acknowledged.insert(id, written.into_inner().revision),
            Err(refused) => break refused,
        };
        assert!(acknowledged.len() < 5_000, "the disk never fills");
    };
    assert!(acknowledged.len() > 20, "{refused:?}");
    let refusal = Refusal::of(&refused);
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Unavailable, "OUTCOME_UNKNOWN"));
    for id in ["0", "another"] {
        let refused = client.upsert_features(upsert(large(id))).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    }
    let (log, dir) = (server.log(), full.data_dir());
    let line = log.lines().find(|line| line.contains("takes no more writes")).unwrap_or_else(|| panic!("{log}"));
    for word in full.words().into_iter().chain([dir.to_str().unwrap(), "restart"]) {
        assert!(line.contains(word), "{word} is not in: {line}");
    }
    eventually("reads to go on", async || all_there(&mut client, &acknowledged).await).await;

    // Another start while it is as full: it serves what there is, or says why not.
    server.kill();
    let mut server = full.start(true);
    eventually("a start on a full disk to come to something", async || {
        !server.is_running() || server.health(SERVICE).await.is_some()
    })
    .await;
    if server.is_running() {
        let mut client = server.client().await;
        eventually("reads on a full disk", async || all_there(&mut client, &acknowledged).await).await;
        println!("a start on a full disk serves reads");
    } else {
        let log = server.log();
        let line = log.lines().last().unwrap_or_default();
        assert_eq!(server.exit_code(Duration::from_secs(1)), 1, "{log}");
        assert!(line.contains(dir.to_str().unwrap()) && line.contains(full.words()[0]), "{log}");
        println!("a start on a full disk is refused: {line}");
    }

    server.kill();
    full.make_room();
    let server = full.start(false);
    server.until_serving().await;
    let mut client = server.client().await;
    assert!(all_there(&mut client, &acknowledged).await, "something is lost");
    for id in ["0", "another"] {
        let written = put(&mut client, large(id)).await;
        assert!(written.revision > acknowledged.get(id).copied().unwrap_or_default());
    }
}

/// A record that does not compress.
fn large(id: &str) -> FeatureRecord {
    let text = (0..1_000).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
    record(id, [("text", value(value::Kind::StringVal(text)))])
}

/// False: some read did not succeed. A row that misses or is older fails the test.
async fn all_there(client: &mut Client, acknowledged: &BTreeMap<String, i64>) -> bool {
    let ids: Vec<_> = acknowledged.iter().collect();
    for chunk in ids.chunks(50) {
        let Ok(response) = client.get_features(strong(chunk.iter().map(|(id, _)| id.as_str()))).await else {
            return false;
        };
        for (row, (id, revision)) in response.into_inner().rows.iter().zip(chunk) {
            match row.status() {
                RowStatus::Found => assert!(row.revision >= **revision, "{id} is older than it was: {}", row.revision),
                RowStatus::Error => return false,
                other => panic!("{id} is lost: {other:?}"),
            }
        }
    }
    true
}
