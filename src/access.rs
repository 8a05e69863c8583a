//! Who calls, and what they may do: callers known by their tokens (`tokens`), a file of them that is read anew when it
//! changes (`gate`), and what each RPC asks for (`rules`). What is not allowed is denied.
//!
//! Not here: how a refusal looks on the wire (`api`), and where a call's token is read (`server::auth`).

pub mod gate;
pub mod reload;
pub mod rules;
pub mod tokens;

use std::{fmt, net::SocketAddr, sync::Arc};

use self::{gate::Gate, tokens::Digest};
use crate::record::MAX_FEATURE_VIEW_BYTES;

/// The target of the audit log's lines: who was denied, who wrote what, and changes of the tokens. Denials are warnings.
/// `featurestore::audit=off` in the log's filter leaves it out, `featurestore::audit=warn` keeps only the denials.
pub const AUDIT: &str = "featurestore::audit";

/// What a caller may do to feature views.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Read records.
    Read,
    /// Write records, one by one or in bulk.
    Write,
    /// Delete records.
    Delete,
    /// All of these.
    Admin,
}

impl Right {
    /// All of them, in the order in which they are numbered.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Delete, Self::Admin];

    /// As the tokens' file has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Delete => "delete",
            Self::Admin => "admin",
        }
    }
}

/// The feature views that a right is for: a name, or the beginning of names and a star.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Views {
    /// This one.
    One(String),
    /// All that begin so.
    Beginning(String),
}

impl Views {
    fn have(&self, view: &str) -> bool {
        match self {
            Self::One(name) => view == name,
            Self::Beginning(beginning) => view.starts_with(beginning.as_str()),
        }
    }
}

/// Somebody who has a token.
#[derive(Debug)]
pub struct Caller {
    name: String,
    /// By the right's number.
    rights: [Vec<Views>; Right::ALL.len()],
}

impl Caller {
    /// As the tokens' file and the log have it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a right was given on any feature view at all.
    pub fn may_anywhere(&self, right: Right) -> bool {
        [right, Right::Admin].into_iter().any(|right| !self.rights[right as usize].is_empty())
    }

    /// Whether a right on a feature view was given.
    pub fn may(&self, right: Right, view: &str) -> bool {
        let given = |right: Right| self.rights[right as usize].iter().any(|views| views.have(view));
        given(right) || given(Right::Admin)
    }
}

/// A call that was let in; the server puts it into the request's extensions.
#[derive(Clone, Debug)]
pub struct Access {
    caller: Arc<Caller>,
    right: Option<Right>,
    rpc: &'static str,
    token: Digest,
    peer: Option<SocketAddr>,
    gate: Arc<Gate>,
}

impl Access {
    /// Whose call it is.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The RPC's name.
    pub fn rpc(&self) -> &'static str {
        self.rpc.rsplit('/').next().unwrap_or_default()
    }

    /// Whether the call may go on to this feature view.
    pub fn check(&self, view: &str) -> Result<(), Denied> {
        match self.right {
            Some(right) if !self.caller.may(right, view) => {
                // Nobody has checked the name yet.
                let view = view.chars().take(MAX_FEATURE_VIEW_BYTES + 1).collect();
                let denied = Denied::NoRight { caller: self.caller.name.clone(), right, view: Some(view) };
                self.gate.tell(&denied, self.rpc, self.peer);
                Err(denied)
            }
            _ => Ok(()),
        }
    }

    /// The same for a stream that began a while ago: by what the tokens' file says now.
    pub fn check_again(&mut self, view: &str) -> Result<(), Denied> {
        self.caller = self.gate.known(&self.token, self.rpc, self.peer)?;
        self.check(view)
    }
}

/// Why a call is not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It has no token.
    NoToken,
    /// Its token is nobody's.
    UnknownToken,
    /// No rule says who may call this.
    NoRule,
    /// Its caller was not given this right.
    NoRight {
        /// The caller's name.
        caller: String,
        /// What was needed.
        right: Right,
        /// On what. None: it was given on no feature view at all.
        view: Option<String>,
    },
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoToken => f.write_str(
                "this server asks for a token: send the metadata \"authorization: Bearer <token>\" with every call",
            ),
            Self::UnknownToken => f.write_str(
                "this token is nobody's: it may have been replaced; whoever keeps the server's auth.tokens_file gives new ones",
            ),
            Self::NoRule => f.write_str("no rule lets anybody call this"),
            Self::NoRight { caller, right, view } => {
                let right = right.name();
                match view {
                    Some(view) => write!(f, "{caller:?} has not the right {right:?} on the feature view {view:?}")?,
                    None => write!(f, "{caller:?} has the right {right:?} on no feature view")?,
                }
                f.write_str(": auth.tokens_file grants it")
            }
        }
    }
}
