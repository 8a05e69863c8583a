//! What L2 said of the epoch, when, and what this server may do under it.

use std::time::Duration;

use tokio::time::Instant;

use super::{CHANGE_PAUSE, VIEW_LIFE};
use crate::{
    cache::L1Name,
    record::{Clock, Millis},
    store::EpochState,
};

/// How far the wall clock and the monotonic one may be apart since a look, ms, and of how much one more. With this a view lives
/// shorter than everybody pauses after a change.
const MAX_APART: i64 = 500;
const MAX_DRIFT: i64 = 500;

/// What this server's L1 is to the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The epoch holds for it. `alone`: nobody reads from another one beside it.
    Named { alone: bool },
    /// It is in this process, beside the one that the epoch holds for, and others know of it: reads follow L2's changes, and
    /// what it confirms is no one else's.
    Beside,
    /// The epoch holds for another one or for none, or it is not known yet which one ours is.
    Another,
}

#[derive(Debug)]
pub(super) struct View {
    pub(super) state: EpochState,
    pub(super) role: Role,
    /// From before the read that told it, by the monotonic clock and by the wall clock.
    pub(super) as_of: Instant,
    pub(super) as_of_wall: Millis,
    pub(super) bypass_until: Option<Instant>,
    /// Counts the changes of the epoch, of the L1 that it holds for, and of our role.
    pub(super) life: u64,
    /// How long it counts: not beyond what L2 was told of our use of L1.
    lives: Duration,
}

/// How much a view is worth now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    Fresh,
    /// L2 has not confirmed it lately.
    Old,
    /// The wall clock and the monotonic one do not agree how long ago L2 was asked: this machine was suspended.
    Suspended,
}

impl View {
    /// What L2 said, asked at `as_of`, after what it had said before.
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

    /// Whether this is another epoch, or it holds for another L1.
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

    /// Nobody but us changes the epoch of an exclusive store, so no view of it is too old.
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
