//! Which L1 this is: a random id in the data of every master, `{}fs:id` (in a cluster
//! `{}fs:id#<number>` in a slot of its own), and the replication history of each master.
//!
//! The id is made if there is none, and is not replaced while it is in use. If it is gone and the
//! servers are still in the run in which this process found it (FLUSHALL, an eviction), it is
//! written again: to lose entries is always safe. Servers of another run without an id are another
//! L1. A replica has its master's id, and a history of its own when it is promoted.
//!
//! In a cluster all masters have one id, and a new master gets that of the others. If they differ
//! (two processes found a new cluster at the same time), the most frequent id counts, and of
//! equally frequent ones the smallest.

use std::collections::BTreeMap;

use super::{
    CacheError, L1Name, Lane, Layout, MARKER_TTL, Pipeline, RedisCache, Seen, TRIES, UNKNOWN,
    look::{self, Met},
    refusal,
};

const NAME: &str = include_str!("../../scripts/name.lua");

impl RedisCache {
    /// Finds the id or makes one. Every new connection must find it too.
    pub(super) async fn identify(
        &self,
        layout: &Layout,
        met: &mut [Option<Met>],
        seen: &mut Seen,
    ) -> Result<L1Name, CacheError> {
        let mut id = None;
        for _ in 0..TRIES {
            let agreed = most_frequent(with_places(met).map(|met| met.id.as_str()));
            let wanted = agreed.or_else(|| self.remembered(layout, met, seen)).unwrap_or_else(L1Name::random_id);
            if with_places(met).all(|met| met.id == wanted) {
                id = Some(wanted);
                break;
            }
            for met in met.iter_mut().flatten().filter(|met| met.id != wanted) {
                met.id = give(met, &wanted).await?;
            }
        }
        let id = id.ok_or_else(|| CacheError::Unavailable("other servers are changing the id of L1".into()))?;
        for met in with_places(met).filter(|met| met.is_new) {
            let Some(place) = &met.place else { continue };
            if !met.shared.all_find(&place.id, &id).await? {
                return Err(CacheError::Unavailable("another server answers at the same address".into()));
            }
        }
        let mut histories: Vec<String> = with_places(met).map(|met| met.present.identity.history.clone()).collect();
        histories.sort_unstable();
        let runs = layout
            .masters
            .iter()
            .zip(&*met)
            .filter_map(|(master, met)| Some((self.name(master), met.as_ref()?.present.identity.run.clone())));
        (seen.runs, seen.id) = (runs.collect(), Some(id.clone()));
        let address = self.info.address.as_str().into();
        Ok(L1Name { id: id.into(), histories: histories.into(), shared: true, address })
    }

    /// The id that these servers had at the last probe. None: they are other servers.
    fn remembered(&self, layout: &Layout, met: &[Option<Met>], seen: &Seen) -> Option<String> {
        let is_same = |(master, met): (_, &Option<Met>)| match met {
            Some(Met { place: Some(_), present, is_new, .. }) => {
                let run = &present.identity.run;
                // An open connection still leads to the same server.
                !is_new || (run != UNKNOWN && seen.runs.get(&self.name(master)) == Some(run))
            }
            _ => true,
        };
        seen.id.clone().filter(|_| layout.masters.iter().map(|master| &**master).zip(met).all(is_same))
    }
}

/// The masters that can hold entries.
fn with_places(met: &[Option<Met>]) -> impl Iterator<Item = &Met> {
    met.iter().flatten().filter(|met| met.place.is_some())
}

/// Replaces the id that was found on a master, and returns the one that it then has.
async fn give(met: &Met, id: &str) -> Result<String, CacheError> {
    let Some(place) = &met.place else { return Ok(String::new()) };
    let mut pipeline = Pipeline::new();
    pipeline.cmd("EVAL").arg(NAME).arg(1).arg(&place.id).arg(&met.id).arg(id).arg(MARKER_TTL);
    match look::text_of(look::ask(&met.shared, pipeline, Lane::Swift).await?.swap_remove(0)) {
        Err(CacheError::Refused(why)) if refusal::is_full_or_not_now(&why) => Err(refusal::not_now(&why)),
        given => given,
    }
}

fn most_frequent<'a>(ids: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut counts = BTreeMap::<&str, usize>::new();
    for id in ids.filter(|id| !id.is_empty()) {
        *counts.entry(id).or_default() += 1;
    }
    // In reverse order the last of equally frequent ids is the smallest.
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map(|(id, _)| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masters_that_differ_agree_on_the_most_frequent_id_and_then_on_the_smallest() {
        let agreed = |ids: &[&str]| most_frequent(ids.iter().copied());
        assert_eq!(agreed(&["", ""]), None);
        assert_eq!(agreed(&["b", "", "b", "a"]).as_deref(), Some("b"));
        for ids in [["b", "a"], ["a", "b"]] {
            assert_eq!(agreed(&ids).as_deref(), Some("a"));
        }
    }
}
