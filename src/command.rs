//! The command line and its subcommands.

mod memory;
mod signals;

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand};
use featurestore::{
    access::{AUDIT, reload::Reload, tokens},
    app::{self, App, StartError},
    config::{Config, DEFAULTS, Effective, Flags},
    server,
    store::EpochState,
    telemetry::{self, Telemetry, say},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

/// EX_USAGE of sysexits.h: the configuration is bad.
pub(crate) const EXIT_CONFIG: u8 = 64;
const SERVICE: &str = "featurestore.v1.FeatureStoreService";

/// An online feature store: Redis in front of MongoDB, behind gRPC, kept coherent.
///
/// With nothing configured it serves on 127.0.0.1:50051 from an embedded pair: a cache in this
/// process and a store in ./data. REDIS_URL and MONGO_URI switch each tier to the real engine.
#[derive(Parser)]
#[command(version, about)]
pub(crate) struct Command {
    #[command(flatten)]
    flags: Flags,
    /// Print the effective configuration, secrets redacted, and exit
    #[arg(long)]
    print_config: bool,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Serve (the default)
    Serve,
    /// Ask the server on FEATURESTORE_LISTEN for its health (with TLS, or if it accepts no more
    /// connections, on FEATURESTORE_ADMIN_LISTEN); exit 0 if SERVING, 1 if not
    Health {
        /// "" (the process), featurestore.v1.FeatureStoreService (ready to serve), l1 or l2
        #[arg(default_value = SERVICE)]
        service: String,
    },
    /// Print the effective configuration, secrets redacted
    Config {
        /// Print the commented defaults instead: every key there is
        #[arg(long)]
        defaults: bool,
    },
    /// Make every L1 start cold, for example after a backup of L2 was restored
    #[command(subcommand)]
    Epoch(EpochAction),
    /// Tokens for callers
    #[command(subcommand)]
    Token(TokenAction),
    /// Print the version and the commit it was built from
    Version,
}

#[derive(Subcommand)]
enum EpochAction {
    /// Make a new epoch in L2, so that every L1 starts cold and the configured Redis is the one
    /// that is used, whichever was used before. This also works if the old epoch cannot be read.
    /// Servers over MongoDB may run, and notice it within 2 s; over the embedded store, stop the
    /// server first
    New,
}

#[derive(Subcommand)]
enum TokenAction {
    /// Make a random token. The first line is the token for the caller, and is shown only once; the
    /// second line is for auth.tokens_file
    New,
}

impl Command {
    pub(crate) fn run(self) -> ExitCode {
        if let Some(Action::Version) = self.action {
            println!("featurestore {} ({})", env!("CARGO_PKG_VERSION"), env!("BUILD_GIT_COMMIT"));
            return ExitCode::SUCCESS;
        }
        if let Some(Action::Token(TokenAction::New)) = self.action {
            let Some(token) = tokens::generate() else { return failed("the system has no random numbers") };
            println!("{token}\nsha256 = [\"{}\"]", tokens::hex(&tokens::digest(token.as_bytes())));
            return ExitCode::SUCCESS;
        }
        if let Some(Action::Config { defaults: true }) = self.action {
            print!("{DEFAULTS}");
            return ExitCode::SUCCESS;
        }
        let is_server = matches!(self.action, None | Some(Action::Serve)) && !self.print_config;
        if is_server {
            memory::give_back_soon();
        }
        let environment = match environment() {
            Ok(environment) => environment,
            Err(error) => return bad_config(&error),
        };
        let (config, effective) = match Config::load(&self.flags, environment) {
            Ok(loaded) => loaded,
            Err(errors) => return bad_config(&errors),
        };
        if !is_server && !effective.warnings.is_empty() {
            say(&lines("featurestore: warning: ", &effective.warnings.join("\n")));
        }
        match self.action {
            Some(Action::Health { service }) => block_on(health(&config, &service)),
            Some(Action::Epoch(EpochAction::New)) => block_on(new_epoch(config)),
            Some(Action::Config { .. }) => {
                print!("{effective}");
                ExitCode::SUCCESS
            }
            _ if self.print_config => {
                print!("{effective}");
                ExitCode::SUCCESS
            }
            _ => block_on(serve(config, &effective)),
        }
    }
}

/// The environment. A variable that may be a setting must be UTF-8: no setting is ignored silently.
fn environment() -> Result<Vec<(String, String)>, String> {
    const OURS: [&str; 5] = ["FEATURESTORE_", "REDIS_", "MONGO_", "OTEL_", "RUST_LOG"];
    let (mut environment, mut wrong) = (Vec::new(), Vec::new());
    for (name, value) in std::env::vars_os() {
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => environment.push((name, value)),
            // The value is left out, because it may be a secret.
            (Ok(name), Err(_)) if OURS.iter().any(|ours| name.starts_with(ours)) => {
                wrong.push(format!("{name}: the value of this variable is not UTF-8"));
            }
            _ => {}
        }
    }
    if wrong.is_empty() { Ok(environment) } else { Err(wrong.join("\n")) }
}

fn bad_config(errors: &impl std::fmt::Display) -> ExitCode {
    say(&lines("featurestore: ", &errors.to_string()));
    ExitCode::from(EXIT_CONFIG)
}

/// Puts `word` before each line of `text`.
fn lines(word: &str, text: &str) -> String {
    text.lines().map(|line| format!("{word}{line}")).collect::<Vec<_>>().join("\n")
}

fn failed(error: impl std::fmt::Display) -> ExitCode {
    say(&format!("featurestore: {error}"));
    ExitCode::FAILURE
}

