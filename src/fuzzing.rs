//! The functions of the fuzz targets. Each takes any bytes and panics if something is wrong. It is
//! beside the code that it tests, and may use its internals. `fuzz/` runs them with libFuzzer, and
//! a test here runs the kept inputs.
//!
//! Only with the feature `fuzzing`, or in tests. The server itself uses nothing of it.

#[cfg(feature = "redis")]
pub use crate::cache::redis::fuzzing::{packed, redis_url, replies};
pub use crate::{
    api::fuzzing::{decode, validate},
    cache::entry::fuzzing::entry,
    config::fuzzing::config,
    record::encoding::fuzzing::stored,
    store::embedded::fuzzing::envelope,
};

/// Messages as any client decodes them.
#[allow(missing_docs, unreachable_pub, dead_code, clippy::all, reason = "generated")]
pub(crate) mod client {
    include!(concat!(env!("OUT_DIR"), "/client/featurestore.v1.rs"));
}

/// Reads bytes as a sequence of choices. After their end everything is zero.
#[derive(Debug)]
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub(crate) fn number(&mut self) -> i64 {
        match self.byte() {
            small @ 0..=0xf7 => i64::from(small) - 16,
            len => {
                let mut number = [0; 8];
                for (to, from) in number.iter_mut().zip(self.bytes(usize::from(len - 0xf7))) {
                    *to = *from;
                }
                i64::from_le_bytes(number)
            }
        }
    }

    /// `len` bytes, or as many as are left.
    pub(crate) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(len.min(self.0.len()));
        self.0 = tail;
        head
    }

    /// A piece with its length before it, in one byte or, from 0xe0 on, in two.
    pub(crate) fn piece(&mut self) -> &'a [u8] {
        let len = match self.byte() {
            short @ 0..=0xdf => usize::from(short),
            high => usize::from(high - 0xe0) << 8 | usize::from(self.byte()),
        };
        self.bytes(len)
    }

    pub(crate) fn text(&mut self) -> String {
        String::from_utf8_lossy(self.piece()).into_owned()
    }

    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, panic, path::Path};

    use super::*;

    type Target = fn(&[u8]);

    const TARGETS: &[(&str, Target)] = &[
        ("config", config),
        ("decode", decode),
        ("entry", entry),
        ("envelope", envelope),
        #[cfg(feature = "redis")]
        ("packed", packed),
        #[cfg(feature = "redis")]
        ("redis_url", redis_url),
        #[cfg(feature = "redis")]
        ("replies", replies),
        ("stored", stored),
        ("validate", validate),
    ];

    /// So a bug that a fuzzer once found is seen everywhere, even where no fuzzer can be built.
    #[test]
    fn the_kept_inputs_of_the_fuzz_targets_do_no_harm() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let mut failed = Vec::new();
        for (name, target) in TARGETS {
            let folder = fs::read_dir(corpus.join(name)).unwrap_or_else(|error| panic!("fuzz/corpus/{name}: {error}"));
            let inputs: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
            assert!(inputs.len() >= 5, "where are the inputs of {name}?");
            for path in inputs {
                let input = fs::read(&path).unwrap();
                if panic::catch_unwind(|| target(&input)).is_err() {
                    failed.push(format!("fuzz/corpus/{name}/{}", path.file_name().unwrap().display()));
                }
            }
        }
        assert!(failed.is_empty(), "{failed:#?}");
    }

    #[test]
    fn every_target_is_built_run_and_replayed() {
        let manifest = include_str!("../fuzz/Cargo.toml");
        let mut built: Vec<&str> =
            manifest.lines().filter_map(|line| line.strip_prefix("path = \"fuzz_targets/")).collect();
        built.iter_mut().for_each(|path| *path = path.trim_end_matches(".rs\""));
        built.sort_unstable();
        if cfg!(feature = "redis") {
            assert_eq!(built, TARGETS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        }
    }
}
