//! Whether a row is what it says: the part of the entities that L1 answered while it was measured, by the server's count.
//! L1 in Redis may be left alone while it is slow, as on a machine that is too busy.

use std::ops::RangeInclusive;

use crate::{report::Outcome, server::Server};

/// Measures, and doubts the figures if L1 answered less or more (in percent) than it should have.
pub(crate) async fn of_l1(
    server: &Server,
    should_be: RangeInclusive<f64>,
    measure: impl Future<Output = Result<Outcome, String>>,
) -> Result<Outcome, String> {
    let before = server.info().await?.l1.unwrap_or_default();
    let mut outcome = measure.await?;
    let after = server.info().await?.l1.unwrap_or_default();
    if let Outcome::Compared(compared) = &mut outcome {
        let (hits, misses) = (after.hits - before.hits, after.misses - before.misses);
        // Those that L1 was not asked for count with neither.
        let share = 100.0 * hits as f64 / (hits + misses).max(1) as f64;
        compared.doubtful = !should_be.contains(&share);
        if compared.doubtful || should_be.end() - should_be.start() > 1.0 {
            compared.note = format!("L1 answered {share:.1} % of the entities that it was asked for");
        }
    }
    Ok(outcome)
}
