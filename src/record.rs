//! What the service is about: feature views, entity ids, records and their revisions.
//!
//! Constructors check and the types remember it ("parse, don't validate"), so code behind the API never meets a bad
//! name. Not here: how a record is stored (`encoding`), where (`cache`, `store`), or what a request may hold (`api`).

pub mod encoding;
mod entity_id;
mod feature_record;
pub mod float32;
mod typical_size;

use std::{borrow::Borrow, collections::BTreeMap, fmt, sync::Arc, time::Duration};

use crate::proto::Value;

pub use crate::proto::SharedText;
pub use entity_id::{EntityId, MAX_ENTITY_ID_BYTES};
pub use feature_record::{FeatureRecord, GivenFeatures};
pub use typical_size::TypicalSize;

/// The most bytes that a feature name may have.
pub const MAX_FEATURE_NAME_BYTES: usize = 128;
/// The most bytes that a feature view's name may have.
pub const MAX_FEATURE_VIEW_BYTES: usize = 63;
/// The most bytes that a model version may have. Records that were stored before there was a limit may have longer ones.
pub const MAX_MODEL_VERSION_BYTES: usize = 128;

/// Why a name was refused; the text says what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidName(String);

/// The feature view of requests that name none.
pub const DEFAULT_VIEW: &str = "default";

/// A name as errors show it, cut off where it is longer than a feature's may be, or too much of it had to be escaped: nobody is
/// sent megabytes of his own.
pub(crate) fn quoted(name: &str) -> String {
    const MAX_BYTES: usize = 136;
    const MAX_SHOWN: usize = 320;
    let mut end = name.floor_char_boundary(MAX_BYTES);
    let mut shown = format!("{:?}", &name[..end]);
    while shown.len() > MAX_SHOWN {
        end = name.floor_char_boundary(end / 2);
        shown = format!("{:?}", &name[..end]);
    }
    if end < name.len() {
        shown.push_str("...");
    }
    shown
}

/// A feature view's name: `[a-z][a-z0-9_]{0,62}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FeatureView(Arc<str>);

impl FeatureView {
    /// Checks a name; "" is the view "default".
    pub fn parse(name: &str) -> Result<Self, InvalidName> {
        let name = if name.is_empty() { DEFAULT_VIEW } else { name };
        let mut bytes = name.bytes();
        let good = name.len() <= MAX_FEATURE_VIEW_BYTES
            && bytes.next().is_some_and(|b| b.is_ascii_lowercase())
            && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if good {
            Ok(Self(name.into()))
        } else {
            let name = quoted(name);
            Err(InvalidName(format!("feature view {name} must match [a-z][a-z0-9_]{{0,62}}")))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FeatureView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a record is found by. Cloning is cheap.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordKey {
    /// The feature view.
    pub view: FeatureView,
    /// The entity within it.
    pub entity_id: EntityId,
}

impl RecordKey {
    /// The same for keeping: the ids of a batch share one text, all of which each of them keeps.
    pub fn detached(&self) -> Self {
        Self { view: self.view.clone(), entity_id: self.entity_id.detached() }
    }
}

/// A feature's name: 1 to 128 bytes of `[A-Za-z_][A-Za-z0-9_:-]*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FeatureName(Box<str>);

impl FeatureName {
    /// Checks a name; it is never rewritten.
    pub fn parse(name: &str) -> Result<Self, InvalidName> {
        if Self::is_allowed(name.as_bytes()) {
            Ok(Self(name.into()))
        } else {
            let name = quoted(name);
            Err(InvalidName(format!(
                "feature name {name} must match [A-Za-z_][A-Za-z0-9_:-]* and have at most {MAX_FEATURE_NAME_BYTES} bytes"
            )))
        }
    }

    /// Whether a feature may have this name.
    pub fn is_allowed(name: &[u8]) -> bool {
        let mut bytes = name.iter().copied();
        name.len() <= MAX_FEATURE_NAME_BYTES
            && bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
            && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':' | b'-'))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for FeatureName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Features by name; every value has a kind. The order is that of the stored bytes.
pub type Features = BTreeMap<FeatureName, Value>;

/// A record's place in its own history: `max(previous + 1, L2's clock in ms * 1000)`. It grows with every change,
/// deletes included, and stays below 2^53, as Redis's Lua computes with doubles. 0 is "never seen".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision(pub i64);

impl Revision {
    /// No record, and no tombstone of one.
    pub const NONE: Self = Self(0);

    /// The revision of a change made at `now` to what stood at `self`.
    pub fn next(self, now: Millis) -> Self {
        Self((self.0 + 1).max(now.0.saturating_mul(1000)))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A point in time: milliseconds since the Unix epoch, as BSON dates have them. Anything finer is cut off on entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Millis(pub i64);

impl Millis {
    /// This much later, at most the end of time.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }
}

/// The wall clock, passed in so that tests can turn it.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Millis + Send + Sync>);

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self::new(|| {
            let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            Millis::default().after(since_epoch)
        })
    }

    /// A clock that reads what `now` says.
    pub fn new(now: impl Fn() -> Millis + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// What it reads.
    pub fn now(&self) -> Millis {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now()).finish()
    }
}

/// How long a record lives, counted from its write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// This long.
    Ttl(Duration),
    /// Until it is deleted.
    Forever,
}

/// What becomes of the features that a write does not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// They go.
    Replace,
    /// They stay, and so do model version and expire time where the write gives none.
    Merge,
}

/// What is written: a checked `FeatureRecord`.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// What becomes of what is stored.
    pub mode: WriteMode,
    /// The features that are set.
    pub features: encoding::EncodedFeatures,
    /// "": none given. The records of a bulk message share the one that the message gives.
    pub model_version: Arc<str>,
    /// None: the later of L2's clock and the stored event time.
    pub event_time: Option<Millis>,
    /// None: the default, or with MERGE the stored record's.
    pub lifetime: Option<Lifetime>,
}

