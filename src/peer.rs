//! What answers at an address, asked when a connection to a backend failed: the drivers say "broken pipe" or "did not answer
//! in time" where TLS meets plaintext. A few bytes tell which of them is there.

use std::{sync::Arc, time::Duration};

use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::ring, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// How long one question may take.
const PATIENCE: Duration = Duration::from_millis(400);
/// Bytes of an answer at most.
const MAX_ANSWER: usize = 4 << 10;
/// What a TLS record begins with: an alert, or a part of a handshake.
const TLS_RECORDS: [u8; 2] = [0x15, 0x16];

/// Sends a few bytes, and gives the beginning of the answer; None: there is none in time.
pub(crate) async fn ask(host: &str, port: u16, question: &[u8]) -> Option<Vec<u8>> {
    let asked = async {
        let mut stream = TcpStream::connect((host, port)).await.ok()?;
        // It may have an answer already, and be closed.
        let _ = stream.write_all(question).await;
        let mut answer = vec![0; MAX_ANSWER];
        let read = stream.read(&mut answer).await.ok()?;
        answer.truncate(read);
        (read > 0).then_some(answer)
    };
    timeout(PATIENCE, asked).await.ok()?
}

/// Whether TLS is spoken there.
pub(crate) async fn speaks_tls(host: &str, port: u16) -> bool {
    let Some(hello) = client_hello() else { return false };
    ask(host, port, &hello).await.is_some_and(|answer| TLS_RECORDS.contains(&answer[0]))
}

/// What a client of TLS says first.
fn client_hello() -> Option<Vec<u8>> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().ok()?;
    // Nobody is trusted: the connection ends with the first answer.
    let config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").ok()?).ok()?;
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).ok()?;
    Some(hello)
}
