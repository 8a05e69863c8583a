//! Keys that a batch repeats: the tiers are asked for each of them once.

use std::borrow::Cow;

use crate::record::RecordKey;

/// Each key once, and the place of each key of the request among them (None: the keys are
/// distinct).
pub(super) fn distinct(keys: &[RecordKey]) -> (Cow<'_, [RecordKey]>, Option<Vec<usize>>) {
    if keys.len() < 2 {
        return (Cow::Borrowed(keys), None);
    }
    let mut firsts = Firsts::of(keys);
    let Some(repeated) = (0..keys.len()).find(|i| firsts.place(*i) != *i) else { return (Cow::Borrowed(keys), None) };
    let mut distinct = keys[..repeated].to_vec();
    let mut places: Vec<usize> = (0..repeated).collect();
    // `repeated` is found to be a repetition again, so looking it up twice does no harm.
    for (i, key) in keys.iter().enumerate().skip(repeated) {
        let first = firsts.place(i);
        if first == i {
            places.push(distinct.len());
            distinct.push(key.clone());
        } else {
            places.push(places[first]);
        }
    }
    (Cow::Owned(distinct), Some(places))
}

/// The first place of each key of a batch: an open hash table, at most half full. It is made for
/// each batch, and a map of the keys costs twice as much.
struct Firsts<'a> {
    keys: &'a [RecordKey],
    hasher: ahash::RandomState,
    /// Half of the hash of a key, and its place plus one; 0: empty.
    table: Vec<(u32, u32)>,
}

impl<'a> Firsts<'a> {
    fn of(keys: &'a [RecordKey]) -> Self {
        let table = vec![(0, 0); (2 * keys.len()).next_power_of_two()];
        Self { keys, hasher: ahash::RandomState::new(), table }
    }

    /// The first place of the key at `i`. The keys before it must have been looked up.
    fn place(&mut self, i: usize) -> usize {
        let key = &self.keys[i];
        // The hash of the id alone, as a batch is of one feature view.
        let hash = self.hasher.hash_one(key.entity_id.as_bytes());
        let (mut slot, check) = (hash as usize, (hash >> 32) as u32);
        loop {
            slot &= self.table.len() - 1;
            let (of, next) = self.table[slot];
            if next == 0 {
                self.table[slot] = (check, i as u32 + 1);
                return i;
            }
            let first = next as usize - 1;
            if of == check && self.keys[first] == *key {
                return first;
            }
            slot += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{EntityId, FeatureView};

    #[test]
    fn each_key_is_asked_for_once() {
        let key = |view: &str, id: &str| RecordKey {
            view: FeatureView::parse(view).unwrap(),
            entity_id: EntityId::parse(id).unwrap(),
        };
        let keys = |ids: &[&str]| ids.iter().map(|id| key("", id)).collect::<Vec<_>>();
        for ids in [&[][..], &["a"], &["a", "b", "c"]] {
            let keys = keys(ids);
            assert_eq!(distinct(&keys), (Cow::Borrowed(&keys[..]), None));
        }
        let repeated = keys(&["a", "b", "a", "c", "b", "b", "d"]);
        let (found, places) = distinct(&repeated);
        assert_eq!((&found[..], places), (&keys(&["a", "b", "c", "d"])[..], Some(vec![0, 1, 0, 2, 1, 1, 3])));
        let two_views = [key("v", "a"), key("w", "a"), key("v", "a")];
        assert_eq!(distinct(&two_views), (Cow::Borrowed(&two_views[..2]), Some(vec![0, 1, 0])));
        let many: Vec<_> = (0..500).map(|i| key("", &(i % 250).to_string())).collect();
        assert_eq!(distinct(&many), (Cow::Borrowed(&many[..250]), Some((0..250).chain(0..250).collect())));
    }
}
