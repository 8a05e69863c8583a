//! The real binary, from the outside: its life and death on the embedded pair, its commands, what it says.

#[cfg(feature = "mongodb")]
mod causes;
mod commands;
mod crash;
mod drain;
mod log;
#[cfg(feature = "mongodb")]
mod secrets;
#[cfg(feature = "mongodb")]
mod settings;
mod signals;
#[cfg(feature = "mongodb")]
mod values;
#[cfg(feature = "mongodb")]
mod weather;
mod words;

use crate::harness::{
    binary::{Binary, SERVICE, run},
    client::*,
    process::{free_port, temp_dir},
    server::eventually,
};
