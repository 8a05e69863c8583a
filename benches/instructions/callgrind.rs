//! Runs a case under callgrind, and says what its counts depend on beside our code.

use std::{
    collections::BTreeMap,
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use crate::RUN_CASE;

/// What was counted.
pub(crate) struct Count {
    /// Instructions a call.
    pub(crate) instructions: u64,
    /// As `cpu_features` tells it under valgrind, whose CPU is not quite the machine's.
    pub(crate) cpu_features: String,
}

/// Counts a case of so many calls. Once is enough: hashers draw other seeds in each process, but that makes less than a
/// thousandth.
pub(crate) fn count(case: &str, calls: usize) -> Result<Count, String> {
    let out = folder().join(case).with_extension("out");
    fs::create_dir_all(folder()).map_err(|error| format!("{}: {error}", folder().display()))?;
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet", "--collect-atstart=no", "--toggle-collect=*counted_region*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(env::current_exe().map_err(|error| error.to_string())?)
        .args([RUN_CASE, case])
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => "valgrind is needed (Debian: apt-get install valgrind)".to_owned(),
            _ => format!("valgrind: {error}"),
        })?;
    if !run.status.success() {
        return Err(format!("{case} under valgrind: {}\n{}", run.status, String::from_utf8_lossy(&run.stderr)));
    }
    let text = fs::read_to_string(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse::<u64>().ok());
    let total = total.filter(|total| *total > 0).ok_or_else(|| format!("{}: nothing was counted", out.display()))?;
    let cpu_features = String::from_utf8_lossy(&run.stdout).trim().to_owned();
    Ok(Count { instructions: total / calls as u64, cpu_features })
}

/// Where the profiles stay, for callgrind_annotate.
fn folder() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| Path::new("target").into(), PathBuf::from);
    target.join("instructions")
}

/// Instructions that libraries look for before they choose their code.
pub(crate) fn cpu_features() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        names(&[
            ("sse4.2", is_x86_feature_detected!("sse4.2")),
            ("pclmulqdq", is_x86_feature_detected!("pclmulqdq")),
            ("avx2", is_x86_feature_detected!("avx2")),
            ("bmi2", is_x86_feature_detected!("bmi2")),
        ])
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::env::consts::ARCH.to_owned()
}

/// What counts depend on beside our code: compiler, build, C library and CPU.
pub(crate) fn made_with(cpu_features: &str) -> BTreeMap<String, String> {
    let tiers =
        [("redis", cfg!(feature = "redis")), ("mongodb", cfg!(feature = "mongodb")), ("otel", cfg!(feature = "otel"))];
    let with = [
        ("rustc", first_line(&env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned()))),
        ("cargo features", names(&tiers)),
        ("cc", first_line("cc")),
        ("libc", first_line("ldd")),
        ("cpu", cpu_features.to_owned()),
    ];
    with.into_iter().map(|(what, with)| (what.to_owned(), with)).collect()
}

/// The names of what is there.
fn names(of: &[(&str, bool)]) -> String {
    let names: Vec<_> = of.iter().filter(|(_, is_there)| *is_there).map(|(name, _)| *name).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(" ") }
}

fn first_line(program: &str) -> String {
    let output = Command::new(program).arg("--version").output().ok();
    let line = output.and_then(|output| Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned()));
    line.unwrap_or_else(|| "unknown".to_owned())
}
