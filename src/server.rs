//! Everything between a listener and the service. `run` returns when the server has drained.
//!
//! The accept loop is our own: tonic's answers a passed deadline with CANCELLED, and cannot drain
//! in the steps of `run`. What is served on a connection is still tonic's `Routes`.

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

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

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

/// The least time between two warnings of a kind that many clients could cause.
const WARNINGS: Duration = Duration::from_secs(10);

/// The layers of a call, from the outermost to the router.
type Layered = OnlyGrpc<Calls<Guard<Auth<Deadline<Routes>>>>>;

/// How the server behaves towards its clients.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Whether gRPC reflection is served.
    pub reflection: bool,
    /// Calls at once over all connections; more are shed.
    pub max_in_flight: usize,
    /// Bytes of requests and answers at once over all connections; calls beyond it are shed.
    pub max_bytes_in_flight: usize,
    /// Connections at once; further ones are closed.
    pub max_connections: usize,
    /// How long calls are still accepted after the shutdown was requested.
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
    /// The callers and their rights. None: everybody may call everything.
    pub gate: Option<Arc<Gate>>,
    /// TLS on the gRPC port. None: plaintext.
    pub tls: Option<Tls>,
    /// Exports the spans of calls.
    pub traces: Traces,
    /// Counts lines of the log that were lost.
    pub lost_lines: Arc<LostLines>,
    /// Requests that the files of tokens and certificates are read again.
    pub reload: Reload,
}

/// Serves `app` on `listener`, and the admin endpoints on `admin`, until `shutdown`. Then it
/// drains: health is NOT_SERVING at once, calls are accepted for `drain_delay`, connections receive
/// GOAWAY, calls and writes end, and the store is closed.
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

    // Health has its first status before the first connection is accepted.
    let (health, health_service) = Health::new(tiered.reach());
    let admin_address = admin.as_ref().and_then(|admin| admin.local_addr().ok()).map(tracing::field::display);
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
    tracing::info!(
        version, %address, admin_address, tls = is_tls, l1 = l1.kind, l1_address = l1.address, l2 = l2.kind,
        l2_address = l2.address, "serving"
    );
    tracing::info!("to try it: {}", first_command(address, tls.as_ref(), gate.is_some(), settings.reflection));
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
    tracing::info!(delay = ?settings.drain_delay, "draining: health is NOT_SERVING, and calls are still accepted");
    api.drain();
    tokio::time::sleep(settings.drain_delay).await;
    stop_accepting.cancel();
    let _ = accepting.await;
    tracing::info!(patience = ?settings.drain_timeout, "draining: no new calls are accepted, others may finish");
    api.close();
    connections.close(settings.drain_timeout).await;
    settle(&tiered).await;
    stop_watching.cancel();
    background.close();
    background.wait().await;
    tiered.store().close().await;
    tracing::info!("drained: the server has stopped");
    Ok(())
}

/// A grpcurl command that this server answers, with a name in capitals for each file that it needs.
fn first_command(address: SocketAddr, tls: Option<&Tls>, needs_token: bool, reflection: bool) -> String {
    let host = if address.ip().is_unspecified() { "localhost".to_owned() } else { address.ip().to_string() };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let transport = match tls {
        None => "-plaintext",
        Some(tls) if tls.needs_client_certificate() => "-cacert CA.pem -cert CLIENT.pem -key CLIENT_KEY.pem",
        Some(_) => "-cacert CA.pem",
    };
    let token = if needs_token { " -expand-headers -H 'authorization: Bearer ${TOKEN}'" } else { "" };
    let proto = if reflection { "" } else { " -import-path proto -proto featurestore/v1/featurestore.proto" };
    let (port, method) = (address.port(), "featurestore.v1.FeatureStoreService/Info");
    format!("grpcurl {transport}{token}{proto} {host}:{port} {method}")
}

/// Waits for the writes that run in tasks of their own. Each has its own deadline; the timeout here
/// bounds all of them.
async fn settle(tiered: &Arc<Tiered>) {
    const PATIENCE: Duration = Duration::from_secs(30);
    if tokio::time::timeout(PATIENCE, tiered.settled()).await.is_err() {
        tracing::warn!("some writes did not end in time; none of them was answered OK, so that clients retry them");
    }
    if tiered.trust().remembered() > 0 {
        // The last attempt to remove from L1 the keys that it may hold old values of.
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
                // With these, grpcurl shows the details of errors.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        routes = routes.add_service(builder().build_v1().map_err(io::Error::other)?);
        routes = routes.add_service(builder().build_v1alpha().map_err(io::Error::other)?);
    }
    Ok(routes.prepare())
}
