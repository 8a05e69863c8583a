//! Who may do what: tokens and their rights, through a real server; and what the server itself needs of Redis and MongoDB,
//! over real ones that allow nothing more, and over TLS.

mod least_rights;
#[cfg(feature = "mongodb")]
mod least_rights_mongodb;
#[cfg(feature = "mongodb")]
mod tls;
mod tokens;

use featurestore::access::tokens::{digest, hex};
use tempfile::TempDir;
use tonic::Request;

use crate::harness::{
    client::*,
    process::temp_dir,
    server::{Server, eventually},
};

/// A tokens file, which a test writes again and again.
pub(crate) struct TokensFile(TempDir);

impl TokensFile {
    /// With these entries.
    pub(crate) fn new(entries: &[String]) -> Self {
        let file = Self(temp_dir());
        file.write(&entries.join("\n"));
        file
    }

    /// Puts another in its place, as an editor or a kubelet would.
    pub(crate) fn write(&self, text: &str) {
        let new = self.0.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.path()).unwrap();
    }

    pub(crate) fn path(&self) -> String {
        self.0.path().join("tokens.toml").to_str().unwrap().to_owned()
    }
}

/// Somebody in the file: name, tokens, and the lines of their rights.
pub(crate) fn entry(name: &str, tokens: &[&str], rights: &str) -> String {
    let digests: Vec<String> = tokens.iter().map(|token| hex(&digest(token.as_bytes()))).collect();
    format!("[[tokens]]\nname = {name:?}\nsha256 = {digests:?}\n{rights}\n")
}

/// A request with a token.
pub(crate) fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}
