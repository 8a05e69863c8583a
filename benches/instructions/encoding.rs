//! Records into stored bytes, and features by name out of them.

use std::hint::black_box;

use featurestore::{
    proto::{Value, value::Kind},
    record::{
        FeatureName, Millis, Revision, Snapshot,
        encoding::{Projection, Scratch, StoredRecord},
    },
};

use crate::{Call, Case};

pub(crate) const CASES: [Case; 4] = [
    Case { name: "encode_20", calls: 2_000, prepare: |_| encode(20) },
    Case { name: "encode_200", calls: 200, prepare: |_| encode(200) },
    Case { name: "project_5_of_20", calls: 2_000, prepare: |_| project(20) },
    Case { name: "project_5_of_200", calls: 1_000, prepare: |_| project(200) },
];

/// The name of the feature of this number.
pub(crate) fn name(number: usize) -> String {
    format!("feature_{number:03}")
}

/// Its value in the record of this number.
pub(crate) fn value(record: usize, number: usize) -> Value {
    Value { kind: Some(Kind::DoubleVal(record as f64 + number as f64 / 10.0)) }
}

/// Five of so many features, from the first to the last, not in the order of the stored bytes.
pub(crate) fn five_of(features: usize) -> Vec<String> {
    let step = (features - 1) / 4;
    [2, 0, 4, 1, 3].map(|place| name(place * step)).to_vec()
}

fn snapshot(features: usize) -> Snapshot {
    let now = 1_795_405_646_017;
    Snapshot {
        features: (0..features).map(|f| (FeatureName::parse(&name(f)).unwrap(), value(1, f))).collect(),
        model_version: "v1.0.0".to_owned(),
        revision: Revision(now * 1000),
        event_time: Millis(now),
        write_time: Millis(now),
        expire_at: Some(Millis(now + 604_800_000)),
    }
}

fn encode(features: usize) -> Call {
    let snapshot = snapshot(features);
    Box::new(move || drop(black_box(StoredRecord::encode(black_box(&snapshot)))))
}

/// One row of a call: the names were made ready before, and the row before had the same features.
fn project(features: usize) -> Call {
    let record = StoredRecord::encode(&snapshot(features));
    let names: Vec<_> = five_of(features).iter().map(|name| FeatureName::parse(name).unwrap()).collect();
    let projection = Projection::new(&names);
    let mut scratch = Scratch::default();
    Box::new(move || {
        let (features, missing) = projection.apply(black_box(&record), &mut scratch).unwrap();
        assert!(missing.is_none() && !features.is_empty());
        black_box(features);
    })
}
