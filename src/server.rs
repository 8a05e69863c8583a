//! Serving: everything between a listener and the service. `run` returns when the drain has ended.
//!
//! The accept loop is our own and not tonic's, because tonic's answers a passed deadline with CANCELLED and cannot drain
//! as `drain` needs it; what is served on a connection is tonic's `Routes` all the same.

pub mod admin;
mod auth;
mod bytes;
mod calls;
mod connections;
mod deadline;
pub mod files;
mod guard;
mod health;
mod http2;
mod messages;
mod metrics;
mod only_grpc;
mod opening;
mod refusals;
mod streams;
pub mod tls;

use std::{io, sync::Arc, time::Duration};

use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{codec::CompressionEncoding, service::Routes};
use tower::Layer as _;

use crate::{
    access::{gate::Gate, reload::Reload},
    api::{Api, ConnectionBytes},
    metrics::{Counter, LostLines},
    proto,
    proto::feature_store_service_server::FeatureStoreServiceServer,
    tiered::{Tiered, seldom::Seldom},
    trace::Traces,
};
use auth::{Auth, AuthLayer};
use calls::{CallMeter, Calls, CallsLayer};
use connections::{Bounds, Connections};
use deadline::{Deadline, DeadlineLayer};
use guard::{Guard, GuardLayer};
use health::Health;
use metrics::{Edge, Metrics};
use only_grpc::OnlyGrpc;
use refusals::Refusals;
use tls::Tls;

pub(crate) use streams::MAX_BULK_STREAMS;

/// Between two warnings of a sort that many clients could cause.
const WARNINGS: Duration = Duration::from_secs(10);

/// What is served on a connection, the outermost first.
type Layered = OnlyGrpc<Calls<Guard<Auth<Deadline<Routes>>>>>;

/// How the server behaves towards its clients.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Whether reflection is served.
    pub reflection: bool,
    /// Calls at once, over all connections; more are shed.
    pub max_in_flight: usize,
    /// Bytes of requests and answers at once, over all connections; what does not fit is shed.
    pub max_bytes_in_flight: usize,
    /// Connections at once; more are closed.
    pub max_connections: usize,
    /// How long calls are still taken after the shutdown was asked for.
    pub drain_delay: Duration,
    /// How long calls may take to finish after that.
    pub drain_timeout: Duration,
}

/// A server that is ready to run; `app` puts it together.
pub struct App {
    /// The service.
    pub api: Api,
    /// The tiers below it.
    pub tiered: Arc<Tiered>,
    /// How it behaves towards its clients.
    pub settings: ServerSettings,
    /// Who may call; None: everybody, everything.
    pub gate: Option<Arc<Gate>>,
    /// TLS on the gRPC port; None: plaintext.
    pub tls: Option<Tls>,
    /// Where the spans of calls go.
    pub traces: Traces,
    /// Counts lines of the log that were lost.
    pub lost_lines: Arc<LostLines>,
    /// Asks for the files of tokens and certificates to be read again.
    pub reload: Reload,
}

