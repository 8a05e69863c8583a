//! TLS on the gRPC port: certificates that come and go, clients' certificates, and who does not speak it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use super::*;
use crate::{
    access::{TokensFile, entry},
    harness::tools,
};

/// A binary over TLS that is ready.
async fn serve(settings: &[(&'static str, String)]) -> Binary {
    let server = Binary::start(&borrowed(settings));
    until_ready(&server).await;
    server
}

async fn until_ready(server: &Binary) {
    eventually("it to be ready", async || {
        assert!(server.is_running(), "{}", server.log());
        server.admin_health(SERVICE).await == Some(ServingStatus::Serving)
    })
    .await;
}

/// Calls without end, some over one connection, some over a new one each.
struct Traffic {
    tasks: JoinSet<()>,
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
}

impl Traffic {
    fn begin(authority: &Arc<Authority>, port: u16) -> Self {
        let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        for task in 0..4 {
            let (authority, stop, calls) = (authority.clone(), stop.clone(), calls.clone());
            tasks.spawn(async move {
                let mut client = Client::new(authority.channel(port).await);
                while !stop.load(Relaxed) {
                    if task % 2 == 0 {
                        client = Client::new(authority.channel(port).await);
                    }
                    client.get_features(get(["a"])).await.expect("a call failed");
                    calls.fetch_add(1, Relaxed);
                }
            });
        }
        Self { tasks, stop, calls }
    }

    /// Waits for some more calls.
    async fn goes_on(&self) {
        let before = self.calls.load(Relaxed);
        eventually("traffic", async || self.calls.load(Relaxed) > before + 20 || self.tasks.is_empty()).await;
    }

    /// Panics if one failed.
    async fn end(self) {
        self.stop.store(true, Relaxed);
        self.tasks.join_all().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_swapped_under_traffic_without_a_failed_call_and_a_bad_pair_keeps_the_one_before() {
    let authority = Arc::new(Authority::new());
    let first = authority.sign();
    let secret = Secret::new(&first.cert, &first.key);
    let server = serve(&secret.settings()).await;
    assert_eq!(authority.shown(server.port).await, first.der());
    let traffic = Traffic::begin(&authority, server.port);
    traffic.goes_on().await;

    let shows = async |signed: &Signed| {
        eventually("the new certificate", async || authority.shown(server.port).await == signed.der()).await;
        traffic.goes_on().await;
    };
    let pair = |signed: &Signed| secret.swap(&[("tls.crt", &signed.cert), ("tls.key", &signed.key)]);
    let second = authority.sign();
    pair(&second);
    shows(&second).await;

    let other = authority.sign();
    let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let bad: [(&[(&str, &str)], &str); 5] = [
        (&[("tls.crt", &other.cert), ("tls.key", &second.key)], "this is not the key of the certificate"),
        (&[("tls.crt", nonsense), ("tls.key", &second.key)], "a certificate cannot be read"),
        (&[("tls.crt", ""), ("tls.key", &second.key)], "there is no certificate in it"),
        (&[("tls.crt", &other.cert), ("tls.key", "canary")], "there is no private key in it"),
        (&[("tls.crt", &other.cert)], "tls.key: it cannot be read"),
    ];
    for (told, (files, words)) in (1..).zip(bad) {
        secret.swap(files);
        eventually(words, async || server.log().contains(words)).await;
        traffic.goes_on().await;
        assert_eq!(authority.shown(server.port).await, second.der(), "{words}");
        // It is logged once, however often the files are read.
        assert_eq!(server.log().matches("the old ones stay in use").count(), told, "{}", server.log());
    }
    pair(&other);
    shows(&other).await;
    traffic.end().await;
    assert!(!server.log().contains("canary") && !server.log().contains("PRIVATE KEY-"), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_when_the_certificate_ends_and_that_a_reload_fails() {
    let authority = Authority::new();
    let expired = authority.sign_until(2020);
    let secret = Secret::new(&expired.cert, &expired.key);
    let tokens = TokensFile::new(&[entry("a", &["a"], "")]);
    let mut settings = secret.settings();
    settings.push(("FEATURESTORE_AUTH_TOKENS_FILE", tokens.path()));
    let server = serve(&settings).await;
    assert!(server.log().contains("the certificate of tls.cert_file has expired"), "{}", server.log());
    let tells = async |what: &str, line: &str| {
        let metrics = async || server.metrics().await;
        eventually(what, async || metrics().await.lines().any(|told| told == line)).await;
    };
    let (tls, of_tokens) =
        ("featurestore_reload_failing{file=\"tls\"}", "featurestore_reload_failing{file=\"tokens\"}");
    let ends = "featurestore_tls_certificate_not_after_seconds";
    tells("the end of the first", &format!("{ends} 1577836800")).await;
    for series in [tls, of_tokens] {
        tells("both to be good", &format!("{series} 0")).await;
    }

    let next = authority.sign_until(2040);
    let good = || secret.swap(&[("tls.crt", &next.cert), ("tls.key", &next.key)]);
    good();
    tells("the end of the next", &format!("{ends} 2208988800")).await;
    secret.swap(&[("tls.crt", &expired.cert), ("tls.key", &next.key)]);
    tokens.write("[[tokens]]\nname = ");
    for series in [tls, of_tokens] {
        tells("both to be bad", &format!("{series} 1")).await;
    }
    tells("what is in use", &format!("{ends} 2208988800")).await;
    good();
    tokens.write(&entry("b", &["b"], ""));
    for series in [tls, of_tokens] {
        tells("both to be good again", &format!("{series} 0")).await;
    }
    assert_eq!(server.log().matches("has expired").count(), 1, "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_client_ca_only_clients_with_its_certificates_are_served() {
    let (ours, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    let signed = ours.sign();
    let secret = Secret::new(&signed.cert, &signed.key);
    let all = |ca: &Authority| {
        secret.swap(&[("tls.crt", &signed.cert), ("tls.key", &signed.key), ("ca.crt", &ca.pem)]);
    };
    all(&clients);
    let mut settings = secret.settings();
    settings.push(("FEATURESTORE_TLS_CLIENT_CA_FILE", secret.file("ca.crt").display().to_string()));
    let server = serve(&settings).await;
    let is_served = async |shows: Option<&Signed>| {
        // With TLS 1.3 a client learns that it was refused only when it reads.
        let Ok(channel) = ours.endpoint(server.port, shows).connect().await else { return false };
        Client::new(channel).info(InfoRequest {}).await.is_ok()
    };
    let (of_theirs, of_others) = (clients.sign(), others.sign());
    assert!(is_served(Some(&of_theirs)).await, "{}", server.log());
    assert!(!is_served(None).await);
    assert!(!is_served(Some(&of_others)).await);
    assert!(is_served(Some(&of_theirs)).await, "{}", server.log());
    // Whom it trusts is followed as well.
    all(&others);
    eventually("the others to be trusted", async || is_served(Some(&of_others)).await).await;
    assert!(!is_served(Some(&of_theirs)).await);
    // The probe needs no certificate.
    assert_eq!(server.admin_health(SERVICE).await, Some(ServingStatus::Serving));
}

/// Waits until the server closes, and gives what it said.
async fn last_words(mut stream: impl tokio::io::AsyncRead + Unpin) -> Vec<u8> {
    let mut said = Vec::new();
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await;
    assert!(end.is_ok(), "the connection stays");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_something_else_or_nothing_is_dropped_with_a_word_in_the_debug_log_only() {
    let authority = Authority::new();
    let signed = authority.sign();
    let secret = Secret::new(&signed.cert, &signed.key);
    let mut settings = secret.settings();
    settings.push(("RUST_LOG", "info,featurestore::server=debug".to_owned()));
    let (tls, plain) = (serve(&settings).await, Binary::start(&[("RUST_LOG", "info,featurestore::server=debug")]));
    plain.until_serving().await;

    // These say nothing, before the handshake and after it, and are given some seconds.
    let silent = [tls.port, plain.port].map(|port| {
        tokio::spawn(async move { last_words(TcpStream::connect(("127.0.0.1", port)).await.unwrap()).await })
    });
    let greeted = tokio::spawn(last_words(authority.connect(tls.port, &["h2"]).await.unwrap()));

    assert!(Client::connect(tls.url()).await.is_err() || tls.health("").await.is_none(), "plaintext to a TLS port");
    assert!(authority.connect(plain.port, &["h2"]).await.is_err(), "TLS to a plaintext port");
    for port in [tls.port, plain.port] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        last_words(stream).await;
    }
    assert!(authority.connect(tls.port, &["http/1.1"]).await.is_err(), "no HTTP/2 is asked for");
    // A client that names no protocol at all is let in by rustls, and dropped by us.
    last_words(authority.connect(tls.port, &[]).await.unwrap()).await;

    for silent in silent {
        silent.await.unwrap();
    }
    greeted.await.unwrap();
    another_is_served(&plain).await;
    let mut client = Client::new(authority.channel(tls.port).await);
    put(&mut client, record("a", [])).await;
    for server in [&tls, &plain] {
        let log = server.log();
        assert!(log.contains("a connection broke") && log.contains("did not finish the handshake in time"), "{log}");
        assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    }
}

#[test]
fn certificates_that_are_no_good_at_the_start_are_one_clear_line_and_exit_code_64() {
    let (authority, data) = (Authority::new(), temp_dir());
    let (one, other) = (authority.sign(), authority.sign());
    let data = data.path().join("data").display().to_string();
    let refused = |secret: &Secret, more: &[(&'static str, &str)]| {
        let mut settings = secret.settings();
        settings.push(("FEATURESTORE_DATA_DIR", data.clone()));
        settings.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let output = run(&["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"], &borrowed(&settings));
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
        assert!(!std::path::Path::new(&data).exists(), "nothing was begun");
        errors
    };
    let told = refused(&Secret::new(&one.cert, &other.key), &[]);
    assert!(told.contains("tls.key_file: ") && told.contains("tls.crt (tls.cert_file)"), "{told}");
    let told = refused(&Secret::new("no certificate", &one.key), &[]);
    assert!(told.contains("tls.cert_file: ") && told.contains("tls.crt: there is no certificate in it"), "{told}");
    let told = refused(&Secret::new(&one.cert, &one.key), &[("FEATURESTORE_TLS_CLIENT_CA_FILE", "/nowhere/ca.crt")]);
    assert!(told.contains("tls.client_ca_file: /nowhere/ca.crt: it cannot be read"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tls_health_is_told_in_plaintext_on_the_admin_port() {
    let authority = Authority::new();
    let signed = authority.sign();
    let secret = Secret::new(&signed.cert, &signed.key);
    let mut settings = secret.settings();
    settings.push(("FEATURESTORE_DRAIN_DELAY", "50s".to_owned()));
    let mut server = serve(&settings).await;
    let admin = format!("127.0.0.1:{}", server.admin_port);
    let probe = async |service: &str, serves: bool| {
        let mut settings = settings.clone();
        settings.push(("FEATURESTORE_LISTEN", server.address()));
        settings.push(("FEATURESTORE_ADMIN_LISTEN", admin.clone()));
        let output = run(&["health", service], &borrowed(&settings));
        assert_eq!(output.status.success(), serves, "{output:?}");
        if let Some(probe) = tools::health_probe(&["-addr", &admin, "-service", service]).await {
            assert_eq!(probe.success, serves, "{probe:?}");
        }
    };
    for service in ["", SERVICE, "l1", "l2"] {
        probe(service, true).await;
    }
    // Over HTTP/1 and over TLS all is as before.
    assert!(server.metrics().await.starts_with("HTTP/1.1 200 OK"));
    let mut client = tonic_health::pb::health_client::HealthClient::new(authority.channel(server.port).await);
    let request = tonic_health::pb::HealthCheckRequest { service: SERVICE.to_owned() };
    assert_eq!(client.check(request).await.unwrap().into_inner().status(), ServingStatus::Serving);

    server.signal("TERM");
    eventually("the drain", async || server.admin_health("").await == Some(ServingStatus::NotServing)).await;
    probe(SERVICE, false).await;
    server.signal("TERM");
    assert_eq!(server.exit_code(PATIENCE), 130, "a second signal ends it at once");
}
