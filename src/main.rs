//! The command: arguments, configuration, telemetry, the server, an exit code.

use std::process::ExitCode;

use clap::Parser as _;

mod command;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // One TLS provider in the whole process; it fails only where one is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match command::Command::try_parse() {
        Ok(command) => command.run(),
        Err(error) => {
            let _ = error.print();
            // --help and --version are no errors.
            if error.use_stderr() { ExitCode::from(command::EXIT_CONFIG) } else { ExitCode::SUCCESS }
        }
    }
}
