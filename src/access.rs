//! Who calls, and what they may do: callers and their rights (`tokens`), the tokens file, which is
//! read again when it changes (`gate`), and the right that each RPC needs (`rules`). What no rule
//! allows is denied.
//!
//! Elsewhere: the form of a refusal in the protocol (`api`), and how a call's token is read
//! (`server::auth`).

pub mod gate;
pub mod reload;
pub mod rules;
pub mod tokens;

use std::{fmt, net::SocketAddr, sync::Arc};

use self::{gate::Gate, tokens::Digest};
use crate::record::MAX_FEATURE_VIEW_BYTES;

/// The target of the lines of the audit log: denied calls, writes, and changes of the tokens.
/// Denials are warnings. In `log.filter`, `featurestore::audit=off` switches it off, and
/// `featurestore::audit=warn` keeps only the denials.
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
    /// All of the rights above.
    Admin,
}

impl Right {
    /// All rights, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Delete, Self::Admin];

    /// The name in the tokens file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Delete => "delete",
            Self::Admin => "admin",
        }
    }
}

/// The feature views that a right covers: a name, or a prefix and a star.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Views {
    /// The view with this name.
    One(String),
    /// All views whose names have this prefix.
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

/// A client that has a token.
#[derive(Debug)]
pub struct Caller {
    name: String,
    /// The views of each right, by its number.
    rights: [Vec<Views>; Right::ALL.len()],
}

impl Caller {
    /// The name in the tokens file and in the log.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the caller has a right on any feature view at all.
    pub fn may_anywhere(&self, right: Right) -> bool {
        [right, Right::Admin].into_iter().any(|right| !self.rights[right as usize].is_empty())
    }

    /// Whether the caller has a right on this feature view.
    pub fn may(&self, right: Right, view: &str) -> bool {
        let given = |right: Right| self.rights[right as usize].iter().any(|views| views.have(view));
        given(right) || given(Right::Admin)
    }
}

/// A call that was admitted. The server puts it into the extensions of the request.
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
    /// The caller.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The name of the RPC, without its service.
    pub fn rpc(&self) -> &'static str {
        self.rpc.rsplit('/').next().unwrap_or_default()
    }

    /// Checks the caller's right on the feature view that the request names.
    pub fn check(&self, view: &str) -> Result<(), Denied> {
        match self.right {
            Some(right) if !self.caller.may(right, view) => {
                // The name is not validated yet, so its length is bounded here.
                let view = view.chars().take(MAX_FEATURE_VIEW_BYTES + 1).collect();
                let denied = Denied::NoRight { caller: self.caller.name.clone(), right, view: Some(view) };
                self.gate.log_denial(&denied, self.rpc, self.peer);
                Err(denied)
            }
            _ => Ok(()),
        }
    }

    /// The same for a later chunk of a stream: by the tokens file as it is now.
    pub fn check_again(&mut self, view: &str) -> Result<(), Denied> {
        self.caller = self.gate.known(&self.token, self.rpc, self.peer)?;
        self.check(view)
    }
}

/// Why a call is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The call has no token.
    NoToken,
    /// The token is not in the tokens file.
    UnknownToken,
    /// No rule exists for this RPC.
    NoRule,
    /// The caller does not have the right that the RPC needs.
    NoRight {
        /// The caller's name.
        caller: String,
        /// The right that the RPC needs.
        right: Right,
        /// The feature view. None: the caller has the right on no view at all.
        view: Option<String>,
    },
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoToken => f.write_str(
                "this server requires a token: send the metadata \"authorization: Bearer <token>\" with every call",
            ),
            Self::UnknownToken => f.write_str(
                "this server does not know the token: it may have been replaced; the operator of the server has \
                 new ones (auth.tokens_file)",
            ),
            Self::NoRule => f.write_str("nobody may call this RPC: the server has no rule for it"),
            Self::NoRight { caller, right, view } => {
                let right = right.name();
                match view {
                    Some(view) => write!(f, "{caller:?} lacks the right {right:?} on the feature view {view:?}")?,
                    None => write!(f, "{caller:?} lacks the right {right:?} on every feature view")?,
                }
                f.write_str("; auth.tokens_file of the server grants rights")
            }
        }
    }
}
