//! How the sentences of the contract talk: writes by builder, keys nobody else uses, waiting by polling.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use featurestore::{
    proto::{Value, value::Kind},
    record::{
        Clock, EntityId, FeatureName, FeatureView, Lifetime, Millis, Record, RecordKey, Revision, Snapshot, State,
        WriteMode, encoding::EncodedFeatures,
    },
    store::{Change, Outcome, ReadConcern, Receipt, RequestId, Store, StoreError, Write, WriteRules},
};
use prost::Message;
use tokio::time::Instant;

/// What every store under the suite must be made with.
pub(crate) fn rules() -> WriteRules {
    WriteRules {
        default_ttl: Duration::from_secs(3600),
        tombstone_ttl: Duration::from_secs(24 * 3600),
        max_features: 50,
        max_record_bytes: 64 << 10,
    }
}

/// A key that no other sentence and no earlier run uses.
pub(crate) fn key(name: &str) -> RecordKey {
    RecordKey {
        view: FeatureView::parse("contract").unwrap(),
        entity_id: EntityId::parse(&format!("{name} {:016x}", rand::random::<u64>())).unwrap(),
    }
}

pub(crate) fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub(crate) fn now() -> Millis {
    Millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64)
}

/// A write under construction; `put` begins as a REPLACE of nothing but defaults, under an id of its own.
#[derive(Clone, Debug)]
pub(crate) struct Draft(pub(crate) Write);

pub(crate) fn put(key: &RecordKey) -> Draft {
    let record = Record {
        mode: WriteMode::Replace,
        features: Default::default(),
        model_version: "".into(),
        event_time: None,
        lifetime: None,
    };
    draft(key, Change::Upsert(record))
}

pub(crate) fn merge(key: &RecordKey) -> Draft {
    let mut draft = put(key);
    draft.record().mode = WriteMode::Merge;
    draft
}

pub(crate) fn delete(key: &RecordKey) -> Draft {
    draft(key, Change::Delete)
}

fn draft(key: &RecordKey, change: Change) -> Draft {
    let request_id = RequestId(format!("r{:032x}", rand::random::<u128>()).into());
    Draft(Write { key: key.clone(), request_id, if_revision: None, change })
}

impl Draft {
    fn record(&mut self) -> &mut Record {
        match &mut self.0.change {
            Change::Upsert(record) => record,
            Change::Delete => panic!("a delete has no record"),
        }
    }

    pub(crate) fn kind(mut self, name: &str, kind: Kind) -> Self {
        let record = self.record();
        let mut features = record.features.decode();
        features.insert(FeatureName::parse(name).unwrap(), Value { kind: Some(kind) });
        record.features = EncodedFeatures::from(&features);
        self
    }

    pub(crate) fn int(self, name: &str, value: i64) -> Self {
        self.kind(name, Kind::Int64Val(value))
    }

    pub(crate) fn version(mut self, version: &str) -> Self {
        self.record().model_version = version.into();
        self
    }

    pub(crate) fn event_time(mut self, at: i64) -> Self {
        self.record().event_time = Some(Millis(at));
        self
    }

    pub(crate) fn ttl(mut self, ttl: Duration) -> Self {
        self.record().lifetime = Some(Lifetime::Ttl(ttl));
        self
    }

    pub(crate) fn forever(mut self) -> Self {
        self.record().lifetime = Some(Lifetime::Forever);
        self
    }

    pub(crate) fn if_revision(mut self, revision: Revision) -> Self {
        self.0.if_revision = Some(revision);
        self
    }

    pub(crate) fn request(mut self, id: &str) -> Self {
        self.0.request_id = RequestId(id.into());
        self
    }

    /// Does it; the answer must be Ok.
    pub(crate) async fn on(self, store: &Arc<dyn Store>) -> (Receipt, State) {
        self.try_on(store).await.unwrap()
    }

    pub(crate) async fn try_on(self, store: &Arc<dyn Store>) -> Result<(Receipt, State), StoreError> {
        let answered = store.write(self.0, deadline()).await;
        if let Ok((receipt, state)) = &answered {
            assert_eq!(receipt.revision, state.revision(), "the receipt and the state are of one moment");
        }
        answered
    }

    /// Does it; it must be written. Answers the new revision.
    pub(crate) async fn written(self, store: &Arc<dyn Store>) -> Revision {
        let (receipt, _) = self.on(store).await;
        assert_eq!(receipt.outcome, Outcome::Written);
        receipt.revision
    }
}

pub(crate) async fn read_all(store: &Arc<dyn Store>, keys: &[RecordKey], concern: ReadConcern) -> Vec<State> {
    let states = store.read(keys, concern, deadline()).await;
    assert_eq!(states.len(), keys.len(), "one result a key");
    states.into_iter().map(|state| state.unwrap()).collect()
}

/// What stands under the key; both read concerns must agree.
pub(crate) async fn read(store: &Arc<dyn Store>, key: &RecordKey) -> State {
    let majority = read_all(store, std::slice::from_ref(key), ReadConcern::Majority).await.remove(0);
    let linearizable = read_all(store, std::slice::from_ref(key), ReadConcern::Linearizable).await.remove(0);
    assert_eq!(majority, linearizable);
    majority
}

/// The record under the key, decoded; there must be one.
pub(crate) async fn record(store: &Arc<dyn Store>, key: &RecordKey) -> Snapshot {
    match read(store, key).await {
        State::Record(stored) => stored.decode().unwrap(),
        other => panic!("{other:?} where a record should be"),
    }
}

pub(crate) fn names(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.features.keys().map(FeatureName::as_str).collect()
}

pub(crate) fn int_of(snapshot: &Snapshot, name: &str) -> i64 {
    match snapshot.features.get(name).and_then(|value| value.kind.clone()) {
        Some(Kind::Int64Val(value)) => value,
        other => panic!("{name}: {other:?}"),
    }
}

/// Equal bit by bit: NaN equals NaN, and -0.0 is not 0.0.
pub(crate) fn assert_same(name: &str, read: &Value, written: &Value) {
    assert_eq!(read.encode_to_vec(), written.encode_to_vec(), "{name}: {read:?} is not {written:?}");
}

/// Polls until the record has expired by this machine's clock and, within the clocks' skew, L2's.
pub(crate) async fn expired(store: &Arc<dyn Store>, key: &RecordKey) {
    eventually("the record expires", async || match read(store, key).await {
        State::Record(stored) => stored.is_expired(Millis(Clock::system().now().0 - 20)),
        other => panic!("{other:?} where a record should be"),
    })
    .await;
}

/// Polls with a bound.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
