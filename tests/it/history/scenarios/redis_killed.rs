//! Redis is killed under load and comes back empty: nobody but the clocks notices.

use std::time::Duration;

use tokio::task::block_in_place;

use super::{failures, p99, rate};
use crate::history::{
    check::check,
    client::Habits,
    event::{Bounds, Class, Nanos, Window},
    report::explain,
    storm::{Crowd, seed},
    world::{Tiers, World},
};

const SECOND: Nanos = 1_000_000_000;
/// p99 is looked at in steps of this.
const STEP: Nanos = SECOND / 4;
/// What is too small to be told from the machine's moods.
const NOISE: Duration = Duration::from_millis(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redis_killed_under_load_fails_no_call() {
    let seed = seed(4);
    let mut world = World::start(Tiers::OneNode).await;
    let habits = Habits { plain: true, clients: 24, pause: 5..25, ..Habits::default() };
    let crowd = Crowd::start(&world, &habits, seed);
    let shared = crowd.shared.clone();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let calm = shared.now();
    tokio::time::sleep(Duration::from_secs(3)).await;

    let killed = shared.now();
    block_in_place(|| world.redis().kill());
    tokio::time::sleep(Duration::from_secs(2)).await;
    block_in_place(|| world.redis().start_again());
    let back = shared.now();
    world.until_all_normal().await;
    let normal = shared.now();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let end = shared.now();
    let log = crowd.stop().await;

    let before = p99(&log.calls, calm, killed);
    // From when on every step is as before.
    let steps = (back..end - STEP).step_by(STEP as usize);
    let slow = steps.filter(|from| p99(&log.calls, *from, from + STEP) > 2 * before + NOISE).max();
    let recovered = Duration::from_nanos(slow.map_or(0, |slow| slow + STEP - back));
    let window = Window { fault: "Redis killed", class: Class::Linearizable, from: killed, until: normal };
    let verdict = check(&log.events, &[window], Bounds::default());
    println!(
        "{:.0} calls/s before, {:.0} without Redis, {:.0} after; p99 {before:.1?} before, {:.1?} without Redis, {:.1?} in \
         the first second after, {:.1?} in the last; normal {recovered:.1?} after its return, L1 used again after {:.1?}; \
         stale: {:?}",
        rate(&log.calls, calm, killed),
        rate(&log.calls, killed, back),
        rate(&log.calls, back, end),
        p99(&log.calls, killed, back),
        p99(&log.calls, back, back + SECOND),
        p99(&log.calls, end - SECOND, end),
        Duration::from_nanos(normal - back),
        verdict.stale,
    );
    assert!(failures(&log.calls).is_empty(), "{:?}", failures(&log.calls));
    assert!(verdict.violations.is_empty(), "seed {seed}\n{}", explain(&verdict, &log.events));
    let last = p99(&log.calls, end - SECOND, end);
    assert!(last < 10 * before + 10 * NOISE, "p99 was {before:?} before, and is {last:?}");
    // Several hundred on a machine that has nothing else to do.
    assert!(rate(&log.calls, calm, end) >= 10.0, "this is no load");
}
