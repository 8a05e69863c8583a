//! The proof under faults: concurrent clients over several server processes, a nemesis that breaks things by seed, and a
//! checker that judges every answer afterwards. `check` says what is held; `tests/storm.sh` runs it for long.

mod check;
mod event;
