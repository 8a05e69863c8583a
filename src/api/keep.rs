//! What a read keeps of each record if all records together are more than is held at once: only
//! what the answer needs.

use std::sync::Arc;

use super::{
    convert::{Read, Shape},
    rows::Judge,
};
use crate::{
    in_flight::{ConnectionBytes, Holding},
    proto::RowStatus,
    record::{
        Millis,
        encoding::{Cell, Corrupt, Places, Scratch, StoredRecord},
    },
    tiered::{Keep, Tiered},
};

pub(super) struct Needed<'a> {
    read: &'a Read,
    tiered: &'a Tiered,
    most: usize,
    connection: Option<Arc<ConnectionBytes>>,
    /// None until a record is kept.
    work: Option<Box<Work>>,
}

/// What the records of a read share while they are kept.
struct Work {
    /// The latest time at which a record was judged. The answer is judged at this time or later, so
    /// a record that was too old stays too old.
    now: Millis,
    scratch: Scratch,
    places: Places,
    row: Vec<Cell>,
}

impl<'a> Needed<'a> {
    /// `most` is the most bytes that the answer may have.
    pub(super) fn of(
        read: &'a Read,
        tiered: &'a Tiered,
        most: usize,
        connection: Option<Arc<ConnectionBytes>>,
    ) -> Self {
        Self { read, tiered, most, connection, work: None }
    }

    /// The latest time at which a record was judged; the answer must not be judged at an earlier
    /// one.
    pub(super) fn judged_at(&self) -> Option<Millis> {
        self.work.as_ref().map(|work| work.now)
    }
}

impl Work {
    fn of(shape: &Shape, now: Millis) -> Self {
        let columns = match shape {
            Shape::Rows(_) => 0,
            Shape::Matrix { columns, .. } => columns.count(),
        };
        let (scratch, places) = Default::default();
        Self { now, scratch, places, row: vec![Cell::Missing; columns] }
    }
}

impl Keep for Needed<'_> {
    fn keep(&mut self, record: &StoredRecord) -> Result<StoredRecord, Corrupt> {
        let shape = &self.read.shape;
        let work = self.work.get_or_insert_with(|| Work::of(shape, self.tiered.now()).into());
        work.now = work.now.max(self.tiered.now());
        if Judge::of(self.read, work.now).status(record)? != RowStatus::Found {
            return Ok(record.without_features());
        }
        match shape {
            Shape::Rows(None) => Ok(record.detached()),
            Shape::Rows(Some(projection)) => projection.keep(record, &mut work.scratch),
            Shape::Matrix { columns, .. } => columns.keep(record, &mut work.places, &mut work.row),
        }
    }

    fn most(&self) -> usize {
        match self.read.shape {
            Shape::Rows(_) => self.most,
            // The size of a matrix was checked before.
            Shape::Matrix { .. } => usize::MAX,
        }
    }

    fn holding(&self) -> Holding {
        self.connection.clone().map_or_else(Holding::default, Holding::of)
    }
}
