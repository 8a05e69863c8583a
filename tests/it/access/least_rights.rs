//! A Redis user with just the rights that the documentation names: everything works; and without any one of them something
//! does not, or Redis logs that it was asked for.

use std::collections::BTreeSet;

use featurestore::tiered::trust::L1Use;

use super::*;
use crate::harness::{process::wait_until, redis::RedisServer, redis_cluster::RedisCluster};

/// As the documentation has it.
const DOCUMENT: &str = include_str!("../../../docs/security.md");
/// Without these L1 is not used, or not in full.
const NEEDED: [&str; 10] = ["get", "mget", "set", "del", "pttl", "time", "eval", "evalsha", "script|load", "info"];
/// What is asked for besides, and nothing depends on it.
const ASKED: [&str; 4] = ["ping", "role", "dbsize", "config|get"];

const ADMIN: [&str; 5] = ["--user", "boss", "--pass", "boss-password", "--no-auth-warning"];

/// A Redis that lets in nobody but an administrator and whom it makes.
struct Guarded(RedisServer);

impl Guarded {
    fn start() -> Self {
        let redis = RedisServer::start_with(&["--repl-diskless-sync-delay", "0"]);
        redis.cli(&["ACL", "SETUSER", "boss", "on", ">boss-password", "~*", "&*", "+@all"]);
        redis.cli(&["ACL", "SETUSER", "default", "off"]);
        Self(redis)
    }

    fn cli(&self, command: &[&str]) -> String {
        self.0.cli(&[&ADMIN[..], command].concat())
    }

    /// Makes a user as the documentation has it, and then changes its rights.
    fn user(&self, name: &str, change: &[&str]) -> String {
        let line = documented(name);
        let words: Vec<&str> = line.split(' ').chain(change.iter().copied()).collect();
        assert_eq!(self.cli(&words), "OK", "{words:?}");
        format!("redis://{name}:p@{}", self.0.address())
    }

    /// What was refused to a user.
    fn refused_to(&self, name: &str) -> BTreeSet<String> {
        refused(&self.cli(&["ACL", "LOG", "100"]), name)
    }
}

/// The line of the documentation, for a user of this name.
fn documented(name: &str) -> String {
    let line = DOCUMENT.lines().find(|line| line.starts_with("ACL SETUSER featurestore ")).unwrap();
    line.replace("SETUSER featurestore", &format!("SETUSER {name}")).replace("PASSWORD", "p")
}

/// What an ACL LOG says was refused to a user.
fn refused(log: &str, name: &str) -> BTreeSet<String> {
    let lines: Vec<&str> = log.lines().collect();
    let entries = lines.windows(2).enumerate().filter(|(_, pair)| pair == &["username", name]);
    // Count, reason, context, object and username come in this order.
    entries.map(|(at, _)| lines[at - 1].to_owned()).collect()
}

/// What is seen of L1 by somebody who uses it for everything, and lacks one right or none.
async fn tour(redis: &Guarded, user: &str, url: &str, lacks: Option<&str>) -> Vec<String> {
    tour_with(redis, user, url, lacks, &[]).await
}

