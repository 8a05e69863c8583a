//! Being asked to read files again at once: those of tokens and of certificates, which are looked at now and then anyway.

use tokio::sync::watch;

/// Whoever asks.
#[derive(Debug)]
pub struct AskReload(watch::Sender<()>);

/// Whoever reads files.
#[derive(Clone, Debug)]
pub struct Reload(watch::Receiver<()>);

impl Reload {
    /// Both ends.
    pub fn new() -> (AskReload, Self) {
        let (ask, asked) = watch::channel(());
        (AskReload(ask), Self(asked))
    }

    /// Nobody ever asks.
    pub fn never() -> Self {
        Self::new().1
    }

    /// Waits until somebody has asked since the last time.
    pub async fn asked(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl AskReload {
    /// Asks all who read files.
    pub fn ask(&self) {
        self.0.send_replace(());
    }
}
