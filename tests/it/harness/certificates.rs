//! Certificates of a CA of the tests' own, as files.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use super::process::temp_dir;

/// A CA and one certificate of it, for this machine; the key is good for both sides of a connection.
pub struct Certificates {
    folder: TempDir,
}

impl Certificates {
    pub fn new() -> Self {
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        // Of another name than what it signs, or that would look as if it had signed itself.
        ca.distinguished_name.push(DnType::CommonName, format!("CA {:016x}", rand::random::<u64>()));
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        let names = ["127.0.0.1", "localhost"].map(str::to_owned);
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &ca).unwrap();
        let folder = temp_dir();
        let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
        write("ca.pem", ca.pem());
        write("cert.pem", certificate.pem());
        write("key.pem", key.serialize_pem());
        write("both.pem", certificate.pem() + &key.serialize_pem());
        Self { folder }
    }

    /// Who signed it.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    pub fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    /// The certificate and its key in one file, as MongoDB wants them.
    pub fn both(&self) -> PathBuf {
        self.folder.path().join("both.pem")
    }
}

/// A path as an option or a setting.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
