//! What others made of our collections: their kind, options and indexes. They are checked before
//! the first use of the database, and again by `keeper`. If answers would be wrong, this store is
//! not used; other findings are reported.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bson::{Bson, Document, doc};
use mongodb::{Database, error::Error};
use tokio::sync::Notify;

use super::{FEATURES, META, failure::Failure};
use crate::store::{Finding, Severity};

/// How long the server may take for one check.
const MAX_TIME_MS: i64 = 2_000;
/// The index by which expired records are removed.
pub(super) const TTL_INDEX: &str = "gc_at_ttl";
/// Options of a collection that do not affect us.
const HARMLESS: [&str; 6] = [
    "uuid",
    "changeStreamPreAndPostImages",
    "storageEngine",
    "indexOptionDefaults",
    "validationLevel",
    "validationAction",
];

/// What is known of the collections.
#[derive(Default)]
pub(super) struct Setup {
    findings: ArcSwap<Vec<Finding>>,
    /// Something happened that a change of the collections may explain.
    pub(super) suspected: Notify,
}

impl Setup {
    pub(super) fn findings(&self) -> Arc<Vec<Finding>> {
        self.findings.load_full()
    }

    /// Why this store must not be used. None: it may be used.
    pub(super) fn refusal(&self) -> Option<String> {
        let findings = self.findings.load();
        findings.iter().find(|finding| finding.severity == Severity::Wrong).map(|finding| finding.text.clone())
    }

    /// Stores the findings, and logs new ones.
    pub(super) fn found(&self, findings: Vec<Finding>) {
        let before = self.findings.swap(Arc::new(findings.clone()));
        for finding in findings.iter().filter(|finding| !before.contains(finding)) {
            let what = &finding.text;
            match finding.severity {
                Severity::Wrong => tracing::error!("{what}"),
                Severity::Odd | Severity::Unchecked => tracing::warn!("{what}"),
                Severity::Extra => tracing::info!("{what}"),
            }
        }
        for gone in before.iter().filter(|finding| !findings.contains(finding)) {
            tracing::info!("this problem has ended: {}", gone.text);
        }
    }
}

/// The result of a check.
pub(super) struct Seen {
    pub(super) findings: Vec<Finding>,
    /// Whether the TTL index exists. None: the right to list indexes is missing.
    pub(super) has_ttl_index: Option<bool>,
}

/// Checks both collections.
pub(super) async fn look(database: &Database) -> Result<Seen, Error> {
    let mut seen = Seen { findings: Vec::new(), has_ttl_index: Some(false) };
    let filter = doc! { "name": { "$in": [FEATURES, META] } };
    let command = doc! { "listCollections": 1, "filter": filter, "cursor": {}, "maxTimeMS": MAX_TIME_MS };
    match batch(database.run_command(command).await) {
        Ok(collections) => collections.iter().for_each(|collection| judge_collection(collection, &mut seen.findings)),
        Err(error) => seen.findings.push(unchecked(database, error, "listCollections on the database")?),
    }
    for name in [FEATURES, META] {
        let is_no_collection = |finding: &Finding| finding.severity == Severity::Wrong;
        if seen.findings.iter().any(is_no_collection) {
            break; // a view has no indexes to list, and nothing else matters
        }
        let command = doc! { "listIndexes": name, "cursor": { "batchSize": 200 }, "maxTimeMS": MAX_TIME_MS };
        match batch(database.run_command(command).await) {
            Ok(indexes) => {
                let is_ttl = |index: &Document| index.get_str("name").is_ok_and(|name| name == TTL_INDEX);
                if name == FEATURES {
                    seen.has_ttl_index = Some(indexes.iter().any(is_ttl));
                }
                indexes.iter().for_each(|index| judge_index(name, index, &mut seen.findings));
            }
            Err(error) => {
                if name == FEATURES {
                    seen.has_ttl_index = None;
                }
                seen.findings.push(unchecked(database, error, &format!("listIndexes on the collection {name}"))?);
            }
        }
    }
    Ok(seen)
}

/// The documents of a command's first batch. A collection that does not exist yet has none.
fn batch(answer: Result<Document, Error>) -> Result<Vec<Document>, Error> {
    const NAMESPACE_NOT_FOUND: i32 = 26;
    let answer = match answer {
        Err(error) if Failure::from(error.clone()).has_code(NAMESPACE_NOT_FOUND) => return Ok(Vec::new()),
        answer => answer?,
    };
    let batch = answer.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    Ok(batch.into_iter().flatten().filter_map(Bson::as_document).cloned().collect())
}

