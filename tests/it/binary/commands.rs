//! The subcommands, and what they say when something is wrong.

use std::{net::TcpListener, process::Output};

use super::*;

fn text(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).unwrap()
}

fn succeeded(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout)
}

/// What it wrote to standard error; nothing went to standard output.
fn failed(output: Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    text(&output.stderr)
}

#[test]
fn version_help_and_defaults_need_no_configuration() {
    let version = succeeded(run(&["version"], &[]));
    assert!(version.starts_with(concat!("featurestore ", env!("CARGO_PKG_VERSION"))), "{version}");
    assert!(succeeded(run(&["--version"], &[])).contains(env!("CARGO_PKG_VERSION")));
    let help = succeeded(run(&["--help"], &[]));
    for word in [
        "serve",
        "health",
        "epoch",
        "config",
        "version",
        "--listen",
        "--insecure-bind",
        "--tls-cert-file",
        "REDIS_URL",
        "MONGO_URI",
    ] {
        assert!(help.contains(word), "{word} is not in: {help}");
    }
    let defaults = succeeded(run(&["config", "--defaults"], &[]));
    assert!(defaults.contains("max_entities = 1000") && defaults.contains("# "), "{defaults}");
    // They are a configuration.
    let (folder, file) = (temp_dir(), "defaults.toml");
    std::fs::write(folder.path().join(file), defaults).unwrap();
    let file = folder.path().join(file);
    succeeded(run(&["config", "--config", file.to_str().unwrap()], &[]));
}

#[test]
fn config_shows_what_is_in_effect_from_where_and_no_secret() {
    let secrets = [
        ("REDIS_URL", "redis://user:canary-r@127.0.0.1:1/0"),
        ("MONGO_URI", "mongodb://user:canary-m@127.0.0.1:1/"),
        ("FEATURESTORE_LIMITS_MAX_ENTITIES", "77"),
    ];
    for args in [&["config", "--set", "l1.ttl=5min"][..], &["--print-config", "--set", "l1.ttl=5min"]] {
        let shown = succeeded(run(args, &secrets));
        let line = |key: &str| shown.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned();
        assert!(line("limits.max_entities").contains("77"), "{shown}");
        assert!(line("limits.max_entities").contains("FEATURESTORE_LIMITS_MAX_ENTITIES"), "{shown}");
        assert!(line("l1.ttl").contains("5min") && line("l1.ttl").contains("--set"), "{shown}");
        assert!(!line("mongodb.uri").is_empty() && !line("redis.url").is_empty(), "{shown}");
        assert!(!shown.contains("canary"), "{shown}");
    }
}

