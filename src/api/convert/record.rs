//! Checks a `FeatureRecord` of a request, field by field.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use prost_types::{Timestamp, value::Kind as JsonKind};

use crate::{
    api::{
        Limits,
        failure::{Failure, Violation},
    },
    proto::{Value, WriteMode as ProtoWriteMode, value::Kind},
    record::{
        EntityId, FeatureName, FeatureRecord, Features, GivenFeatures, Lifetime, Millis, Record, Revision, WriteMode,
        encoding::EncodedFeatures, quoted,
    },
};

use super::{check_model_version, unknown_enum};

/// How many bad features of one record are described; the others are only counted. A description is
/// a hundred times larger than what it is about.
const MAX_DESCRIBED: usize = 32;

/// The range of google.protobuf.Timestamp: the years 1 to 9999.
const TIMESTAMP_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// The defaults that a bulk message gives for its records.
#[derive(Default)]
pub(super) struct BulkDefaults {
    model_version: Arc<str>,
    lifetime: Option<Lifetime>,
}

impl BulkDefaults {
    pub(super) fn parse(
        model_version: String,
        ttl: Option<prost_types::Duration>,
        limits: &Limits,
        wrong: &mut Vec<Violation>,
    ) -> Self {
        check_model_version("model_version", &model_version, wrong);
        Self { model_version: model_version.into(), lifetime: parse_ttl(ttl, limits, wrong) }
    }
}

pub(super) struct ParsedRecord {
    pub(super) entity_id: EntityId,
    pub(super) record: Record,
    pub(super) if_revision: Option<Revision>,
}

/// Checks a record. The paths of its errors begin inside the record.
pub(super) fn parse_record(
    record: FeatureRecord,
    defaults: &BulkDefaults,
    limits: &Limits,
) -> Result<ParsedRecord, Failure> {
    let FeatureRecord { entity_id, features, model_version, event_time, ttl, never_expires, write_mode, if_revision } =
        record;
    let within = |count| match count > limits.max_features {
        true => Err(Failure::too_many("TOO_MANY_FEATURES", "features", count, limits.max_features)),
        false => Ok(()),
    };
    let (mut wrong, mut more_wrong) = (Vec::new(), 0);
    let entity_id = EntityId::parse(&entity_id)
        .map_err(|why| wrong.push(Violation::new("entity_id", "INVALID_ENTITY_ID", why)))
        .ok();
    let features = match features {
        GivenFeatures::Plain(plain) => {
            let features = plain.finish();
            within(features.count())?;
            features
        }
        GivenFeatures::Decoded(map) => {
            within(map.len())?;
            EncodedFeatures::from(&parse_features(map, &mut wrong, &mut more_wrong))
        }
    };
    check_model_version("model_version", &model_version, &mut wrong);
    let event_time = event_time.and_then(|at| parse_time(at, &mut wrong));
    if never_expires && ttl.is_some() {
        wrong.push(Violation::new("ttl", "INVALID_TTL", "give ttl or never_expires, and not both"));
    }
    let given = parse_ttl(ttl, limits, &mut wrong);
    let mode = match ProtoWriteMode::try_from(write_mode) {
        Ok(ProtoWriteMode::Unspecified | ProtoWriteMode::Replace) => WriteMode::Replace,
        Ok(ProtoWriteMode::Merge) => WriteMode::Merge,
        Err(_) => {
            wrong.push(unknown_enum("write_mode", write_mode));
            WriteMode::Replace
        }
    };
    if if_revision.is_some_and(|revision| revision < 0) {
        wrong.push(Violation::new("if_revision", "INVALID_REVISION", "a revision must not be negative"));
    }
    let Some(entity_id) = entity_id.filter(|_| wrong.is_empty()) else {
        return Err(Failure::invalid_and_more(wrong, more_wrong));
    };

    let model_version = if model_version.is_empty() { defaults.model_version.clone() } else { model_version.into() };
    let bytes = features.as_bytes().len() + model_version.len();
    if bytes > limits.max_record_bytes {
        return Err(Failure::record_too_large(bytes, limits.max_record_bytes));
    }
    let lifetime = if never_expires { Some(Lifetime::Forever) } else { given.or(defaults.lifetime) };
    Ok(ParsedRecord {
        entity_id,
        record: Record { mode, features, model_version, event_time, lifetime },
        if_revision: if_revision.map(Revision),
    })
}