/// A user without the right to check is served all the same.
fn unchecked(database: &Database, error: Error, right: &str) -> Result<Finding, Error> {
    const UNAUTHORIZED: i32 = 13;
    if !Failure::from(error.clone()).has_code(UNAUTHORIZED) {
        return Err(error);
    }
    let name = database.name();
    let text = format!(
        "the setup of MongoDB's database {name} cannot be checked: the user lacks {right}; grant it \
         (docs/security.md has the role), or make sure yourself that the collections {FEATURES} and {META} have no \
         collation, and that they are no views"
    );
    Ok(Finding { severity: Severity::Unchecked, text })
}

fn judge_collection(collection: &Document, findings: &mut Vec<Finding>) {
    let name = collection.get_str("name").unwrap_or_default();
    let mut note = |severity, what: String| {
        findings.push(Finding { severity, text: format!("MongoDB's collection {name} {what}") });
    };
    const REPLACE: &str = "L2 is not used: drop it, or rename it, and the server creates a new collection; or set \
                           mongodb.database to another database";
    match collection.get_str("type").unwrap_or("collection") {
        "collection" => {}
        other => return note(Severity::Wrong, format!("is a {other} and not a collection. {REPLACE}")),
    }
    let empty = Document::new();
    let options = collection.get_document("options").unwrap_or(&empty);
    for (option, value) in options {
        match (option.as_str(), value) {
            ("capped", Bson::Boolean(true)) => {
                note(Severity::Wrong, format!("is capped, so MongoDB removes records when it is full. {REPLACE}"));
            }
            ("collation", Bson::Document(collation)) if collation.get_str("locale").ok() != Some("simple") => note(
                Severity::Wrong,
                format!("has a collation, so MongoDB treats different ids as the same (Abc and abc). {REPLACE}"),
            ),
            ("validator", Bson::Document(validator)) if !validator.is_empty() => note(
                Severity::Odd,
                "has a validator, so MongoDB may refuse records: remove it with collMod, or make sure that it accepts \
                 all documents of the server"
                    .to_owned(),
            ),
            ("validator" | "capped" | "collation" | "autoIndexId", _) => {}
            (option, _) if HARMLESS.contains(&option) => {}
            (option, _) => note(
                Severity::Odd,
                format!("has the option {option}, which the server does not set, and with which it is not tested"),
            ),
        }
    }
}

fn judge_index(collection: &str, index: &Document, findings: &mut Vec<Finding>) {
    let (name, empty) = (index.get_str("name").unwrap_or_default(), Document::new());
    let key = index.get_document("key").unwrap_or(&empty);
    let mut note = |severity, what: &str| {
        let text = format!("the index {name} on MongoDB's collection {collection} {what}");
        findings.push(Finding { severity, text });
    };
    let is_set = |option: &str| index.get_bool(option).unwrap_or(false);
    let has = |option: &str| index.contains_key(option);
    let seconds = index.get("expireAfterSeconds").and_then(|seconds| match seconds {
        Bson::Int32(seconds) => Some(i64::from(*seconds)),
        Bson::Int64(seconds) => Some(*seconds),
        Bson::Double(seconds) => Some(*seconds as i64),
        _ => None,
    });
    if name == "_id_" {
        return;
    }
    if collection == FEATURES && (name == TTL_INDEX || key.keys().eq(["gc_at"])) {
        let is_ours = name == TTL_INDEX && key.keys().eq(["gc_at"]) && seconds == Some(0);
        if !is_ours || has("partialFilterExpression") || has("sparse") || has("collation") || is_set("unique") {
            note(
                Severity::Odd,
                "is not the server's own (the keys {gc_at: 1} with expireAfterSeconds: 0 and nothing else), so expired \
                 records are removed wrongly or not at all: drop it, and the server creates its own",
            );
        }
    } else if has("expireAfterSeconds") {
        note(
            Severity::Odd,
            "is a TTL index, so MongoDB deletes documents that the server still serves: drop it; the server removes \
             expired records by itself",
        );
    } else if is_set("unique") {
        note(Severity::Odd, "is unique, so MongoDB refuses records that are alike in its fields: drop it");
    } else if key.values().any(|kind| matches!(kind, Bson::String(_))) {
        note(
            Severity::Odd,
            "is of a kind that not every document fits in (text, hashed, geo), so MongoDB may refuse records: drop it, or \
             make it partial",
        );
    } else {
        note(
            Severity::Extra,
            "is not the server's: it costs something with each write, and is used by others' queries",
        );
    }
}
