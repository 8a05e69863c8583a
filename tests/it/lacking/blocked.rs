//! A Redis that is the wrong one, or cannot serve for a while: a node of a cluster, a replica, one that is loading, blocked
//! by a script, in protected mode, behind a proxy that takes only some commands; and a marker that is not ours.

use std::process::{Command, Stdio};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::harness::process::free_port;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_a_cluster_behind_a_plain_address_is_named_as_one() {
    let bus = free_port().to_string();
    let redis = RedisServer::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus]);
    let server = serve(&redis.url());
    // It has no slots.
    until_bypassed(&server, &["L1 cannot be used", "is a node of a Redis Cluster (CLUSTERDOWN", "redis-cluster://"])
        .await;
    // It has all slots: then only MGET shows it.
    assert_eq!(redis.cli(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]), "OK");
    until_bypassed(&server, &["L1 cannot be used", "is a node of a Redis Cluster (CROSSSLOT"]).await;
    let server = serve(&format!("redis-cluster://{}", redis.address()));
    until_used(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_behind_a_plain_address_is_named_as_one_even_where_role_and_info_are_not_allowed() {
    let master = RedisServer::start();
    let of = format!("127.0.0.1 {}", master.port());
    let redis = RedisServer::start_with(&["--replicaof", &of, "--repl-diskless-sync-delay", "0"]);
    for rights in ["+@all", "+@all -info -role"] {
        let words = [&["ACL", "SETUSER", "me", "on", ">p", "~*"][..], &rights.split(' ').collect::<Vec<_>>()].concat();
        assert_eq!(redis.cli(&words), "OK");
        let server = serve(&format!("redis://me:p@{}", redis.address()));
        until_bypassed(&server, &["L1 cannot be reached", "it is a replica", "must name the master"]).await;
    }
    // One that takes writes is none either.
    assert_eq!(redis.cli(&["CONFIG", "SET", "replica-read-only", "no"]), "OK");
    let server = serve(&redis.url());
    until_bypassed(&server, &["L1 cannot be reached", "it is a replica now", "must name the master"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_loads_its_data_is_used_when_it_has_and_says_what_it_does_until_then() {
    let slow =
        ["--enable-debug-command", "yes", "--key-load-delay", "400", "--loading-process-events-interval-bytes", "1024"];
    let mut redis = RedisServer::start_with(&slow);
    assert_eq!(redis.cli(&["DEBUG", "POPULATE", "20000"]), "OK");
    assert_eq!(redis.cli(&["SAVE"]), "OK");
    redis.kill();
    let (url, port) = (redis.url(), redis.port());
    // The harness waits until it answers PING, which is when it has loaded everything.
    let starting = std::thread::spawn(move || {
        redis.start_again();
        redis
    });
    // What is logged of an address where nobody listens would keep the next line back for a while.
    eventually("it to listen", async || TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await;
    let server = serve(&url);
    until_bypassed(&server, &["L1 cannot be reached", "still loading its data", "(LOADING"]).await;
    let _redis = tokio::task::spawn_blocking(move || starting.join().unwrap()).await.unwrap();
    until_used(&server).await;
    assert_eq!(metric(&server, UNSUITABLE).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_a_script_blocks_is_bypassed_and_used_again() {
    let redis = RedisServer::start_with(&["--busy-reply-threshold", "50"]);
    let server = serve(&redis.url());
    until_used(&server).await;
    let before = new_epochs(&server);
    let blocked = Command::new("redis-cli")
        .args(["-h", "127.0.0.1", "-p", &redis.port().to_string(), "EVAL", "while true do end", "0"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut blocked = blocked.unwrap();
    until_bypassed(&server, &["L1 cannot be reached", "a script of another client blocks it", "SCRIPT KILL"]).await;
    assert_eq!(redis.cli(&["SCRIPT", "KILL"]), "OK");
    blocked.wait().unwrap();
    until_used(&server).await;
    // The write that it was not told of.
    assert!(new_epochs(&server) <= before + 1, "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn protected_mode_is_named_by_its_own_words() {
    // Redis protects itself from other machines only, and nothing here listens to them.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let refusing = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let _ =
                    stream.write_all(b"-DENIED Redis is running in protected mode because it is enabled.\r\n").await;
                let _ = stream.shutdown().await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    let server = serve(&url);
    until_bypassed(&server, &["L1 cannot be reached", "protected mode"]).await;
    refusing.abort();
}

/// Passes everything on, but closes a connection on which the client sends this word.
async fn proxy_without(word: &'static str, port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let redis = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_redis, mut to_redis) = redis.into_split();
                let back = tokio::spawn(async move { tokio::io::copy(&mut from_redis, &mut to_client).await });
                let mut buffer = vec![0; 64 << 10];
                while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
                    let sent = &buffer[..count];
                    if sent.windows(word.len()).any(|part| part == word.as_bytes()) {
                        break;
                    }
                    if to_redis.write_all(sent).await.is_err() {
                        break;
                    }
                }
                back.abort();
            });
        }
    });
    own
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_closes_on_some_commands_is_suspected_by_name() {
    let redis = RedisServer::start();
    let port = proxy_without("EVALSHA", redis.port()).await;
    let server = serve(&format!("redis://127.0.0.1:{port}"));
    until_bypassed(&server, &["L1 cannot be reached", "while the commands of L1 were tried", "proxy"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marker_that_somebody_else_overwrites_costs_few_new_epochs_and_is_explained() {
    let redis = RedisServer::start();
    let server = serve(&redis.url());
    until_used(&server).await;
    let before = new_epochs(&server);
    let spoil = |kind: &[&str]| {
        // Markers have no colon behind the epoch.
        let keys = redis.cli(&["KEYS", "{}fs:????????????????"]);
        for key in keys.lines().filter(|key| !key.is_empty()) {
            redis.cli(&["DEL", key]);
            redis.cli(&[&[kind[0], key], &kind[1..]].concat());
        }
        redis.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    };
    for kind in [&["RPUSH", "x"][..], &["SET", "not a marker"]] {
        spoil(kind);
        until_used(&server).await;
    }
    assert!(new_epochs(&server) <= before + 6, "{}", server.log());
    // Again and again.
    let start = Instant::now();
    while lines(&server, &["ERROR", "many new epochs"]) == 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "{}", server.log());
        spoil(&["RPUSH", "x"]);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (many, start) = (new_epochs(&server), Instant::now());
    for _ in 0..60 {
        spoil(&["RPUSH", "x"]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // One in ten seconds.
    let more = usize::try_from(start.elapsed().as_secs() / 10).unwrap() + 2;
    assert!(new_epochs(&server) <= many + more, "{}", server.log());
    until_used(&server).await;
}