#[test]
fn bad_configuration_is_exit_code_64_with_every_error_named() {
    let folder = temp_dir();
    let file = |name: &str, text: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let many = file(
        "many.toml",
        "[limits]\nmax_entities = 0\nmax_entitys = 5\n[l1]\ntimeout = \"soon\"\non_loss = \"panic\"\n",
    );
    let errors = failed(run(&["--config", &many], &[("FEATURESTORE_LISTEN", "nowhere")]), 64);
    for word in ["limits.max_entities", "limits.max_entitys", "l1.timeout", "l1.on_loss", "listen", "many.toml"] {
        assert!(errors.contains(word), "{word} is not in: {errors}");
    }
    assert!(errors.lines().all(|line| line.starts_with("featurestore: ")), "{errors}");

    let broken = file("broken.toml", "[limits\n");
    assert!(failed(run(&["--config", &broken], &[]), 64).contains("broken.toml"));
    assert!(failed(run(&["--config", "/nowhere/at.all"], &[]), 64).contains("/nowhere/at.all"));
    let open = failed(run(&["--listen", "0.0.0.0:0"], &[]), 64);
    assert!(open.contains("listen") && open.contains("insecure"), "{open}");
    let open = failed(run(&["--admin-listen", "[::]:0"], &[]), 64);
    assert!(open.contains("admin_listen") && open.contains("insecure"), "{open}");
    let secret = failed(run(&["--set", "mongodb.uri=mongodb://canary@x"], &[]), 64);
    assert!(secret.contains("MONGO_URI") && !secret.contains("canary"), "{secret}");
    for (name, uri) in [("REDIS_URL", "rodis://:canary@h"), ("MONGO_URI", "mongodb://u:canary@:x:/?y=")] {
        let errors = failed(run(&[], &[(name, uri), ("FEATURESTORE_DATA_DIR", folder.path().to_str().unwrap())]), 64);
        assert!(
            !errors.contains("canary")
                && errors.contains(if name == "REDIS_URL" { "redis.url" } else { "mongodb.uri" }),
            "{errors}"
        );
    }
    assert!(failed(run(&[], &[("RUST_LOG", "a=b=c")]), 64).contains("log.filter"));
    // A word that is no command, too.
    assert_ne!(run(&["sevre"], &[]).status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_or_a_folder_that_is_taken_is_one_clear_line() {
    let data = temp_dir();
    let folder = data.path().to_str().unwrap();
    let server = Binary::start(&[("FEATURESTORE_DATA_DIR", folder)]);
    server.until_serving().await;
    let taken = server.address();
    let other = temp_dir();
    let own = other.path().to_str().unwrap();
    let errors = failed(run(&["--listen", &taken, "--admin-listen", "127.0.0.1:0", "--data-dir", own], &[]), 1);
    let line = errors.lines().last().unwrap();
    assert!(line.contains("listen") && line.contains(&taken) && line.contains("another"), "{errors}");

    let admin = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = admin.local_addr().unwrap().to_string();
    let errors = failed(run(&["--listen", "127.0.0.1:0", "--admin-listen", &taken, "--data-dir", own], &[]), 1);
    assert!(errors.lines().last().unwrap().contains(&taken), "{errors}");

    let args = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir", folder];
    let errors = failed(run(&args, &[]), 1);
    let line = errors.lines().last().unwrap();
    assert!(line.contains(folder) && line.contains("in use"), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_asks_the_server_and_tells_by_its_exit_code() {
    // Nobody is at MongoDB's address, so it is up and not ready.
    let uri = format!("mongodb://127.0.0.1:{}/", free_port());
    let server = Binary::start(&[("MONGO_URI", &uri)]);
    eventually("it to be up", async || server.health("").await.is_some()).await;
    let address = server.address();
    let ask = |service: &'static str, address: &str| {
        let settings = [("FEATURESTORE_LISTEN", address)];
        let output = run(&["health", service], &settings);
        (output.status.code(), text(&output.stdout).trim().to_owned(), text(&output.stderr))
    };
    assert_eq!(ask("", &address), (Some(0), "SERVING".to_owned(), String::new()));
    assert_eq!(ask(SERVICE, &address), (Some(1), "NOT_SERVING".to_owned(), String::new()));
    assert_eq!(run(&["health"], &[("FEATURESTORE_LISTEN", &address)]).status.code(), Some(1), "readiness by default");
    assert_eq!(ask("l2", &address).0, Some(1));
    let nobody = format!("127.0.0.1:{}", free_port());
    let (code, _, errors) = ask("", &nobody);
    assert!(code == Some(1) && errors.contains(&nobody), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_where_no_more_connections_are_taken() {
    use tonic_health::pb::health_check_response::ServingStatus::Serving;

    let server = Binary::start(&[("FEATURESTORE_LIMITS_MAX_CONNECTIONS", "1")]);
    eventually("it to be up", async || server.admin_health(SERVICE).await == Some(Serving)).await;
    let _only = tokio::net::TcpStream::connect(server.address()).await.unwrap();
    let (listen, admin) = (server.address(), format!("127.0.0.1:{}", server.admin_port));
    let settings = [("FEATURESTORE_LISTEN", listen.as_str()), ("FEATURESTORE_ADMIN_LISTEN", admin.as_str())];
    let output = run(&["health"], &settings);
    assert_eq!((output.status.code(), text(&output.stdout).trim()), (Some(0), "SERVING"), "{}", text(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn epoch_new_needs_the_embedded_store_for_itself() {
    let mut server = Binary::start(&[]);
    server.until_serving().await;
    let folder = server.data_dir().display().to_string();
    let settings = [("FEATURESTORE_DATA_DIR", folder.as_str())];
    let refused = failed(run(&["epoch", "new"], &settings), 1);
    assert!(
        refused.contains("in use by another featurestore process") && refused.contains("stopped first"),
        "{refused}"
    );
    server.signal("TERM");
    server.exit_code(crate::harness::binary::START);
    let epochs = [(), ()].map(|()| succeeded(run(&["epoch", "new"], &settings)));
    assert!(epochs[0].starts_with("epoch ") && epochs[0] != epochs[1], "{epochs:?}");
    let audit = text(&run(&["epoch", "new"], &settings).stderr);
    assert!(audit.contains("featurestore::audit") && audit.contains("a new epoch was made"), "{audit}");
    let nowhere = temp_dir().path().join("no store").display().to_string();
    let refused = failed(run(&["epoch", "new"], &[("FEATURESTORE_DATA_DIR", &nowhere)]), 1);
    assert!(refused.contains("no store"), "{refused}");
    assert!(!std::path::Path::new(&nowhere).exists(), "it made one");
}
