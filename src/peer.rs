//! Finds out what answers at an address after a connection to a backend failed. Where TLS meets
//! plaintext, the drivers report only "broken pipe" or "did not answer in time"; a few bytes show
//! which of them is there.

use std::{sync::Arc, time::Duration};

use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::ring, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// How long one question may take.
const PATIENCE: Duration = Duration::from_millis(400);
const MAX_ANSWER: usize = 4 << 10;
/// The first bytes of TLS records: an alert, or a part of a handshake.
const TLS_RECORDS: [u8; 2] = [0x15, 0x16];

/// Sends a few bytes, and returns the beginning of the answer. None: there is none in time.
pub(crate) async fn ask(host: &str, port: u16, question: &[u8]) -> Option<Vec<u8>> {
    let asked = async {
        let mut stream = TcpStream::connect((host, port)).await.ok()?;
        // The peer may have sent an answer and closed the connection already.
        let _ = stream.write_all(question).await;
        let mut answer = vec![0; MAX_ANSWER];
        let read = stream.read(&mut answer).await.ok()?;
        answer.truncate(read);
        (read > 0).then_some(answer)
    };
    timeout(PATIENCE, asked).await.ok()?
}

/// Whether the address speaks TLS.
pub(crate) async fn speaks_tls(host: &str, port: u16) -> bool {
    let Some(hello) = client_hello() else { return false };
    ask(host, port, &hello).await.is_some_and(|answer| TLS_RECORDS.contains(&answer[0]))
}

fn client_hello() -> Option<Vec<u8>> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().ok()?;
    // No certificate is trusted: the connection ends with the first answer.
    let config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").ok()?).ok()?;
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).ok()?;
    Some(hello)
}
