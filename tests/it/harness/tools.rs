//! Programs that look at the server from outside: Python with grpcio, grpcurl, grpc_health_probe. The test script makes
//! them and names them in the environment.

use std::{env, ffi::OsStr, io::Write as _, path::Path, process::Command};

/// What a program that has ended left.
#[derive(Debug)]
pub struct Ended {
    pub success: bool,
    pub output: String,
    pub errors: String,
}

impl Ended {
    /// Its output, if it ended well.
    pub fn unwrap(self) -> String {
        assert!(self.success, "{self:#?}");
        self.output
    }
}

/// Runs a script of tests/python; None: there is no Python for it, and that is allowed.
pub async fn python(script: &str, args: &[&str]) -> Option<Ended> {
    let python = tool("FEATURESTORE_TEST_PYTHON", true)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script);
    let args = [script.to_str().unwrap()].into_iter().chain(args.iter().copied());
    Some(run(python, args).await)
}

/// Runs a script of tests/node; None: its packages are not there.
pub async fn node(script: &str, args: &[&str]) -> Option<Ended> {
    let packages = tool("NODE_PACKAGES", false)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node").join(script);
    let assigned = format!("NODE_PATH={packages}");
    let args = [assigned.as_str(), "node", script.to_str().unwrap()].into_iter().chain(args.iter().copied());
    Some(run("env", args).await)
}

/// Runs grpcurl; None: it is not there.
pub async fn grpcurl(args: &[&str]) -> Option<Ended> {
    Some(run(tool("GRPCURL", false)?, args.iter().copied()).await)
}

/// Where grpcurl is, for who feeds it; None: it is not there.
pub fn grpcurl_program() -> Option<String> {
    tool("GRPCURL", false)
}

/// Runs grpc_health_probe; None: it is not there.
pub async fn health_probe(args: &[&str]) -> Option<Ended> {
    Some(run(tool("GRPC_HEALTH_PROBE", false)?, args.iter().copied()).await)
}

/// Runs promtool with these words, which reads a file; None: it is not there.
pub async fn promtool(words: &str, input: Option<&Path>) -> Option<Ended> {
    let program = tool("PROMTOOL", false)?;
    let command = format!("exec \"$0\" {words} < \"$1\"");
    let input = input.unwrap_or(Path::new("/dev/null"));
    Some(run("sh", ["-c", &command, &program, input.to_str().unwrap()]).await)
}

/// Runs helm; None: it is not there.
pub async fn helm(args: &[&str]) -> Option<Ended> {
    Some(run(tool("HELM", false)?, args.iter().copied()).await)
}

/// Runs a program to its end.
pub async fn run<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>) -> Ended {
    let mut command = Command::new(program);
    command.args(args);
    let ended = tokio::task::spawn_blocking(move || command.output().unwrap_or_else(|e| panic!("{command:?}: {e}")));
    let ended = ended.await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ended { success: ended.status.success(), output: text(ended.stdout), errors: text(ended.stderr) }
}

fn tool(name: &str, is_backend: bool) -> Option<String> {
    let given = env::var(name).ok().filter(|path| !path.is_empty());
    if given.is_none() {
        let required = is_backend && env::var("REQUIRE_BACKENDS").is_ok_and(|required| required == "1");
        assert!(!required, "{name} must be set: the test script makes what it names");
        // Past the test runner, which keeps what passing tests print to itself.
        let _ = writeln!(std::io::stderr(), "left out: the checks with {name}, which is not set");
    }
    given
}