fn block_on(work: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(work);
            // The process must end even if a read hangs on a broken disk.
            runtime.shutdown_timeout(Duration::from_secs(5));
            code
        }
        Err(error) => failed(format!("the runtime cannot start: {error}")),
    }
}

async fn new_epoch(config: Config) -> ExitCode {
    with_telemetry(&config, async |_| {
        let EpochState { epoch, l1, .. } = app::new_epoch(&config).await?;
        tracing::info!(target: AUDIT, %epoch, "a new epoch was made");
        println!("epoch {epoch}: every L1 starts cold");
        match l1 {
            Some(l1) => println!("it names the L1 {l1}: servers that are configured with another one do not use it"),
            None => println!("it names no L1: the first one that a server names will be used"),
        }
        Ok(())
    })
    .await
}

/// Runs `work` with a log. The reason why it failed is printed after the last line of the log.
async fn with_telemetry(config: &Config, work: impl AsyncFnOnce(&Telemetry) -> Result<(), StartError>) -> ExitCode {
    let telemetry = match telemetry::init(config.json_log, &config.log_filter) {
        Ok(telemetry) => telemetry,
        Err(error) => return bad_config(&error),
    };
    let ended = work(&telemetry).await;
    telemetry.close();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(StartError::Config(error)) => bad_config(&error),
        Err(StartError::Machine(error)) => failed(error),
    }
}

async fn serve(config: Config, effective: &Effective) -> ExitCode {
    with_telemetry(&config, async |telemetry| serve_logging(&config, effective, telemetry).await).await
}

async fn serve_logging(config: &Config, effective: &Effective, telemetry: &Telemetry) -> Result<(), StartError> {
    // Signals come first: the first process of a container gets no signal that it has no handler
    // for.
    let shutdown = CancellationToken::new();
    let (ask_reload, reload) = Reload::new();
    signals::handle(&shutdown, ask_reload, telemetry.lines())
        .map_err(|error| StartError::Machine(format!("signals cannot be handled: {error}")))?;
    for warning in &effective.warnings {
        tracing::warn!("{warning}");
    }
    for notice in &effective.notices {
        tracing::info!("{notice}");
    }
    let max_connections = server::files::room_for_connections(config.max_connections);
    let app = App::new(&Config { max_connections, ..config.clone() }).await?;
    let app = App { traces: telemetry.traces(), lost_lines: telemetry.lost_lines(), reload, ..app };
    let bind = async |key: &str, address: SocketAddr| {
        TcpListener::bind(address).await.map_err(|error| {
            StartError::Machine(format!(
                "{key}: cannot listen on {address}: {error}; another process may use this port: choose another one"
            ))
        })
    };
    let (listener, admin) = (bind("listen", config.listen).await?, bind("admin_listen", config.admin_listen).await?);
    if shutdown.is_cancelled() {
        app.tiered.store().close().await;
        return Ok(());
    }
    let served = server::run(app, listener, Some(admin), shutdown).await;
    served.map_err(|error| StartError::Machine(error.to_string()))
}

/// Asks the gRPC port, as calls go there. With TLS it asks the admin port, because the gRPC port
/// may want a certificate; and also if the gRPC port closes the connection, because it may accept
/// no more. It does not ask the admin port if nothing listens on the gRPC port: another server may
/// be there.
async fn health(config: &Config, service: &str) -> ExitCode {
    let mut answer = match config.tls {
        None => health_at(config.listen, service).await,
        Some(_) => health_at(config.admin_listen, service).await,
    };
    if let (Ok(Asked::Closed(_)), None) = (&answer, &config.tls)
        && let Ok(status) = health_at(config.admin_listen, service).await
    {
        answer = Ok(status);
    }
    match answer {
        Ok(Asked::Status(ServingStatus::Serving)) => {
            println!("SERVING");
            ExitCode::SUCCESS
        }
        Ok(Asked::Status(status)) => {
            println!("{}", status.as_str_name());
            ExitCode::FAILURE
        }
        Ok(Asked::Refused(why) | Asked::Closed(why)) | Err(why) => failed(why),
    }
}

enum Asked {
    Status(ServingStatus),
    Refused(String),
    /// It accepted the connection and closed it.
    Closed(String),
}

/// Asks one port. An error means that nothing answered gRPC there.
async fn health_at(listen: SocketAddr, service: &str) -> Result<Asked, String> {
    // A server that listens on all addresses is reached by the loopback address.
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let address = SocketAddr::new(ip, listen.port());
    let ask = async {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?;
        let mut client = HealthClient::new(endpoint.connect().await?);
        let answer = client.check(HealthCheckRequest { service: service.to_owned() }).await?;
        Ok::<_, Box<dyn std::error::Error>>(answer.into_inner().status())
    };
    match tokio::time::timeout(Duration::from_secs(3), ask).await {
        Ok(Ok(status)) => Ok(Asked::Status(status)),
        Ok(Err(error)) => match error.downcast_ref::<tonic::Status>() {
            Some(status) if status.code() == tonic::Code::NotFound => Ok(Asked::Refused(format!(
                "the server on {address} knows no health name {service:?}; use \"\", {SERVICE}, l1 or l2"
            ))),
            Some(status) => Ok(Asked::Closed(format!("{service:?} on {address}: {}", status.message()))),
            None => Err(format!("no gRPC server answers on {address}: is it running there? ({error})")),
        },
        Err(_) => Err(format!("{service:?} on {address}: the server did not answer within 3 s")),
    }
}
