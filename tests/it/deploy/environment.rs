//! Whether an environment that a file of `deploy/` sets is one that the binary knows, name by name.

use crate::harness::binary::run;

/// Names and values, in the file's order.
pub(super) type Environment = Vec<(String, String)>;

/// Runs `featurestore config` with just this, and sees that each name of ours is in effect.
pub(super) fn is_known(environment: &Environment, what: &str) {
    let settings: Vec<_> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let output = run(&["config"], &settings);
    let (shown, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.is_empty(), "{what}: {said}");
    for (name, _) in environment {
        // The file's own name is no key, and OpenTelemetry's library reads its own.
        if name != "FEATURESTORE_CONFIG" && !name.starts_with("OTEL_") && name != "POD_NAME" {
            let named = |line: &str| line.split([' ', ',', '(', ')']).any(|word| word == name);
            assert!(shown.lines().any(named), "{what}: {name} has no effect in {shown}");
        }
    }
}

/// The value of a name.
pub(super) fn of<'a>(environment: &'a Environment, name: &str) -> &'a str {
    let found = environment.iter().find(|(given, _)| given == name);
    found.map_or_else(|| panic!("no {name} in {environment:?}"), |(_, value)| value)
}

/// A number of seconds, as `5s`.
pub(super) fn seconds(text: &str) -> u64 {
    text.strip_suffix('s').and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{text} is no seconds"))
}
