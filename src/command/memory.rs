//! How soon the allocator gives freed memory back to the system.
//!
//! mimalloc 3 keeps it for a second unless the environment says otherwise, so a burst of large requests leaves the process
//! larger than its limits allow: with 96 MiB in flight at most, a storm of the most expensive requests over Redis and MongoDB
//! came to 223 MiB, and to 165 MiB with the 10 ms that were the default of mimalloc 2. It reads the setting once, when the
//! process starts, and can be told later only by unsafe code. So the server starts itself again in the same process.

use std::{env, os::unix::process::CommandExt as _, process::Command};

const PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";
const MILLISECONDS: &str = "10";

/// Starts this program again with the setting, unless the environment has one. It returns where that is not possible, and
/// the server then goes on as it is.
pub(super) fn give_back_soon() {
    let mut words = env::args_os();
    if env::var_os(PURGE_DELAY).is_none()
        && let (Ok(program), Some(name)) = (env::current_exe(), words.next())
    {
        let _impossible = Command::new(program).arg0(name).args(words).env(PURGE_DELAY, MILLISECONDS).exec();
    }
}
