//! What the service stores: feature views, entity ids, records and their revisions.
//!
//! Constructors check, and the types keep what was checked ("parse, don't validate"), so code
//! behind the API never sees a bad name. Not here: how a record is stored (`encoding`), where
//! (`cache`, `store`), and what a request may contain (`api`).

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

/// The most bytes of a feature name.
pub const MAX_FEATURE_NAME_BYTES: usize = 128;
/// The most bytes of the name of a feature view.
pub const MAX_FEATURE_VIEW_BYTES: usize = 63;
/// The most bytes of a model version. Records from before this limit may have longer ones.
pub const MAX_MODEL_VERSION_BYTES: usize = 128;

/// Why a name was rejected. The text says what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidName(String);

/// The feature view of requests that name none.
pub const DEFAULT_VIEW: &str = "default";

/// A name in quotes for error texts. It is cut if it is longer than a feature name may be, or if
/// too much of it had to be escaped, so that errors do not repeat megabytes of a request.
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

/// The name of a feature view: `[a-z][a-z0-9_]{0,62}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FeatureView(Arc<str>);

impl FeatureView {
    /// Checks a name. An empty one is the view "default".
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

/// The key of a record. Cloning is cheap.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordKey {
    /// The feature view.
    pub view: FeatureView,
    /// The entity within it.
    pub entity_id: EntityId,
}

impl RecordKey {
    /// A copy in its own buffer, for keys that are kept: the ids of a batch share one buffer, and
    /// each keeps all of it alive.
    pub fn detached(&self) -> Self {
        Self { view: self.view.clone(), entity_id: self.entity_id.detached() }
    }
}

/// The name of a feature: 1 to 128 bytes of `[A-Za-z_][A-Za-z0-9_:-]*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FeatureName(Box<str>);

impl FeatureName {
    /// Checks a name, without changing it.
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

/// Features by name. Every value has a kind. The order is that of the stored bytes.
pub type Features = BTreeMap<FeatureName, Value>;

/// The revision of a record: `max(previous + 1, time of L2 in ms * 1000)`. It grows with every
/// change, also with a delete. It stays below 2^53, because Lua in Redis computes with doubles. 0
/// means "never seen".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision(pub i64);

impl Revision {
    /// There is no record, and no tombstone of one.
    pub const NONE: Self = Self(0);

    /// The revision of a change at `now` to a record at the revision `self`.
    pub fn next(self, now: Millis) -> Self {
        Self((self.0 + 1).max(now.0.saturating_mul(1000)))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A point in time: milliseconds since the Unix epoch, as in BSON. Smaller parts are cut off on
/// entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Millis(pub i64);

impl Millis {
    /// This much later, but never beyond the last time that can be represented.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }
}

/// The wall clock. It is passed in, so that tests can set it.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Millis + Send + Sync>);

impl Clock {
    /// The clock of the machine.
    pub fn system() -> Self {
        Self::new(|| {
            let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            Millis::default().after(since_epoch)
        })
    }

    /// A clock that returns `now()`.
    pub fn new(now: impl Fn() -> Millis + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The present time.
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
    /// For this long.
    Ttl(Duration),
    /// Until it is deleted.
    Forever,
}

/// What happens to the stored features that a write does not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// They are removed.
    Replace,
    /// They stay, and so do the model version and the expire time if the write has none.
    Merge,
}

/// What a write contains: a checked `FeatureRecord`.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// What happens to the stored features.
    pub mode: WriteMode,
    /// The features that are set.
    pub features: encoding::EncodedFeatures,
    /// Empty: none given. The records of a bulk message share that of the message.
    pub model_version: Arc<str>,
    /// None: the later of L2's clock and the stored event time.
    pub event_time: Option<Millis>,
    /// None: the default, or with MERGE that of the stored record.
    pub lifetime: Option<Lifetime>,
}

/// A decoded record. L2 keeps it; `encoding::StoredRecord` is the same as bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// All features.
    pub features: Features,
    /// Empty: none.
    pub model_version: String,
    /// The revision of this state.
    pub revision: Revision,
    /// When the features were true.
    pub event_time: Millis,
    /// When this state was written.
    pub write_time: Millis,
    /// None: it never expires.
    pub expire_at: Option<Millis>,
}

/// What a tier knows of a key. Readers decide about expiry: an expired record is still a record
/// here.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// There never was a record, or its tombstone has been removed.
    Absent,
    /// The record was deleted, and its tombstone is still kept.
    Tombstone(Revision),
    /// The record is stored.
    Record(encoding::StoredRecord),
}

impl State {
    /// The revision; 0 if there never was a record.
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
