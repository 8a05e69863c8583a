//! Durations: fine buckets for quantiles, which are exported as coarse ones that double from 50 us
//! on.

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::shard::{self, Apart, SHARDS};

/// The first exported edge; each further one is twice the one before.
const FIRST: Duration = Duration::from_micros(50);
/// The number of edges, up to 13.1 s; longer durations are beyond the last.
const EDGES: u32 = 19;
/// The smallest unit is the first edge halved this often: 0.78 us.
const HALVINGS: u32 = 6;
/// Four buckets for each doubling of the unit. The last one has no upper edge.
const BUCKETS: usize = 4 * (HALVINGS + EDGES) as usize;

/// Counts durations. One costs two atomic additions on cache lines that other threads rarely touch.
#[derive(Debug)]
pub struct Histogram(Box<[Apart<Shard>]>);

#[derive(Debug)]
struct Shard {
    counts: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        let shard = || Shard { counts: array::from_fn(|_| AtomicU64::new(0)), nanos: AtomicU64::new(0) };
        Self((0..SHARDS).map(|_| Apart(shard())).collect())
    }
}

impl Histogram {
    /// Counts a duration.
    pub fn note(&self, duration: Duration) {
        let Apart(shard) = &self.0[shard::mine()];
        shard.counts[bucket(duration)].fetch_add(1, Relaxed);
        shard.nanos.fetch_add(nanos(duration), Relaxed);
    }

    /// The distribution at this moment.
    pub fn distribution(&self) -> Distribution {
        let mut all = Distribution::default();
        for Apart(shard) in &self.0 {
            all.counts.iter_mut().zip(&shard.counts).for_each(|(sum, count)| *sum += count.load(Relaxed));
            all.sum += Duration::from_nanos(shard.nanos.load(Relaxed));
        }
        all
    }
}

/// The state of a histogram at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Distribution {
    counts: [u64; BUCKETS],
    sum: Duration,
}

impl Default for Distribution {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], sum: Duration::ZERO }
    }
}

impl Distribution {
    /// Each edge with the number of durations up to it. None: no edge, and all of them.
    pub fn cumulative(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        let below = |edge: u32| self.counts[..4 * (HALVINGS + edge) as usize].iter().sum();
        let edges = (0..EDGES).map(move |edge| (Some(FIRST * (1 << edge)), below(edge)));
        edges.chain([(None, self.count())])
    }

    /// The number of durations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The sum of all durations.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// A duration that this share of all (0.99: 99 %) does not exceed; it is at most a quarter too
    /// high. Zero if there are none.
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = (self.count() as f64 * share).ceil() as u64;
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            *count > 0 && seen >= rank
        });
        found.map_or(Duration::ZERO, |bucket| {
            let (doubling, quarter) = (bucket as u32 / 4, bucket as u32 % 4);
            // The first two doublings are not divided.
            let quarters = if doubling < 2 { 8 } else { 5 + quarter };
            FIRST * quarters * (1 << doubling) / (4 << HALVINGS)
        })
    }

    /// The sum of both.
    pub fn and(mut self, other: &Self) -> Self {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count += more);
        self.sum += other.sum;
        self
    }
}

fn bucket(duration: Duration) -> usize {
    // An edge belongs to the bucket that it ends.
    let before = nanos(duration).saturating_sub(1).min(u64::MAX >> HALVINGS);
    let grains = ((before << HALVINGS) / FIRST.as_nanos() as u64).max(1);
    let doubling = grains.ilog2();
    let quarter = if doubling >= 2 { (grains >> (doubling - 2)) & 3 } else { 0 };
    (4 * doubling as usize + quarter as usize).min(BUCKETS - 1)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(micros: impl IntoIterator<Item = u64>) -> Distribution {
        let histogram = Histogram::default();
        micros.into_iter().for_each(|micros| histogram.note(Duration::from_micros(micros)));
        histogram.distribution()
    }

    #[test]
    fn an_edge_belongs_to_the_bucket_that_it_ends() {
        for (micros, edges_above) in [(0, 19), (50, 19), (51, 18), (100, 18), (101, 17), (200, 17), (50 << 18, 1)] {
            let above = of([micros]).cumulative().filter(|(edge, count)| edge.is_some() && *count == 1).count();
            assert_eq!(above, edges_above, "{micros} us");
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn counts_are_cumulative_and_the_last_is_all() {
        let distribution = of([10, 60, 60, 90_000_000]);
        let cumulative: Vec<_> = distribution.cumulative().collect();
        assert_eq!(cumulative[0], (Some(Duration::from_micros(50)), 1));
        assert_eq!(cumulative[1], (Some(Duration::from_micros(100)), 3));
        assert_eq!(cumulative[18], (Some(Duration::from_micros(50 << 18)), 3));
        assert_eq!(cumulative[19..], [(None, 4)]);
        assert_eq!(distribution.count(), 4);
        assert_eq!(distribution.sum(), Duration::from_micros(90_000_130));
        let twice = distribution.and(&distribution);
        assert_eq!((twice.count(), twice.sum()), (8, distribution.sum() * 2));
    }

    #[test]
    fn quantiles_are_at_most_a_quarter_too_high() {
        let distribution = of(1..=1000);
        let (p50, p99) = (distribution.quantile(0.5).as_micros(), distribution.quantile(0.99).as_micros());
        assert!((500..=625).contains(&p50) && (990..=1250).contains(&p99), "{p50} {p99}");
        assert_eq!(of([]).quantile(0.99), Duration::ZERO);
        assert!(of([0]).quantile(0.5) > Duration::ZERO);
    }
}
