//! A real Redis Cluster: three masters, each with one replica.

use std::time::Duration;

use super::{
    process::{free_port, wait_until},
    redis::RedisServer,
};

/// Long enough for an election on a busy machine.
const SETTLING: Duration = Duration::from_secs(30);
/// After how many ms a silent node counts as failed.
const NODE_TIMEOUT: &str = "1500";

pub struct RedisCluster {
    /// The first three are masters at first; the replicas follow in the order that the cluster chose.
    pub nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// Three masters with a replica each, all of them in agreement.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more options for every server.
    pub fn start_with(options: &[&str]) -> Self {
        let node = |_| {
            // The bus would be at the port + 10000, which may be nobody's to give.
            let bus = free_port().to_string();
            let own = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", NODE_TIMEOUT];
            // A diskless replica starts at once, not after 5 s.
            let quick = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"];
            RedisServer::start_with(&[&own[..], &quick, options].concat())
        };
        let nodes: Vec<RedisServer> = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..6).map(|at| scope.spawn(move || node(at))).collect();
            starting.into_iter().map(|node| node.join().unwrap()).collect()
        });
        let cluster = Self { nodes };
        let addresses: Vec<String> = cluster.nodes.iter().map(RedisServer::address).collect();
        let mut create = vec!["--cluster", "create"];
        create.extend(addresses.iter().map(String::as_str));
        create.extend(["--cluster-replicas", "1", "--cluster-yes"]);
        cluster.nodes[0].cli(&create);
        wait_until("the cluster to agree", SETTLING, || {
            cluster.nodes.iter().all(|node| node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
        });
        wait_until("the replicas to follow", SETTLING, || (0..3).all(|at| cluster.nodes[at].has_replicas(1)));
        cluster
    }

    pub fn url(&self) -> String {
        // Two of them: the others are found.
        format!("redis-cluster://{},{}", self.nodes[0].address(), self.nodes[4].address())
    }

    /// The place of the master that has a key.
    pub fn master_of(&self, key: &str) -> usize {
        let owns = |node: &RedisServer| {
            let found = node.cli(&["GET", key]);
            !found.starts_with("MOVED") && !found.starts_with("ASK")
        };
        (0..3).find(|at| owns(&self.nodes[*at])).expect("a master has it")
    }

    /// The place of a master's replica.
    pub fn replica_of(&self, master: usize) -> usize {
        let port = format!("master_port:{}", self.nodes[master].port());
        let follows = |at: &usize| self.nodes[*at].cli(&["INFO", "replication"]).contains(&port);
        (3..6).find(follows).expect("it has a replica")
    }

    /// Waits until a replica has all that its master holds now.
    pub fn until_replicated(&self, master: usize, replica: usize) {
        let offset = |at: usize, field: &str| -> u64 {
            let told = self.nodes[at].cli(&["INFO", "replication"]);
            let value = told.lines().find_map(|line| line.trim().strip_prefix(field)?.strip_prefix(':'));
            value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{field} in {told}"))
        };
        let wanted = offset(master, "master_repl_offset");
        wait_until("a replica to catch up", SETTLING, || offset(replica, "slave_repl_offset") >= wanted);
    }

    /// Waits until a replica of old is a master by everybody's word but that of one that is gone.
    pub fn until_promoted(&self, replica: usize, gone: usize) {
        wait_until("a replica to be promoted", SETTLING, || {
            self.nodes[replica].cli(&["ROLE"]).starts_with("master")
                && (0..6)
                    .filter(|at| *at != gone)
                    .all(|at| self.nodes[at].cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
        });
    }

    /// Begins to move a key's slot from one master to another.
    pub fn begin_move(&self, key: &str, from: usize, to: usize) {
        self.set_slot(to, key, "IMPORTING", from);
        self.set_slot(from, key, "MIGRATING", to);
    }

    /// Carries a key over.
    pub fn carry(&self, key: &str, from: usize, to: usize) {
        let port = self.nodes[to].port().to_string();
        assert_eq!(self.nodes[from].cli(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]), "OK");
    }

    /// The slot is the other's from now on.
    pub fn end_move(&self, key: &str, from: usize, to: usize) {
        self.set_slot(to, key, "NODE", to);
        self.set_slot(from, key, "NODE", to);
    }

    fn set_slot(&self, at: usize, key: &str, state: &str, other: usize) {
        let slot = self.nodes[at].cli(&["CLUSTER", "KEYSLOT", key]);
        assert_eq!(self.nodes[at].cli(&["CLUSTER", "SETSLOT", &slot, state, &self.id(other)]), "OK");
    }

    /// Moves the slots of one master to another, as an operator would.
    pub fn move_slots(&self, from: usize, to: usize, count: u32) {
        let (from, to) = (self.id(from), self.id(to));
        let (address, count) = (self.nodes[0].address(), count.to_string());
        // After an earlier move it takes a moment until all nodes agree, and redis-cli refuses until then.
        wait_until("the nodes to agree on their slots", SETTLING, || {
            self.nodes[0].try_cli(&["--cluster", "check", &address]).is_some()
        });
        let reshard = ["--cluster", "reshard", &address, "--cluster-from", &from, "--cluster-to", &to];
        self.nodes[0].cli(&[&reshard[..], &["--cluster-slots", &count, "--cluster-yes"]].concat());
    }

    fn id(&self, at: usize) -> String {
        self.nodes[at].cli(&["CLUSTER", "MYID"])
    }
}
