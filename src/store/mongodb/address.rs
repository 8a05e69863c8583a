//! The connection string: checked at the start, and never shown with its credentials.

use mongodb::options::{ConnectionString, HostInfo, ServerAddress};

use crate::trace::Place;

/// Why a connection string was rejected. The text has no secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the MongoDB URI cannot be used: {0}")]
pub struct InvalidUri(String);

impl InvalidUri {
    pub(super) fn new(why: String) -> Self {
        Self(why)
    }
}

/// Options of other drivers, or of other builds of this one, with the reason for rejecting them.
const NOT_HERE: [(&str, &str); 8] = [
    ("compressors", "compression is not supported"),
    ("zlibCompressionLevel", "compression is not supported"),
    ("proxyHost", "proxies are not supported"),
    ("proxyPort", "proxies are not supported"),
    ("proxyUsername", "proxies are not supported"),
    ("proxyPassword", "proxies are not supported"),
    ("tlsAllowInvalidHostnames", "the host name in MongoDB's certificate is always checked"),
    ("tlsCertificateKeyFilePassword", "a key with a password is not supported"),
];

/// The texts of the driver for these are misleading: no such option, and then that there is one.
fn unsupported(uri: &str) -> Option<InvalidUri> {
    let options =
        uri.rsplit_once('?')?.1.split('&').map(|option| option.split_once('=').map_or(option, |(name, _)| name));
    let mut found = options.filter_map(|name| NOT_HERE.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)));
    let (name, why) = found.next()?;
    Some(InvalidUri(format!("{why}, so leave out its option {name}")))
}

/// Parses a connection string, without asking a server or DNS.
pub(super) fn parse(uri: &str) -> Result<ConnectionString, InvalidUri> {
    if let Some(unsupported) = unsupported(uri) {
        return Err(unsupported);
    }
    ConnectionString::parse(uri).map_err(|error| {
        // The driver repeats what it cannot parse, which may be a part of the password. So its text
        // is shown only for a URI without secrets: what precedes the last @ is replaced, and all is
        // parsed again.
        let Some((scheme, rest)) = uri.split_once("://") else {
            return InvalidUri("it must begin with mongodb:// or mongodb+srv://".to_owned());
        };
        let reason = match rest.rsplit_once('@') {
            None => reason(rest, &error),
            Some((who, open)) => {
                let has_password = who.split_once(':').is_some_and(|(_, password)| !password.is_empty());
                let who = if has_password { "user:password" } else { "user" };
                match ConnectionString::parse(format!("{scheme}://{who}@{open}")) {
                    Ok(_) => "user name and password must be percent-encoded".to_owned(),
                    Err(error) => reason(open, &error),
                }
            }
        };
        InvalidUri(reason)
    })
}

fn reason(open: &str, error: &mongodb::error::Error) -> String {
    let lower = open.to_lowercase();
    if ["password", "token", "authmechanismproperties"].iter().any(|secret| lower.contains(secret)) {
        return "see its options; they hold secrets, so the reason is not shown".to_owned();
    }
    error.kind.to_string()
}

/// The address of the database, without credentials.
pub(super) fn describe(uri: &ConnectionString, database: &str) -> String {
    match &uri.host_info {
        HostInfo::DnsRecord(name) => format!("mongodb+srv://{name}/{database}"),
        HostInfo::HostIdentifiers(hosts) => {
            let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
            format!("mongodb://{}/{database}", hosts.join(","))
        }
        _ => format!("mongodb:///{database}"),
    }
}

/// The address for traces; all servers if there are several, because the driver chooses one.
pub(super) fn place(uri: &ConnectionString, database: &str) -> Place {
    let (address, port) = match &uri.host_info {
        HostInfo::DnsRecord(name) => (name.clone(), None),
        HostInfo::HostIdentifiers(hosts) => match &hosts[..] {
            [ServerAddress::Tcp { host, port }] => (host.clone(), Some(port.unwrap_or(27017))),
            hosts => (hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(","), None),
        },
        _ => (String::new(), None),
    };
    Place { system: "mongodb", namespace: database.to_owned(), address, port }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_uri_is_refused_without_telling_the_password() {
        for (uri, reason) in [
            ("localhost:27017", "mongodb://"),
            ("redis://localhost", "scheme"),
            ("mongodb://user:hunter2@@host/", "percent-encoded"),
            ("mongodb://user:hun/ter2@host/", "percent-encoded"),
            ("mongodb://user:hunter2@host:port/", "port"),
            ("mongodb://user:hunter2@host/?maxPoolSize=many", "maxPoolSize"),
            ("mongodb://host/?authMechanismProperties=TOKEN:hunter2&maxPoolSize=many", "secrets"),
            ("mongodb://host/?tlsCertificateKeyFilePassword=hunter2&tls=true", "not supported"),
            (
                "mongodb://user:hunter2@host/?compressors=zstd",
                "compression is not supported, so leave out its option compressors",
            ),
            ("mongodb://user:hunter2@host/?w=majority&Compressors=zlib", "compression is not supported"),
            ("mongodb://user:hunter2@host/?zlibCompressionLevel=3", "compression is not supported"),
            ("mongodb://host/?proxyHost=hunter2", "proxies are not supported"),
        ] {
            let text = parse(uri).unwrap_err().to_string().to_lowercase();
            assert!(text.contains(&reason.to_lowercase()), "{uri}: {text}");
            assert!(!text.contains("ter2"), "{text}");
        }
        let uri = parse("mongodb://user:hunter2@a:1,b:2/?replicaSet=rs").unwrap();
        assert_eq!(describe(&uri, "features"), "mongodb://a:1,b:2/features");
        let place = place(&uri, "features");
        assert_eq!((place.address.as_str(), place.port), ("a:1,b:2", None));
    }
}
