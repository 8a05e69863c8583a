//! The database after it was first reached: how its collections are read and written.

use bson::RawDocumentBuf;
use mongodb::{
    Collection, Database,
    options::{Acknowledgment, CollectionOptions, ReadConcern, ReadPreference, SelectionCriteria, WriteConcern},
};

/// A database that was reached and checked.
#[derive(Clone)]
pub(super) struct Prepared {
    pub(super) database: Database,
    /// Not a replica set: there is no majority to ask, and `local` reads are the latest.
    pub(super) standalone: bool,
}

impl Prepared {
    /// A collection. Reads go to the primary and see what a majority has.
    pub(super) fn majority(&self, name: &str) -> Collection<RawDocumentBuf> {
        self.collection(name, ReadConcern::majority())
    }

    /// A collection. Reads see the latest acknowledged state, even against a deposed primary.
    pub(super) fn linearizable(&self, name: &str) -> Collection<RawDocumentBuf> {
        self.collection(name, ReadConcern::linearizable())
    }

    fn collection(&self, name: &str, concern: ReadConcern) -> Collection<RawDocumentBuf> {
        let concern = if self.standalone { ReadConcern::local() } else { concern };
        let options = CollectionOptions::builder()
            .read_concern(concern)
            .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
            .write_concern(durable())
            .build();
        self.database.collection_with_options(name, options)
    }
}

/// Every write is in the journals of a majority before it is answered.
fn durable() -> WriteConcern {
    WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build()
}
