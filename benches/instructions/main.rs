//! What the hot path costs in instructions, counted by callgrind and compared with `baseline.tsv`: a slow-down is seen
//! without timing, on however busy a machine.
//!
//! ```text
//! cargo bench --no-default-features --bench instructions               compares every case; fails if one costs more
//! cargo bench --no-default-features --bench instructions -- hit        only those with "hit" in their names
//! cargo bench --no-default-features --bench instructions -- --bless    what is counted now becomes the baseline
//! callgrind_annotate --inclusive=yes target/instructions/hit_1.out     where a case spends them
//! ```
//!
//! It is built without Redis, MongoDB and OpenTelemetry: nothing that is counted needs them, and the build is far shorter.
//!
//! Each case runs in a process of its own under valgrind, which counts what `counted_region` calls and nothing else. The
//! runner is our own, as those of libraries want a second program of exactly their version installed on every machine.
//!
//! Not seen here: misses of the CPU's caches, the kernel, HTTP/2 and the server's layers; that is `performance`'s.

mod baseline;
mod callgrind;
mod encoding;
mod hits;

use std::{env, process::ExitCode};

use baseline::{Baseline, Verdict};

// The server's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The first argument of a process that runs one case.
const RUN_CASE: &str = "run-case";
/// What renews the baseline.
const RENEW: &str = "cargo bench --no-default-features --bench instructions -- --bless";
/// Calls before counting begins, so that what happens once has happened.
const WARM_UP: usize = 50;

/// One thing to count.
struct Case {
    name: &'static str,
    /// How many calls a process counts: enough that one with a rare extra, such as a page for the allocator, is not seen.
    calls: usize,
    /// Makes ready so many calls.
    prepare: fn(usize) -> Call,
}

/// Does it once.
type Call = Box<dyn FnMut()>;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let cases = || encoding::CASES.into_iter().chain(hits::CASES);
    if let [first, name] = &args[..]
        && first == RUN_CASE
    {
        run(&cases().find(|case| case.name == name).expect("a case of this name"));
        return ExitCode::SUCCESS;
    }
    let bless = args == ["--bless"];
    if !bless && args.iter().any(|arg| arg.starts_with('-')) {
        eprintln!("arguments: [PART OF A CASE'S NAME]... or --bless");
        return ExitCode::from(64);
    }
    let is_wanted = |case: &Case| bless || args.is_empty() || args.iter().any(|part| case.name.contains(part.as_str()));
    let cases: Vec<Case> = cases().filter(is_wanted).collect();
    match if bless { renew(&cases) } else { compare(&cases) } {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// In the process under valgrind.
fn run(case: &Case) {
    println!("{}", callgrind::cpu_features());
    let mut call = (case.prepare)(WARM_UP + case.calls);
    (0..WARM_UP).for_each(|_| call());
    counted_region(case.calls, &mut *call);
}

/// What callgrind counts, by this name.
#[inline(never)]
fn counted_region(calls: usize, call: &mut dyn FnMut()) {
    for _ in 0..calls {
        call();
    }
}

/// Fails if a case costs more than its baseline, unless the baseline was made with something else.
fn compare(cases: &[Case]) -> Result<(), String> {
    let stands = Baseline::read()?;
    let now = count(cases, &stands)?;
    let (mut worse, mut better) = (Vec::new(), Vec::new());
    for (name, count) in &now.counts {
        match stands.verdict(name, *count) {
            Verdict::Same => {}
            Verdict::Worse => worse.push(name.as_str()),
            Verdict::Better => better.push(name.as_str()),
            Verdict::New => return Err(format!("{name} is not in the baseline: {RENEW}")),
        }
    }
    if !better.is_empty() {
        println!("{} cost less, and the baseline guards that only when it is renewed: {RENEW}", better.join(", "));
    }
    if worse.is_empty() {
        return Ok(());
    }
    let differences = stands.differences(&now);
    if differences.is_empty() {
        return Err(format!(
            "{} cost more than before: mend it, or say why in a commit with: {RENEW}",
            worse.join(", ")
        ));
    }
    println!("{} cost more, but that need not be our doing, as the baseline was made with", worse.join(", "));
    differences.iter().for_each(|difference| println!("  {difference}"));
    Ok(())
}

/// Makes what is counted now the baseline.
fn renew(cases: &[Case]) -> Result<(), String> {
    let now = count(cases, &Baseline::read()?)?;
    now.write()
}

/// Counts the cases and prints them beside the baseline.
fn count(cases: &[Case], stands: &Baseline) -> Result<Baseline, String> {
    let mut now = Baseline::default();
    println!("{:<20} {:>10} {:>10} {:>7}", "instructions a call", "baseline", "now", "ratio");
    for case in cases {
        let counted = callgrind::count(case.name, case.calls)?;
        let (baseline, ratio) = match stands.counts.get(case.name) {
            Some(count) => (count.to_string(), format!("{:.3}", counted.instructions as f64 / *count as f64)),
            None => ("-".to_owned(), "-".to_owned()),
        };
        println!("{:<20} {baseline:>10} {:>10} {ratio:>7}", case.name, counted.instructions);
        now.counts.insert(case.name.to_owned(), counted.instructions);
        if now.made_with.is_empty() {
            now.made_with = callgrind::made_with(&counted.cpu_features);
        }
    }
    Ok(now)
}
