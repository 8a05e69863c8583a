//! Fuzzes the configuration: a TOML file, and after a line `---` lines of the environment
//! (`NAME=value`) and of the command line (`--set key=value`, `--listen address`). Whatever they
//! are, the configuration is accepted, or rejected with the names of the keys, and no secret is
//! shown.

use std::{fs, path::PathBuf, time::Instant};

use super::{sources::is_secret, *};

/// Replaces the word SECRET in a file, and is appended to secrets in the environment and in
/// `--set`.
const SECRET: &str = "c4n4ry";

/// Loads a file, an environment and a command line.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data).replace("SECRET", SECRET);
    let (file, lines) = match text.strip_prefix("---\n") {
        Some(lines) => ("", lines),
        None => text.split_once("\n---\n").unwrap_or((&text, "")),
    };
    let kept = TextFile::new(file);
    let mut flags = Flags { config: Some(kept.0.clone()), ..Flags::default() };
    let mut environment = Vec::new();
    for line in lines.lines() {
        if let Some(set) = line.strip_prefix("--set ") {
            let is_secret = set.split_once('=').is_some_and(|(key, _)| is_secret(key));
            flags.set.push(if is_secret { format!("{set}{SECRET}") } else { set.replace(SECRET, "") });
        } else if let Some(address) = line.strip_prefix("--listen ") {
            flags.listen = Some(address.replace(SECRET, ""));
        } else if line == "--insecure-bind" {
            flags.insecure_bind = true;
        } else if let Some((name, value)) = line.split_once('=') {
            environment.push(setting(name, value, &kept));
        }
    }

    let loaded = Config::load(&flags, environment);
    let table = file.parse::<toml::Table>();
    let mut keys = keys_of(&flags);
    let mut may_tell = false;
    match &table {
        Ok(table) => leaves("", table, &mut |key, text| {
            may_tell |= key.contains(SECRET) || (text.contains(SECRET) && !is_secret(key));
            keys.push(key.to_owned());
        }),
        Err(_) => keys.push(format!("{}: line ", kept.0.display())),
    }
    match loaded {
        Err(ConfigErrors(errors)) => {
            assert!(!errors.is_empty(), "refused without an error");
            for error in errors {
                assert!(keys.iter().any(|key| error.starts_with(key)), "{error:?} names no key");
                assert!(may_tell || !error.contains(SECRET), "{error:?} tells a secret");
            }
        }
        Ok((config, effective)) => {
            table.expect("a file that is no TOML is refused");
            let told = format!("{config:?} {effective} {:?}", effective.warnings);
            assert!(may_tell || !told.contains(SECRET), "{told} tells a secret");
            check_taken(&config);
            let shown = TextFile::new(&effective.to_string());
            let again = Config::load(&Flags { config: Some(shown.0.clone()), ..Flags::default() }, []);
            let (again, _) =
                again.unwrap_or_else(|errors| panic!("what is in effect is refused: {errors}\n{effective}"));
            assert_eq!(format!("{again:?}"), format!("{config:?}"), "what is in effect gives something else");
        }
    }
}

/// Checks what the server relies on in a valid configuration.
fn check_taken(config: &Config) {
    let limits = &config.limits;
    assert!(limits.max_record_bytes < limits.max_request_bytes);
    assert!(
        limits.max_entities > 0 && limits.max_features > 0 && limits.max_bulk_records > 0 && config.max_in_flight > 0
    );
    assert!(config.default_ttl <= limits.max_ttl && config.l1_ttl < config.tombstone_ttl / 2);
    let deadlines = &config.deadlines;
    let durations = [config.l1_timeout, config.l1_slow, config.l1_ttl, config.tombstone_ttl, config.default_ttl];
    let durations = durations.into_iter().chain([limits.max_ttl, deadlines.read, deadlines.strong, deadlines.write]);
    for duration in durations.chain([config.drain_delay, config.drain_timeout]) {
        assert!(Instant::now().checked_add(duration).is_some(), "a clock cannot count {duration:?}");
    }
}

/// A variable. One whose name ends with `_FILE` names the TOML file.
fn setting(name: &str, value: &str, file: &TextFile) -> (String, String) {
    let value = value.replace(SECRET, "");
    let value = match name {
        "REDIS_URL" | "REDIS_PASSWORD" | "MONGO_URI" => value + SECRET,
        _ if name.ends_with("_FILE") => file.0.display().to_string(),
        _ => value,
    };
    (name.to_owned(), value)
}

/// The names that an error may begin with, except those in the file.
fn keys_of(flags: &Flags) -> Vec<String> {
    let mut keys = vec!["--set".to_owned()];
    keys.extend(sources::OPTIONAL.map(str::to_owned));
    let defaults = DEFAULTS.parse::<toml::Table>().expect("the defaults are TOML");
    leaves("", &defaults, &mut |key, _| keys.push(key.to_owned()));
    keys.extend(
        flags
            .set
            .iter()
            .filter_map(|set| Some(set.split_once('=')?.0.trim_start_matches('\u{feff}').trim().to_owned())),
    );
    keys
}

fn leaves(prefix: &str, table: &toml::Table, each: &mut impl FnMut(&str, &str)) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            toml::Value::Table(table) if !table.is_empty() => leaves(&key, table, each),
            toml::Value::String(text) => each(&key, text),
            other => each(&key, &other.to_string()),
        }
    }
}

/// A file that is removed when this is dropped.
struct TextFile(PathBuf);

impl TextFile {
    fn new(text: &str) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("featurestore-fuzz-{}-{}.toml", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::write(&path, text).expect("the temporary folder can be written to");
        Self(path)
    }
}

impl Drop for TextFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
