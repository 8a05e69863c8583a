//! The `OTEL_*` variables. They are read here and not by the SDK, which takes a value with its line
//! end and silently ignores what it cannot parse. No value is shown, except for variables that
//! cannot hold a secret.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    ops::RangeInclusive,
};

/// Parts of names for signals that this server does not send, and names that the operator of
/// Kubernetes sets: they are not meant for us.
const OF_OTHERS: [&str; 5] = ["METRIC", "_LOGS", "OTEL_LOG", "BLRP", "OTEL_RESOURCE_ATTRIBUTES_"];

/// The variables. An empty value counts as not set, as the specification requires.
#[derive(Debug, Default)]
pub(super) struct Variables {
    given: BTreeMap<String, String>,
    known: BTreeSet<String>,
    /// Errors; the server does not start with one.
    wrong: Vec<String>,
    /// Warnings for values that are not used, as the specification requires for unsupported ones.
    warnings: Vec<String>,
}

impl Variables {
    /// The variables of an environment, without the blanks and line ends around their values.
    pub(super) fn of(environment: impl IntoIterator<Item = (String, String)>) -> Self {
        let ours = environment.into_iter().filter(|(name, _)| name.starts_with("OTEL_"));
        let trimmed = ours.map(|(name, text)| (name, text.trim().to_owned()));
        Self { given: trimmed.filter(|(_, text)| !text.is_empty()).collect(), ..Self::default() }
    }

    /// The value. None: it is not set, or cannot be used.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        self.known.insert(name.to_owned());
        let text = self.given.get(name)?.clone();
        if text.chars().any(char::is_control) {
            self.wrong(name, "must not hold a control character such as a line end");
            return None;
        }
        Some(text)
    }

    /// The name and value of an option of the exporter. The name for traces wins over the general
    /// one.
    pub(super) fn exporter(&mut self, option: &str) -> Option<(String, String)> {
        let names = [format!("OTEL_EXPORTER_OTLP_TRACES_{option}"), format!("OTEL_EXPORTER_OTLP_{option}")];
        let found = names.map(|name| self.text(&name).map(|text| (name, text)));
        found.into_iter().flatten().next()
    }

    /// A whole number within bounds; any other value is a warning, and not used.
    pub(super) fn number(&mut self, name: &str, bounds: RangeInclusive<u64>) -> Option<u64> {
        let text = self.text(name)?;
        self.parsed(name, &text, bounds)
    }

    pub(super) fn exporter_number(&mut self, option: &str, bounds: RangeInclusive<u64>) -> Option<u64> {
        let (name, text) = self.exporter(option)?;
        self.parsed(&name, &text, bounds)
    }

    fn parsed(&mut self, name: &str, text: &str, bounds: RangeInclusive<u64>) -> Option<u64> {
        let number = text.parse().ok().filter(|number| bounds.contains(number));
        if number.is_none() {
            let (least, most) = bounds.into_inner();
            self.warn(name, format!("{text:?} is not a whole number from {least} to {most}, so the default is used"));
        }
        number
    }

    /// Whether it is true. A value that is neither true nor false is a warning, and false.
    pub(super) fn is_true(&mut self, name: &str) -> bool {
        match self.text(name) {
            Some(text) if text.eq_ignore_ascii_case("true") => true,
            Some(text) if !text.eq_ignore_ascii_case("false") => {
                self.warn(name, format!("{text:?} is neither true nor false, so false is used"));
                false
            }
            _ => false,
        }
    }

    /// Parses `name=value,name=value`, with percent-encoded values.
    pub(super) fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
        let entries = text.split(',').map(str::trim).enumerate().filter(|(_, entry)| !entry.is_empty());
        let pair = |(at, entry): (usize, &str)| {
            let pair = entry.split_once('=').map(|(name, value)| (name.trim(), decoded(value.trim())));
            match pair {
                Some((name, Some(value))) if !name.is_empty() => Ok((name.to_owned(), value)),
                // The value is not shown: it may be a secret.
                _ => Err(format!(
                    "must have the form name=value,name=value with percent-encoded values; entry number {} has not",
                    at + 1
                )),
            }
        };
        entries.map(pair).collect()
    }

    pub(super) fn wrong(&mut self, name: &str, why: impl Display) {
        self.wrong.push(format!("{name}: {why}"));
    }

    pub(super) fn warn(&mut self, name: &str, what: impl Display) {
        self.warnings.push(format!("{name}: {what}"));
    }

    pub(super) fn warn_all(&mut self, warnings: impl IntoIterator<Item = String>) {
        self.warnings.extend(warnings);
    }

    /// Warns of variables that are set and were never read.
    pub(super) fn warn_of_unknown(&mut self) {
        let is_unknown = |name: &&String| !self.known.contains(*name) && !OF_OTHERS.iter().any(|of| name.contains(of));
        let unknown: Vec<&str> = self.given.keys().filter(is_unknown).map(String::as_str).collect();
        if !unknown.is_empty() {
            let names = unknown.join(", ");
            let warning = format!(
                "these variables are not settings of this server and have no effect: {names}; see docs/observability.md"
            );
            self.warnings.push(warning);
        }
    }

    /// Returns the warnings, or all errors, one on each line.
    pub(super) fn finish(self) -> Result<Vec<String>, String> {
        if self.wrong.is_empty() { Ok(self.warnings) } else { Err(self.wrong.join("\n")) }
    }
}

