//! Commands that are missing or renamed, and rights that a user lacks.

use super::*;

/// What L1 cannot do without, and how the log names it.
const NEEDED: [(&str, &str); 9] = [
    ("GET", "GET"),
    ("MGET", "MGET"),
    ("SET", "SET"),
    ("DEL", "DEL"),
    ("PTTL", "PTTL"),
    ("TIME", "TIME"),
    ("EVAL", "EVAL"),
    ("EVALSHA", "EVALSHA"),
    ("SCRIPT", "SCRIPT LOAD"),
];
/// The documented user, with other rights.
const USER: [&str; 6] = ["ACL", "SETUSER", "me", "on", ">p", "resetkeys"];
const ALL: [&str; 15] = [
    "~{}fs:*",
    "-@all",
    "+ping",
    "+get",
    "+mget",
    "+set",
    "+del",
    "+pttl",
    "+time",
    "+eval",
    "+evalsha",
    "+script|load",
    "+info",
    "+role",
    "+dbsize",
];

fn grant(redis: &RedisServer, rights: &[&str]) {
    assert_eq!(redis.cli(&[&USER[..], rights].concat()), "OK", "{rights:?}");
}

fn as_me(redis: &RedisServer) -> String {
    format!("redis://me:p@{}", redis.address())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_missing_or_renamed_is_named_and_l1_is_bypassed() {
    for (at, (command, name)) in NEEDED.into_iter().enumerate() {
        // Both happen: disabled, and hidden under another name.
        let to = if at % 2 == 0 { "" } else { "hidden" };
        let redis = RedisServer::start_with(&["--rename-command", command, to]);
        let server = serve(&redis.url());
        let says = format!("does not know {name}");
        until_bypassed(&server, &["WARN", "L1 cannot be used", &redis.address(), &says, "rename-command"]).await;
        assert_eq!(metric(&server, UNSUITABLE).await, 1.0, "{command}");
        // It is checked every few seconds and logged once a minute.
        assert_eq!(lines(&server, &["L1 cannot be used"]), 1, "{command}: {}", server.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_only_asked_for_may_be_missing() {
    for command in ["ROLE", "CONFIG", "DBSIZE", "PING", "CLIENT"] {
        let options = ["--rename-command", command, ""];
        // The harness itself asks with PING whether a server is there.
        let redis = if command == "PING" { RedisServer::start() } else { RedisServer::start_with(&options) };
        if command == "PING" {
            grant(&redis, &["~*", "+@all", "-ping"]);
        } else {
            grant(&redis, &["~*", "+@all"]);
        }
        let server = serve(&as_me(&redis));
        until_used(&server).await;
        assert_eq!(lines(&server, &["L1 cannot be"]), 0, "{command}: {}", server.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_is_needed_only_where_writes_wait_for_replicas() {
    let redis = RedisServer::start_with(&["--rename-command", "WAIT", ""]);
    until_used(&serve(&redis.url())).await;
    let server = serve_with(&redis.url(), &[("FEATURESTORE_L1_WAIT_REPLICAS", "1")]);
    until_bypassed(&server, &["L1 cannot be used", "does not know WAIT"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_rights_that_a_user_lacks_are_named_at_once_and_found_when_they_are_granted() {
    let redis = RedisServer::start();
    let lacking: Vec<&str> = ALL.into_iter().filter(|right| !["+evalsha", "+pttl", "+mget"].contains(right)).collect();
    grant(&redis, &lacking);
    let server = serve(&as_me(&redis));
    // MGET goes through connections of its own and is tried once all else works.
    until_bypassed(&server, &["L1 cannot be used", "does not allow PTTL, EVALSHA (NOPERM", "+pttl +evalsha"]).await;
    grant(&redis, &["~{}fs:*", "+evalsha", "+pttl"]);
    until_logged(&server, &["does not allow MGET", "+mget"], 1).await;
    assert_eq!(metric(&server, UNSUITABLE).await, 1.0);
    grant(&redis, &ALL);
    until_used(&server).await;
    // The one in which L1 is used for the first time, and one for a write that L1 was not told of.
    assert!(new_epochs(&server) <= 2, "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_not_use_our_keys_is_told_which_pattern_to_allow() {
    let redis = RedisServer::start();
    for keys in ["~other:*", "%R~{}fs:*"] {
        grant(&redis, &[keys, "+@all"]);
        let server = serve(&as_me(&redis));
        until_bypassed(&server, &["L1 cannot be used", "does not allow keys that begin with {}fs:", "~{}fs:*"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_taken_away_while_it_runs_is_noticed_by_the_next_call() {
    let redis = RedisServer::start();
    grant(&redis, &["~{}fs:*", "+@all"]);
    let server = serve(&as_me(&redis));
    until_used(&server).await;
    // Of each kind of call: reads, operations on entries, what a script does.
    for (right, name) in [("-mget", "MGET"), ("-evalsha", "EVALSHA"), ("-pttl", "PTTL")] {
        grant(&redis, &["~{}fs:*", right]);
        let mut client = server.client().await;
        let says = format!("does not allow {name}");
        eventually("it to be noticed", async || {
            put(&mut client, record("a", [("n", double(1.0))])).await;
            client.get_features(get(["a"])).await.unwrap();
            lines(&server, &["L1 cannot be used", &says]) > 0
        })
        .await;
        until_bypassed(&server, &["L1 cannot be used", &says]).await;
        grant(&redis, &["~{}fs:*", "+@all"]);
        until_used(&server).await;
    }
    // Such an answer is no refusal of one command: nobody waits for the trial of each minute.
    assert_eq!(lines(&server, &["L1 refused a command"]), 0, "{}", server.log());
}
