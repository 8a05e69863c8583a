//! An L1 in this process over a store that others write too: this server follows their changes for itself. It uses L1 only
//! while it follows, and what L1 holds from before is removed once it does: nobody can tell what was missed.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::Instant;

use super::super::Tiered;
use crate::store::changes::{Changes, Event, FollowError};

/// How long opening may take.
const OPENING: Duration = Duration::from_secs(3);
/// How long there may be no word, where even quiet is told.
const SILENCE: Duration = Duration::from_secs(2);
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
                    self.trust.follow(true);
                    self.repairs.leading.store(true, Relaxed);
                    tracing::info!("L1 in this process follows the changes of L2");
                    let error = self.follow_to_the_end(changes).await;
                    self.trust.follow(false);
                    self.repairs.leading.store(false, Relaxed);
                    self.repairs.epochs.fetch_add(1, Relaxed);
                    tracing::warn!(%error, "the changes of L2 cannot be followed: L1 in this process starts cold");
                    trouble.clear();
                    // At once: each moment without L1 costs reads of L2.
                    continue;
                }
                Ok(None) => return self.trust.follow(true),
                Err(error) => {
                    let text = error.to_string();
                    if text != trouble {
                        tracing::warn!(
                            error = text,
                            "the changes of L2 cannot be followed; L1 is not used until they can"
                        );
                        trouble = text;
                    }
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn follow_to_the_end(&self, mut changes: Box<dyn Changes>) -> FollowError {
        loop {
            let batch = match changes.next(Instant::now() + SILENCE).await {
                Ok(batch) => batch,
                Err(error) => return error,
            };
            if batch.changes.iter().any(|change| change.event == Event::Everything) {
                return FollowError::HistoryLost("the records were dropped or replaced".into());
            }
            // In this process nothing fails; what there is to wait for is a view of the epoch.
            while !self.mend_each(&batch.changes).await {
                tokio::time::sleep(AGAIN).await;
            }
            if let Some(last) = batch.changes.last() {
                self.repairs.lags(last.at, self.clock.now());
            }
        }
    }
}
