//! Which L1 a cache is. The epoch in L2 names one L1, so that one L2 never has two.

use std::{fmt, sync::Arc};

/// The identity of an L1: a random id that is kept in it, and the replication histories of its
/// masters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L1Name {
    /// Random, made once for each L1. A copy of its data carries it along.
    pub id: Arc<str>,
    /// The replication history of each master (Redis: `master_replid`), in ascending order. It
    /// tells a copy from the original. Empty: a cache in one process, which is never copied.
    pub histories: Arc<[String]>,
    /// Whether other processes may use it too.
    pub shared: bool,
    /// The address without credentials, for logs. It is not part of the identity.
    pub address: Arc<str>,
}

impl L1Name {
    /// A new id.
    pub fn random_id() -> String {
        format!("{:032x}", rand::random::<u128>())
    }

    /// Whether both name the same L1. A cluster that grows or shrinks stays the same L1: each
    /// master that both name has held its data all the time. A replaced master has another history.
    pub fn is(&self, other: &Self) -> bool {
        let is_within = |one: &Self, all: &Self| one.histories.iter().all(|history| all.histories.contains(history));
        let is_alike = self.histories.is_empty() == other.histories.is_empty();
        self.id == other.id && is_alike && (is_within(self, other) || is_within(other, self))
    }

    /// Whether it is `other` with at least one master more.
    pub fn has_grown_from(&self, other: &Self) -> bool {
        self.is(other) && self.histories.len() > other.histories.len()
    }
}

impl fmt::Display for L1Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.id, self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(id: &str, histories: &[&str]) -> L1Name {
        let histories = histories.iter().map(|history| (*history).to_owned()).collect();
        L1Name { id: id.into(), histories, shared: true, address: "somewhere".into() }
    }

    #[test]
    fn an_l1_is_the_same_while_its_id_and_the_histories_of_its_masters_are() {
        assert!(name("x", &["a"]).is(&L1Name { address: "elsewhere".into(), ..name("x", &["a"]) }));
        assert!(!name("x", &["a"]).is(&name("y", &["a"])));
        assert!(!name("x", &["a"]).is(&name("x", &["b"])), "a copy, or a replica that was promoted");
        assert!(name("x", &[]).is(&name("x", &[])), "in one process");
        assert!(!name("x", &[]).is(&name("x", &["a"])));
    }

    #[test]
    fn a_cluster_that_grows_or_shrinks_stays_the_same_and_one_that_lost_a_master_does_not() {
        let (two, three) = (name("x", &["a", "b"]), name("x", &["a", "b", "c"]));
        assert!(three.is(&two) && two.is(&three));
        assert!(three.has_grown_from(&two) && !two.has_grown_from(&three) && !two.has_grown_from(&two));
        assert!(!name("x", &["a", "c"]).is(&two));
    }
}
