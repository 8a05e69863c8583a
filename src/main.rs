//! The binary: it reads the arguments and the configuration, starts the log, and runs a command.

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;
use featurestore::telemetry::say;

mod command;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // rustls needs one provider for the process. This fails only if one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match command::Command::try_parse() {
        Ok(command) => command.run(),
        Err(error) => {
            // clap returns --help and --version as errors too, but they belong on standard output.
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