async fn tour_with(
    redis: &Guarded,
    user: &str,
    url: &str,
    lacks: Option<&str>,
    settings: &[(&str, &str)],
) -> Vec<String> {
    let more = [("REDIS_URL", url), ("FEATURESTORE_L1_TIMEOUT", "5s")];
    let server = Server::start_at_once(&[&more[..], settings].concat()).await;
    let database = if url.ends_with("/2") { ["-n", "2"] } else { ["-n", "0"] };
    let trusted = || matches!(server.tiered.trust().l1(), L1Use::Trusted(_));
    let mut seen = Vec::new();
    // What is refused before L1 is trusted is what it takes, or does not matter.
    eventually("L1 to be used or refused", async || {
        trusted() || redis.refused_to(user).iter().any(|right| right != "info" && !ASKED.contains(&right.as_str()))
    })
    .await;
    if !trusted() {
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    }
    if trusted() {
        let mut client = server.client().await;
        for _ in 0..2 {
            let wrote = put(&mut client, record(user, [("n", double(1.0))])).await;
            seen.push(format!("write cached {}", wrote.cached));
        }
        seen.push(format!("read from {:?}", row(&mut client, get([user])).await.source()));
        // A miss, and what it fills.
        for key in redis.cli(&[&database[..], &["KEYS", &format!("*:default:{user}")]].concat()).lines() {
            redis.cli(&[&database[..], &["DEL", key]].concat());
        }
        row(&mut client, get([user])).await;
        seen.push(format!("filled, and read from {:?}", row(&mut client, get([user])).await.source()));
        let (answers, status) = bulk(&mut client, [chunk(1, [record(user, [("n", double(2.0))])])]).await;
        seen.push(format!("bulk cached {} {status:?}", answers[0].cached));
        let gone = client.delete_features(delete([user])).await.unwrap().into_inner();
        seen.push(format!("delete cached {}", gone.results[0].cached));
        seen.push(format!("L1 errors {}", server.tiered.l1_meter.reading().errors));
    } else {
        seen.push("L1 is not used".to_owned());
    }
    if let Some(right) = lacks {
        eventually(&format!("{right} to be asked for"), async || redis.refused_to(user).contains(right)).await;
    }
    server.stop().await;
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_redis_user_suffices_and_each_of_its_rights_is_used() {
    let redis = Guarded::start();
    let all = tour(&redis, "all", &redis.user("all", &[]), None).await;
    assert!(all.iter().any(|line| line == "filled, and read from L1"), "{all:?}");
    assert_eq!(redis.refused_to("all"), BTreeSet::new(), "it asks for more than is documented");
    // The line grants what is listed here and no more.
    let line = documented("me");
    let granted: BTreeSet<&str> = line.split(' ').filter_map(|word| word.strip_prefix('+')).collect();
    assert_eq!(granted, NEEDED.into_iter().chain(ASKED).collect::<BTreeSet<_>>());

    let without = async |right: &'static str| {
        let (user, taken) = (format!("no-{}", right.replace('|', "-")), format!("-{right}"));
        // A subcommand alone cannot be taken from what was never given whole.
        let change = if right.contains('|') { vec!["-@all"] } else { vec![&taken[..]] };
        let mut rights = change;
        let others: Vec<String> = NEEDED.into_iter().chain(ASKED).map(|right| format!("+{right}")).collect();
        if right.contains('|') {
            rights.extend(others.iter().filter(|other| other[1..] != *right).map(String::as_str));
        }
        let seen = tour(&redis, &user, &redis.user(&user, &rights), Some(right)).await;
        (right, seen, redis.refused_to(&user))
    };
    // Scripts that another has loaded are there for all.
    const LOAD: &str = "script|load";
    let others = NEEDED.into_iter().chain(ASKED).filter(|right| *right != LOAD);
    let mut tours = futures_util::future::join_all(others.map(&without)).await;
    redis.cli(&["SCRIPT", "FLUSH"]);
    tours.push(without(LOAD).await);
    for (right, seen, refused) in tours {
        assert_eq!(refused, BTreeSet::from([right.to_owned()]), "{right}");
        println!("without {right}: {seen:?}");
        if ASKED.contains(&right) {
            assert_eq!(seen, all, "{right} is only asked for");
        } else if right != "info" {
            // Without INFO a restart with old data is not noticed, which the log tells (binary::weather).
            assert_ne!(seen, all, "{right} is not needed");
        }
    }
    // No other keys, and nothing else.
    let url = redis.user("all", &[]);
    let try_as = |command: &[&str]| redis.0.cli(&[&["-u", &url, "--no-auth-warning"], command].concat());
    assert!(try_as(&["GET", "another"]).contains("NOPERM"));
    assert!(try_as(&["FLUSHALL"]).contains("NOPERM"));
    assert!(try_as(&["KEYS", "*"]).contains("NOPERM"));
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_and_another_database_take_a_right_more_each() {
    let redis = Guarded::start();
    let of = format!("127.0.0.1 {}", redis.0.port());
    let replica =
        RedisServer::start_with(&["--replicaof", &of, "--masteruser", "boss", "--masterauth", "boss-password"]);
    wait_until("the replica to follow", std::time::Duration::from_secs(20), || {
        replica.cli(&["INFO", "replication"]).contains("link_status:up")
    });
    let waits = [("FEATURESTORE_L1_WAIT_REPLICAS", "1")];
    let rights = ["+wait", "+select"];
    let all = tour_with(&redis, "all", &(redis.user("all", &rights) + "/2"), None, &waits).await;
    assert!(all.iter().any(|line| line == "filled, and read from L1"), "{all:?}");
    assert_eq!(redis.refused_to("all"), BTreeSet::new());
    for (user, kept, missed) in [("no-wait", "+select", "wait"), ("no-select", "+wait", "select")] {
        let seen = tour_with(&redis, user, &(redis.user(user, &[kept]) + "/2"), Some(missed), &waits).await;
        assert_ne!(seen, all, "{missed} is not needed");
        assert_eq!(redis.refused_to(user), BTreeSet::from([missed.to_owned()]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_takes_two_rights_more() {
    let cluster = RedisCluster::start();
    let line = documented("me");
    let words: Vec<&str> = line.split(' ').chain(["+cluster|nodes", "+asking"]).collect();
    for node in &cluster.nodes {
        assert_eq!(node.cli(&words), "OK");
    }
    let url = cluster.url().replace("://", "://me:p@");
    let server = Server::start(&[("REDIS_URL", &url)]).await;
    let mut client = server.client().await;
    eventually("a write to be cached", async || put(&mut client, record("a", [("n", double(1.0))])).await.cached).await;
    assert_eq!(row(&mut client, get(["a"])).await.source(), Source::L1);
    // On its way to another master.
    let mut masters = cluster.nodes[..3].iter();
    let key = masters.find_map(|node| Some(node.cli(&["KEYS", "*:default:a"])).filter(|key| !key.is_empty())).unwrap();
    let from = cluster.master_of(&key);
    let to = (from + 1) % 3;
    cluster.begin_move(&key, from, to);
    cluster.carry(&key, from, to);
    assert_eq!(row(&mut client, get(["a"])).await.source(), Source::L1);
    assert!(cluster.nodes[to].calls("asking") > 0);
    for node in &cluster.nodes {
        assert_eq!(refused(&node.cli(&["ACL", "LOG", "100"]), "me"), BTreeSet::new());
    }
    server.stop().await;
}
