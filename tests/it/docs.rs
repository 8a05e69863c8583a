//! The documents: every relative link in Markdown leads to a file and a heading, every page that the code names exists, and
//! docs/configuration.md says what the default file says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use featurestore::config::DEFAULTS;

const CONFIGURATION: &str = "docs/configuration.md";

/// The README is read to its end only if it is short.
const README_LINES: usize = 150;
/// The longest line of a page, except in tables and code.
const COLUMNS: usize = 100;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The path within the repository, for messages.
fn shown(file: &Path) -> String {
    file.strip_prefix(root()).unwrap_or(file).display().to_string()
}

/// The files below a folder whose names end with one of these, without folders that builds and tools fill.
fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    const NOT_OURS: [&str; 7] = ["target", "data", "corpus", "artifacts", "generated", "node_modules", "__pycache__"];
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_symlink() {
            continue; // what it leads to is found where it lies
        }
        if path.is_dir() {
            let is_hidden = name.starts_with('.') && name != ".github";
            if !is_hidden && !NOT_OURS.contains(&name) {
                found.extend(files(&path, extensions));
            }
        } else if path.extension().and_then(|of| of.to_str()).is_some_and(|of| extensions.contains(&of)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn documents() -> Vec<PathBuf> {
    let found = files(root(), &["md"]);
    assert!(found.len() > 15, "where are the documents? {found:?}");
    found
}

/// The lines with their numbers that are no code block.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    text.lines().enumerate().filter_map(move |(at, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        (!is_fence && !is_code).then_some((at + 1, line))
    })
}

/// The paragraphs of a page: a code span may go over the end of a line, but not over a paragraph.
fn paragraphs(text: &str) -> Vec<String> {
    let lines: Vec<&str> = prose(text).map(|(_, line)| line).collect();
    lines.join("\n").split("\n\n").map(str::to_owned).collect()
}

/// What stands between backticks.
fn code_spans(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for paragraph in paragraphs(text) {
        found.extend(paragraph.split('`').skip(1).step_by(2).map(str::to_owned));
    }
    found
}

/// The targets of the links of a page: `[text](target)` and `[name]: target`.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for paragraph in paragraphs(text) {
        let bare: String = paragraph.split('`').step_by(2).collect::<Vec<_>>().join("");
        for rest in bare.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            found.extend(target.split_whitespace().next().map(str::to_owned));
        }
        for line in bare.lines().filter(|line| line.starts_with('[')) {
            let target = line.split_once("]: ").and_then(|(_, target)| target.split_whitespace().next());
            found.extend(target.map(str::to_owned));
        }
    }
    found
}

/// The anchor of a heading, as GitHub makes it.
fn slug(heading: &str) -> String {
    let mut shown = String::new();
    let mut rest = heading.trim();
    while let Some(at) = rest.find("](") {
        shown.push_str(&rest[..at]);
        rest = rest[at..].find(')').map_or("", |end| &rest[at + end + 1..]);
    }
    shown.push_str(rest);
    let letter = |c: char| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        c if c.is_alphanumeric() => Some(c),
        _ => None,
    };
    shown.to_lowercase().chars().filter_map(letter).collect()
}

/// The anchors of a page. Of equal headings the second one has `-1` at its end, and so on.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut found = BTreeSet::new();
    for (_, line) in prose(text) {
        let level = line.chars().take_while(|c| *c == '#').count();
        let Some(heading) = line.get(level..).and_then(|rest| rest.strip_prefix(' ')) else { continue };
        if !(1..=6).contains(&level) {
            continue;
        }
        let slug = slug(heading);
        let count = counts.entry(slug.clone()).or_default();
        found.insert(if *count == 0 { slug } else { format!("{slug}-{count}") });
        *count += 1;
    }
    found
}

