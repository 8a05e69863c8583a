//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};

/// Compares the server with its floor: gRPC itself, the bare driver, the bare engine. Floor and server run in turn on this
/// machine, in short interleaved rounds; the median of the rounds' ratios is what counts.
#[derive(Clone, Debug, Parser)]
#[command(name = "cargo bench --bench performance --", version)]
pub(crate) struct Args {
    /// Only rows whose names contain this text, or end so if a $ follows; may be given many times.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) rows: Vec<String>,
    /// The names of all rows, and nothing else.
    #[arg(long)]
    pub(crate) list: bool,
    /// Rounds of each row.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// How long one side of a round is measured.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Connections to each server.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) connections: u32,
    /// Records of the rows over a large store.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..=100_000_000))]
    pub(crate) records: u64,
    /// Only a soak so long: memory at the start and at the end.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) soak: Option<u64>,
    /// Where the figures go.
    #[arg(long, value_name = "FILE", default_value = "target/performance.json")]
    pub(crate) json: PathBuf,
    /// Serves floor and server for another load generator until standard input ends; requests go to this folder.
    #[arg(long, value_name = "FOLDER", hide = true)]
    pub(crate) serve: Option<PathBuf>,
    /// As cargo says it.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    pub(crate) part: Option<Part>,
}

/// What the bench starts itself as.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Part {
    /// The floor server.
    #[command(hide = true)]
    Floor {
        port: u16,
        answers: PathBuf,
        /// A certificate and its key.
        tls: Vec<PathBuf>,
    },
}

impl Args {
    /// How long one side of a round is measured.
    pub(crate) fn span(&self) -> Duration {
        Duration::from_secs_f64(self.seconds.clamp(0.05, 3600.0))
    }

    /// Whether a row is asked for.
    pub(crate) fn wants(&self, row: &str) -> bool {
        self.rows.is_empty()
            || self.rows.iter().any(|pattern| match pattern.strip_suffix('$') {
                Some(end) => row.ends_with(end),
                None => row.contains(pattern),
            })
    }
}
