//! One update of one document, in two forms: as a tree for the driver's helpers, and as bytes. The
//! bytes take a tenth of the tree's memory and have the largest part, the features, only once.

use std::time::Duration;

use bson::{Bson, Document, RawDocument, RawDocumentBuf, doc};

use super::encode::{self, Sink, Size};
use crate::record::encoding::EncodedFeatures;

/// The most bytes of a record's features, kinds and model version as BSON: a document of 16 MiB
/// also needs room for its id and its latest requests.
pub const MAX_DOCUMENT_BYTES: usize = (16 << 20) - (128 << 10);

/// Features up to this size may be sent as a tree.
pub(super) const SMALL: usize = 16 << 10;

/// The most bytes of the stages of a statement, beside what they are given.
pub(super) const STAGES_BYTES: usize = 10 << 10;
/// Their usual size in bytes.
pub(super) const USUAL_STAGES_BYTES: usize = 5 << 10;

/// The features of a statement, and their size as BSON.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    features: &'a EncodedFeatures,
    /// Whether the kinds name every feature, which a merge needs to remove stored kinds.
    all_kinds: bool,
    features_bytes: usize,
    kinds_bytes: usize,
}

impl<'a> Given<'a> {
    pub(super) fn new(features: &'a EncodedFeatures, all_kinds: bool) -> Self {
        let (mut features_bytes, mut kinds_bytes) = (Size::default(), Size::default());
        encode::put_features(features, &mut features_bytes);
        encode::put_kinds(features, all_kinds, &mut kinds_bytes);
        Self { features, all_kinds, features_bytes: features_bytes.0, kinds_bytes: kinds_bytes.0 }
    }

    /// The size of the features and their kinds.
    pub(super) fn bytes(&self) -> usize {
        self.features_bytes + self.kinds_bytes
    }

    /// Whether there are any kinds.
    pub(super) fn has_kinds(&self) -> bool {
        self.kinds_bytes > 5
    }

    /// The stage that stores them as `_attempt.given`, so that they are sent once.
    fn put_stage(&self, into: &mut impl Sink) {
        let stage = into.begin();
        let set = into.begin_document(b"$set");
        let given = into.begin_document(b"_attempt.given");
        let features = into.begin_document(b"features");
        into.head(encode::DOCUMENT, b"$literal");
        encode::put_features(self.features, into);
        into.end(features);
        let kinds = into.begin_document(b"kinds");
        into.head(encode::DOCUMENT, b"$literal");
        encode::put_kinds(self.features, self.all_kinds, into);
        into.end(kinds);
        into.end(given);
        into.end(set);
        into.end(stage);
    }
}

/// The size of a record's features as BSON, with their kinds.
pub(super) fn document_bytes(features: &EncodedFeatures) -> usize {
    Given::new(features, false).bytes()
}

/// One update of one document.
pub(super) struct Statement<'a> {
    /// Which document.
    pub(super) filter: Document,
    /// The pipeline. The stage of the given features comes after the first of these.
    pub(super) stages: Vec<Document>,
    /// The content of `_attempt.given`.
    pub(super) given: Option<Given<'a>>,
    /// Whether to create a missing document.
    pub(super) upsert: bool,
}

impl Statement<'_> {
    /// The pipeline as a tree.
    pub(super) fn into_tree(self) -> Vec<Document> {
        let mut stages = self.stages;
        if let Some(given) = self.given {
            let mut bytes = Vec::with_capacity(given.bytes() + 128);
            given.put_stage(&mut bytes);
            let stage = RawDocument::from_bytes(&bytes).ok().and_then(|stage| Document::try_from(stage).ok());
            // It was written here, so it can be read.
            stages.insert(1, stage.unwrap_or_default());
        }
        stages
    }

    /// Puts it as an element of the command `update`.
    pub(super) fn put(&self, name: &[u8], into: &mut Vec<u8>) -> Result<(), bson::error::Error> {
        let statement = into.begin_document(name);
        into.document(b"q", &self.filter.to_vec()?);
        let pipeline = into.begin_array(b"u");
        let mut index = encode::Index::default();
        for (i, stage) in self.stages.iter().enumerate() {
            into.document(index.next(), &stage.to_vec()?);
            if let (0, Some(given)) = (i, &self.given) {
                into.head(encode::DOCUMENT, index.next());
                given.put_stage(into);
            }
        }
        into.end(pipeline);
        into.head(encode::BOOLEAN, b"upsert");
        into.put_bytes(&[u8::from(self.upsert)]);
        into.document(b"collation", &doc! { "locale": "simple" }.to_vec()?); // see `read::simple`
        into.end(statement);
        Ok(())
    }
}

/// A command with several updates, each of another document and in any order. `room`: their
/// approximate size. Each statement is built when it is written, because a tree of a thousand small
/// ones takes more memory than all of their bytes.
pub(super) fn command<'a>(
    collection: &str,
    room: usize,
    statements: impl Iterator<Item = Statement<'a>>,
    time: Duration,
) -> Result<RawDocumentBuf, bson::error::Error> {
    let head = doc! {
        "update": collection,
        "ordered": false,
        "writeConcern": { "w": "majority", "j": true },
        "maxTimeMS": i64::try_from(time.as_millis()).unwrap_or(i64::MAX),
    };
    let mut bytes = Vec::with_capacity(room + 256);
    bytes.extend_from_slice(&head.to_vec()?);
    bytes.pop(); // its end, which comes later
    let updates = bytes.begin_array(b"updates");
    let mut index = encode::Index::default();
    for statement in statements {
        statement.put(index.next(), &mut bytes)?;
    }
    bytes.end(updates);
    bytes.end(0);
    RawDocumentBuf::from_bytes(bytes)
}

/// A `$set` stage.
pub(super) fn set(fields: Document) -> Document {
    doc! { "$set": fields }
}

/// The value if the condition holds. Otherwise the statement fails (`Failure::is_unsure`), because
/// the text at `path` is not a number; a constant would fail whether the condition holds or not.
pub(super) fn or_fail(condition: impl Into<Bson>, value: impl Into<Bson>, path: &str) -> Document {
    doc! { "$cond": [condition.into(), value.into(), { "$toInt": path }] }
}

/// The value of a client, which is never read as an expression.
pub(super) fn literal(value: impl Into<Bson>) -> Document {
    doc! { "$literal": value.into() }
}
