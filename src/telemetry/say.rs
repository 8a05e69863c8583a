//! Text on standard error outside the log: the errors of commands, and the last line of a server.

use std::{
    io::{self, Write as _},
    sync::mpsc::sync_channel,
    thread,
    time::Duration,
};

/// How long to wait for the reader of standard error.
const PATIENCE: Duration = Duration::from_secs(1);

/// Writes a line to standard error. If it is not read in time, the line is given up, so that the
/// process never hangs because of it.
pub fn say(line: &str) {
    let (written, wait) = sync_channel(1);
    let text = format!("{line}\n");
    let writer = thread::Builder::new().spawn(move || {
        let _ = io::stderr().write_all(text.as_bytes());
        let _ = written.send(());
    });
    if writer.is_ok() {
        let _ = wait.recv_timeout(PATIENCE);
    }
}
