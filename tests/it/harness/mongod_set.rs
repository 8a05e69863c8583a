//! A real MongoDB replica set of three data-bearing nodes, for elections: any one may die, and the others go on.

use std::time::{Duration, Instant};

use mongodb::bson::{Document, doc};

use super::mongod::{Mongod, SET};

/// Elections take a few seconds; a busy machine needs ten times that.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct MongodSet {
    nodes: Vec<Mongod>,
}

impl MongodSet {
    /// Starts one and waits for its primary. Blocks: from within a runtime use `spawn_blocking`.
    pub fn start() -> Self {
        let nodes: Vec<Mongod> = (0..3).map(|_| Mongod::start(true)).collect();
        nodes.iter().for_each(Mongod::wait_until_listening);
        let members: Vec<Document> = (0i32..)
            .zip(&nodes)
            .map(|(id, node)| doc! { "_id": id, "host": format!("127.0.0.1:{}", node.port()) })
            .collect();
        nodes[0].block_on(|admin| async move {
            let settings = doc! { "electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500 };
            let config = doc! { "_id": SET, "members": members, "settings": settings };
            admin.run_command(doc! { "replSetInitiate": config }).await.unwrap();
        });
        let set = Self { nodes };
        set.wait_for_primary();
        set
    }

    pub fn uri(&self) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("mongodb://{}/?replicaSet={SET}", hosts.join(","))
    }

    /// Its nodes: to be killed, frozen, looked into. One that was killed is brought back by `start_again`.
    pub fn node(&mut self, i: usize) -> &mut Mongod {
        &mut self.nodes[i]
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Which node says that it is the writable primary, if any does. Of two (one that was just deposed does not know it
    /// yet), the one with the later election.
    pub fn primary(&self) -> Option<usize> {
        let hellos = self.nodes.iter().enumerate().filter_map(|(i, node)| Some((i, node.hello()?)));
        let primaries = hellos.filter(|(_, hello)| hello.get_bool("isWritablePrimary").unwrap_or(false));
        primaries.max_by_key(|(_, hello)| hello.get_object_id("electionId").ok()).map(|(i, _)| i)
    }

    /// Waits until there is one.
    pub fn wait_for_primary(&self) -> usize {
        self.wait_for(|_| true)
    }

    /// Waits until another than this one is.
    pub fn wait_for_another_primary(&self, deposed: usize) -> usize {
        self.wait_for(|primary| primary != deposed)
    }

    fn wait_for(&self, wanted: impl Fn(usize) -> bool) -> usize {
        let start = Instant::now();
        loop {
            if let Some(primary) = self.primary().filter(|primary| wanted(*primary)) {
                return primary;
            }
            assert!(start.elapsed() < PATIENCE, "no such primary after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills the primary, as `kill -9` would, and says which node it was. The others elect a new one.
    pub fn kill_primary(&mut self) -> usize {
        let primary = self.wait_for_primary();
        self.nodes[primary].kill();
        primary
    }

    /// Makes the primary step down in favour of another.
    pub fn step_down(&self) {
        let primary = self.wait_for_primary();
        self.nodes[primary].block_on(|admin| async move {
            // It may close the connection instead of answering.
            let _ = admin.run_command(doc! { "replSetStepDown": 10, "force": true }).await;
        });
    }

    /// A new database whose epoch has stood for long, as that of a deployment does.
    pub fn settled_database(&self) -> String {
        self.nodes[self.wait_for_primary()].settled_database()
    }
}
