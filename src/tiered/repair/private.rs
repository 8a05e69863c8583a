//! An L1 in this process over a store that others write too: this server follows their changes for itself, in two passes as
//! whoever repairs for all. It uses L1 only while it follows, and what L1 holds from before is removed once it does: nobody can
//! tell what was missed.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::Instant;

use super::{
    super::Tiered,
    passes::Pass,
    term::{OPENING, Term},
};

/// Between two tries.
const AGAIN: Duration = Duration::from_millis(200);

impl Tiered {
    pub(super) async fn follow_alone(&self) {
        let mut trouble = String::new();
        loop {
            match self.store.changes(None, Instant::now() + OPENING).await {
                Ok(Some(changes)) => {
                    // Everything from now on will be told, so what is filled from now on stays true.
                    self.cache.clear();
                    self.trust.heard();
                    self.repairs.leading.store(true, Relaxed);
                    tracing::info!("L1 in this process follows the changes of L2");
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
                    // At once: each moment without L1 costs reads of L2.
                    continue;
                }
                Ok(None) => return self.trust.follows_nobody(),
                Err(error) => {
                    let text = error.to_string();
                    if text != trouble {
                        tracing::warn!(
                            error = text,
                            "the changes of L2 cannot be followed; L1 is not used until they can"
                        );
                        trouble = text;
                    }
                    // While L2 is gone nobody writes, and hits are all that can be served.
                    if self.reach.borrow().l2 {
                        self.cache.clear();
                    }
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}
