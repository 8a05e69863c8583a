//! Info: version, limits, and the state of the tiers. It never asks a backend.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use super::Inner;
use crate::{
    proto::{self, InfoResponse, TierInfo, TierState},
    record::MAX_ENTITY_ID_BYTES,
    tiered::{
        meter::{Meter, Reading},
        mode::TierMode,
    },
};

pub(super) fn response(api: &Inner) -> InfoResponse {
    let tiered = &api.tiered;
    let (cache, store) = (tiered.cache().info(), tiered.store().info());
    let (l1_state, l2_state) = (state(tiered.l1_mode()), state(tiered.l2_mode()));
    let limits = &api.limits;
    InfoResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        git_commit: env!("BUILD_GIT_COMMIT").to_owned(),
        uptime: Some(duration(api.started.elapsed())),
        l1: Some(tier(cache.kind, cache.address, l1_state, &tiered.l1_meter)),
        l2: Some(tier(store.kind, store.address, l2_state, &tiered.l2_meter)),
        limits: Some(proto::Limits {
            max_entities: number(limits.max_entities),
            max_features: number(limits.max_features),
            max_entity_id_bytes: number(MAX_ENTITY_ID_BYTES),
            max_record_bytes: number(limits.max_record_bytes),
            max_bulk_records: number(limits.max_bulk_records),
            max_request_bytes: number(limits.max_request_bytes),
            max_response_bytes: number(limits.max_response_bytes),
        }),
        default_ttl: Some(duration(api.default_ttl)),
        cache_ttl: Some(duration(tiered.l1_ttl())),
        draining: api.draining.load(Relaxed),
    }
}

fn tier(kind: &str, address: String, state: TierState, meter: &Meter) -> TierInfo {
    let reading = meter.reading();
    let hit_ratio = reading.hit_ratio();
    let Reading { hits, negative_hits: _, misses, errors, p50, p99 } = reading;
    TierInfo {
        kind: kind.to_owned(),
        address,
        state: state.into(),
        hits,
        misses,
        errors,
        hit_ratio,
        latency_p50: Some(duration(p50)),
        latency_p99: Some(duration(p99)),
    }
}

fn state(mode: TierMode) -> TierState {
    match mode {
        TierMode::Healthy => TierState::Healthy,
        TierMode::Slow => TierState::Slow,
        TierMode::Bypassed => TierState::Bypassed,
        TierMode::Probing => TierState::Probing,
        TierMode::Recovering => TierState::Recovering,
    }
}

fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos() as i32,
    }
}

fn number(limit: usize) -> u32 {
    u32::try_from(limit).unwrap_or(u32::MAX)
}
