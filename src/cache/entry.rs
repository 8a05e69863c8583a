//! The entry state machine.
