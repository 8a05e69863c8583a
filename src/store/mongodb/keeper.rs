//! Maintains the collections while the server runs: creates the TTL index if it is missing, without
//! delaying calls, and checks for changes by others.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use bson::doc;
use mongodb::{IndexModel, options::IndexOptions};
use tokio_util::sync::CancellationToken;

use super::{
    FEATURES,
    failure::Failure,
    prepared::Prepared,
    setup::{self, Seen, Setup, TTL_INDEX},
};
use crate::store::{Finding, Severity};

/// The time between two checks.
const EVERY: Duration = Duration::from_secs(10);
/// How long a check after an error is delayed, so that many errors cause one.
const SOON: Duration = Duration::from_secs(1);

/// Checks again and again until `closing`.
pub(super) async fn keep(prepared: Prepared, setup: Arc<Setup>, closing: CancellationToken) {
    let builder = Arc::new(Builder::default());
    while !closing.is_cancelled() {
        // An error here means that L2 cannot be reached, which others report.
        if let Ok(seen) = setup::look(&prepared.database).await {
            setup.found(builder.look_after(&prepared, &setup, seen));
        }
        let pause = async {
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = setup.suspected.notified() => tokio::time::sleep(SOON).await,
            }
        };
        tokio::select! {
            () = closing.cancelled() => {}
            () = pause => {}
        }
    }
}

/// Creates the index, which may take hours over many records.
#[derive(Default)]
struct Builder {
    building: AtomicBool,
    /// Why it could not be created the last time.
    refused: Mutex<Option<String>>,
}

impl Builder {
    /// Starts to create the index if it is missing. Returns all findings.
    fn look_after(self: &Arc<Self>, prepared: &Prepared, setup: &Arc<Setup>, seen: Seen) -> Vec<Finding> {
        let Seen { mut findings, has_ttl_index } = seen;
        if findings.iter().any(|finding| finding.severity == Severity::Wrong) {
            return findings; // nothing is done to what is not ours
        }
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let odd = |text: String| Finding { severity: Severity::Odd, text };
        match (has_ttl_index, refused) {
            (Some(true), _) => return findings,
            (_, Some(why)) => findings.push(odd(format!(
                "MongoDB refuses to create the index {TTL_INDEX} on the collection {FEATURES}, so expired records are \
                 not removed: {why}; the server will try again"
            ))),
            (Some(false), None) if self.building.load(SeqCst) => findings.push(odd(format!(
                "the index {TTL_INDEX} on MongoDB's collection {FEATURES} is being created; until then expired records \
                 are not removed"
            ))),
            _ => {}
        }
        self.build(prepared, setup);
        findings
    }

    fn build(self: &Arc<Self>, prepared: &Prepared, setup: &Arc<Setup>) {
        if self.building.swap(true, SeqCst) {
            return;
        }
        let (builder, setup, features) = (self.clone(), setup.clone(), prepared.majority(FEATURES));
        // `close` does not wait for it, and it has no time limit, at which MongoDB would give the
        // index up. If the server ends, MongoDB continues, or begins again with the next server.
        tokio::spawn(async move {
            let options = IndexOptions::builder().name(TTL_INDEX.to_owned()).expire_after(Duration::ZERO).build();
            let index = IndexModel::builder().keys(doc! { "gc_at": 1 }).options(options).build();
            let made = features.create_index(index).await.map_err(Failure::from);
            let refused = made.err().filter(|failure| failure.is_refusal() || failure.is_unauthorized());
            let refused = refused.map(|failure| failure.to_string());
            let before = {
                let mut known = builder.refused.lock().unwrap_or_else(PoisonError::into_inner);
                std::mem::replace(&mut *known, refused.clone())
            };
            builder.building.store(false, SeqCst);
            if refused != before {
                setup.suspected.notify_one();
            }
        });
    }
}
