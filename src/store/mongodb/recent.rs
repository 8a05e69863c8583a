//! Whether a replaced document is the write of a server; MongoDB reports some of those as a
//! replacement. A document that was restored by hand may have the revision of an earlier one, and
//! that revision is seen twice.

use std::collections::HashMap;

use crate::record::{Millis, RecordKey, Revision};

/// A revision is a time. It belongs to an event if it is this close.
const CLOSE_MS: i64 = 5_000;
/// The most records in each of two generations. Beyond that no write is attributed to a server.
const MAX: usize = 20_000;

/// The revisions that one stream has seen lately.
#[derive(Default)]
pub(super) struct Recent {
    /// The time of the first event of this stream.
    since: Option<Millis>,
    /// When the present generation began; and the previous one.
    begun: Millis,
    young: HashMap<RecordKey, Revision>,
    old: HashMap<RecordKey, Revision>,
}

impl Recent {
    /// Notes a revision. True: a server certainly wrote it, because it is of now and was not seen
    /// before.
    pub(super) fn is_new(&mut self, key: &RecordKey, revision: Revision, at: Millis) -> bool {
        let since = *self.since.get_or_insert(at);
        if at.0 - self.begun.0 > 2 * CLOSE_MS {
            (self.old, self.begun) = (std::mem::take(&mut self.young), at);
        }
        let known = [&self.young, &self.old].into_iter().filter_map(|map| map.get(key)).max();
        let is_new = known.is_none_or(|known| *known < revision);
        let written = revision.0 / 1000;
        let is_of_now = written > since.0 && (at.0 - written).abs() < CLOSE_MS;
        let remembered = self.young.len() < MAX;
        if remembered {
            self.young.insert(key.clone(), revision);
        } else {
            self.since = Some(at); // what is not remembered here cannot be told apart later
        }
        is_new && is_of_now && remembered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{EntityId, FeatureView};

    #[test]
    fn only_a_revision_of_now_that_was_not_told_before_is_a_servers() {
        let key =
            |id: &str| RecordKey { view: FeatureView::parse("").unwrap(), entity_id: EntityId::parse(id).unwrap() };
        let mut recent = Recent::default();
        let at = |millis: i64| Millis(1_000_000 + millis);
        let of = |millis: i64| Revision((1_000_000 + millis) * 1000);
        assert!(!recent.is_new(&key("a"), of(0), at(0)), "its write may have come before this stream");
        assert!(recent.is_new(&key("b"), of(10), at(11)));
        assert!(!recent.is_new(&key("b"), of(10), at(12)), "a copy");
        assert!(recent.is_new(&key("b"), of(13), at(14)));
        assert!(!recent.is_new(&key("b"), of(13), at(10_000)), "an old one");
        assert!(!recent.is_new(&key("c"), of(-5), at(10_000)), "from before this stream");
    }
}
