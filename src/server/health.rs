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

/// Keeps the health service up to date.
pub(super) struct Health {
    reporter: HealthReporter,
    reach: Receiver<Reach>,
}

impl Health {
    /// Health as it is now.
    pub(super) async fn new(reach: Receiver<Reach>) -> (Self, HealthServer<impl HealthApi>) {
        let (reporter, service) = tonic_health::server::health_reporter();
        let mut health = Self { reporter, reach };
        health.tell(false).await;
        (health, service)
    }

    /// Follows the tiers and the drain, until `stop`.
    pub(super) async fn keep(mut self, draining: CancellationToken, stop: CancellationToken) {
        loop {
            let drains = draining.is_cancelled();
            self.tell(drains).await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = draining.cancelled(), if !drains => {}
                changed = self.reach.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn tell(&mut self, draining: bool) {
        let Reach { l1, l2, ready } = *self.reach.borrow_and_update();
        let service = <FeatureStoreServiceServer<Api> as NamedService>::NAME;
        for (name, serves) in [("", !draining), (service, ready && !draining), ("l1", l1), ("l2", l2)] {
            let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
            self.reporter.set_service_status(name, status).await;
        }
    }
}
