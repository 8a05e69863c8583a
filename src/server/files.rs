//! The limit on open files; every connection needs one file.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files for everything else: the stores, L1, logs, the admin port.
const OTHERS: u64 = 300;

/// Raises the soft limit on open files as far as `wanted` connections need and the hard limit
/// allows. Returns how many connections there is room for.
pub fn room_for_connections(wanted: usize) -> usize {
    let needed = (wanted as u64).saturating_add(OTHERS);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // None: there is no limit.
    let Some(soft) = current.filter(|soft| *soft < needed) else { return wanted };
    let raised = maximum.map_or(needed, |hard| needed.min(hard)).max(soft);
    let limit = match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }) {
        Ok(()) => raised,
        Err(_) => soft,
    };
    if limit >= needed {
        return wanted;
    }
    let room = usize::try_from(limit.saturating_sub(OTHERS)).unwrap_or(usize::MAX).max(1);
    tracing::warn!(
        limit,
        needed,
        connections = room,
        "the limit on open files (ulimit -n) is lower than limits.max_connections needs: fewer connections are accepted"
    );
    room
}
