//! After a short loss of Redis under many writes the servers come to rest in one epoch.

use std::time::{Duration, Instant};

use crate::{
    harness::{binary::Binary, proxy::Line},
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
    let epochs = |server: &Binary| server.log().matches("new epoch, L1 starts cold").count();
    // The first one is that in which this Redis is used for the first time.
    let before: Vec<usize> = world.servers.iter().map(epochs).collect();
    world.redis_lines[0].set(Line::Cut);
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.redis_lines[0].set(Line::Pass);
    let mended = Instant::now();
    world.until_all_normal().await;
    println!("at rest after {:.1?}", mended.elapsed());
    crowd.stop().await;
    for (server, before) in world.servers.iter().zip(before) {
        let epochs = epochs(server) - before;
        println!("{epochs} epochs, trusted {} times", server.log().matches("L1 is trusted").count());
        assert!(epochs <= 2, "a loss of 300 ms cost {epochs} new epochs");
    }
}
