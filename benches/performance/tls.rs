//! One certificate, for the server, its floor and the load.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The certificate, its key, and a client that trusts it.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    connector: TlsConnector,
}

impl Tls {
    /// A new one, in a folder.
    pub(crate) fn new(folder: &Path) -> Result<Self, String> {
        let (cert, key) = (folder.join("tls.crt"), folder.join("tls.key"));
        let CertifiedKey { cert: signed, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).map_err(text)?;
        std::fs::write(&cert, signed.pem()).map_err(text)?;
        std::fs::write(&key, signing_key.serialize_pem()).map_err(text)?;
        let mut roots = RootCertStore::empty();
        roots.add(signed.der().clone()).map_err(text)?;
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(text)?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { cert, key, connector: TlsConnector::from(Arc::new(config)) })
    }

    /// What our server is told to speak it.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("FEATURESTORE_TLS_CERT_FILE", self.cert.display().to_string()),
            ("FEATURESTORE_TLS_KEY_FILE", self.key.display().to_string()),
        ]
    }

    /// Greets a server.
    pub(crate) async fn connect(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, String> {
        let name = ServerName::try_from("localhost").map_err(text)?;
        self.connector.connect(name, stream).await.map_err(text)
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
