//! How large the records of each feature view were lately, as far as reads brought them into this process.

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

use crate::record::{FeatureView, TypicalSize};

/// Views that fall into one place share it, which makes reads of the one with the smaller records a little slower.
const PLACES: usize = 256;

/// Reads at once of views of which nothing is known: one reply of L2 may be large.
const FIRST_LOOKS: usize = 2;

/// By feature view.
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
    /// Waits for a turn to read records of which nothing is known, until the deadline at most. The first ones that are read make
    /// it needless for the others.
    pub(super) async fn first_look(&self, deadline: Instant) -> Option<SemaphorePermit<'_>> {
        timeout_at(deadline, self.first_looks.acquire()).await.ok().and_then(Result::ok)
    }

    /// Of a view's records; 0 where none were brought yet.
    pub(super) fn of(&self, view: &FeatureView) -> &TypicalSize {
        &self.places[self.hasher.hash_one(view.as_str()) as usize % PLACES]
    }
}
