//! `docker-compose.yml`: no Docker runs here, but what it tells the server is tried.

use super::environment::{self, Environment};

const FILE: &str = include_str!("../../../docker-compose.yml");

/// What the service `featurestore` is given, with the defaults of what the shell may set.
fn given() -> Environment {
    let service = FILE.split("\n  featurestore:\n").nth(1).expect("there is a service featurestore");
    let block = service.split("    environment:\n").nth(1).expect("it has an environment");
    let lines = block.lines().take_while(|line| line.starts_with("      "));
    let pairs = lines.filter_map(|line| line.split(" # ").next()?.trim().split_once(": "));
    pairs.map(|(name, value)| (name.to_owned(), default_of(value.trim_matches('"')).to_owned())).collect()
}

/// `${NAME:-default}`: the default.
fn default_of(value: &str) -> &str {
    let inner = value.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
    inner.map_or(value, |inner| inner.split_once(":-").map_or("", |(_, default)| default))
}

#[test]
fn every_name_that_docker_compose_sets_is_in_effect() {
    let environment = given();
    assert!(environment.len() >= 5, "{environment:?}");
    environment::is_known(&environment, "docker-compose.yml");
}

#[test]
fn docker_compose_waits_for_the_whole_drain() {
    let grace = FILE.split("stop_grace_period: ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(environment::seconds(grace) >= 5 + 20 + 45, "{grace}");
}
