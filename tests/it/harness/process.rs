//! A child process that never outlives the test binary, however that ends.
//!
//! A shell stands between: it kills the child once its own standard input closes, which the kernel does when the test
//! binary dies. So not even a SIGKILL of the tests leaves a server behind.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

const KEEPER: &str = r#"
log=$1; shift; exec 3<&0
"$@" </dev/null >"$log" 2>&1 3<&- & pid=$!
echo $pid
(cat <&3 >/dev/null; kill -CONT $pid; kill -9 $pid) & killer=$!
wait $pid; code=$?
kill $killer
echo $code
"#;

pub struct Process {
    keeper: Child,
    pid: u32,
    words: BufReader<ChildStdout>,
}

impl Process {
    /// Starts a program; its output goes to the file `log`.
    pub fn start<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>, log: &Path) -> Self {
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .arg(log)
            .arg(&program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", program.as_ref().display()));
        let (mut words, mut line) = (BufReader::new(keeper.stdout.take().unwrap()), String::new());
        words.read_line(&mut line).unwrap();
        Self { keeper, pid: line.trim().parse().unwrap(), words }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal by its name: `STOP`, `CONT`, `TERM`, `KILL`.
    pub fn signal(&self, name: &str) {
        let done = Command::new("kill").args(["-s", name, &self.pid.to_string()]).status().unwrap();
        assert!(done.success(), "cannot send SIG{name} to {}", self.pid);
        if name == "STOP" {
            // Each thread stops in its own time, and until then goes on answering.
            wait_until("all threads to stop", Duration::from_secs(10), || {
                self.threads().iter().all(|state| *state == 'T')
            });
        }
    }

    /// What the kernel says of each thread: R, S, D, T, Z.
    fn threads(&self) -> Vec<char> {
        let state = |thread: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).ok()?;
            stat.rsplit(')').next()?.trim_start().chars().next()
        };
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid));
        threads.map(|threads| threads.flatten().filter_map(state).collect()).unwrap_or_default()
    }

    /// Kills it at once, as `kill -9` would, and waits until it is gone.
    pub fn kill(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }

    /// Waits for its end, and gives its exit code: 128 and the signal's number if that ended it.
    pub fn exit_code(&mut self, bound: Duration) -> i32 {
        wait_until("a process to end", bound, || !self.is_running());
        let mut line = String::new();
        self.words.read_line(&mut line).unwrap();
        line.trim().parse().unwrap()
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        // A zombie is not running.
        std::fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that was free a moment ago, and that no other test of this process is given. It lies below those that the kernel
/// gives to outgoing connections: one of them could take it before its server does.
pub fn free_port() -> u16 {
    const PORTS: std::ops::Range<u32> = 10_000..32_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    loop {
        // Test binaries that run side by side begin at different ones.
        let at = std::process::id().wrapping_mul(1031).wrapping_add(GIVEN.fetch_add(1, Relaxed));
        let port = u16::try_from(PORTS.start + at % (PORTS.end - PORTS.start)).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Polls until `ready` says so; panics with `what` after `bound`.
pub fn wait_until(what: &str, bound: Duration, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < bound, "waited {bound:?} for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A new temporary folder, removed when dropped.
pub fn temp_dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}
