//! TLS on the gRPC port: rustls with ring, HTTP/2 only. The files are read again from time to time,
//! because Kubernetes swaps symlinks. A new pair that is good is used for new connections; a bad
//! one is logged once, and the last good one stays in use.

use std::{
    fmt::{self, Display},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::{
    InconsistentKeys, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use crate::access::reload::Reload;

const HTTP2: &[u8] = b"h2";
/// After this time files that make a bad pair are read again: one may have been new and the other
/// not yet.
const SECOND_LOOK: Duration = Duration::from_millis(200);

/// Whether the client asked for HTTP/2. rustls has refused a client that names other protocols
/// only, but not one that names none.
pub(super) fn asks_for_http2(stream: &TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(HTTP2)
}

/// The files of certificates, all PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate of the server and its chain.
    pub cert_file: PathBuf,
    /// The key of that certificate.
    pub key_file: PathBuf,
    /// The CAs that may sign client certificates. None: clients need no certificate.
    pub client_ca_file: Option<PathBuf>,
    /// How often they are read again.
    pub reload_interval: Duration,
}

/// What is wrong with a file; begins with the key that names it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

impl TlsError {
    fn new(key: &str, file: &Path, what: impl Display) -> Self {
        Self(format!("{key}: {}: {what}", file.display()))
    }
}

/// The TLS settings in use; clones share them.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    files: TlsFiles,
    provider: Arc<CryptoProvider>,
    current: ArcSwap<ServerConfig>,
    /// The contents that `current` was made of at first.
    first: Contents,
    /// When the certificate of `current` ends, in seconds since 1970.
    not_after: AtomicI64,
    /// Whether the files are bad now, so that `current` is older than they are.
    is_failing: AtomicBool,
}

struct Made {
    config: ServerConfig,
    /// When the certificate ends, in seconds since 1970.
    not_after: i64,
}

#[derive(Clone, PartialEq, Eq)]
struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Tls {
    /// Reads the files, which must be good.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let first = read(&files)?;
        let Made { config, not_after } = server_config(&files, &first, &provider)?;
        let (current, not_after) = (ArcSwap::from_pointee(config), AtomicI64::new(not_after));
        let tls =
            Self(Arc::new(Inner { files, provider, current, first, not_after, is_failing: AtomicBool::new(false) }));
        tls.warn_if_expired();
        Ok(tls)
    }

    /// Whether clients must show a certificate (mTLS).
    pub(super) fn needs_client_certificate(&self) -> bool {
        self.0.files.client_ca_file.is_some()
    }

    /// When the certificate that is in use ends, in seconds since 1970.
    pub(super) fn not_after(&self) -> i64 {
        self.0.not_after.load(Relaxed)
    }

    /// Whether the files were bad when they were read last, so that an older certificate is in use.
    pub(super) fn is_failing(&self) -> bool {
        self.0.is_failing.load(Relaxed)
    }

    /// An expired certificate is used all the same: clients that do not check the time are served,
    /// and all others report it.
    fn warn_if_expired(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
        let ago = now.saturating_sub(self.not_after());
        if ago > 0 {
            let file = self.0.files.cert_file.display();
            tracing::warn!(%file, ago = ?Duration::from_secs(ago as u64), "the certificate of tls.cert_file has expired: clients will refuse it");
        }
    }

    /// Does the TLS handshake with a client. The caller bounds the time.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.0.current.load_full()).accept(stream).await
    }

    /// Follows the files until `stop`: reads them from time to time, and when a reload is
    /// requested.
    pub(super) async fn follow(self, stop: CancellationToken, mut reload: Reload) {
        let files = &self.0.files;
        let mut seen = Ok(self.0.first.clone());
        loop {
            let is_asked = tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(files.reload_interval) => false,
                () = reload.asked() => true,
            };
            let mut now = self.read_files().await;
            if now == seen && !is_asked {
                continue;
            }
            let mut made = self.make(&now);
            if made.is_err() {
                tokio::time::sleep(SECOND_LOOK).await;
                now = self.read_files().await;
                made = self.make(&now);
            }
            self.0.is_failing.store(made.is_err(), Relaxed);
            match made {
                Ok(_) if now == seen => {
                    let file = files.cert_file.display();
                    tracing::info!(%file, "the certificates were read again, and have not changed");
                }
                Ok(Made { config, not_after }) => {
                    self.0.current.store(Arc::new(config));
                    self.0.not_after.store(not_after, Relaxed);
                    self.warn_if_expired();
                    tracing::info!(file = %files.cert_file.display(), "new certificates are in use for new connections");
                }
                Err(error) => tracing::warn!(%error, "the new certificates are bad: the old ones stay in use"),
            }
            seen = now;
        }
    }

    async fn read_files(&self) -> Result<Contents, TlsError> {
        let files = self.0.files.clone();
        let contents = tokio::task::spawn_blocking(move || read(&files)).await;
        contents.unwrap_or_else(|error| Err(TlsError(format!("the files were not read: {error}"))))
    }

    fn make(&self, contents: &Result<Contents, TlsError>) -> Result<Made, TlsError> {
        match contents {
            Ok(contents) => server_config(&self.0.files, contents, &self.0.provider),
            Err(TlsError(error)) => Err(TlsError(error.clone())),
        }
    }
}