/// Why a link of a page leads nowhere. None: it leads somewhere, or out of the repository.
fn broken(page: &Path, target: &str) -> Option<&'static str> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
    let file = match path {
        "" => page.to_owned(),
        path if path.starts_with('/') => return Some("must be relative"),
        path => page.parent().unwrap().join(path),
    };
    let Ok(found) = file.canonicalize() else { return Some("no such file") };
    if !found.starts_with(root().canonicalize().unwrap()) {
        return Some("leads out of the repository");
    }
    let anchor = anchor?;
    if found.extension().is_none_or(|extension| extension != "md") {
        return Some("an anchor in a file that is no page");
    }
    (!anchors(&text(&found)).contains(anchor)).then_some("no such heading")
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for page in documents() {
        for target in links(&text(&page)) {
            count += 1;
            if let Some(why) = broken(&page, &target) {
                wrong.push(format!("{}: {target}: {why}", shown(&page)));
            }
        }
    }
    assert!(count > 50, "{count} links: is this test looking?");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_page_of_docs_that_code_names_exists() {
    const FOLDERS: [&str; 7] = ["src", "tests", "benches", "deploy", "examples", "fuzz", "proto"];
    const EXTENSIONS: [&str; 9] = ["rs", "py", "sh", "toml", "yml", "yaml", "proto", "json", "txt"];
    let mut all: Vec<PathBuf> = FOLDERS.iter().flat_map(|folder| files(&root().join(folder), &EXTENSIONS)).collect();
    all.extend(["Cargo.toml", "docker-compose.yml", "test.sh"].map(|name| root().join(name)));
    let (mut wrong, mut count) = (Vec::new(), 0);
    for file in all {
        let text = text(&file);
        for (at, _) in text.match_indices("docs/") {
            // Part of another path, such as a URL.
            if text[..at].ends_with(|c: char| c.is_alphanumeric() || "/._-".contains(c)) {
                continue;
            }
            let end = text[at..].find(|c: char| !(c.is_ascii_alphanumeric() || "/._-#".contains(c)));
            let named = text[at..end.map_or(text.len(), |end| at + end)].trim_end_matches(['.', '#']);
            if !named.contains(".md") {
                continue;
            }
            count += 1;
            if let Some(why) = broken(&root().join("README.md"), named) {
                wrong.push(format!("{}: {named}: {why}", shown(&file)));
            }
        }
    }
    assert!(count > 20, "{count} names: is this test looking?");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_file_of_the_repository_that_a_page_names_exists() {
    const FOLDERS: [&str; 8] = ["src/", "tests/", "benches/", "deploy/", "examples/", "fuzz/", "proto/", "docs/"];
    // Of another project, of an earlier commit, and what a run of the fuzz targets makes.
    const ELSEWHERE: [&str; 3] = ["src/batch/mod.rs", "benches/embedded_engines.rs", "fuzz/corpus/TARGET"];
    let (mut wrong, mut count) = (Vec::new(), 0);
    let pages = ["README.md", "CONTRIBUTING.md"].map(|name| root().join(name));
    for page in files(&root().join("docs"), &["md"]).into_iter().chain(pages) {
        for span in code_spans(&text(&page)) {
            // A command may have arguments.
            let named = span.split_whitespace().next().unwrap_or_default();
            let is_ours = FOLDERS.iter().any(|folder| named.starts_with(folder)) && !ELSEWHERE.contains(&named);
            if is_ours {
                count += 1;
                if !root().join(named).exists() {
                    wrong.push(format!("{}: {named}", shown(&page)));
                }
            }
        }
    }
    assert!(count > 50, "{count} names: is this test looking?");
    assert!(wrong.is_empty(), "no such file: {wrong:#?}");
}

#[test]
fn pages_are_as_short_and_as_narrow_as_they_should_be() {
    let readme = root().join("README.md");
    let lines = text(&readme).lines().count();
    assert!(
        lines <= README_LINES,
        "README.md has {lines} lines, at most {README_LINES} are wanted: move some into docs/"
    );
    let mut wide = Vec::new();
    for page in files(&root().join("docs"), &["md"]).into_iter().chain([readme]) {
        for (number, line) in prose(&text(&page)) {
            if line.chars().count() > COLUMNS && !line.starts_with('|') {
                wide.push(format!("{}:{number}", shown(&page)));
            }
        }
    }
    assert!(wide.is_empty(), "longer than {COLUMNS} columns: {wide:#?}");
}

/// The keys of a TOML text, and their values as the page shows them.
fn settings(toml: &str) -> BTreeMap<String, String> {
    fn flatten(prefix: &str, table: toml::Table, settings: &mut BTreeMap<String, String>) {
        for (name, value) in table {
            let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
            match value {
                toml::Value::Table(table) => flatten(&key, table, settings),
                toml::Value::String(text) => _ = settings.insert(key, text),
                other => _ = settings.insert(key, other.to_string()),
            }
        }
    }
    let mut settings = BTreeMap::new();
    flatten("", toml.parse().unwrap(), &mut settings);
    settings
}

/// The default file with the keys that it shows in comments only: `#url = ...`, without a space.
fn with_optional_keys(defaults: &str) -> String {
    let is_key = |rest: &&str| rest.starts_with(|c: char| c.is_ascii_lowercase());
    let line = |line: &str| line.strip_prefix('#').filter(is_key).unwrap_or(line).to_owned();
    defaults.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn docs_configuration_has_every_setting_with_its_default_and_no_other() {
    let (defaults, all) = (settings(DEFAULTS), settings(&with_optional_keys(DEFAULTS)));
    assert!(all.len() > defaults.len() && defaults.len() > 30, "{all:?}");
    let page = text(&root().join(CONFIGURATION));
    let (mut wrong, mut found) = (Vec::new(), BTreeSet::new());
    for (number, line) in prose(&page) {
        // | `key` | `default` | `NAME` | meaning |
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, key, default, names, ..] = cells[..] else { continue };
        let Some(key) = key.strip_prefix('`').and_then(|key| key.strip_suffix('`')) else { continue };
        if !key.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._".contains(c)) {
            continue;
        }
        if !all.contains_key(key) {
            wrong.push(format!("line {number}: {key} is no setting"));
            continue;
        }
        let expected = defaults.get(key).map_or_else(|| "-".to_owned(), |default| format!("`{default}`"));
        if default != expected {
            wrong.push(format!("line {number}: {key} has the default {expected}, and not {default}"));
        }
        let name = format!("`FEATURESTORE_{}`", key.replace('.', "_").to_uppercase());
        if !names.split(", ").any(|of| of == name) {
            wrong.push(format!("line {number}: {key} has the name {name} in the environment"));
        }
        if !found.insert(key.to_owned()) {
            wrong.push(format!("line {number}: {key} is there twice"));
        }
    }
    wrong.extend(all.keys().filter(|key| !found.contains(*key)).map(|key| format!("{key} is not there")));
    assert!(wrong.is_empty(), "{CONFIGURATION}: {wrong:#?}");
}

