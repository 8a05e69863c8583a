//! `/metrics`: all counts, in the text form of Prometheus. The names are those of the semantic
//! conventions 1.45 of OpenTelemetry, where there is one. docs/observability.md has tables of them.

mod edge;
mod load;
mod process;
mod tiers;

use std::sync::Arc;

pub(super) use edge::Edge;

use super::{calls::CallMeter, guard::GuardLayer};
use crate::{
    api::Api,
    metrics::{Format, Kind, Log, LostLines, Text},
    tiered::Tiered,
};

/// Everything that `/metrics` reads from.
#[derive(Clone)]
pub(super) struct Metrics {
    pub(super) tiered: Arc<Tiered>,
    pub(super) api: Api,
    pub(super) guard: GuardLayer,
    pub(super) calls: Arc<CallMeter>,
    pub(super) edge: Edge,
    pub(super) lost_lines: Arc<LostLines>,
}

impl Metrics {
    pub(super) fn text(&self, format: Format) -> String {
        let mut text = Text::new(format);
        let build = [("version", env!("CARGO_PKG_VERSION")), ("commit", env!("BUILD_GIT_COMMIT"))];
        text.family("featurestore_build", Kind::Info, "The version and the commit of this build.").value(&build, 1.0);
        self.calls(&mut text);
        tiers::write(&mut text, &self.tiered);
        load::write(&mut text, &self.tiered, &self.guard);
        edge::write(&mut text, &self.edge);
        self.lost_lines(&mut text);
        process::write(&mut text);
        text.finish()
    }

    fn lost_lines(&self, text: &mut Text) {
        let help =
            "Lines of the log and of the audit log that were dropped, because standard error was not read fast enough.";
        text.family("featurestore_log_lines_lost", Kind::Counter, help);
        for log in Log::ALL {
            text.value(&[("log", log.name())], self.lost_lines.get(log) as f64);
        }
    }

    fn calls(&self, text: &mut Text) {
        let help = "Duration of calls, by method and code; of a stream until its end.";
        text.family("rpc_server_call_duration_seconds", Kind::Histogram, help);
        for (method, code, took) in self.calls.durations() {
            let labels = [("rpc_system_name", "grpc"), ("rpc_method", method), ("rpc_response_status_code", code)];
            text.histogram(&labels, &took);
        }
        text.family("featurestore_bulk_records", Kind::Counter, "Records of bulk streams, by outcome.");
        for (outcome, count) in self.api.bulk_records() {
            text.value(&[("outcome", outcome)], count as f64);
        }
        let help = "How often a stored record could not be read.";
        text.family("featurestore_unreadable_records", Kind::Counter, help);
        text.value(&[], self.api.unreadable_records() as f64);
    }
}
