//! Requests to read the files of tokens and certificates again at once (SIGHUP). They are also read
//! from time to time.

use tokio::sync::watch;

/// The end that requests a reload.
#[derive(Debug)]
pub struct AskReload(watch::Sender<()>);

/// The end that waits for requests; held by each reader of files.
#[derive(Clone, Debug)]
pub struct Reload(watch::Receiver<()>);

impl Reload {
    /// Makes both ends.
    pub fn new() -> (AskReload, Self) {
        let (ask, asked) = watch::channel(());
        (AskReload(ask), Self(asked))
    }

    /// Makes an end that never gets a request.
    pub fn never() -> Self {
        Self::new().1
    }

    /// Waits until a reload was requested since the last call.
    pub async fn asked(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl AskReload {
    /// Wakes all readers of files.
    pub fn ask(&self) {
        self.0.send_replace(());
    }
}