/// `more_wrong` counts the errors that are not described in `wrong`.
fn parse_features(features: BTreeMap<String, Value>, wrong: &mut Vec<Violation>, more_wrong: &mut usize) -> Features {
    let mut parsed = Features::new();
    for (name, value) in features {
        let is_allowed = FeatureName::is_allowed(name.as_bytes());
        if (!is_allowed || !has_kind(&value)) && wrong.len() >= MAX_DESCRIBED {
            *more_wrong += 1;
            continue;
        }
        let field = || format!("features[{}]", quoted(&name));
        match FeatureName::parse(&name) {
            Err(why) => wrong.push(Violation::new(field(), "INVALID_FEATURE_NAME", why)),
            Ok(_) if !has_kind(&value) => {
                wrong.push(Violation::new(field(), "INVALID_VALUE", "the value, or one within it, is not set"));
            }
            Ok(name) => {
                parsed.insert(name, value);
            }
        }
    }
    parsed
}

/// Whether a value, and every value within it, has a known kind.
fn has_kind(value: &Value) -> bool {
    match &value.kind {
        None => false,
        // The only number of google.protobuf.NullValue is 0.
        Some(Kind::NullVal(number)) => *number == 0,
        Some(Kind::StructVal(json)) => json.fields.values().all(json_has_kind),
        Some(_) => true,
    }
}

fn json_has_kind(value: &prost_types::Value) -> bool {
    match &value.kind {
        None => false,
        Some(JsonKind::NullValue(number)) => *number == 0,
        Some(JsonKind::StructValue(json)) => json.fields.values().all(json_has_kind),
        Some(JsonKind::ListValue(list)) => list.values.iter().all(json_has_kind),
        Some(JsonKind::NumberValue(_) | JsonKind::StringValue(_) | JsonKind::BoolValue(_)) => true,
    }
}

fn parse_time(at: Timestamp, wrong: &mut Vec<Violation>) -> Option<Millis> {
    let Timestamp { seconds, nanos } = at;
    if TIMESTAMP_SECONDS.contains(&seconds) && (0..1_000_000_000).contains(&nanos) {
        return Some(Millis(seconds * 1000 + i64::from(nanos) / 1_000_000));
    }
    let why = "a time must be in the years 1 to 9999, with nanos from 0 to 999,999,999";
    wrong.push(Violation::new("event_time", "INVALID_TIME", why));
    None
}

fn parse_ttl(ttl: Option<prost_types::Duration>, limits: &Limits, wrong: &mut Vec<Violation>) -> Option<Lifetime> {
    match parse_duration(ttl?) {
        Ok(millis) if u128::from(millis.unsigned_abs()) <= limits.max_ttl.as_millis() => {
            Some(Lifetime::Ttl(Duration::from_millis(millis.unsigned_abs())))
        }
        Ok(_) => {
            let why = format!("a ttl may be {} s at most; never_expires keeps a record", limits.max_ttl.as_secs());
            wrong.push(Violation::new("ttl", "INVALID_TTL", why));
            None
        }
        Err(why) => {
            wrong.push(Violation::new("ttl", "INVALID_TTL", why));
            None
        }
    }
}

/// The milliseconds of a duration; at least one.
pub(super) fn parse_duration(duration: prost_types::Duration) -> Result<i64, &'static str> {
    let prost_types::Duration { seconds, nanos } = duration;
    // The range of google.protobuf.Duration: 10,000 years.
    if !(-999_999_999..=999_999_999).contains(&nanos) || !(-315_576_000_000..=315_576_000_000).contains(&seconds) {
        return Err("a duration must be within 10,000 years, with nanos below 10^9");
    }
    if seconds.signum() * i64::from(nanos.signum()) < 0 {
        return Err("the seconds and nanos of a duration must have the same sign");
    }
    let millis = seconds * 1000 + i64::from(nanos) / 1_000_000;
    if millis < 1 { Err("a duration must be at least a millisecond") } else { Ok(millis) }
}
