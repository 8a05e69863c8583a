//! Logs panics. Printed as by default, a panic could block its thread forever if standard error is
//! not read.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    panic::{self, PanicHookInfo},
};

use super::lines::Lines;
use crate::metrics::Log;

pub(super) fn log_to(lines: Lines) {
    panic::set_hook(Box::new(move |info| {
        log(&lines, info);
        // A second panic while this one unwinds ends the process.
        lines.flush();
    }));
}

fn log(lines: &Lines, info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("(no name)");
    // Only if RUST_BACKTRACE asks for it.
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then_some(&backtrace);
    if tracing::enabled!(tracing::Level::ERROR) {
        let backtrace = backtrace.map(tracing::field::display);
        tracing::error!(thread, backtrace, "a bug: {}", text(info));
    } else {
        // Panics are logged even if the filter excludes all errors.
        let backtrace = backtrace.map(|backtrace| format!("\n{backtrace}")).unwrap_or_default();
        lines
            .push(Log::Server, format!("featurestore: thread {thread}: a bug: {}{backtrace}\n", text(info)).as_bytes());
    }
}

fn text(info: &PanicHookInfo<'_>) -> String {
    let place = info.location().map(|place| format!(" at {place}")).unwrap_or_default();
    format!("panicked{place}: {}", info.payload_as_str().unwrap_or("(no text)"))
}