/// Serves `app` on `listener` (and the admin endpoints on `admin`) until `shutdown`, then drains: health says
/// NOT_SERVING at once, calls are taken for `drain_delay`, connections are told to go away, calls and detached writes
/// end, the store is closed.
pub async fn run(
    app: App,
    listener: TcpListener,
    admin: Option<TcpListener>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let App { api, tiered, settings, gate, tls, traces, lost_lines, reload } = app;
    let stop_watching = CancellationToken::new();
    let background = TaskTracker::new();
    background.spawn(tiered.clone().watch(stop_watching.clone()));
    background.spawn(tiered.clone().repair(stop_watching.clone()));
    background.spawn(tiered.clone().keep_auditing(stop_watching.clone()));

    if let Some(gate) = gate.clone() {
        background.spawn(gate.watch(stop_watching.clone(), reload.clone()));
    }

    // Health is right before the first connection is accepted.
    let (health, health_service) = Health::new(tiered.reach());
    let stop_accepting = CancellationToken::new();
    background.spawn(health.keep(shutdown.clone(), stop_accepting.clone()));
    let max_request_bytes = api.limits().max_request_bytes;
    let ServerSettings { max_in_flight, max_bytes_in_flight, .. } = settings;
    let guard = GuardLayer::new(max_in_flight, max_bytes_in_flight, max_request_bytes, stop_accepting.clone());
    tiered.count_bytes(guard.bytes().clone());
    let calls = Arc::new(CallMeter::default());
    let (open, refused) = (TaskTracker::new(), Arc::<Counter>::default());
    let not_grpc = Arc::<Refusals>::default();
    if let Some(admin) = admin {
        let (tiered, api, guard, calls) = (tiered.clone(), api.clone(), guard.clone(), calls.clone());
        let edge = Edge {
            gate: gate.clone(),
            tls: tls.clone(),
            open: open.clone(),
            refused: refused.clone(),
            not_grpc: not_grpc.clone(),
            max_connections: settings.max_connections,
        };
        let shown = admin::Shown {
            tiered: tiered.clone(),
            metrics: Metrics { tiered, api, guard, calls, edge, lost_lines },
            health: Routes::new(health_service.clone()).prepare(),
            draining: shutdown.clone(),
            not_grpc: not_grpc.clone(),
        };
        background.spawn(admin::serve(admin, shown, stop_watching.clone()));
    }
    if let Some(tls) = &tls {
        background.spawn(tls.clone().follow(stop_watching.clone(), reload));
    }

    let routes = routes(&api, health_service, settings.reflection)?;
    let address = listener.local_addr()?;
    let (l1, l2) = (tiered.cache().info(), tiered.store().info());
    let version = env!("CARGO_PKG_VERSION");
    let is_tls = tls.is_some();
    tracing::info!(version, %address, tls = is_tls, l1 = l1.kind, l1_address = l1.address, l2 = l2.kind, l2_address = l2.address, "serving");
    let bounds = Bounds {
        tls,
        max_connections: settings.max_connections,
        open,
        refused,
        not_grpc: not_grpc.clone(),
        bytes: guard.bytes().clone(),
        refusals: Seldom::every(WARNINGS),
        failures: Seldom::every(WARNINGS),
        stalls: Seldom::every(WARNINGS),
    };
    let service = guard.layer(AuthLayer(gate).layer(DeadlineLayer.layer(routes)));
    let service = CallsLayer::new(calls, traces, address).layer(service);
    let any_connection = Arc::new(ConnectionBytes::new(guard.bytes().clone()));
    let connections = Connections::new(OnlyGrpc::new(service, not_grpc, any_connection), bounds);
    let accepting = tokio::spawn(connections.clone().accept(listener, stop_accepting.clone()));

    shutdown.cancelled().await;
    tracing::info!(delay = ?settings.drain_delay, "draining: health says NOT_SERVING, calls are still taken");
    api.drain();
    tokio::time::sleep(settings.drain_delay).await;
    stop_accepting.cancel();
    let _ = accepting.await;
    tracing::info!(patience = ?settings.drain_timeout, "no new calls are taken; those in flight may finish");
    api.close();
    connections.close(settings.drain_timeout).await;
    settle(&tiered).await;
    stop_watching.cancel();
    background.close();
    background.wait().await;
    tiered.store().close().await;
    tracing::info!("drained");
    Ok(())
}

/// Lets the detached writes end; each is bounded by its own deadline, and all of them by this.
async fn settle(tiered: &Arc<Tiered>) {
    const PATIENCE: Duration = Duration::from_secs(30);
    if tokio::time::timeout(PATIENCE, tiered.settled()).await.is_err() {
        tracing::warn!("writes did not end in time; none of them was answered");
    }
    if tiered.trust().remembered() > 0 {
        // Last try to remove from L1 what it may hold stale values of.
        tiered.look_at_l1().await;
    }
}

fn routes(
    api: &Api,
    health: tonic_health::pb::health_server::HealthServer<impl tonic_health::pb::health_server::Health>,
    reflection: bool,
) -> io::Result<Routes> {
    let limits = api.limits();
    let service = FeatureStoreServiceServer::new(api.clone())
        .max_decoding_message_size(limits.max_request_bytes)
        .max_encoding_message_size(limits.max_response_bytes)
        .accept_compressed(CompressionEncoding::Gzip);
    let mut routes = Routes::new(health).add_service(service);
    if reflection {
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // So that grpcurl can show the details of errors.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        routes = routes.add_service(builder().build_v1().map_err(io::Error::other)?);
        routes = routes.add_service(builder().build_v1alpha().map_err(io::Error::other)?);
    }
    Ok(routes.prepare())
}