/// A record as it stands, decoded. L2 keeps it; `encoding::StoredRecord` is its form in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// All of them.
    pub features: Features,
    /// "": none.
    pub model_version: String,
    /// Of this state.
    pub revision: Revision,
    /// When the features were true in the world.
    pub event_time: Millis,
    /// When this state was written.
    pub write_time: Millis,
    /// None: never.
    pub expire_at: Option<Millis>,
}

/// What a tier knows of a key. Readers judge expiry: an expired record is still a record here.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Never seen, or collected.
    Absent,
    /// Deleted, and remembered for a while.
    Tombstone(Revision),
    /// Stored.
    Record(encoding::StoredRecord),
}

impl State {
    /// Its revision; 0 for what was never seen.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Absent => Revision::NONE,
            Self::Tombstone(revision) => *revision,
            Self::Record(record) => record.revision(),
        }
    }

    /// The record, if there is one.
    pub fn record(&self) -> Option<&encoding::StoredRecord> {
        match self {
            Self::Absent | Self::Tombstone(_) => None,
            Self::Record(record) => Some(record),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_refused_with_the_reason_and_never_rewritten() {
        assert_eq!(FeatureView::parse("").unwrap().as_str(), "default");
        for bad in ["A", "1a", "a-b", "a b", "é", &"a".repeat(64)] {
            assert!(FeatureView::parse(bad).unwrap_err().to_string().contains("[a-z]"), "{bad}");
        }
        assert!(FeatureView::parse(&"a".repeat(63)).is_ok());
        for bad in ["", "a\u{0}", "a\n", "\u{85}", &"é".repeat(257)] {
            assert!(EntityId::parse(bad).is_err(), "{bad:?}");
        }
        for good in ["CUST 1", "ключ", "a:b{c}", &"é".repeat(256)] {
            assert_eq!(EntityId::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "1a", "a.b", "$a", "mean radius", &"a".repeat(129)] {
            assert!(FeatureName::parse(bad).is_err(), "{bad:?}");
        }
        for good in ["_", "a:b-c_9", "Z", &"a".repeat(128)] {
            assert_eq!(FeatureName::parse(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn a_name_in_an_error_is_cut_where_it_is_longer_than_any_may_be() {
        assert_eq!(quoted("mean \"radius"), r#""mean \"radius""#);
        assert_eq!(quoted(&"a".repeat(136)).len(), 138);
        assert_eq!(quoted(&format!("a{}", "é".repeat(90))), format!("\"a{}\"...", "é".repeat(67)));
        assert_eq!(quoted(&"\u{1f}".repeat(136)).len(), 34 * 6 + 5);
        assert!(FeatureName::parse(&"$".repeat(1 << 20)).unwrap_err().to_string().len() < 400);
    }

    #[test]
    fn revisions_grow_even_when_the_clock_goes_back() {
        let first = Revision::NONE.next(Millis(1_000));
        assert_eq!(first, Revision(1_000_000));
        assert_eq!(first.next(Millis(1)), Revision(1_000_001));
    }
}
