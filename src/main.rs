//! The command: arguments, configuration, telemetry, the server, an exit code.

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;
use featurestore::telemetry::say;

mod command;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // One TLS provider in the whole process; it fails only where one is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match command::Command::try_parse() {
        Ok(command) => command.run(),
        Err(error) => {
            // --help and --version are no errors.
            if !error.use_stderr() {
                let _ = error.print();
                return ExitCode::SUCCESS;
            }
            let words = error.render();
            say(if std::io::stderr().is_terminal() { words.ansi().to_string() } else { words.to_string() }.trim_end());
            ExitCode::from(command::EXIT_CONFIG)
        }
    }
}
