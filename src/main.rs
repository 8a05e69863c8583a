//! The command: arguments, configuration, telemetry, the server, an exit code.

use std::process::ExitCode;

use clap::Parser as _;

mod command;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // One TLS provider in the whole process; it fails only where one is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    command::Command::parse().run()
}
