//! What is on its way now, and how each tier is used, in Prometheus' text format. All of the gauges of what is on its way
//! are zero when nobody calls: what stays above has leaked.

use std::fmt::Write as _;

use super::guard::GuardLayer;
use crate::tiered::{Tiered, mode::TierMode};

/// The lines, with their heads.
pub(super) fn metrics(tiered: &Tiered, calls: &GuardLayer) -> String {
    let mut text = String::new();
    let (reads, writes) = (tiered.l2_reads(), tiered.writes());
    let gauges = [
        ("calls_in_flight", "Calls that hold a place among limits.max_in_flight.", calls.in_flight()),
        ("bytes_in_flight", "Bytes of requests and answers, among limits.max_bytes_in_flight.", calls.bytes().held()),
        ("tasks_in_flight", "Tasks that no call can drop: writes, and what runs flights.", tiered.tasks()),
        ("writes_in_flight", "Writes, those included whose calls have gone.", writes.taken()),
        ("flights_in_flight", "Keys that are being read from L2 on behalf of their callers.", tiered.flights()),
        ("l2_reads_in_flight", "Places taken among l2.max_reads.", reads.taken()),
        ("l2_reads_waiting", "Reads of L2 that wait for a place.", reads.waiting()),
    ];
    for (name, help, value) in gauges {
        let _ = writeln!(text, "# HELP featurestore_{name} {help}\n# TYPE featurestore_{name} gauge");
        let _ = writeln!(text, "featurestore_{name} {value}");
    }
    let shed = [
        ("bytes_shed", "Calls and answers that were refused as bytes were short.", calls.bytes().refused()),
        ("l2_reads_shed", "Reads of L2 that found no place in time.", reads.shed()),
        ("writes_shed", "Writes that were refused as too many.", writes.shed()),
    ];
    for (name, help, value) in shed {
        let _ = writeln!(text, "# HELP featurestore_{name}_total {help}\n# TYPE featurestore_{name}_total counter");
        let _ = writeln!(text, "featurestore_{name}_total {value}");
    }
    let _ = writeln!(text, "# HELP featurestore_tier_mode How a tier is used now: 1 for one mode.");
    let _ = writeln!(text, "# TYPE featurestore_tier_mode gauge");
    for (tier, now) in [("l1", tiered.l1_mode()), ("l2", tiered.l2_mode())] {
        for mode in TierMode::ALL {
            let (name, is_now) = (mode.name(), u8::from(mode == now));
            let _ = writeln!(text, "featurestore_tier_mode{{tier=\"{tier}\",mode=\"{name}\"}} {is_now}");
        }
    }
    text
}
