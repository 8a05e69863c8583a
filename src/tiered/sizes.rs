//! How large the records of each feature view were lately, from the records that reads brought.

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

use crate::record::{FeatureView, TypicalSize};

/// Views with the same hash share a size; this makes reads of the view with the smaller records a
/// little slower.
const PLACES: usize = 256;

/// The most reads at the same time of views whose sizes are unknown, because one reply of L2 may be
/// large.
const FIRST_LOOKS: usize = 2;

/// The sizes by feature view.
#[derive(Debug)]
pub(super) struct Sizes {
    first_looks: Semaphore,
    hasher: ahash::RandomState,
    places: Box<[TypicalSize]>,
}

impl Default for Sizes {
    fn default() -> Self {
        let places = (0..PLACES).map(|_| TypicalSize::new(0)).collect();
        Self { first_looks: Semaphore::new(FIRST_LOOKS), hasher: ahash::RandomState::new(), places }
    }
}

impl Sizes {
    /// Waits for a turn to read records of unknown size, until the deadline at most. After the
    /// first such read the size is known.
    pub(super) async fn first_look(&self, deadline: Instant) -> Option<SemaphorePermit<'_>> {
        timeout_at(deadline, self.first_looks.acquire()).await.ok().and_then(Result::ok)
    }

    /// The size of a view's records; 0 if it is unknown.
    pub(super) fn of(&self, view: &FeatureView) -> &TypicalSize {
        &self.places[self.hasher.hash_one(view.as_str()) as usize % PLACES]
    }
}
