//! After a short loss of Redis under many writes the servers come to rest in one epoch.

use std::time::{Duration, Instant};

use crate::{
    harness::proxy::Line,
    history::{
        client::Habits,
        storm::{Crowd, seed},
        world::{Tiers, World},
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn epochs_come_to_rest_while_many_write() {
    let seed = seed(9);
    let world = World::start(Tiers::OneNode).await;
    let crowd = Crowd::start(&world, &Habits { clients: 40, pause: 0..2, cancels: 0, ..Habits::default() }, seed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.redis_lines[0].set(Line::Cut);
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.redis_lines[0].set(Line::Pass);
    let mended = Instant::now();
    world.until_all_normal().await;
    println!("at rest after {:.1?}", mended.elapsed());
    crowd.stop().await;
    for server in &world.servers {
        let log = server.log();
        let epochs = log.matches("new epoch, L1 starts cold").count();
        println!("{epochs} epochs, trusted {} times", log.matches("L1 is trusted").count());
        assert!(epochs <= 2, "a loss of 300 ms cost {epochs} new epochs");
    }
}
