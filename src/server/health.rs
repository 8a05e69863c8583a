//! grpc.health.v1. A probe never causes a call to a backend: the watcher of the tiers does that.
//!
//! | service name | SERVING means |
//! |---|---|
//! | `""` | the process is up and does not drain |
//! | `featurestore.v1.FeatureStoreService` | L2 was reached once, and the server does not drain |
//! | `l1`, `l2` | that tier answers now, and can be used as it is |
//!
//! The service is our own: that of `tonic-health` ends a Watch of an unknown name with NOT_FOUND,
//! but the protocol requires that it stays open, because a name may become known later. The
//! messages are those of `tonic-health`.

use futures_util::stream::{self, BoxStream};
use tokio::sync::watch::{self, Receiver, Sender};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, async_trait, server::NamedService};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health as HealthApi, HealthServer},
};

use crate::{api::Api, proto::feature_store_service_server::FeatureStoreServiceServer, tiered::Reach};

const NAMES: [&str; 4] = ["", <FeatureStoreServiceServer<Api> as NamedService>::NAME, "l1", "l2"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said {
    serving: [bool; NAMES.len()],
    /// Every Watch must end.
    ended: bool,
}

impl Said {
    fn new(reach: Reach, draining: bool) -> Self {
        let Reach { l1, l2, ready } = reach;
        Self { serving: [!draining, ready && !draining, l1, l2], ended: false }
    }

    /// None: the name is unknown.
    fn of(&self, name: &str) -> Option<ServingStatus> {
        let at = NAMES.iter().position(|known| *known == name)?;
        Some(if self.serving[at] { ServingStatus::Serving } else { ServingStatus::NotServing })
    }
}

pub(super) struct Health {
    said: Sender<Said>,
    reach: Receiver<Reach>,
}

impl Health {
    pub(super) fn new(reach: Receiver<Reach>) -> (Self, HealthServer<impl HealthApi>) {
        let (said, says) = watch::channel(Said::new(*reach.borrow(), false));
        (Self { said, reach }, HealthServer::new(Service { says }))
    }

    /// Follows the tiers and the drain until `closing`. Then it ends every Watch, which would
    /// otherwise delay the drain.
    pub(super) async fn keep(mut self, draining: CancellationToken, closing: CancellationToken) {
        loop {
            let drains = draining.is_cancelled();
            let now = Said::new(*self.reach.borrow_and_update(), drains);
            self.said.send_if_modified(|said| std::mem::replace(said, now) != now);
            tokio::select! {
                () = closing.cancelled() => break,
                () = draining.cancelled(), if !drains => {}
                changed = self.reach.changed() => if changed.is_err() { return },
            }
        }
        // A watcher that has not received the status of the drain receives it before the end.
        let last = Said { ended: true, ..Said::new(*self.reach.borrow(), draining.is_cancelled()) };
        self.said.send_replace(last);
    }
}

struct Service {
    says: Receiver<Said>,
}

#[async_trait]
impl HealthApi for Service {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match self.says.borrow().of(&request.get_ref().service) {
            Some(status) => Ok(Response::new(answer(status))),
            None => Err(Status::not_found(format!("there is no service of this name; the names are {NAMES:?}"))),
        }
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let watching = Watching { name: request.into_inner().service, says: self.says.clone(), sent: None };
        Ok(Response::new(Box::pin(stream::unfold(watching, Watching::next))))
    }
}

struct Watching {
    name: String,
    says: Receiver<Said>,
    sent: Option<ServingStatus>,
}

impl Watching {
    /// Returns the status at once, and then each time it changes. None: the Watch ends.
    async fn next(mut self) -> Option<(Result<HealthCheckResponse, Status>, Self)> {
        loop {
            let said = *self.says.borrow_and_update();
            let status = said.of(&self.name).unwrap_or(ServingStatus::ServiceUnknown);
            if self.sent.replace(status) != Some(status) {
                return Some((Ok(answer(status)), self));
            }
            if said.ended || self.says.changed().await.is_err() {
                return None;
            }
        }
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, StreamExt as _};

    use super::*;

    const SERVICE: &str = NAMES[1];
    const UP: Reach = Reach { l1: true, l2: true, ready: true };

    /// A service over tiers whose state can be set.
    fn service(reach: Reach) -> (Sender<Reach>, Health, Service) {
        let (tiers, reach) = watch::channel(reach);
        let (said, says) = watch::channel(Said::new(*reach.borrow(), false));
        (tiers, Health { said, reach }, Service { says })
    }

    async fn watched(service: &Service, name: &str) -> BoxStream<'static, ServingStatus> {
        let request = Request::new(HealthCheckRequest { service: name.to_owned() });
        let answers = service.watch(request).await.unwrap().into_inner();
        Box::pin(answers.map(|answer| answer.unwrap().status()))
    }

    #[tokio::test]
    async fn watch_tells_the_status_at_once_then_each_change_and_no_status_twice() {
        let (tiers, health, service) = service(Reach::default());
        let mut l1 = watched(&service, "l1").await;
        assert_eq!(l1.next().now_or_never(), Some(Some(ServingStatus::NotServing)));
        assert_eq!(l1.next().now_or_never(), None, "nothing has changed");
        let (draining, closing) = (CancellationToken::new(), CancellationToken::new());
        let keeping = tokio::spawn(health.keep(draining.clone(), closing.clone()));
        tiers.send_replace(Reach { l2: true, ready: true, ..Reach::default() });
        tokio::task::yield_now().await;
        assert_eq!(l1.next().now_or_never(), None, "only another name's status has changed");
        tiers.send_replace(UP);
        assert_eq!(l1.next().await, Some(ServingStatus::Serving));
        closing.cancel();
        assert_eq!(l1.next().await, None);
        keeping.await.unwrap();
    }

    #[tokio::test]
    async fn an_unknown_name_can_be_watched_until_the_end() {
        let (tiers, health, service) = service(UP);
        let mut unknown = watched(&service, "l3").await;
        assert_eq!(unknown.next().now_or_never(), Some(Some(ServingStatus::ServiceUnknown)));
        let (draining, closing) = (CancellationToken::new(), CancellationToken::new());
        let keeping = tokio::spawn(health.keep(draining.clone(), closing.clone()));
        tiers.send_replace(Reach::default());
        draining.cancel();
        tokio::task::yield_now().await;
        assert_eq!(unknown.next().now_or_never(), None, "the stream stays open");
        closing.cancel();
        assert_eq!(unknown.next().await, None);
        keeping.await.unwrap();
        let request = Request::new(HealthCheckRequest { service: "l3".to_owned() });
        assert_eq!(service.check(request).await.unwrap_err().code(), tonic::Code::NotFound);
    }

    #[tokio::test]
    async fn a_drain_is_told_before_the_end_even_to_whoever_reads_late() {
        let (_tiers, health, service) = service(UP);
        let mut late = [watched(&service, "").await, watched(&service, SERVICE).await];
        for stream in &mut late {
            assert_eq!(stream.next().await, Some(ServingStatus::Serving));
        }
        let (draining, closing) = (CancellationToken::new(), CancellationToken::new());
        draining.cancel();
        closing.cancel();
        health.keep(draining, closing).await;
        for stream in &mut late {
            assert_eq!(stream.next().await, Some(ServingStatus::NotServing));
            assert_eq!(stream.next().await, None);
        }
        let mut after = watched(&service, "").await;
        assert_eq!(after.next().await, Some(ServingStatus::NotServing));
        assert_eq!(after.next().await, None);
    }
}
