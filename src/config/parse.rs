//! Texts into typed values. A bad one is noted with its key and where it came from, and a stand-in takes its place, so
//! that one run tells of every error.

use std::{fmt::Display, net::SocketAddr, str::FromStr, time::Duration};

use super::{
    ConfigErrors,
    sources::{Settings, is_secret},
};

/// More than anybody means, and far from what a clock cannot count.
const MAX_DURATION: Duration = Duration::from_secs(315_576_000_000);

pub(super) struct Parser {
    settings: Settings,
    errors: Vec<String>,
}

impl Parser {
    pub(super) fn new(settings: Settings, errors: Vec<String>) -> Self {
        Self { settings, errors }
    }

    pub(super) fn finish(self) -> Result<(), ConfigErrors> {
        if self.errors.is_empty() { Ok(()) } else { Err(ConfigErrors(self.errors)) }
    }

    /// What is in effect, as TOML, secrets redacted.
    pub(super) fn shown(&self) -> String {
        let shown = |(key, setting): (&String, &super::sources::Setting)| {
            let text = if is_secret(key) { "<redacted>" } else { setting.text.as_str() };
            let text = toml::Value::String(text.to_owned());
            format!("{key} = {text}  # from {}\n", setting.source)
        };
        self.settings.iter().map(shown).collect()
    }

    pub(super) fn wrong(&mut self, key: &str, why: impl Display) {
        let source = self.settings.get(key).map_or_else(String::new, |setting| format!(" (in {})", setting.source));
        self.errors.push(format!("{key}: {why}{source}"));
    }

    pub(super) fn optional(&mut self, key: &str) -> Option<String> {
        self.settings.get(key).map(|setting| setting.text.clone())
    }

    pub(super) fn text(&mut self, key: &str) -> String {
        let text = self.optional(key).unwrap_or_default();
        if text.is_empty() {
            self.wrong(key, "must not be empty");
        }
        text
    }

    pub(super) fn address(&mut self, key: &str) -> SocketAddr {
        let text = self.text(key);
        self.parsed(key, &text, "an IP address and a port, as 127.0.0.1:50051")
            .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    pub(super) fn boolean(&mut self, key: &str) -> bool {
        self.one_of(key, &[("true", true), ("false", false), ("1", true), ("0", false)])
    }

    pub(super) fn count(&mut self, key: &str) -> usize {
        let text = self.text(key);
        match self.parsed::<u32>(key, &text, "a whole number") {
            Some(0) => {
                self.wrong(key, "must be at least 1");
                1
            }
            number => number.unwrap_or(1) as usize,
        }
    }

    pub(super) fn count_or_zero(&mut self, key: &str) -> u32 {
        let text = self.text(key);
        self.parsed(key, &text, "a whole number").unwrap_or(0)
    }

    pub(super) fn size(&mut self, key: &str) -> usize {
        let text = self.text(key);
        let size = self.parsed::<bytesize::ByteSize>(key, &text, "a size with its unit, as 64MiB");
        match size.map(|size| usize::try_from(size.as_u64()).unwrap_or(usize::MAX)) {
            Some(0) => {
                self.wrong(key, "must be above zero");
                1
            }
            size => size.unwrap_or(1),
        }
    }

    pub(super) fn duration(&mut self, key: &str) -> Duration {
        let duration = self.duration_or_zero(key);
        if duration.is_zero() {
            self.wrong(key, "must be above zero");
            return Duration::from_millis(1);
        }
        duration
    }

    pub(super) fn duration_or_zero(&mut self, key: &str) -> Duration {
        let text = self.text(key);
        let duration = self.parsed::<humantime::Duration>(key, &text, "a duration with its unit, as 50ms, 2s, 7days");
        let duration = duration.map_or(Duration::from_millis(1), Duration::from);
        if duration > MAX_DURATION {
            self.wrong(key, "may be 10000 years at most");
            return MAX_DURATION;
        }
        duration
    }

    pub(super) fn one_of<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> T {
        let text = self.text(key);
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) {
            return *choice;
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        self.wrong(key, format!("{text:?} is none of {}", names.join(", ")));
        choices[0].1
    }

    fn parsed<T: FromStr>(&mut self, key: &str, text: &str, what: &str) -> Option<T> {
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.wrong(key, format!("{text:?} is not {what}"));
        }
        parsed
    }
}

/// For the user and password of a URL.
pub(super) fn percent_encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}
