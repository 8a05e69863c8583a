//! The tokens file: the callers, their tokens and their rights.
//!
//! ```toml
//! [[tokens]]
//! name = "scoring"                      # for the log; not secret
//! sha256 = ["9f86d0...", "60303a..."]   # of the token; two while one replaces the other
//! read = ["credit_*", "default"]        # feature views: a name, or a prefix and a star
//! write = ["credit_scores"]
//! delete = []
//! admin = []                            # read, write and delete
//! ```

use std::sync::Arc;

use ring::rand::SecureRandom as _;
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};

use super::{Caller, Right, Views};

/// A SHA-256 of a token.
pub type Digest = [u8; 32];

/// The prefix of every token, so that people and secret scanners recognize a leaked one.
const PREFIX: &str = "fst_";
/// 6 bits each, so a token has 258 bits.
const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const TOKEN_LETTERS: usize = 43;
/// While one token replaces another, both are valid.
const TOKENS_AT_ONCE: usize = 2;

/// Makes a new token. None: the system has no random numbers.
pub fn generate() -> Option<String> {
    let mut random = [0; TOKEN_LETTERS];
    ring::rand::SystemRandom::new().fill(&mut random).ok()?;
    let letter = |byte: u8| char::from(LETTERS[usize::from(byte) % LETTERS.len()]);
    Some(PREFIX.chars().chain(random.into_iter().map(letter)).collect())
}

/// The hash that the file has in place of the token.
pub fn digest(token: &[u8]) -> Digest {
    let mut digest = Digest::default();
    digest.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, token).as_ref());
    digest
}

/// The digest as the file has it: 64 hexadecimal digits.
pub fn hex(digest: &Digest) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The content of a valid tokens file.
#[derive(Debug, Default)]
pub struct Tokens {
    by_digest: Vec<(Digest, Arc<Caller>)>,
    callers: Vec<Arc<Caller>>,
}

impl Tokens {
    /// Parses the file. The error has a line for everything that is wrong, and quotes nothing of
    /// the file except names: somebody may have put a token itself into it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let line =
                text.get(..error.span().map_or(0, |span| span.start)).unwrap_or_default().matches('\n').count() + 1;
            format!("line {line}: {}", error.message())
        })?;
        let mut reading = Reading::default();
        reading.file(table);
        let Reading { tokens, errors } = reading;
        if errors.is_empty() { Ok(tokens) } else { Err(errors.join("\n")) }
    }

    /// The caller of a token. All digests are compared, each in constant time, so that the time
    /// says nothing about them.
    pub(super) fn find(&self, digest: &Digest) -> Option<&Arc<Caller>> {
        let mut found = 0;
        for (number, (known, _)) in (1u32..).zip(&self.by_digest) {
            found.conditional_assign(&number, known.ct_eq(digest));
        }
        let place = found.checked_sub(1)?;
        self.by_digest.get(place as usize).map(|(_, caller)| caller)
    }

    /// All callers.
    pub fn callers(&self) -> impl Iterator<Item = &Caller> {
        self.callers.iter().map(|caller| &**caller)
    }
}

#[derive(Default)]
struct Reading {
    tokens: Tokens,
    errors: Vec<String>,
}

impl Reading {
    fn file(&mut self, table: toml::Table) {
        for (key, value) in table {
            match (key.as_str(), value) {
                ("tokens", toml::Value::Array(entries)) => {
                    for (index, entry) in entries.into_iter().enumerate() {
                        self.entry(index, entry);
                    }
                }
                ("tokens", _) => self.errors.push("tokens: must be tables, each begun by [[tokens]]".to_owned()),
                (key, _) => self.errors.push(format!("{key}: there is no such key; each token begins with [[tokens]]")),
            }
        }
        if self.errors.is_empty() && self.tokens.by_digest.is_empty() {
            self.errors.push("it has no token, so nobody could call: add one that begins with [[tokens]]".to_owned());
        }
    }

    fn entry(&mut self, index: usize, entry: toml::Value) {
        let toml::Value::Table(mut entry) = entry else {
            return self.errors.push(format!("tokens[{index}]: must be a table"));
        };
        let place = match entry.remove("name") {
            Some(toml::Value::String(name)) if is_name(&name) => name,
            _ => {
                let why = "must be 1 to 64 letters, digits, _, -, . or @";
                return self.errors.push(format!("tokens[{index}].name: {why}"));
            }
        };
        if self.tokens.callers().any(|caller| caller.name == place) {
            self.errors.push(format!("tokens[{index}].name: {place:?} is used twice"));
        }
        let digests = self.digests(&place, entry.remove("sha256"));
        let rights = Right::ALL.map(|right| self.views(&place, right, entry.remove(right.name())));
        for key in entry.keys() {
            self.errors.push(format!("{place}.{key}: there is no such key"));
        }
        let caller = Arc::new(Caller { name: place, rights });
        for digest in digests {
            if self.tokens.find(&digest).is_some() {
                self.errors.push(format!("{}.sha256: the same token is used twice", caller.name));
            }
            self.tokens.by_digest.push((digest, caller.clone()));
        }
        self.tokens.callers.push(caller);
    }

