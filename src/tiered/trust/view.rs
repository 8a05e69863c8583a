//! What L2 last returned about the epoch, when, and what this server may do under it.

use std::time::Duration;

use tokio::time::Instant;

use super::{CHANGE_PAUSE, VIEW_LIFE};
use crate::{
    cache::L1Name,
    record::{Clock, Millis},
    store::EpochState,
};

/// How far the wall clock and the monotonic clock may differ since the request, in ms, and of how
/// many ms one more. With this a view lives shorter than the pause after a change.
const MAX_APART: i64 = 500;
const MAX_DRIFT: i64 = 500;

/// How this server's L1 stands to the L1 that the epoch names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It is the named one. `alone`: no server reads from another L1 beside it.
    Named { alone: bool },
    /// It is in this process, beside the named one, and other servers know of it. Reads use it, as
    /// it follows the changes of L2; what it confirms does not hold for other servers.
    Beside,
    /// The epoch names another one or none, or it is not known yet which one ours is.
    Another,
}

#[derive(Debug)]
pub(super) struct View {
    pub(super) state: EpochState,
    pub(super) role: Role,
    /// Taken before the request to L2 was sent, by the monotonic clock and by the wall clock.
    pub(super) as_of: Instant,
    pub(super) as_of_wall: Millis,
    pub(super) bypass_until: Option<Instant>,
    /// Grows with each change of the epoch, of the named L1, and of our role.
    pub(super) life: u64,
    /// How long it may be used: not longer than L2 knows that this server uses L1.
    lives: Duration,
}

/// Whether a view may still be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    Fresh,
    /// L2 has not confirmed it lately.
    Old,
    /// The wall clock and the monotonic clock differ about its age: this machine was suspended.
    Suspended,
}

impl View {
    /// The view after `known`, from what L2 returned to a request sent at `as_of`.
    pub(super) fn new(
        known: Option<&Self>,
        state: EpochState,
        mine: Option<&L1Name>,
        as_of: (Instant, Millis),
        exclusive: bool,
    ) -> Self {
        let role = role(&state, mine, exclusive);
        let lives = match role {
            _ if exclusive => Duration::MAX,
            Role::Named { .. } => VIEW_LIFE.min(state.leased),
            Role::Beside => VIEW_LIFE.min(state.beside),
            Role::Another => VIEW_LIFE,
        };
        let (mut life, mut bypass_until) = known.map_or((0, None), |known| (known.life, known.bypass_until));
        if let Some(known) = known {
            let begins_beside = role == Role::Beside && known.role != Role::Beside;
            if begins_beside || known.differs(&state) {
                bypass_until = (!exclusive).then(|| Instant::now() + CHANGE_PAUSE);
            }
            life += u64::from(role != known.role || known.differs(&state));
        }
        Self { state, role, as_of: as_of.0, as_of_wall: as_of.1, bypass_until, life, lives }
    }

    /// Whether `state` has another epoch, or names another L1.
    pub(super) fn differs(&self, state: &EpochState) -> bool {
        let is_same = match (&self.state.l1, &state.l1) {
            (Some(known), Some(named)) => known.is(named),
            (None, None) => true,
            _ => false,
        };
        self.state.epoch != state.epoch || !is_same
    }

    pub(super) fn is_paused(&self) -> bool {
        self.bypass_until.is_some_and(|until| Instant::now() < until)
    }

    /// No other server changes the epoch of an exclusive store, so no view of it is too old.
    pub(super) fn age(&self, clock: &Clock) -> Age {
        if self.lives == Duration::MAX {
            return Age::Fresh;
        }
        let elapsed = self.as_of.elapsed();
        let (wall, millis) = (clock.now().0.saturating_sub(self.as_of_wall.0), elapsed.as_millis() as i64);
        if wall.abs_diff(millis) > (MAX_APART + millis / MAX_DRIFT) as u64 {
            return Age::Suspended;
        }
        if elapsed < self.lives { Age::Fresh } else { Age::Old }
    }
}

fn role(state: &EpochState, mine: Option<&L1Name>, exclusive: bool) -> Role {
    match mine {
        Some(mine) if state.names(mine) => Role::Named { alone: mine.shared || exclusive || state.beside.is_zero() },
        Some(mine) if !mine.shared && !state.beside.is_zero() => Role::Beside,
        _ => Role::Another,
    }
}
