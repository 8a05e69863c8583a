//! Certificates of a test's own, in a folder as Kubernetes mounts them: files are symlinks through one that is swapped.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::process::temp_dir;

/// Who signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Signed {
    pub cert: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority of the tests");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A new certificate for this machine.
    pub fn sign(&self) -> Signed {
        self.sign_until(4096)
    }

    /// The same, which ends when this year begins.
    pub fn sign_until(&self, year: i32) -> Signed {
        let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Signed { cert: cert.pem(), key: key.serialize_pem() }
    }

    /// A client of gRPC that trusts this authority, and shows a certificate if it has one.
    pub fn endpoint(&self, port: u16, shows: Option<&Signed>) -> Endpoint {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.pem)).domain_name("localhost");
        if let Some(Signed { cert, key }) = shows {
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        Endpoint::from_shared(format!("https://127.0.0.1:{port}")).unwrap().tls_config(tls).unwrap()
    }

    pub async fn channel(&self, port: u16) -> Channel {
        self.endpoint(port, None).connect().await.unwrap()
    }

    /// A connection below gRPC, which asks for these protocols.
    pub async fn connect(&self, port: u16, protocols: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
    }

    /// The certificate that a server shows now.
    pub async fn shown(&self, port: u16) -> CertificateDer<'static> {
        let stream = self.connect(port, &["h2"]).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    }
}

impl Signed {
    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.cert.as_bytes()).unwrap()
    }
}

/// A mounted secret.
pub struct Secret {
    folder: TempDir,
    versions: AtomicU32,
}

impl Secret {
    pub fn new(cert: &str, key: &str) -> Self {
        let secret = Self { folder: temp_dir(), versions: AtomicU32::new(0) };
        secret.swap(&[("tls.crt", cert), ("tls.key", key)]);
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            std::os::unix::fs::symlink(Path::new("..data").join(name), secret.folder.path().join(name)).unwrap();
        }
        secret
    }

    /// Swaps all files at once, as the kubelet does.
    pub fn swap(&self, files: &[(&str, &str)]) {
        let root = self.folder.path();
        let version = format!("..{}", self.versions.fetch_add(1, Relaxed));
        std::fs::create_dir(root.join(&version)).unwrap();
        for (name, text) in files {
            std::fs::write(root.join(&version).join(name), text).unwrap();
        }
        std::os::unix::fs::symlink(&version, root.join("..data_new")).unwrap();
        std::fs::rename(root.join("..data_new"), root.join("..data")).unwrap();
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What a server is told to serve with it.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("FEATURESTORE_TLS_CERT_FILE", self.file("tls.crt").display().to_string()),
            ("FEATURESTORE_TLS_KEY_FILE", self.file("tls.key").display().to_string()),
            ("FEATURESTORE_TLS_RELOAD_INTERVAL", "50ms".to_owned()),
        ]
    }
}
