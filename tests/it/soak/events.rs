//! What happens in the night, one thing after the other, each with the window in which the judge looks at failures.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::block_in_place;

use super::{load::Load, memory::Memory, world::World};
use crate::{
    harness::server::eventually,
    history::{event::Class, world::tail},
};

pub const CERTIFICATES: &str = "certificates rotated";
pub const REDIS: &str = "Redis killed, empty afterwards";
pub const STEP_DOWN: &str = "MongoDB's primary steps down";
pub const KILL: &str = "MongoDB's primary killed";
pub const ROLL: &str = "both servers restarted, one after the other";

/// When, in hundredths of the length; the second half only in a long soak.
const FIRST: [(u32, &str); 4] = [(6, CERTIFICATES), (12, REDIS), (18, STEP_DOWN), (25, ROLL)];
const SECOND: [(u32, &str); 4] = [(55, REDIS), (61, KILL), (67, CERTIFICATES), (73, ROLL)];

pub struct Happened {
    pub what: &'static str,
    /// Since the load was put on.
    pub at: Duration,
    /// Until both servers confirmed writes and answered from L1 again.
    pub recovered: Duration,
    pub note: String,
}

pub struct Conductor {
    load: Arc<Load>,
    memory: Arc<Memory>,
    pub happened: Vec<Happened>,
    /// How many spans came.
    pub spans: usize,
}

impl Conductor {
    pub fn new(load: Arc<Load>, memory: Arc<Memory>) -> Self {
        Self { load, memory, happened: Vec::new(), spans: 0 }
    }

    pub async fn conduct(&mut self, world: &mut World, length: Duration, twice: bool) {
        let start = Instant::now();
        for (server, binary) in world.servers.iter().enumerate() {
            self.memory.began(server, binary.pid());
        }
        let second = if twice { &SECOND[..] } else { &[] };
        for (hundredths, what) in FIRST.iter().chain(second) {
            self.wait(world, start, length * *hundredths / 100).await;
            let (at, begun) = (start.elapsed(), Instant::now());
            let class = if matches!(*what, STEP_DOWN | KILL) { Class::Election } else { Class::Linearizable };
            self.load.window_opens(what, class);
            let note = self.happen(what, world).await;
            world.until_all_normal().await;
            self.load.window_closes();
            let happened = Happened { what, at, recovered: begun.elapsed(), note };
            println!("{what} at {at:.0?}, normal after {:.1?}; {}", happened.recovered, happened.note);
            self.happened.push(happened);
        }
        self.wait(world, start, length).await;
    }

    async fn wait(&mut self, world: &World, start: Instant, until: Duration) {
        while start.elapsed() < until {
            let left = until - start.elapsed();
            tokio::time::sleep(left.min(Duration::from_secs(1))).await;
            self.spans += world.collector.take();
        }
    }

    async fn happen(&self, what: &str, world: &mut World) -> String {
        let begun = Instant::now();
        match what {
            CERTIFICATES => {
                let signed = world.authority.sign();
                world.secret.swap(&[("tls.crt", &signed.cert), ("tls.key", &signed.key)]);
                for server in &world.servers {
                    let is_new = async || world.authority.shown(server.port).await == signed.der();
                    eventually("the new certificate to be shown", is_new).await;
                }
                format!("both showed the new one after {:.1?}", begun.elapsed())
            }
            REDIS => {
                block_in_place(|| world.redis.kill());
                tokio::time::sleep(Duration::from_secs(3)).await;
                block_in_place(|| world.redis.start_again());
                format!("away for {:.1?}", begun.elapsed())
            }
            STEP_DOWN => {
                let before = block_in_place(|| world.set.wait_for_primary());
                block_in_place(|| world.set.step_down());
                let primary = block_in_place(|| world.set.wait_for_another_primary(before));
                format!("node {primary} instead of {before} after {:.1?}", begun.elapsed())
            }
            KILL => {
                let killed = block_in_place(|| world.set.kill_primary());
                let primary = block_in_place(|| world.set.wait_for_another_primary(killed));
                let elected = begun.elapsed();
                block_in_place(|| world.set.node(killed).start_again());
                format!("node {primary} instead of {killed} after {elected:.1?}")
            }
            ROLL => {
                let mut drained = Vec::new();
                for server in 0..world.servers.len() {
                    let begun = Instant::now();
                    world.servers[server].signal("TERM");
                    let code = block_in_place(|| world.servers[server].exit_code(Duration::from_secs(60)));
                    assert_eq!(code, 0, "{}", tail(&world.servers[server].log()));
                    drained.push(format!("{:.1?}", begun.elapsed()));
                    block_in_place(|| world.servers[server].start_again());
                    self.memory.began(server, world.servers[server].pid());
                    world.until_normal(server).await;
                }
                format!("exit code 0 after {}", drained.join(" and "))
            }
            other => unreachable!("{other}"),
        }
    }
}