    fn digests(&mut self, place: &str, value: Option<toml::Value>) -> Vec<Digest> {
        let texts = match value {
            Some(toml::Value::Array(texts)) if (1..=TOKENS_AT_ONCE).contains(&texts.len()) => texts,
            _ => {
                let why = "must be a list of one or two SHA-256 of tokens; `featurestore token new` makes them";
                self.errors.push(format!("{place}.sha256: {why}"));
                return Vec::new();
            }
        };
        let read = texts.iter().map(|text| text.as_str().and_then(unhex));
        let read: Vec<Option<Digest>> = read.collect();
        for (at, digest) in read.iter().enumerate() {
            // The value is not shown: it may be the token itself.
            if digest.is_none() {
                self.errors.push(format!("{place}.sha256[{at}]: must be 64 hexadecimal digits"));
            }
            if *digest == Some(self::digest(b"")) {
                self.errors
                    .push(format!("{place}.sha256[{at}]: is the SHA-256 of nothing: make a token by `token new`"));
            }
        }
        read.into_iter().flatten().collect()
    }

    fn views(&mut self, place: &str, right: Right, value: Option<toml::Value>) -> Vec<Views> {
        let texts = match value {
            None => return Vec::new(),
            Some(toml::Value::Array(texts)) => texts,
            Some(_) => {
                self.errors
                    .push(format!("{place}.{}: must be a list of feature views, as [\"credit_*\"]", right.name()));
                return Vec::new();
            }
        };
        let mut views = Vec::new();
        for (at, text) in texts.iter().enumerate() {
            match text.as_str().and_then(pattern) {
                Some(pattern) => views.push(pattern),
                None => self.errors.push(format!(
                    "{place}.{}[{at}]: must be the name of a feature view, a prefix and a star (credit_*), or *",
                    right.name()
                )),
            }
        }
        views
    }
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.@".contains(&byte))
}

fn pattern(text: &str) -> Option<Views> {
    let (name, starred) = text.strip_suffix('*').map_or((text, false), |beginning| (beginning, true));
    let letters = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    let begins = name.bytes().next().map_or(starred, |byte| byte.is_ascii_lowercase());
    (letters && begins).then(|| if starred { Views::Beginning(name.to_owned()) } else { Views::One(name.to_owned()) })
}

fn unhex(text: &str) -> Option<Digest> {
    let mut digest = Digest::default();
    if text.len() != 2 * digest.len() || !text.is_ascii() {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, tokens: &[&str], rest: &str) -> String {
        let digests: Vec<String> = tokens.iter().map(|token| hex(&digest(token.as_bytes()))).collect();
        format!("[[tokens]]\nname = {name:?}\nsha256 = {digests:?}\n{rest}\n")
    }

    #[test]
    fn each_of_two_tokens_brings_the_same_rights() {
        let text = entry("a", &["one", "two"], "read = [\"credit_*\"]\nwrite = [\"credit_x\"]")
            + &entry("b", &["three"], "admin = [\"*\"]");
        let tokens = Tokens::parse(&text).unwrap();
        let find = |token: &str| tokens.find(&digest(token.as_bytes()));
        for token in ["one", "two"] {
            let caller = find(token).unwrap();
            assert_eq!(caller.name(), "a");
            assert!(caller.may(Right::Read, "credit_x") && caller.may(Right::Read, "credit_"));
            assert!(!caller.may(Right::Read, "credi") && !caller.may(Right::Read, "other"));
            assert!(caller.may(Right::Write, "credit_x") && !caller.may(Right::Write, "credit_xy"));
            assert!(!caller.may(Right::Delete, "credit_x") && !caller.may(Right::Admin, "credit_x"));
        }
        let all = find("three").unwrap();
        assert!(Right::ALL.into_iter().all(|right| all.may(right, "anything")));
        assert!(find("").is_none() && find("four").is_none());
        assert!(find(&hex(&digest(b"one"))).is_none(), "its SHA-256 is no token");
    }

    #[test]
    fn everything_that_is_wrong_is_told_and_no_secret() {
        let good = entry("a", &["one"], "");
        for (text, told) in [
            (String::new(), "no token"),
            ("tokens = 5".to_owned(), "[[tokens]]"),
            ("token = []".to_owned(), "token: there is no such key"),
            (good.clone() + "x = \"canary\ny", "line 6"),
            (good.clone() + &entry("a", &["two"], ""), "twice"),
            (good.clone() + &entry("b", &["one"], ""), "b.sha256: the same token"),
            (entry("a", &[], ""), "a.sha256: must be a list"),
            (entry("a", &["1", "2", "3"], ""), "a.sha256: must be a list"),
            (entry("a", &[""], ""), "of nothing"),
            (entry("a b", &["1"], ""), "tokens[0].name"),
            (entry("a", &["1"], "raed = []"), "a.raed: there is no such key"),
            (entry("a", &["1"], "read = \"*\""), "a.read: must be a list"),
            (entry("a", &["1"], "read = [\"x\", \"c*t\"]\nwrite = [\"\"]"), "a.read[1]"),
            (entry("a", &["1"], "read = [\"x\", \"c*t\"]\nwrite = [\"\"]"), "a.write[0]"),
            ("[[tokens]]\nname = \"a\"\nsha256 = [\"canary\"]".to_owned(), "a.sha256[0]: must be 64"),
        ] {
            let error = Tokens::parse(&text).unwrap_err();
            assert!(error.contains(told) && !error.contains("canary"), "{text}: {error}");
        }
    }

    #[test]
    fn new_tokens_differ_and_are_long() {
        let (one, other) = (generate().unwrap(), generate().unwrap());
        assert_ne!(one, other);
        assert_eq!(one.len(), 47);
        assert_eq!(hex(&digest(b"abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(unhex(&hex(&digest(b"abc"))), Some(digest(b"abc")));
    }
}
