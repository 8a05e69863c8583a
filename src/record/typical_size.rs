//! How large records were lately, so that a batch can be made as large as what it brings may be.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes a record, on average over a batch. It follows at once what is larger and slowly what is smaller, so that a few small
/// batches between do not let the next large one grow.
#[derive(Debug)]
pub struct TypicalSize(AtomicUsize);

impl TypicalSize {
    /// Taken for so many bytes until records were seen; 0: nothing is known.
    pub const fn new(bytes: usize) -> Self {
        Self(AtomicUsize::new(bytes))
    }

    /// Bytes a record.
    pub fn get(&self) -> usize {
        self.0.load(Relaxed)
    }

    /// A batch had so many records of so many bytes in all.
    pub fn saw(&self, records: usize, bytes: usize) {
        let before = self.get();
        if records == 0 {
            if before == 0 {
                self.0.store(1, Relaxed);
            }
            return;
        }
        let now = (bytes / records).max(1).max(before - before.div_ceil(8));
        if now != before {
            self.0.store(now, Relaxed);
        }
    }

    /// How many records have so many bytes together; at least 1.
    pub fn records_in(&self, bytes: usize) -> usize {
        (bytes / self.get().max(1)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_at_once_and_shrinks_slowly() {
        let size = TypicalSize::new(0);
        assert_eq!((size.get(), size.records_in(1000)), (0, 1000));
        size.saw(0, 0);
        assert_eq!((size.get(), size.records_in(1000)), (1, 1000), "there is nothing to be known");
        size.saw(10, 1000);
        assert_eq!((size.get(), size.records_in(1000)), (100, 10));
        size.saw(1, 1 << 20);
        assert_eq!((size.get(), size.records_in(1000)), (1 << 20, 1));
        size.saw(100, 1000);
        assert!(size.get() > 1 << 19, "one small batch does not make it forget");
        (0..100).for_each(|_| size.saw(100, 1000));
        assert_eq!(size.get(), 10);
    }
}
