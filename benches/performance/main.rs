//! What the server costs beyond its floor: `cargo bench --bench performance [-- --help]`.
//!
//! Every row runs its floor (gRPC itself, the bare driver or the bare engine) and our server in turn on this machine, in
//! short interleaved rounds. Each server is a process of its own, so its CPU time is told apart from the load's, which is
//! this process. CPU per call is far steadier than throughput on a small machine, and ratios are what counts. Nothing here
//! is asserted: people judge.
//!
//! In reading order: [`load`] (closed and open loop), [`wire`] (calls over bare HTTP/2), [`floor`] and [`server`], [`compare`]
//! (rounds), [`rows`], [`report`].

mod args;
mod backends;
mod bench;
mod bulk;
mod codec;
mod compare;
mod data;
mod engine;
mod floor;
mod harness;
mod load;
mod report;
mod rows;
mod serve;
mod server;
mod tls;
mod usage;
mod wire;

#[allow(missing_docs, unreachable_pub, dead_code, clippy::all, reason = "generated")]
mod pb {
    include!(concat!(env!("OUT_DIR"), "/client/featurestore.v1.rs"));
}

use std::{process::ExitCode, sync::Arc, time::Duration};

use args::{Args, Part};
use bench::Bench;
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        rows::names().iter().for_each(|name| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.to_string()),
    };
    if let Some(Part::Floor { port, answers, tls }) = &args.part {
        let served = runtime.block_on(floor::serve(*port, answers, tls));
        return served.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS);
    }
    let folder = match tempfile::Builder::new().prefix("performance-").tempdir() {
        Ok(folder) => folder,
        Err(error) => return failed(&error.to_string()),
    };
    let bench = Arc::new(Bench::new(args, folder.path().to_owned()));
    let code = runtime.block_on(async {
        tokio::select! {
            code = measure(&bench) => code,
            code = interrupted() => code,
        }
    });
    // Whatever still runs holds servers, which end with it; and these use the folder.
    runtime.shutdown_timeout(Duration::from_secs(10));
    for _ in 0..50 {
        if std::fs::remove_dir_all(folder.path()).is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    code
}

async fn measure(bench: &Arc<Bench>) -> ExitCode {
    let args = &bench.args;
    if let Some(folder) = &args.serve {
        return serve::run(bench, folder).await.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS);
    }
    match args.soak {
        Some(seconds) => rows::soak::run(bench, seconds).await,
        None => rows::run(bench).await,
    }
    let report = bench.report();
    println!("\n{} failed; the figures are in {}", report.failures, args.json.display());
    if report.failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ends with SIGINT or SIGTERM, and gives what a shell would say.
async fn interrupted() -> ExitCode {
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => tokio::select! {
            _ = interrupt.recv() => ExitCode::from(130),
            _ = terminate.recv() => ExitCode::from(143),
        },
        _ => std::future::pending().await,
    }
}

fn failed(error: &str) -> ExitCode {
    eprintln!("performance: {error}");
    ExitCode::FAILURE
}
