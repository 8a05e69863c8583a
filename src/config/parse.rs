//! Parses texts into typed values. An error is recorded with its key and source, and a valid value
//! takes the place of the bad one, so that one start reports every error.

use std::{fmt::Display, net::SocketAddr, ops::RangeInclusive, str::FromStr, time::Duration};

use super::{
    ConfigErrors,
    sources::{Gathered, Setting, Settings, THE_DEFAULTS, is_secret},
};

pub(super) struct Parser {
    settings: Settings,
    defaults: Settings,
    errors: Vec<String>,
    warnings: Vec<String>,
    notices: Vec<String>,
}

impl Parser {
    pub(super) fn new(Gathered { settings, defaults, errors, warnings, notices }: Gathered) -> Self {
        Self { settings, defaults, errors, warnings, notices }
    }

    pub(super) fn warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    pub(super) fn notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    /// Records that a setting is not used, although it is right to set it.
    pub(super) fn note(&mut self, notice: impl Display) {
        self.notices.push(notice.to_string());
    }

    /// Records that a setting probably does not do what was meant.
    pub(super) fn warn(&mut self, warning: impl Display) {
        self.warnings.push(warning.to_string());
    }

    /// Whether it is set to something else than its default.
    pub(super) fn is_changed(&self, key: &str) -> bool {
        self.settings.get(key).is_some_and(|Setting { text, source }| {
            source != THE_DEFAULTS && !text.is_empty() && self.defaults.get(key).is_none_or(|of| of.text != *text)
        })
    }

    /// Whether it is set, even to its default.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.settings.get(key).is_some_and(|setting| setting.source != THE_DEFAULTS)
    }

    pub(super) fn finish(self) -> Result<(), ConfigErrors> {
        if self.errors.is_empty() { Ok(()) } else { Err(ConfigErrors(self.errors)) }
    }

    /// The settings in effect as TOML, with secrets redacted.
    pub(super) fn shown(&self) -> String {
        let shown = |(key, setting): (&String, &Setting)| {
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

    /// A key without a default. An empty value is an error: the operator who sets it expects
    /// something else than what the absence of the key means.
    pub(super) fn optional(&mut self, key: &str) -> Option<String> {
        let text = self.settings.get(key).map(|setting| setting.text.clone())?;
        if text.is_empty() {
            self.wrong(key, "is empty: give it a value, or do not set it");
            return None;
        }
        Some(text)
    }

    /// The same for a key that counts as not set if it is empty.
    pub(super) fn unless_empty(&self, key: &str) -> Option<String> {
        self.settings.get(key).map(|setting| setting.text.clone()).filter(|text| !text.is_empty())
    }

    pub(super) fn text(&mut self, key: &str) -> String {
        let text = self.unless_empty(key).unwrap_or_default();
        if text.is_empty() {
            self.wrong(key, "must not be empty: give it a value, or do not set it");
        }
        text
    }

    pub(super) fn address(&mut self, key: &str) -> SocketAddr {
        let text = self.text(key);
        self.parsed(key, &text, "an IP address and a port, for example 127.0.0.1:50051")
            .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    pub(super) fn boolean(&mut self, key: &str) -> bool {
        self.one_of(key, &[("true", true), ("false", false), ("1", true), ("0", false)])
    }

    pub(super) fn count(&mut self, key: &str, bounds: RangeInclusive<u32>) -> usize {
        let text = self.text(key);
        let count = self.parsed::<u32>(key, &text, "a whole number").unwrap_or(*bounds.start());
        self.within(key, count, bounds, |count| count.to_string()) as usize
    }

    pub(super) fn size(&mut self, key: &str, bounds: RangeInclusive<usize>) -> usize {
        let text = self.text(key);
        let size = self.parsed::<bytesize::ByteSize>(key, &text, "a size with its unit, for example 64MiB");
        let size = size.map_or(*bounds.start(), |size| usize::try_from(size.as_u64()).unwrap_or(usize::MAX));
        self.within(key, size, bounds, |size| bytesize::ByteSize(size as u64).display().iec().to_string())
    }

    pub(super) fn duration(&mut self, key: &str, bounds: RangeInclusive<Duration>) -> Duration {
        let text = self.text(key);
        let duration = self.parsed::<humantime::Duration>(key, &text, "a duration with its unit, for example 50ms");
        let duration = duration.map_or(*bounds.start(), Duration::from);
        self.within(key, duration, bounds, |duration| humantime::format_duration(duration).to_string())
    }

    fn within<T: PartialOrd + Copy>(
        &mut self,
        key: &str,
        value: T,
        bounds: RangeInclusive<T>,
        shown: impl Fn(T) -> String,
    ) -> T {
        let (least, most) = bounds.into_inner();
        if value < least {
            self.wrong(key, format!("must be at least {}", shown(least)));
            return least;
        }
        if value > most {
            self.wrong(key, format!("must be at most {}", shown(most)));
            return most;
        }
        value
    }

    pub(super) fn one_of<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> T {
        let text = self.text(key);
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) {
            return *choice;
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        self.wrong(key, format!("{text:?} is not one of {}", names.join(", ")));
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
