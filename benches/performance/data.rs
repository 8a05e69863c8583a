//! The records and the requests. All is deterministic, and encoded before anything is measured.

use bytes::{BufMut as _, Bytes};
use prost::Message as _;

use crate::{engine::Numbers, pb};

/// Records of one feature view that look alike.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Set {
    pub(crate) view: &'static str,
    pub(crate) shape: Shape,
    pub(crate) entities: u64,
}

impl Set {
    /// Records of a chunk of a load; a request may have 4 MiB.
    pub(crate) fn chunk(&self) -> u64 {
        match self.shape {
            Shape::Doubles(..=50) => 1000,
            _ => 100,
        }
    }
}

/// What a record holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// So many doubles.
    Doubles(usize),
    /// One list of so many floats.
    Embedding(usize),
}

/// Records differ in their values, but encoding each anew would keep the client busy: so many kinds will do.
const TEMPLATES: u64 = 64;

pub(crate) fn entity_id(number: u64) -> String {
    format!("CUST-{number:09}")
}

pub(crate) fn feature_name(number: usize) -> String {
    format!("feature_col_{number:02}")
}

/// Encodes the chunks of a bulk load.
pub(crate) struct Chunks {
    view: &'static str,
    entities: u64,
    templates: Vec<Vec<u8>>,
    warm: bool,
    all_results: bool,
}

impl Chunks {
    pub(crate) fn of(set: &Set) -> Self {
        let mut numbers = Numbers(42);
        let templates = (0..TEMPLATES).map(|_| record(set.shape, &mut numbers).encode_to_vec()).collect();
        Self { view: set.view, entities: set.entities, templates, warm: false, all_results: false }
    }

    /// Has the server put the records into L1 too.
    pub(crate) fn warm(self) -> Self {
        Self { warm: true, ..self }
    }

    /// Has the server answer every record.
    pub(crate) fn all_results(self) -> Self {
        Self { all_results: true, ..self }
    }

    /// One chunk; numbers beyond the set begin anew.
    pub(crate) fn chunk(&self, numbers: impl Iterator<Item = u64>) -> Bytes {
        const RECORDS: u8 = 3 << 3 | 2;
        let head = pb::BulkUpsertRequest {
            feature_view: self.view.to_owned(),
            warm_cache: self.warm,
            all_results: self.all_results,
            ..pb::BulkUpsertRequest::default()
        };
        let mut bytes = head.encode_to_vec();
        for number in numbers.map(|number| number % self.entities) {
            // The fields of a message may come in any order, so the rest of it is encoded once for many records.
            let rest = &self.templates[(number % TEMPLATES) as usize];
            let id = pb::FeatureRecord { entity_id: entity_id(number), ..Default::default() }.encode_to_vec();
            bytes.put_u8(RECORDS);
            prost::encode_length_delimiter(id.len() + rest.len(), &mut bytes).expect("a Vec grows");
            bytes.extend_from_slice(&id);
            bytes.extend_from_slice(rest);
        }
        bytes.into()
    }

    /// A request to write one record.
    pub(crate) fn upsert(&self, number: u64) -> Bytes {
        let rest = self.templates[(number % TEMPLATES) as usize].as_slice();
        let mut record = pb::FeatureRecord::decode(rest).expect("it was just encoded");
        record.entity_id = entity_id(number);
        let request = pb::UpsertFeaturesRequest {
            feature_view: self.view.to_owned(),
            record: Some(record),
            ..pb::UpsertFeaturesRequest::default()
        };
        request.encode_to_vec().into()
    }
}

fn record(shape: Shape, numbers: &mut Numbers) -> pb::FeatureRecord {
    use pb::value::Kind;
    let value = |kind| pb::Value { kind: Some(kind) };
    let mut number = || numbers.next() as f64 / 1e12;
    let features = match shape {
        Shape::Doubles(count) => (0..count).map(|f| (feature_name(f), value(Kind::DoubleVal(number())))).collect(),
        Shape::Embedding(length) => {
            let val = (0..length).map(|_| number() as f32).collect();
            [("embedding".to_owned(), value(Kind::FloatListVal(pb::FloatList { val })))].into()
        }
    };
    pb::FeatureRecord { features, model_version: "v1.0.0".to_owned(), ..pb::FeatureRecord::default() }
}

/// What a read asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) entities: usize,
    /// So many of the features by name; 0: all.
    pub(crate) names: usize,
    pub(crate) format: pb::ResponseFormat,
}

impl Ask {
    pub(crate) fn rows(entities: usize) -> Self {
        Self { entities, names: 0, format: pb::ResponseFormat::Unspecified }
    }

    pub(crate) fn names(self, names: usize) -> Self {
        Self { names, ..self }
    }

    pub(crate) fn format(self, format: pb::ResponseFormat) -> Self {
        Self { format, ..self }
    }

    pub(crate) fn request(&self, view: &str, numbers: &[u64]) -> Bytes {
        let request = pb::GetFeaturesRequest {
            feature_view: view.to_owned(),
            entity_ids: numbers.iter().map(|number| entity_id(*number)).collect(),
            // Every fourth, as a model that needs some of many would ask.
            feature_names: (0..self.names).map(|name| feature_name(name * 4 % 20 + name / 5)).collect(),
            format: self.format.into(),
            ..pb::GetFeaturesRequest::default()
        };
        request.encode_to_vec().into()
    }
}

/// The keys of so many calls: at random, each once within a call.
pub(crate) fn keys(calls: usize, entities: usize, among: u64) -> Vec<Vec<u64>> {
    let mut numbers = Numbers(1);
    let mut call = || {
        // Evenly spread from a first one on: strides so short meet no key twice.
        let first = numbers.next() % among;
        let stride = 1 + numbers.next() % (among / entities as u64);
        (0..entities as u64).map(|i| (first + i * stride) % among).collect()
    };
    (0..calls).map(|_| call()).collect()
}
