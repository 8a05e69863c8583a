//! Whether a document can be read, as far as an update pipeline can decide: a write that needs the
//! stored record must change nothing if that is unreadable.
//!
//! What is called sound here can be read by `document::Reader`. The reverse need not hold: if it is
//! in doubt (deeply nested values), the reader decides, see `compare`.

use bson::{Bson, Document, doc};

use super::{document, value};

/// How many levels of a struct are checked. Deeper values are in doubt.
const LEVELS: usize = 2;
/// The BSON types of single values.
const SCALARS: [&str; 8] = ["double", "string", "bool", "int", "long", "null", "date", "binData"];
/// The same within a struct.
const JSON_SCALARS: [&str; 6] = ["double", "string", "bool", "int", "long", "null"];

/// Whether the revision can be read.
pub(super) fn revision() -> Document {
    let range = document::REVISIONS;
    doc! { "$and": [
        type_is("$rev", &["int", "long", "double"]),
        { "$gte": ["$rev", range.start] },
        { "$lt": ["$rev", range.end] },
        { "$eq": ["$rev", { "$trunc": "$rev" }] },
    ] }
}

/// Whether everything but the features can be read. A tombstone needs only its revision.
pub(super) fn head() -> Document {
    let record = doc! { "$and": [
        type_is("$features", &["object"]),
        type_is("$kinds", &["object", "null", "missing"]),
        type_is("$model_version", &["string", "null", "missing"]),
        time("$event_time"),
        time("$write_time"),
        { "$or": [type_is("$expire_at", &["null", "missing"]), time("$expire_at")] },
    ] };
    doc! { "$and": [
        revision(),
        type_is("$deleted", &["bool", "missing"]),
        { "$or": [{ "$eq": ["$deleted", true] }, record] },
    ] }
}

/// Whether the remembered requests can be read.
pub(super) fn requests() -> Document {
    type_is("$requests", &["array", "missing"])
}

/// Whether the features of a record can certainly be read.
pub(super) fn features() -> Document {
    let kinds = doc! { "$map": { "input": entries("$kinds"), "in": "$$this.v" } };
    let each = doc! { "$map": { "input": entries("$features"), "as": "f", "in": { "$and": [
        { "$regexMatch": { "input": "$$f.k", "regex": r"^[A-Za-z_][A-Za-z0-9_:-]{0,127}\z" } },
        value_is_sound("$$f.v"),
    ] } } };
    let sound = doc! { "$and": [
        { "$allElementsTrue": [{ "$map": { "input": kinds.clone(), "in": type_is("$$this", &["int"]) } }] },
        // Only a reader can check a struct that is stored as bytes.
        { "$not": [{ "$in": [value::STRUCT, kinds] }] },
        { "$allElementsTrue": [each] },
    ] };
    doc! { "$or": [{ "$eq": ["$deleted", true] }, sound] }
}

/// The entries of a document; none of anything else.
fn entries(field: &str) -> Document {
    doc! { "$objectToArray": { "$cond": [type_is(field, &["object"]), field, { "$literal": {} }] } }
}

fn value_is_sound(value: &str) -> Document {
    doc! { "$switch": {
        "branches": [
            { "case": type_is(value, &SCALARS), "then": true },
            { "case": { "$isArray": value }, "then": list_is_sound(value) },
            { "case": type_is(value, &["object"]), "then": children_are_sound(value, 1) },
        ],
        "default": false,
    } }
}

/// Whether there is a typed list for the items.
fn list_is_sound(list: &str) -> Document {
    let types = doc! { "$setUnion": [{ "$map": { "input": list, "in": { "$type": "$$this" } } }, []] };
    let lists: [&[&str]; 5] =
        [&["string"], &["int", "long", "double"], &["bool"], &["binData"], &["int", "long", "date"]];
    let within = lists.map(|types| doc! { "$setIsSubset": ["$$types", types] });
    doc! { "$let": { "vars": { "types": types }, "in": { "$or": within.to_vec() } } }
}

/// Whether the values in a struct, or in a list within one, are JSON.
fn children_are_sound(parent: &str, level: usize) -> Document {
    let name = format!("c{level}");
    let child = format!("$${name}");
    let deeper = match level {
        LEVELS => Bson::from(false),
        _ => children_are_sound(&child, level + 1).into(),
    };
    let sound = doc! { "$switch": {
        "branches": [
            { "case": type_is(&child, &JSON_SCALARS), "then": true },
            { "case": type_is(&child, &["object", "array"]), "then": deeper },
        ],
        "default": false,
    } };
    let children = doc! { "$cond": [
        { "$isArray": parent },
        parent,
        { "$map": { "input": entries(parent), "in": "$$this.v" } },
    ] };
    doc! { "$allElementsTrue": [{ "$map": { "input": children, "as": name, "in": sound } }] }
}

fn time(field: &str) -> Document {
    let [from, to] = [document::TIMES.start(), document::TIMES.end()].map(|at| bson::DateTime::from_millis(*at));
    doc! { "$and": [type_is(field, &["date"]), { "$gte": [field, from] }, { "$lte": [field, to] }] }
}

fn type_is(field: &str, types: &[&str]) -> Document {
    doc! { "$in": [{ "$type": field }, types] }
}
