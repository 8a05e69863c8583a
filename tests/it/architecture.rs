//! Who may import whom, and where a library may be named, read off the sources. Code for tests and fuzzing is free of it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Left imports right, never back.
const MAY_IMPORT: [(&str, &[&str]); 17] = [
    ("in_flight", &[]),
    ("metrics", &[]),
    ("trace", &[]),
    ("peer", &[]),
    ("proto", &["in_flight"]),
    ("record", &["proto"]),
    ("cache", &["record", "metrics", "peer", "trace"]),
    ("store", &["cache", "record", "proto", "metrics", "peer", "trace"]),
    ("tiered", &["store", "cache", "record", "in_flight", "metrics", "trace"]),
    ("access", &["record", "metrics"]),
    ("api", &["access", "tiered", "store", "record", "proto", "in_flight", "metrics", "trace"]),
    ("server", &["access", "api", "tiered", "proto", "metrics", "trace"]),
    ("config", &["api", "tiered"]),
    ("telemetry", &["access", "metrics", "trace"]),
    ("app", &["server", "config", "access", "api", "tiered", "store", "cache", "record", "trace"]),
    ("command", &["access", "app", "server", "store", "config", "telemetry"]),
    ("main", &["command", "telemetry"]),
];

/// Libraries, and the files that may name them.
const MAY_NAME: [(&[&str], &[&str]); 5] = [
    (&["redis", "deadpool_redis"], &["cache/redis"]),
    (&["mongodb", "bson"], &["store/mongodb"]),
    (&["fjall", "redb"], &["store/embedded"]),
    (&["quick_cache"], &["cache/memory"]),
    (&["tonic", "tonic_health", "tonic_reflection", "tonic_types"], &["api", "server", "proto", "command"]),
];

/// The engines, and the traits' own modules, which alone the protocol may see.
const ENGINES: [&str; 4] = ["cache/memory", "cache/redis", "store/embedded", "store/mongodb"];

struct Source {
    /// Below src, without `.rs`: `cache/redis/probe`.
    name: String,
    /// Without comments, strings, and code for tests.
    code: String,
}

impl Source {
    fn is_in(&self, place: &str) -> bool {
        self.name == place || self.name.strip_prefix(place).is_some_and(|rest| rest.starts_with('/'))
    }

    /// Modules of ours that it names: `cache/memory/MemoryCache` for `crate::cache::memory::MemoryCache`.
    fn imports(&self) -> BTreeSet<String> {
        let mut paths = BTreeSet::new();
        for root in ["crate::", "featurestore::"] {
            for (at, _) in self.code.match_indices(root) {
                let starts_a_path = !self.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
                if starts_a_path {
                    expand("", &self.code[at + root.len()..], &mut paths);
                }
            }
        }
        paths
    }

    /// Whether it names something of a library: `library::`.
    fn names(&self, library: &str) -> bool {
        let path = format!("{library}::");
        self.code.match_indices(&path).any(|(at, _)| {
            // `x::redis::y` is a module of ours, or another library's.
            !self.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
        })
    }
}

