//! grpc.health.v1, told truthfully. Probes never do backend calls: the watcher of the tiers does.
//!
//! | service name | SERVING means |
//! |---|---|
//! | `""` | the process is up and not draining |
//! | `featurestore.v1.FeatureStoreService` | L2 was reached once since start, and not draining |
//! | `l1`, `l2` | that tier answers now |

use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health as HealthApi, HealthServer},
    server::HealthReporter,
};

use crate::{api::Api, proto::feature_store_service_server::FeatureStoreServiceServer, tiered::Reach};

const NAMES: [&str; 4] = ["", <FeatureStoreServiceServer<Api> as NamedService>::NAME, "l1", "l2"];

/// Keeps the health service up to date.
pub(super) struct Health {
    reporter: HealthReporter,
    reach: Receiver<Reach>,
    /// What was said last of each name.
    told: [Option<bool>; NAMES.len()],
}

impl Health {
    /// Health as it is now.
    pub(super) async fn new(reach: Receiver<Reach>) -> (Self, HealthServer<impl HealthApi>) {
        let (reporter, service) = tonic_health::server::health_reporter();
        let mut health = Self { reporter, reach, told: [None; NAMES.len()] };
        health.tell(false).await;
        (health, service)
    }

    /// Follows the tiers and the drain, until `closing`. Then every Watch is ended, as it would never end by itself and
    /// hold up the drain.
    pub(super) async fn keep(mut self, draining: CancellationToken, closing: CancellationToken) {
        loop {
            let drains = draining.is_cancelled();
            self.tell(drains).await;
            tokio::select! {
                () = closing.cancelled() => break,
                () = draining.cancelled(), if !drains => {}
                changed = self.reach.changed() => if changed.is_err() { return },
            }
        }
        for name in NAMES {
            self.reporter.clear_service_status(name).await;
        }
    }

    async fn tell(&mut self, draining: bool) {
        let Reach { l1, l2, ready } = *self.reach.borrow_and_update();
        let serving = [!draining, ready && !draining, l1, l2];
        for ((name, serves), told) in NAMES.into_iter().zip(serving).zip(&mut self.told) {
            // The reporter would tell those who watch, even of no change.
            if told.replace(serves) == Some(serves) {
                continue;
            }
            let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
            self.reporter.set_service_status(name, status).await;
        }
    }
}
