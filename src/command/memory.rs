//! Sets how soon the allocator returns freed memory to the system.
//!
//! mimalloc 3 keeps freed memory for a second, so that after a burst of large requests the process
//! is larger than its limits allow: with 96 MiB in flight at most, a storm of the most expensive
//! requests over Redis and MongoDB took 223 MiB, and 165 MiB with the 10 ms that were the default
//! of mimalloc 2. It reads the variable once, when the process starts, and later only unsafe code
//! could change it. So the server sets the variable and executes itself again in the same process.

use std::{env, os::unix::process::CommandExt as _, process::Command};

const PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";
const MILLISECONDS: &str = "10";

/// Executes this program again with the variable, unless it is set already. If that is not
/// possible, this returns, and the server runs without it.
pub(super) fn give_back_soon() {
    let mut words = env::args_os();
    if env::var_os(PURGE_DELAY).is_none()
        && let (Ok(program), Some(name)) = (env::current_exe(), words.next())
    {
        let _impossible = Command::new(program).arg0(name).args(words).env(PURGE_DELAY, MILLISECONDS).exec();
    }
}