/// Follows a path or a tree of paths, and gives how much of the text that was.
fn expand(prefix: &str, text: &str, paths: &mut BTreeSet<String>) -> usize {
    let mut path = prefix.to_owned();
    let mut at = 0;
    loop {
        at += text[at..].len() - text[at..].trim_start().len();
        if text[at..].starts_with('{') {
            at += 1;
            loop {
                at += expand(&path, &text[at..], paths);
                at += text[at..].len() - text[at..].trim_start().len();
                let end = !text[at..].starts_with(',');
                at += 1;
                if end {
                    return at;
                }
            }
        }
        let word = text[at..].find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len() - at);
        if word > 0 {
            path = if path.is_empty() {
                text[at..at + word].to_owned()
            } else {
                format!("{path}/{}", &text[at..at + word])
            };
            at += word;
        }
        if !text[at..].starts_with("::") {
            if word > 0 {
                paths.insert(path);
            }
            let rename = text[at..].strip_prefix(" as ").and_then(|rest| rest.find([',', '}', ';']));
            return at + rename.map_or(0, |rest| rest + 4);
        }
        at += 2;
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    let source = |file: PathBuf| {
        let name = file.strip_prefix(&root).unwrap().with_extension("").display().to_string();
        let text = fs::read_to_string(&file).unwrap();
        Source { name, code: bare(text.split("#[cfg(test)]\nmod tests").next().unwrap()) }
    };
    let is_free = |source: &Source| ["tests", "properties", "fuzzing"].iter().any(|end| source.name.ends_with(end));
    let sources: Vec<Source> = files.into_iter().map(source).filter(|source| !is_free(source)).collect();
    assert!(sources.len() > 50, "where are the sources? {}", sources.len());
    sources
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Without comments and without lines' strings, well enough for this.
fn bare(text: &str) -> String {
    let line = |line: &str| line.split("//").next().unwrap().split('"').step_by(2).collect::<Vec<_>>().join("\"\"");
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn modules_import_only_what_lies_below_them() {
    let mut wrong = BTreeSet::new();
    for source in sources() {
        let module = source.name.split('/').next().unwrap();
        if module == "lib" {
            continue;
        }
        let allowed = MAY_IMPORT.iter().find(|(of, _)| *of == module);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("{module} has no place in MAY_IMPORT yet"));
        for path in source.imports() {
            let other = path.split('/').next().unwrap();
            if other != module && !allowed.contains(&other) {
                wrong.insert(format!("src/{}.rs imports {path}", source.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_two_modules_import_each_other() {
    for (module, imports) in MAY_IMPORT {
        for other in imports {
            let (_, back) = MAY_IMPORT.iter().find(|(of, _)| of == other).unwrap();
            assert!(!back.contains(&module), "{module} and {other}");
        }
    }
}

#[test]
fn the_protocol_sees_no_engine_and_engines_know_nothing_of_each_other() {
    let mut wrong = BTreeSet::new();
    for source in sources() {
        // Its composition is `app`'s alone.
        if source.is_in("app") {
            continue;
        }
        for path in source.imports() {
            for engine in ENGINES {
                let foreign = path == engine || path.starts_with(&format!("{engine}/"));
                if foreign && !source.is_in(engine) {
                    wrong.insert(format!("src/{}.rs imports {path}", source.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn libraries_are_named_only_where_their_engine_lives() {
    let sources = sources();
    let mut wrong = BTreeSet::new();
    for (libraries, places) in MAY_NAME {
        let named = |source: &&Source| libraries.iter().any(|library| source.names(library));
        let (inside, outside): (Vec<_>, Vec<_>) =
            sources.iter().filter(named).partition(|source| places.iter().any(|place| source.is_in(place)));
        wrong.extend(outside.iter().map(|source| format!("src/{}.rs names {}", source.name, libraries.join(" or "))));
        assert!(!inside.is_empty(), "{libraries:?} are named nowhere: is this test looking?");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn this_test_reads_paths_as_the_compiler_does() {
    let code = "use crate::{\n    api::Api,\n    cache::{Cache, memory::MemoryCache as M},\n    record,\n};\nlet x = \
                crate::store::Store::new(); // crate::server\nmycrate::other::X";
    let source = Source { name: "app".to_owned(), code: bare(code) };
    let imports: Vec<String> = source.imports().into_iter().collect();
    assert_eq!(imports, ["api/Api", "cache/Cache", "cache/memory/MemoryCache", "record", "store/Store/new"]);
    let names = |code: &str| Source { name: String::new(), code: bare(code) }.names("redis");
    assert!(names("use redis::Value;") && names("(redis::cmd)"));
    assert!(!names("deadpool_redis::redis::cmd") && !names("// redis::cmd") && !names("\"redis::cmd\""));
}
