//! The recent size of records, by which the size of a batch is chosen.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The average size of a record over a batch, in bytes. It grows at once and shrinks slowly, so
/// that the batch after a few small ones is not too large.
#[derive(Debug)]
pub struct TypicalSize(AtomicUsize);

impl TypicalSize {
    /// `bytes` is assumed until records were seen. 0: nothing is known.
    pub const fn new(bytes: usize) -> Self {
        Self(AtomicUsize::new(bytes))
    }

    /// Bytes for each record.
    pub fn get(&self) -> usize {
        self.0.load(Relaxed)
    }

    /// Notes that a batch had so many records and bytes.
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

    /// How many records have this many bytes together; at least 1.
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