fn read(files: &TlsFiles) -> Result<Contents, TlsError> {
    let read = |key: &str, file: &Path| {
        std::fs::read(file).map_err(|error| TlsError::new(key, file, format_args!("it cannot be read: {error}")))
    };
    Ok(Contents {
        cert: read("tls.cert_file", &files.cert_file)?,
        key: read("tls.key_file", &files.key_file)?,
        client_ca: files.client_ca_file.as_deref().map(|file| read("tls.client_ca_file", file)).transpose()?,
    })
}

fn server_config(files: &TlsFiles, contents: &Contents, provider: &Arc<CryptoProvider>) -> Result<Made, TlsError> {
    let chain = certificates("tls.cert_file", &files.cert_file, &contents.cert)?;
    let leaf = chain.first().cloned();
    let wrong_key = |what: &dyn Display| TlsError::new("tls.key_file", &files.key_file, what);
    let key = PrivateKeyDer::from_pem_slice(&contents.key).map_err(|error| match error {
        pem::Error::NoItemsFound => wrong_key(&"there is no private key in it (PEM: PRIVATE KEY)"),
        // The text of the error may quote the file, which is secret.
        _ => wrong_key(&"it is not a PEM file"),
    })?;
    let unreadable = |error: &dyn fmt::Debug| {
        TlsError::new("tls.cert_file", &files.cert_file, format_args!("a certificate cannot be read: {error:?}"))
    };
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError(format!("TLS: {error}")))?;
    let builder = match (&files.client_ca_file, &contents.client_ca) {
        (Some(file), Some(pem)) => {
            let wrong_ca = |error: &dyn Display| TlsError::new("tls.client_ca_file", file, error);
            let mut roots = RootCertStore::empty();
            for certificate in certificates("tls.client_ca_file", file, pem)? {
                roots.add(certificate).map_err(|error| wrong_ca(&error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
            builder.with_client_cert_verifier(verifier.build().map_err(|error| wrong_ca(&error))?)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => wrong_key(&format_args!(
            "this is not the key of the certificate in {} (tls.cert_file)",
            files.cert_file.display()
        )),
        rustls::Error::InvalidCertificate(error) => unreadable(&error),
        error => wrong_key(&error),
    })?;
    config.alpn_protocols = vec![HTTP2.to_vec()];
    let (_, leaf) =
        x509_parser::parse_x509_certificate(leaf.as_deref().unwrap_or_default()).map_err(|error| unreadable(&error))?;
    Ok(Made { config, not_after: leaf.validity().not_after.timestamp() })
}

fn certificates(key: &str, file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|_| TlsError::new(key, file, "it is not a PEM file"))?;
    if found.is_empty() {
        return Err(TlsError::new(key, file, "there is no certificate in it (PEM: CERTIFICATE)"));
    }
    Ok(found)
}
