//! The counts of the tiers and of the protocol.

use crate::{
    metrics::{Kind, Text},
    tiered::{
        Problem, Tiered,
        meter::{Meter, Reading},
        mode::TierMode,
    },
};

pub(super) fn write(text: &mut Text, tiered: &Tiered) {
    let tiers = [("l1", &tiered.l1_meter), ("l2", &tiered.l2_meter)];
    reads(text, &tiers);
    let help = "Duration of one batch in a tier, by operation.";
    text.family("featurestore_tier_operation_duration_seconds", Kind::Histogram, help);
    for (tier, meter) in tiers {
        for (operation, took) in meter.durations() {
            text.histogram(&[("tier", tier), ("operation", operation.name())], &took);
        }
    }
    use_of_tiers(text, tiered);
    setup_of_l2(text, tiered);
    let help = "L1 entries of calls, by step of the protocol and by outcome.";
    text.family("featurestore_l1_entries", Kind::Counter, help);
    for (step, outcome, count) in tiered.outcomes.reading() {
        text.value(&[("step", step), ("outcome", outcome)], count as f64);
    }
    let counters = [
        (
            "featurestore_coalesced_reads",
            "Keys for which a call waited for the read of another call, and did not read L2 itself.",
            tiered.coalesced_reads(),
        ),
        ("featurestore_degraded_reads", "Reads that were answered degraded.", tiered.degraded_reads.get()),
        (
            "featurestore_writes_not_cached",
            "Records that were written durably, but that L1 did not confirm.",
            tiered.writes_not_cached.get(),
        ),
    ];
    for (name, help, count) in counters {
        text.family(name, Kind::Counter, help).value(&[], count as f64);
    }
    let help = "1: this server does not use its L1, because the epoch in L2 names another one.";
    text.family("featurestore_l1_is_another", Kind::Gauge, help).value(&[], f64::from(tiered.l1_is_another()));
    let help = "Keys of which L1 may hold old values; L1 is trusted when they are removed.";
    text.family("featurestore_l1_doubted_keys", Kind::Gauge, help).value(&[], tiered.trust().remembered() as f64);
    let help = "1: the last checks found this problem with the Redis of L1. With unsuitable, it is not used.";
    text.family("featurestore_l1_problem", Kind::Gauge, help);
    let problems = tiered.cache().problems();
    for problem in Problem::ALL {
        text.value(&[("problem", problem.name())], f64::from(problems.contains(&problem)));
    }
    repairs(text, tiered);
}

fn reads(text: &mut Text, tiers: &[(&str, &Meter)]) {
    let readings: Vec<_> = tiers.iter().map(|(tier, meter)| (*tier, meter.reading())).collect();
    type Count = fn(&Reading) -> u64;
    let counts: [(&str, &str, Count); 3] = [
        ("featurestore_tier_hits", "Entities that a tier answered.", |reading| reading.hits),
        ("featurestore_tier_misses", "Entities that a tier did not hold.", |reading| reading.misses),
        ("featurestore_tier_errors", "Commands to a tier that failed.", |reading| reading.errors),
    ];
    for (name, help, count) in counts {
        text.family(name, Kind::Counter, help);
        for (tier, reading) in &readings {
            text.value(&[("tier", tier)], count(reading) as f64);
        }
    }
    let help = "Hits of L1 that say that the entity is absent.";
    text.family("featurestore_tier_negative_hits", Kind::Counter, help);
    text.value(&[("tier", "l1")], readings[0].1.negative_hits as f64);
}

fn use_of_tiers(text: &mut Text, tiered: &Tiered) {
    let reach = *tiered.reach().borrow();
    text.family("featurestore_tier_up", Kind::Gauge, "1: the tier answers now.");
    for (tier, up) in [("l1", reach.l1), ("l2", reach.l2)] {
        text.value(&[("tier", tier)], f64::from(up));
    }
    let help = "The mode of a tier: 1 for the current one. Bypassed, probing: its circuit breaker is open.";
    text.family("featurestore_tier_mode", Kind::Gauge, help);
    for (tier, now) in [("l1", tiered.l1_mode()), ("l2", tiered.l2_mode())] {
        for mode in TierMode::ALL {
            text.value(&[("tier", tier), ("mode", mode.name())], f64::from(mode == now));
        }
    }
}

fn setup_of_l2(text: &mut Text, tiered: &Tiered) {
    let help = "Things in the collections of L2 that the server did not create: wrong (L2 is not used), odd (it may \
                reject or lose records), unchecked (a right is missing) or extra (harmless). The log describes them.";
    text.family("featurestore_l2_setup_findings", Kind::Gauge, help);
    for (severity, count) in tiered.setup_findings() {
        text.value(&[("severity", severity)], count as f64);
    }
    let help =
        "How far the clock of this server is ahead of that of L2; negative: behind. 0: no difference is measured.";
    text.family("featurestore_clock_skew_seconds", Kind::Gauge, help).value(&[], tiered.clock_skew());
}

fn repairs(text: &mut Text, tiered: &Tiered) {
    let (reading, audit) = (tiered.repairs().reading(), tiered.audit());
    let gauges = [
        ("featurestore_repair_leader", "1: this server is the repairer.", f64::from(reading.leading)),
        (
            "featurestore_repair_lag_seconds",
            "Time from a change of L2 until it was applied to L1, of the last changes; 0: there are none.",
            reading.lag.as_secs_f64(),
        ),
    ];
    for (name, help, value) in gauges {
        text.family(name, Kind::Gauge, help).value(&[], value);
    }
    let counters = [
        (
            "featurestore_repair_written",
            "Writes of servers that the repairer applied to L1, in both passes.",
            reading.written,
        ),
        (
            "featurestore_repair_edited",
            "Edits of L2 by others that the repairer applied to L1, in both passes.",
            reading.edited,
        ),
        (
            "featurestore_repair_dropped",
            "Entries of L1 that the repairer removed, because they were older than a write.",
            reading.dropped,
        ),
        (
            "featurestore_repair_cold_starts",
            "How often L1 had to start cold, because the single changes of L2 were not known.",
            reading.epochs,
        ),
        ("featurestore_audit_checks", "Entries of L1 that were compared with L2.", audit.checks()),
        (
            "featurestore_audit_disagreements",
            "Compared entries that were older than L2, and still were after 1 s.",
            audit.disagreements(),
        ),
    ];
    for (name, help, count) in counters {
        text.family(name, Kind::Counter, help).value(&[], count as f64);
    }
}
