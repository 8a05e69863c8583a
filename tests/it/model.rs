//! The coherence protocol for one record, explored exhaustively: every order of the steps of a few writers, readers and
//! servers, over the production state machine `cache::entry::Entry` itself. What is explored is the protocol around it:
//! who sends which operation when, and what is answered afterwards.
//!
//! - A crash needs no step: it is an actor that takes no further one, and every beginning of a schedule is explored. The
//!   same goes for an L2 timeout whose write is committed late, or never.
//! - Deadlines need a clock of a few ticks: all that was granted before a tick is over after it.
//! - Answers are given at the earliest time that they can be, reads begin at the latest: both only make the check stricter.
//!   So a read that hits needs no actor: in every state, what L1 holds clean must not be older than what was answered.
//! - Which L1 a server uses, which one counts, and for which L2, are dimensions of their own (`named`), that few actors
//!   explore.
//!
//! `holds` explores the protocol as it is; `counterexamples` takes away one rule at a time, and must find what goes wrong.
//! Not here: what `tiered` makes of the protocol (`protocol`), and what the scripts make of the machine (`cache_contract`).

mod actors;
mod counterexamples;
mod explore;
mod holds;
mod l1;
mod named;
mod reads;
mod setup;
mod surroundings;
mod writes;