/// Decodes percent-encoding. None: it is invalid, or the result is not UTF-8.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        match byte {
            b'%' => bytes.push((digit(rest.next())? << 4 | digit(rest.next())?) as u8),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(environment: &[(&str, &str)]) -> Variables {
        Variables::of(environment.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())))
    }

    #[test]
    fn blanks_and_line_ends_around_a_value_are_no_part_of_it_and_inside_they_are_refused() {
        let mut all = of(&[("OTEL_A", " x y\r\n"), ("OTEL_B", "\n"), ("OTEL_C", "x\ny"), ("OTEL_D", "TRUE\n")]);
        assert_eq!([all.text("OTEL_A").as_deref(), all.text("OTEL_B").as_deref()], [Some("x y"), None]);
        assert!(all.is_true("OTEL_D") && all.text("OTEL_C").is_none());
        assert_eq!(all.finish().unwrap_err(), "OTEL_C: must not hold a control character such as a line end");
    }

    #[test]
    fn the_option_for_traces_wins_unless_it_is_empty() {
        let (traces, all) = ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT");
        assert_eq!(of(&[(traces, "1"), (all, "2")]).exporter_number("TIMEOUT", 0..=9), Some(1));
        assert_eq!(of(&[(traces, "\n"), (all, "2\n")]).exporter_number("TIMEOUT", 0..=9), Some(2));
    }

    #[test]
    fn what_is_not_used_is_told_by_its_name() {
        let mut all = of(&[
            ("OTEL_N", "10"),
            ("OTEL_B", "yes"),
            ("OTEL_PROPAGATORS", "b3"),
            ("OTEL_METRICS_EXPORTER", "otlp"),
            ("OTEL_LOGS_EXPORTER", "none"),
        ]);
        assert_eq!((all.number("OTEL_N", 1..=9), all.is_true("OTEL_B")), (None, false));
        all.warn_of_unknown();
        let warnings = all.finish().unwrap();
        assert!(warnings[0].starts_with("OTEL_N: \"10\" is not a whole number from 1 to 9"), "{warnings:?}");
        assert!(warnings[1].starts_with("OTEL_B: \"yes\" is neither true nor false"), "{warnings:?}");
        assert!(warnings[2].contains("have no effect: OTEL_PROPAGATORS;") && warnings.len() == 3, "{warnings:?}");
    }

    #[test]
    fn pairs_are_percent_encoded_and_what_is_none_is_told_by_its_number() {
        let pairs = Variables::pairs("a = b%20c=,, d=%C3%A4,").unwrap();
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("a", "b c="), ("d", "ä")]);
        for wrong in ["a=b,canary", "a=b,=canary", "a=b,c=canary%2", "a=b,c=canary%zz", "a=b,c=canary%FF"] {
            let told = Variables::pairs(wrong).unwrap_err();
            assert!(told.contains("number 2") && !told.contains("canary"), "{wrong}: {told}");
        }
    }
}
