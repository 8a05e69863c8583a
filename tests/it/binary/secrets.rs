//! Secrets are planted in every place where one can be, and looked for in everything that the program says.

use std::time::Duration;

use super::*;
use crate::{
    access::{TokensFile, entry, with},
    harness::{
        certificates::text,
        guarded::{Guarded, MONGODB_PASSWORD, REDIS_PASSWORD},
    },
};

const GOOD_TOKEN: &str = "canary-token-good";
const BAD_TOKEN: &str = "canary-token-bad";

/// What nobody may find. All canaries begin alike; of the key a piece of its PEM does.
struct Canaries(Vec<String>);

impl Canaries {
    fn new() -> Self {
        let key = std::fs::read_to_string(Guarded::shared().certificates.key()).unwrap();
        let piece = key.lines().nth(1).unwrap()[..24].to_owned();
        Self(vec!["canary".to_owned(), piece])
    }

    fn are_not_in(&self, what: &str, said: &str) {
        let dense: String = said.split_whitespace().collect();
        for canary in &self.0 {
            let line = said.lines().find(|line| line.contains(canary));
            assert!(line.is_none(), "{canary} is in {what}: {}", line.unwrap_or_default());
            // As a list of bytes, however it is laid out, and in hexadecimal digits.
            let bytes = canary.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(",");
            let hex: String = canary.bytes().map(|byte| format!("{byte:02x}")).collect();
            assert!(!dense.contains(&format!("{bytes},")) && !dense.contains(&hex), "{canary} is in {what} as bytes");
        }
    }
}

