//! An L1 in this process, over a store that others write to. This server follows their changes
//! itself, in the same two passes as a repairer. It uses L1 only while it follows them. When it
//! begins to follow, it clears L1, because the changes before are not known.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::Instant;

use super::{
    super::Tiered,
    passes::Pass,
    term::{OPENING, Term},
};

/// How long to wait before a retry.
const AGAIN: Duration = Duration::from_millis(200);

impl Tiered {
    pub(super) async fn follow_alone(&self) {
        let mut trouble = String::new();
        loop {
            match self.store.changes(None, Instant::now() + OPENING).await {
                Ok(Some(changes)) => {
                    // From now on all changes are followed, so what is filled is kept up to date.
                    self.cache.clear();
                    self.trust.heard();
                    self.repairs.leading.store(true, Relaxed);
                    tracing::info!("this server follows the changes of L2, and uses its L1 in this process");
                    let first = Pass::new(changes);
                    let second = Pass::at(first.position().clone());
                    let term = Term::new("", &first, self.settings.repair.second_pass);
                    let end = tokio::select! {
                        end = self.first_pass(&term, first) => end,
                        end = self.second_pass(&term, second) => end,
                    };
                    self.trust.lost_track();
                    self.repairs.leading.store(false, Relaxed);
                    self.repairs.epochs.fetch_add(1, Relaxed);
                    tracing::warn!(?end, "the changes of L2 cannot be followed: L1 in this process starts cold");
                    trouble.clear();
                    // Without a pause: while L1 is not used, all reads go to L2.
                    continue;
                }
                Ok(None) => return self.trust.follows_nobody(),
                Err(error) => {
                    let text = error.to_string();
                    if text != trouble {
                        tracing::warn!(
                            error = text,
                            "the changes of L2 cannot be followed: L1 in this process is not used until they can; the \
                             server keeps trying"
                        );
                        trouble = text;
                    }
                    // While L2 is gone there are no writes, and hits are all that can be served.
                    if self.reach.borrow().l2 {
                        self.cache.clear();
                    }
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}
