//! Signals other than those that stop it: none ends it.

use super::*;
use crate::{
    access::{TokensFile, entry, with},
    harness::tls::{Authority, Secret},
};

#[tokio::test(flavor = "multi_thread")]
async fn sighup_has_tokens_and_certificates_read_again_and_no_signal_of_its_kind_ends_it() {
    let (authority, tokens) = (Authority::new(), TokensFile::new(&[entry("a", &["old"], "admin = [\"*\"]")]));
    let signed = [authority.sign(), authority.sign()];
    let secret = Secret::new(&signed[0].cert, &signed[0].key);
    let mut settings = secret.settings();
    // It would not be looked at by itself while this test runs.
    settings.retain(|(name, _)| *name != "FEATURESTORE_TLS_RELOAD_INTERVAL");
    settings.push(("FEATURESTORE_TLS_RELOAD_INTERVAL", "1h".to_owned()));
    settings.push(("FEATURESTORE_AUTH_TOKENS_FILE", tokens.path()));
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let server = Binary::start(&settings);
    eventually("it to serve", async || server.log().contains("serving")).await;
    let says = async |words: &str| eventually(words, async || server.log().contains(words)).await;

    server.signal("HUP");
    says("auth.tokens_file was read again, and holds what it held before").await;
    says("the certificates were read again, and have not changed").await;
    assert_eq!(authority.shown(server.port).await, signed[0].der());

    secret.swap(&[("tls.crt", &signed[1].cert), ("tls.key", &signed[1].key)]);
    tokens.write(&entry("a", &["new"], "admin = [\"*\"]"));
    server.signal("HUP");
    says("new certificates are in use").await;
    says("auth.tokens_file has changed and is in use").await;
    assert_eq!(authority.shown(server.port).await, signed[1].der());
    let mut client = Client::new(authority.channel(server.port).await);
    client.get_features(with("new", get(["a"]))).await.unwrap();

    // A bad file is logged each time that somebody asks.
    secret.swap(&[("tls.crt", &signed[0].cert), ("tls.key", &signed[1].key)]);
    for times in 1..=2 {
        server.signal("HUP");
        let bad = || server.log().matches("the new certificates are bad").count();
        eventually("it to say that they are bad", async || bad() == times).await;
    }
    for signal in ["USR1", "USR2"] {
        server.signal(signal);
        says(&format!("SIG{signal} was received: this server does nothing at this signal")).await;
    }
    client.get_features(with("new", get(["a"]))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sigquit_drains_as_sigterm_does_and_sighup_meanwhile_does_not_end_it() {
    let mut server = Binary::start(&[("FEATURESTORE_DRAIN_DELAY", "1s")]);
    server.until_serving().await;
    server.signal("QUIT");
    eventually("it to drain", async || server.log().contains("draining")).await;
    server.signal("HUP");
    server.client().await.get_features(get(["a"])).await.unwrap();
    assert_eq!(server.exit_code(std::time::Duration::from_secs(60)), 0, "{}", server.log());
}
