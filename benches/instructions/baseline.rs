//! The counts that stand, in a file, so that a commit which makes a call dearer says so.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

/// A case may differ this much from its baseline; runs of one binary differ by less than a thirtieth of it.
const TOLERANCE: f64 = 0.03;

const HEAD: &str =
    "# Instructions a call, written by `cargo bench --no-default-features --bench instructions -- --bless`.\n";

/// Counts, and what they were made with.
#[derive(Default)]
pub(crate) struct Baseline {
    /// What counts depend on beside our code.
    pub(crate) made_with: BTreeMap<String, String>,
    /// By case.
    pub(crate) counts: BTreeMap<String, u64>,
}

/// A count against the one that stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Same,
    Worse,
    Better,
    /// None stands.
    New,
}

impl Baseline {
    /// Reads the file. Where there is none yet, nothing stands.
    pub(crate) fn read() -> Result<Self, String> {
        let mut baseline = Self::default();
        let text = match fs::read_to_string(path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(baseline),
            text => text.map_err(|error| format!("baseline.tsv: {error}"))?,
        };
        for line in text.lines() {
            if let Some((what, with)) = line.strip_prefix("# with ").and_then(|rest| rest.split_once(": ")) {
                baseline.made_with.insert(what.to_owned(), with.to_owned());
            } else if !line.starts_with('#') {
                let entry = line.split_once('\t').and_then(|(case, count)| Some((case, count.parse().ok()?)));
                let (case, count) = entry.ok_or_else(|| format!("baseline.tsv: not a case and its count: {line:?}"))?;
                baseline.counts.insert(case.to_owned(), count);
            }
        }
        Ok(baseline)
    }

    /// Writes the file.
    pub(crate) fn write(&self) -> Result<(), String> {
        let with = self.made_with.iter().map(|(what, with)| format!("# with {what}: {with}\n"));
        let counts = self.counts.iter().map(|(case, count)| format!("{case}\t{count}\n"));
        let text: String = [HEAD.to_owned()].into_iter().chain(with).chain(counts).collect();
        fs::write(path(), text).map_err(|error| format!("baseline.tsv: {error}"))
    }

    /// Judges a count by the one that stands here.
    pub(crate) fn verdict(&self, case: &str, count: u64) -> Verdict {
        let Some(stands) = self.counts.get(case) else { return Verdict::New };
        match count as f64 / *stands as f64 {
            ratio if ratio > 1.0 + TOLERANCE => Verdict::Worse,
            ratio if ratio < 1.0 - TOLERANCE => Verdict::Better,
            _ => Verdict::Same,
        }
    }

    /// What this was made with and `other` was not.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let differs = |(what, _): &(&String, &String)| self.made_with.get(*what) != other.made_with.get(*what);
        let tell = |(what, now): (&String, &String)| {
            format!("{what}: {} and not {now}", self.made_with.get(what).map_or("?", String::as_str))
        };
        other.made_with.iter().filter(differs).map(tell).collect()
    }
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/instructions/baseline.tsv")
}
