//! Words on standard error beside the log: of commands, and the last ones of a server.

use std::{
    io::{self, Write as _},
    sync::mpsc::sync_channel,
    thread,
    time::Duration,
};

/// How long to wait for whoever reads standard error.
const PATIENCE: Duration = Duration::from_secs(1);

/// Writes a line to standard error, or gives it up where nobody reads: nothing may hang for what it has to say.
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