#[test]
fn these_tests_read_markdown_as_github_does() {
    let page = "# A page\n\nSee [a\nfile](b.md#c) and `[no](link)`, ![a picture](d.svg \"title\").\n\n```sh\n# no heading \
                [no](link)\n```\n\n[e]: f.md\n\n## A page\n";
    assert_eq!(links(page), ["b.md#c", "d.svg", "f.md"]);
    assert_eq!(code_spans(page), ["[no](link)"]);
    assert_eq!(anchors(page), BTreeSet::from(["a-page".to_owned(), "a-page-1".to_owned()]));
    assert_eq!(slug("Where do I add ...?"), "where-do-i-add-");
    assert_eq!(slug("`l1.wait_replicas`"), "l1wait_replicas");
    assert_eq!(slug("[Unreleased](x.md) - now"), "unreleased---now");
    let readme = root().join("README.md");
    assert_eq!(broken(&readme, "docs/README.md#documents"), None);
    assert_eq!(broken(&readme, "https://example.com/x.md"), None);
    assert_eq!(broken(&readme, "docs/no-such-page"), Some("no such file"));
    assert_eq!(broken(&readme, "CONTRIBUTING.md#no-such-heading"), Some("no such heading"));
    assert_eq!(broken(&readme, "/docs/README.md"), Some("must be relative"));
}
