//! GetFeatures: the keys that are read, and the form of the answer.

use std::collections::HashMap;

use tokio::time::Instant;

use super::{check_model_version, parse_duration, parse_feature_names, parse_keys, unknown_enum};
use crate::{
    api::{
        Limits,
        failure::{Failure, Violation},
    },
    proto::{self, GetFeaturesRequest, ResponseFormat},
    record::{
        Revision,
        encoding::{Columns, Projection},
        quoted,
    },
    tiered::{Consistency, ReadRequest},
};

pub(in crate::api) struct Read {
    pub(in crate::api) request: ReadRequest,
    pub(in crate::api) expected_model_version: String,
    /// In milliseconds.
    pub(in crate::api) max_age: Option<i64>,
    pub(in crate::api) shape: Shape,
    pub(in crate::api) omit_metadata: bool,
}

pub(in crate::api) enum Shape {
    Rows(Option<Projection>),
    Matrix { names: Vec<String>, columns: Columns, single: bool },
}

/// `deadline` returns when the tiers must have answered, by the consistency.
pub(in crate::api) fn read(
    request: GetFeaturesRequest,
    limits: &Limits,
    deadline: impl FnOnce(Consistency) -> Instant,
) -> Result<Read, Failure> {
    let GetFeaturesRequest {
        feature_view,
        entity_ids,
        feature_names,
        consistency,
        expected_model_version,
        max_age,
        min_revisions,
        format,
        omit_metadata,
    } = request;
    if entity_ids.len() > limits.max_entities {
        return Err(Failure::too_many("TOO_MANY_ENTITIES", "entity ids", entity_ids.len(), limits.max_entities));
    }
    if feature_names.len() > limits.max_features {
        return Err(Failure::too_many("TOO_MANY_FEATURES", "feature names", feature_names.len(), limits.max_features));
    }
    let mut wrong = Vec::new();
    let keys = parse_keys(&feature_view, &entity_ids, &mut wrong);
    let names = parse_feature_names(&feature_names, &mut wrong);
    check_model_version("expected_model_version", &expected_model_version, &mut wrong);
    let consistency = match proto::Consistency::try_from(consistency) {
        Ok(proto::Consistency::Unspecified | proto::Consistency::Cached) => Consistency::Cached,
        Ok(proto::Consistency::Strong) => Consistency::Strong,
        Err(_) => {
            wrong.push(unknown_enum("consistency", consistency));
            Consistency::Cached
        }
    };
    let format = ResponseFormat::try_from(format).unwrap_or_else(|_| {
        wrong.push(unknown_enum("format", format));
        ResponseFormat::Unspecified
    });
    let is_matrix = matches!(format, ResponseFormat::MatrixFloat64 | ResponseFormat::MatrixFloat32);
    if is_matrix && feature_names.is_empty() {
        wrong.push(Violation::new("feature_names", "MISSING_FIELD", "a matrix needs feature_names as columns"));
    }
    let max_age = max_age.and_then(|max_age| match parse_duration(max_age) {
        Ok(millis) => Some(millis),
        Err(why) => {
            wrong.push(Violation::new("max_age", "INVALID_DURATION", why));
            None
        }
    });
    // No limit bounds the number of entries, so only the first bad ones are described.
    for (id, _) in min_revisions.iter().filter(|(_, revision)| **revision < 0).take(limits.max_entities) {
        let field = format!("min_revisions[{}]", quoted(id));
        wrong.push(Violation::new(field, "INVALID_REVISION", "a revision must not be negative"));
    }
    if !wrong.is_empty() {
        return Err(Failure::invalid(wrong));
    }
    let min_revisions = if min_revisions.is_empty() {
        HashMap::new()
    } else {
        let asked = keys.iter().filter_map(|key| {
            let revision = min_revisions.get(key.entity_id.as_str())?;
            Some((key.clone(), Revision(*revision)))
        });
        asked.collect()
    };
    let shape = match is_matrix {
        true => Shape::Matrix {
            columns: Columns::new(&names),
            names: feature_names,
            single: format == ResponseFormat::MatrixFloat32,
        },
        false => Shape::Rows((!names.is_empty()).then(|| Projection::new(&names))),
    };
    let request = ReadRequest { keys, consistency, min_revisions, deadline: deadline(consistency) };
    Ok(Read { request, expected_model_version, max_age, shape, omit_metadata })
}