/// Calls of every kind, let in and denied, and all that they answer.
async fn calls(server: &Binary) -> String {
    let mut client = server.client().await;
    let mut said = String::new();
    for token in [GOOD_TOKEN, BAD_TOKEN, "canary-token-weak"] {
        said += &format!("{:?}", client.info(with(token, InfoRequest {})).await);
        said += &format!("{:?}", client.get_features(with(token, get(["a"]))).await);
        said += &format!("{:?}", client.get_features(with(token, get([""]))).await);
        said += &format!("{:?}", client.upsert_features(with(token, upsert(record("a", [])))).await);
        said += &format!("{:?}", client.delete_features(with(token, delete(["a"]))).await);
        match client.bulk_upsert(with(token, tokio_stream::iter([chunk(1, [record("b", [])])]))).await {
            Ok(answers) => said += &format!("{:?}", answers.into_inner().message().await),
            Err(status) => said += &format!("{status:?}"),
        }
    }
    // Without a word before it, where none belongs, and twice.
    let mut odd = tonic::Request::new(InfoRequest {});
    odd.metadata_mut().insert("authorization", "canary-token-bare".parse().unwrap());
    said += &format!("{:?}", client.info(odd).await);
    let mut odd = with(GOOD_TOKEN, InfoRequest {});
    odd.metadata_mut().append("authorization", "Bearer canary-token-second".parse().unwrap());
    odd.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    said += &format!("{:?}", client.info(odd).await);
    said + &server.metrics().await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_told_at_any_level_whatever_goes_wrong() {
    let (guarded, canaries, folder) = (Guarded::shared(), Canaries::new(), temp_dir());
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let tokens = TokensFile::new(&[
        entry("good", &[GOOD_TOKEN, "canary-token-next"], "admin = [\"*\"]"),
        entry("weak", &["canary-token-weak"], "read = [\"other\"]"),
    ]);
    let tokens_path = tokens.path();
    let certificates = &guarded.certificates;
    let (ca, own, key) = (certificates.ca(), certificates.certificate(), certificates.key());
    let tls = [
        ("FEATURESTORE_REDIS_CA_FILE", text(&ca)),
        ("FEATURESTORE_REDIS_CLIENT_CERT_FILE", text(&own)),
        ("FEATURESTORE_REDIS_CLIENT_KEY_FILE", text(&key)),
    ];
    let common = [("FEATURESTORE_AUTH_TOKENS_FILE", tokens_path.as_str()), ("RUST_LOG", "trace")];
    let (uri, database) = guarded.mongodb(MONGODB_PASSWORD);

    // All is right, and the secrets are in files.
    let (url_file, uri_file) = (file("url", &guarded.rediss_url(REDIS_PASSWORD)), file("uri", &uri));
    let files = [("REDIS_URL_FILE", url_file.as_str()), ("MONGO_URI_FILE", &uri_file), ("MONGO_DB", database)];
    let right = Binary::start(&[&common[..], &tls, &files].concat());
    // The password is in the environment and wrong, and a CA is.
    let (wrong_url, (wrong_uri, _)) = (guarded.redis_url("canary-wrong"), guarded.mongodb("canary-wrong"));
    let wrong_redis = Binary::start(&[&common[..], &[("REDIS_URL", &wrong_url)]].concat());
    let wrong_mongodb = Binary::start(&[&common[..], &[("MONGO_URI", &wrong_uri), ("MONGO_DB", database)]].concat());
    let untrusted = guarded.rediss_url(REDIS_PASSWORD);
    let wrong_ca = Binary::start(&[&common[..], &[("REDIS_URL", &untrusted)]].concat());
    // In the TOML file, and nobody is there.
    let port = free_port();
    let toml = format!(
        "[redis]\nhost = \"127.0.0.1\"\nport = {port}\nusername = \"me\"\npassword = \"canary-toml-redis\"\n[mongodb]\nuri = \
         \"mongodb://me:canary-toml-mongodb@127.0.0.1:{port}/?authSource=admin\"\n"
    );
    let toml = file("featurestore.toml", &toml);
    let unreachable = Binary::start(&[&common[..], &[("FEATURESTORE_CONFIG", &toml)]].concat());

    right.until_serving().await;
    eventually("it to use Redis", async || right.log().contains("L1 is trusted")).await;
    eventually("the others to tell", async || {
        wrong_redis.log().contains("authentication failed")
            && wrong_mongodb.log().contains("authentication failed")
            && wrong_ca.log().contains("certificate")
            && unreachable.log().contains("L2 cannot be reached")
    })
    .await;
    // The tokens are read anew, once well and once not.
    tokens.write(&(entry("good", &[GOOD_TOKEN], "admin = [\"*\"]") + &entry("weak", &["canary-token-weak"], "")));
    eventually("the tokens to be read", async || right.log().contains("auth.tokens_file has changed and is in use"))
        .await;
    tokens.write("[[tokens]]\nname = \"good\"\nsha256 = [\"canary-token-good\"]\n");
    eventually("the bad file to be told", async || right.log().contains("auth.tokens_file is bad")).await;

    let servers = [("right", right), ("wrong redis", wrong_redis), ("wrong mongodb", wrong_mongodb)];
    let servers = servers.into_iter().chain([("wrong ca", wrong_ca), ("unreachable", unreachable)]);
    for (name, mut server) in servers {
        canaries.are_not_in(&format!("the answers of {name}"), &calls(&server).await);
        server.signal("TERM");
        assert_eq!(server.exit_code(Duration::from_secs(60)), 0, "{name}: {}", server.log());
        let log = server.log();
        assert!(log.contains("TRACE") && log.contains("denied: no right"), "{name} says too little: {log}");
        canaries.are_not_in(&format!("the log of {name}"), &log);
    }
}

#[test]
fn no_secret_is_told_by_a_command() {
    let (canaries, folder) = (Canaries::new(), temp_dir());
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let secret = file("secret", "canary-in-a-file");
    let url = file("url", "redis://:canary-in-a-file@127.0.0.1:x/");
    let data = folder.path().join("data").display().to_string();
    let whole = file(
        "whole.toml",
        "[redis]\nurl = \"redis://:canary@h\"\npassword = \"canary\"\n[mongodb]\nuri = \"mongodb://a:canary@h\"\n",
    );
    let unknown = file("unknown.toml", "[redis]\npasword = \"canary\"\n[canary]\n");
    let cut = file("cut.toml", "[redis]\npassword = \"canary\n");
    let twice = file("twice.toml", "[redis]\npassword = \"canary\"\npassword = \"canary\"\n");
    let bare = file("bare.toml", "[mongodb]\nuri = mongodb://a:canary@h\n");
    let kind = file("kind.toml", "[mongodb]\nuri = { canary = 5 }\n");
    let settings: [&[(&str, &str)]; 11] = [
        &[("FEATURESTORE_CONFIG", &whole)],
        &[("FEATURESTORE_CONFIG", &unknown)],
        &[("FEATURESTORE_CONFIG", &cut)],
        &[("FEATURESTORE_CONFIG", &twice)],
        &[("FEATURESTORE_CONFIG", &bare)],
        &[("FEATURESTORE_CONFIG", &kind)],
        &[("REDIS_HOST", "h"), ("REDIS_PASSWORD_FILE", &secret), ("FEATURESTORE_LISTEN", "nowhere")],
        &[("REDIS_URL_FILE", &url), ("FEATURESTORE_DATA_DIR", &data)],
        &[("REDIS_HOST", "h"), ("REDIS_PASSWORD", "canary"), ("REDIS_DB", "many")],
        &[("MONGO_URI", "mongodb://a:can@ary@h:x/canary"), ("FEATURESTORE_DATA_DIR", &data)],
        &[("MONGO_URI", "mongodb://a:canary@@h/?y=canary-b@"), ("FEATURESTORE_DATA_DIR", &data)],
    ];
    for settings in settings {
        for args in [&["config"][..], &["--print-config"], &["epoch", "new"], &["serve"]] {
            // What could be served would be.
            if args == ["serve"] && settings.len() == 1 && settings[0].1 == whole {
                continue;
            }
            if args == ["epoch", "new"] && settings[0].1 == whole {
                continue;
            }
            let output = run(args, settings);
            for said in [output.stdout, output.stderr] {
                let said = String::from_utf8(said).unwrap().replace(folder.path().to_str().unwrap(), "");
                // A key's name is the user's own, and no value.
                let said = said.replace("canary: there is no such key", "").replace("mongodb.uri.canary", "");
                canaries.are_not_in(&format!("{args:?} with {settings:?}"), &said);
            }
        }
    }
    for set in ["redis.password=canary", "mongodb.uri=canary", "redis.url canary", "canary"] {
        let output = run(&["config", "--set", set], &[]);
        assert_eq!(output.status.code(), Some(64));
        canaries.are_not_in("--set", &String::from_utf8(output.stderr).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_tells_who_wrote_and_who_was_denied_but_no_keys_and_no_values() {
    let tokens = TokensFile::new(&[
        entry("loader", &["loads"], "write = [\"credit_*\"]\nread = [\"credit_*\"]\ndelete = [\"*\"]"),
        entry("reader", &["reads"], "read = [\"credit_*\"]"),
    ]);
    let path = tokens.path();
    let start = async |filter: &str| {
        let server = Binary::start(&[("FEATURESTORE_AUTH_TOKENS_FILE", &path), ("RUST_LOG", filter)]);
        server.until_serving().await;
        let mut client = server.client().await;
        let view = || "credit_x".to_owned();
        let secret = || record("entity-canary", [("n", value(value::Kind::StringVal("value-canary".to_owned())))]);
        let write = UpsertFeaturesRequest { feature_view: view(), ..upsert(secret()) };
        client.upsert_features(with("loads", write)).await.unwrap();
        let chunk = BulkUpsertRequest { feature_view: view(), ..chunk(1, [secret(), record("", []), record("b", [])]) };
        let mut answers = client.bulk_upsert(with("loads", tokio_stream::iter([chunk]))).await.unwrap().into_inner();
        while answers.message().await.unwrap().is_some() {}
        let read = GetFeaturesRequest { feature_view: view(), ..get(["entity-canary"]) };
        client.get_features(with("reads", read.clone())).await.unwrap();
        let gone = DeleteFeaturesRequest { feature_view: view(), ..delete(["entity-canary", "nobody"]) };
        client.delete_features(with("reads", gone.clone())).await.unwrap_err();
        client.delete_features(with("loads", gone)).await.unwrap();
        // Refused for what they ask, after the caller was let in.
        let twice = || record("entity-canary", [("n", Value::default())]);
        let bad = UpsertFeaturesRequest { feature_view: view(), ..upsert(twice()) };
        client.upsert_features(with("loads", bad)).await.unwrap_err();
        let bad = DeleteFeaturesRequest { feature_view: view(), ..delete([""; 0]) };
        client.delete_features(with("loads", bad)).await.unwrap_err();
        let bad = BulkUpsertRequest { feature_view: view(), ..Default::default() };
        let bad = BulkUpsertRequest { model_version: "v".repeat(1000), ..bad };
        let mut answers = client.bulk_upsert(with("loads", tokio_stream::iter([bad]))).await.unwrap().into_inner();
        answers.message().await.unwrap_err();
        client.get_features(with("unknown", read.clone())).await.unwrap_err();
        client.get_features(read).await.unwrap_err();
        server
    };
    let server = start("info").await;
    let log = server.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("featurestore::audit")).collect();
    for words in [
        &[
            "INFO",
            "write",
            "rpc=\"UpsertFeatures\"",
            "caller=\"loader\"",
            "feature_view=\"credit_x\"",
            "records=1",
            "written=1",
        ][..],
        &["INFO", "rpc=\"BulkUpsert\"", "caller=\"loader\"", "records=3", "written=2", "failed=1"],
        &["INFO", "rpc=\"DeleteFeatures\"", "caller=\"loader\"", "records=2", "deleted=1", "skipped=1", "code=Ok"],
        &[
            "WARN",
            "denied: no right",
            "rpc=\"DeleteFeatures\"",
            "caller=\"reader\"",
            "right=\"delete\"",
            "peer=127.0.0.1",
        ],
        &["INFO", "rpc=\"UpsertFeatures\"", "caller=\"loader\"", "records=1", "code=InvalidArgument"],
        &["INFO", "rpc=\"DeleteFeatures\"", "caller=\"loader\"", "records=0", "code=InvalidArgument"],
        &["INFO", "rpc=\"BulkUpsert\"", "caller=\"loader\"", "records=0", "code=InvalidArgument"],
        &["WARN", "denied: an unknown token", "rpc=\"GetFeatures\"", "peer=127.0.0.1"],
        &["WARN", "denied: no token", "rpc=\"GetFeatures\"", "peer=127.0.0.1"],
    ] {
        let found = lines.iter().filter(|line| words.iter().all(|word| line.contains(word))).count();
        assert_eq!(found, 1, "{words:?} in {lines:#?}");
    }
    assert_eq!(lines.len(), 9, "{lines:#?}");
    assert!(!log.contains("canary"), "{log}");

    let denials = start("info,featurestore::audit=warn").await.log();
    assert_eq!(denials.lines().filter(|line| line.contains("featurestore::audit")).count(), 3, "{denials}");
    let none = start("info,featurestore::audit=off").await.log();
    assert!(!none.contains("featurestore::audit") && none.contains("serving"), "{none}");
}

#[test]
fn a_new_token_is_told_once_with_what_the_file_keeps() {
    let made = [(), ()].map(|()| {
        let output = run(&["token", "new"], &[]);
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    });
    assert_ne!(made[0], made[1]);
    let [token, line] = made[0].lines().collect::<Vec<_>>()[..] else { panic!("{made:?}") };
    let expected = featurestore::access::tokens::hex(&featurestore::access::tokens::digest(token.as_bytes()));
    assert_eq!(line, format!("sha256 = [\"{expected}\"]"));
    let file = TokensFile::new(&[format!("[[tokens]]\nname = \"a\"\n{line}\n")]);
    let shown = run(&["config"], &[("FEATURESTORE_AUTH_TOKENS_FILE", &file.path())]);
    assert!(shown.status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_client_gives_the_call_up_leaves_a_line_in_the_audit_log() {
    const CALLS: usize = 100;
    let tokens = TokensFile::new(&[entry("loader", &["loads"], "write = [\"*\"]\nread = [\"*\"]")]);
    let server = Binary::start(&[("FEATURESTORE_AUTH_TOKENS_FILE", &tokens.path())]);
    server.until_serving().await;
    let client = server.client().await;
    let ids: Vec<String> = (0..CALLS).map(|i| format!("r{i}")).collect();
    for (i, id) in ids.iter().enumerate() {
        let patience = Duration::from_micros(200 * (i as u64 % 30));
        let mut client = client.clone();
        let call = client.upsert_features(with("loads", upsert(record(id, []))));
        let _ = tokio::time::timeout(patience, call).await;
    }
    eventually("all writes to end", async || {
        let metrics = server.metrics().await;
        ["calls", "writes", "tasks"].iter().all(|of| metrics.contains(&format!("\nfeaturestore_{of}_in_flight 0\n")))
    })
    .await;
    let rows = client.clone().get_features(with("loads", get(ids))).await.unwrap().into_inner().rows;
    let written = rows.iter().filter(|row| row.status() == RowStatus::Found).count();
    let lines = |of: &str| {
        server.log().lines().filter(|line| line.contains("featurestore::audit") && line.contains(of)).count()
    };
    eventually("a line for each write", async || lines("rpc=\"UpsertFeatures\"") >= written).await;
    assert!(lines("code=Cancelled") > 0, "no call was given up in time: {}", server.log());
}
