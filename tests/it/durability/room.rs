//! A disk of its own, small: a tmpfs in a mount namespace that a process of the test holds. Other processes reach it
//! under `/proc/<holder>/root`. It takes root, or a kernel that gives users namespaces of their own.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;

use crate::harness::process::{Process, temp_dir, wait_until};

const BOUND: Duration = Duration::from_secs(20);
/// Mounts, waits until it shall be read-only, and stays.
const HOLD: &str = r#"
mount -t tmpfs -o size="$1" tmpfs "$0" && touch "$0/ready" || exit 1
while ! test -e "$0/freeze"; do sleep 0.1; done
mount -o remount,ro tmpfs "$0" || exit 1
exec sleep 3600
"#;

pub(super) struct Disk {
    holder: Process,
    mounted_on: TempDir,
}

impl Disk {
    /// One of this size (`8m`); None, and it says so: this machine does not allow it.
    pub(super) fn new(size: &str) -> Option<Self> {
        for user in [&[][..], &["--user", "--map-root-user"]] {
            let mounted_on = temp_dir();
            let path = mounted_on.path().to_str().unwrap();
            let args = [user, &["--mount", "--propagation", "private", "sh", "-c", HOLD, path, size]].concat();
            let log = temp_dir();
            let disk = Self { holder: Process::start("unshare", args, &log.path().join("log")), mounted_on };
            wait_until("a disk", BOUND, || disk.path().join("ready").exists() || !disk.holder.is_running());
            if disk.path().join("ready").exists() {
                return Some(disk);
            }
        }
        left_out("this machine allows no mount namespace, so there is no real full or read-only disk");
        None
    }

    /// Its root, as any process sees it.
    pub(super) fn path(&self) -> PathBuf {
        let inside = self.mounted_on.path().strip_prefix("/").unwrap();
        Path::new("/proc").join(self.holder.pid().to_string()).join("root").join(inside)
    }

    /// Makes it read-only.
    pub(super) fn freeze(&self) {
        fs::write(self.path().join("freeze"), "").unwrap();
        wait_until("the disk to be read-only", BOUND, || {
            assert!(self.holder.is_running(), "it could not be made read-only");
            fs::write(self.path().join("try"), "").is_err()
        });
    }
}

/// Says what a test leaves out, past the test harness, which keeps what tests print to itself.
pub(super) fn left_out(why: &str) {
    let _ = writeln!(std::io::stderr(), "LEFT OUT: {why}");
}
