//! Bad weather at start: what is wrong is told in one clear line; what only waits for a backend goes on trying, with health
//! telling the truth.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use tonic_health::pb::health_check_response::ServingStatus;

use super::*;
use crate::{
    access::{TokensFile, entry},
    harness::{binary::PROGRAM, guarded::Guarded, mongod::Mongod, redis::RedisServer},
};

/// How often the log says something.
fn told(server: &Binary, words: &[&str]) -> usize {
    server.log().lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

/// The only line of a start that fails, and its exit code.
fn refused(args: &[&str], settings: &[(&str, &str)]) -> (i32, String) {
    let output = run(args, settings);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(errors.lines().count(), 1, "{errors}");
    (output.status.code().unwrap(), errors)
}

#[test]
fn everything_that_is_configured_wrongly_is_told_at_once() {
    let nowhere = "/nowhere/there-is-nothing";
    let settings = [
        ("FEATURESTORE_AUTH_TOKENS_FILE", nowhere),
        ("FEATURESTORE_TLS_CERT_FILE", nowhere),
        ("FEATURESTORE_TLS_KEY_FILE", nowhere),
        ("REDIS_URL", "redis-cluster://"),
        ("MONGO_URI", "mongodb://"),
    ];
    let output = run(&["serve"], &settings);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{errors}");
    for key in ["auth.tokens_file", "tls.cert_file", "redis.url", "mongodb.uri"] {
        assert!(errors.lines().any(|line| line.contains(key)), "{key}: {errors}");
    }
}

#[test]
fn a_setting_that_is_no_text_is_an_error() {
    use std::os::unix::ffi::OsStrExt as _;
    let mut command = Command::new(PROGRAM);
    command.arg("serve").env_clear().env("MONGO_URI", std::ffi::OsStr::from_bytes(b"mongodb://secret\xff/"));
    let output =
        command.env("SOMETHING_ELSE", std::ffi::OsStr::from_bytes(b"\xff")).stdin(Stdio::null()).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{errors}");
    assert!(errors.contains("MONGO_URI") && !errors.contains("secret") && !errors.contains("SOMETHING"), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn backends_that_come_late_are_waited_for_and_health_tells_the_truth() {
    let (mut redis, mut mongod) = std::thread::scope(|scope| {
        let mongod = scope.spawn(Mongod::replica_set);
        (RedisServer::start(), mongod.join().unwrap())
    });
    redis.kill();
    mongod.kill();
    let (url, uri) = (redis.url(), mongod.uri());
    let server = Binary::start(&[("REDIS_URL", &url), ("MONGO_URI", &uri)]);
    let address = format!("127.0.0.1:{}", mongod.port());
    eventually("it to tell", async || told(&server, &["L2 cannot be reached", &address]) > 0).await;
    let state = async || [server.health("").await, server.health(SERVICE).await, server.health("l2").await];
    let (up, down) = (Some(ServingStatus::Serving), Some(ServingStatus::NotServing));
    assert_eq!(state().await, [up, down, down]);
    let status = server.client().await.get_features(get(["a"])).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);

    let mongod = tokio::task::spawn_blocking(move || {
        mongod.start_again();
        mongod
    });
    let _mongod = mongod.await.unwrap();
    eventually("it to be ready", async || state().await == [up; 3]).await;
    // Without Redis all goes on.
    eventually("it to tell of Redis", async || told(&server, &["L1 cannot be reached", &redis.address()]) > 0).await;
    assert_eq!(server.health("l1").await, down);
    let mut client = server.client().await;
    assert!(!put(&mut client, record("a", [("n", double(1.0))])).await.cached);
    redis.start_again();
    eventually("Redis to be used", async || put(&mut client, record("a", [])).await.cached).await;
    assert_eq!(server.health("l1").await, up);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_no_crash_loop_and_told_once() {
    let guarded = Guarded::shared();
    let (wrong, none) = (guarded.redis_url("canary-wrong"), guarded.open_redis_url());
    let (uri, database) = guarded.mongodb("canary-wrong");
    let wrong_redis = Binary::start(&[("REDIS_URL", &wrong)]);
    let no_password = Binary::start(&[("REDIS_URL", &none)]);
    let wrong_mongodb = Binary::start(&[("MONGO_URI", &uri), ("MONGO_DB", database)]);
    // Redis is only asked for speed.
    for server in [&wrong_redis, &no_password] {
        server.until_serving().await;
        let words = ["L1 cannot be reached", "authentication failed", "redis.password"];
        eventually("it to be told", async || told(server, &words) == 1).await;
        assert!(!put(&mut server.client().await, record("a", [])).await.cached);
    }
    let words = ["L2 cannot be reached", "authentication failed", "mongodb.uri"];
    eventually("it to be told", async || told(&wrong_mongodb, &words) == 1).await;
    assert_eq!(wrong_mongodb.health("").await, Some(ServingStatus::Serving));
    assert_eq!(wrong_mongodb.health(SERVICE).await, Some(ServingStatus::NotServing));
    // They try several times a second.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for server in [&wrong_redis, &no_password, &wrong_mongodb] {
        assert!(server.is_running());
        for words in ["cannot be reached", "authentication failed"] {
            assert_eq!(told(server, &[words]), 1, "{}", server.log());
        }
        assert_eq!(told(server, &["canary"]), 0, "{}", server.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_does_not_say_whether_it_restarted_is_told() {
    let redis = RedisServer::start();
    assert_eq!(redis.cli(&["ACL", "SETUSER", "me", "on", ">p", "~*", "+@all", "-info"]), "OK");
    let server = Binary::start(&[("REDIS_URL", &format!("redis://me:p@{}", redis.address()))]);
    eventually("it to be told", async || told(&server, &["WARN", "INFO", "cannot be noticed"]) == 1).await;
    eventually("Redis to be used", async || server.log().contains("L1 is trusted")).await;
}

#[test]
fn a_tokens_file_that_cannot_be_used_is_exit_code_64() {
    let folder = temp_dir();
    let data = folder.path().join("data").display().to_string();
    let start = |file: &str| refused(&[], &[("FEATURESTORE_AUTH_TOKENS_FILE", file), ("FEATURESTORE_DATA_DIR", &data)]);
    let nowhere = folder.path().join("nowhere.toml").display().to_string();
    let (code, line) = start(&nowhere);
    assert!(code == 64 && line.contains("auth.tokens_file") && line.contains(&nowhere), "{code} {line}");
    for (text, words) in
        [("[[tokens]", "line 1"), ("", "no token"), ("[[tokens]]\nname = \"a\"\nsha256 = [\"canary\"]", "a.sha256[0]")]
    {
        let file = TokensFile::new(&[text.to_owned()]);
        let (code, line) = start(&file.path());
        assert!(code == 64 && line.contains("auth.tokens_file") && line.contains(&file.path()), "{code} {line}");
        assert!(line.contains(words) && !line.contains("canary"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_loopback_it_serves_only_behind_tls_and_tokens() {
    let (code, line) = refused(&["--listen", "0.0.0.0:0"], &[]);
    assert!(code == 64 && line.contains("--insecure-bind"), "{line}");
    assert!(line.contains("tls.cert_file") && line.contains("auth.tokens_file"), "{line}");
    let file = TokensFile::new(&[entry("a", &["t"], "")]);
    let tokens = ("FEATURESTORE_AUTH_TOKENS_FILE", &*file.path());
    let tls = [("FEATURESTORE_TLS_CERT_FILE", "tls.crt"), ("FEATURESTORE_TLS_KEY_FILE", "tls.key")];
    for (one, other) in [(&[tokens][..], "tls.cert_file"), (&tls, "auth.tokens_file")] {
        let (code, line) = refused(&["--listen", "0.0.0.0:0"], one);
        assert!(code == 64 && line.contains(other), "{line}");
    }
    let shown = run(&["config", "--listen", "0.0.0.0:0"], &[tokens, tls[0], tls[1]]);
    assert!(shown.status.success(), "{shown:?}");
}

#[test]
fn a_data_folder_that_cannot_be_written_is_one_clear_line() {
    let folder = temp_dir();
    let file = folder.path().join("a-file");
    std::fs::write(&file, "x").unwrap();
    let there = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    for data in [file.clone(), file.join("below")] {
        let data = data.display().to_string();
        let (code, line) = refused(&there, &[("FEATURESTORE_DATA_DIR", &data)]);
        assert!(code == 1 && line.contains("data_dir") && line.contains(&data), "{line}");
    }
    // Permissions do not bind root, so for root it is a mount that cannot be written to.
    let data = folder.path().join("read-only");
    std::fs::create_dir(&data).unwrap();
    let data = data.to_str().unwrap();
    const READ_ONLY: &str = r#"mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@""#;
    let start = [PROGRAM, "--data-dir", data, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let can_mount = Command::new("unshare").args(["-m", "sh", "-c", READ_ONLY, data, "true"]).output();
    let mut command = if can_mount.is_ok_and(|output| output.status.success()) {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", READ_ONLY, data]).args(start);
        command
    } else {
        std::fs::set_permissions(data, std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
        if std::fs::write(folder.path().join("read-only/x"), "").is_ok() {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "left out: a read-only data folder, which root cannot have here");
            return;
        }
        let mut command = Command::new(start[0]);
        command.args(&start[1..]);
        command
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let output = command.env_clear().env("PATH", path).stdin(Stdio::null()).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && errors.lines().count() == 1, "{errors}");
    assert!(errors.contains("data_dir") && errors.contains(data), "{errors}");
}
