//! The tokens file. It is read again when it changes; if it is bad, the tokens that were read
//! before stay valid.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::{
    AUDIT, Access, Caller, Denied, Right,
    reload::Reload,
    rules::{self, Rule},
    tokens::{self, Digest, Tokens},
};
use crate::metrics::Counter;

/// How often the file is read. Its content is compared, and not its time: Kubernetes swaps
/// symlinks, and some editors keep the time.
const INTERVAL: Duration = Duration::from_secs(1);
/// Two reads this far apart must agree on a change: a file that is only half written may be valid
/// too.
const SECOND_LOOK: Duration = Duration::from_millis(200);
/// Denials that are logged in one second; the others are only counted. Clients must not be able to
/// fill the disk.
const LOGGED_A_SECOND: u32 = 20;
/// The reasons of denials, as the metrics name them.
pub const REASONS: [&str; 4] = ["no_token", "unknown_token", "no_rule", "no_right"];

/// Admits or denies calls.
#[derive(Debug)]
pub struct Gate {
    path: PathBuf,
    tokens: ArcSwap<Tokens>,
    /// The content of the file that `tokens` was parsed from.
    text: Mutex<String>,
    /// Whether the file was bad when it was read last.
    is_failing: AtomicBool,
    logged: Mutex<Logged>,
    /// Denials by reason, including those that were not logged.
    denied: [Counter; REASONS.len()],
}

/// How many denials were logged in the current second.
#[derive(Debug)]
struct Logged {
    since: Instant,
    denials: u32,
    untold: u64,
}

impl Gate {
    /// Reads the file for the first time. The error says everything that is wrong with it.
    pub fn open(path: &Path) -> Result<Arc<Self>, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))?;
        let tokens = Tokens::parse(&text)?;
        let logged = Logged { since: Instant::now(), denials: 0, untold: 0 };
        let (tokens, text, logged) = (ArcSwap::from_pointee(tokens), Mutex::new(text), Mutex::new(logged));
        let (path, is_failing, denied) = (path.to_owned(), AtomicBool::new(false), Default::default());
        Ok(Arc::new(Self { path, tokens, text, is_failing, logged, denied }))
    }

    /// Whether the file was bad when it was read last, so that older tokens are in use.
    pub fn is_failing(&self) -> bool {
        self.is_failing.load(Relaxed)
    }

    /// Denied calls and chunks of streams since the start, by the number of their reason.
    pub fn denied(&self) -> [u64; REASONS.len()] {
        self.denied.each_ref().map(Counter::get)
    }

    /// Follows changes of the file until `stop`: reads it every second, and when a reload is
    /// requested.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken, mut reload: Reload) {
        let mut trouble = String::new();
        loop {
            let is_asked = tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => false,
                () = reload.asked() => true,
            };
            if is_asked {
                trouble.clear();
            }
            let now = self.read_file().await;
            if !now.as_ref().is_ok_and(|text| self.is_known(text)) {
                tokio::time::sleep(SECOND_LOOK).await;
                if self.read_file().await != now {
                    continue;
                }
            }
            let read = now.and_then(|text| self.use_text(text));
            self.is_failing.store(read.is_err(), Relaxed);
            match read {
                Ok(is_new) => {
                    if is_asked && !is_new {
                        let file = self.path.display();
                        tracing::info!(%file, "auth.tokens_file was read again, and holds what it held before");
                    }
                    trouble.clear();
                }
                // The same error is logged only once.
                Err(error) if error == trouble => {}
                Err(error) => {
                    let file = self.path.display();
                    let words = error.replace('\n', "; ");
                    tracing::warn!(%file, error = words, "auth.tokens_file is bad: the tokens read before stay valid");
                    trouble = error;
                }
            }
        }
    }

    async fn read_file(&self) -> Result<String, String> {
        tokio::fs::read_to_string(&self.path).await.map_err(|error| format!("cannot be read: {error}"))
    }

    fn is_known(&self, text: &str) -> bool {
        *self.text.lock().unwrap_or_else(PoisonError::into_inner) == text
    }

    /// Parses and uses a new content of the file. Returns whether it is new.
    fn use_text(&self, text: String) -> Result<bool, String> {
        let mut last = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == text {
            return Ok(false);
        }
        let new = Tokens::parse(&text)?;
        *last = text;
        let old = self.tokens.swap(Arc::new(new));
        let names = |tokens: &Tokens| tokens.callers().map(|caller| caller.name().to_owned()).collect::<BTreeSet<_>>();
        let (old, new) = (names(&old), names(&self.tokens.load()));
        let (added, removed): (Vec<_>, Vec<_>) = (new.difference(&old).collect(), old.difference(&new).collect());
        let file = self.path.display();
        let callers = new.len();
        tracing::info!(target: AUDIT, %file, callers, ?added, ?removed, "auth.tokens_file has changed and is in use");
        Ok(true)
    }

    /// Admits or denies a call of this path with this `authorization`. None: everybody may call it.
    pub fn admit(
        self: &Arc<Self>,
        path: &str,
        authorization: Option<&[u8]>,
        peer: Option<SocketAddr>,
    ) -> Result<Option<Access>, Denied> {
        let (rpc, rule) = match rules::of(path) {
            Some((_, Rule::Open)) => return Ok(None),
            Some((rpc, rule)) => (rpc, Some(rule)),
            None => ("(unknown)", None),
        };
        let Some(token) = authorization.and_then(bearer) else {
            self.log_denial(&Denied::NoToken, rpc, peer);
            return Err(Denied::NoToken);
        };
        let token = tokens::digest(token);
        let caller = self.known(&token, rpc, peer)?;
        let right = match rule {
            Some(Rule::Needs(right)) => Some(right),
            Some(Rule::AnyCaller | Rule::Open) => None,
            None => {
                self.log_denial(&Denied::NoRule, rpc, peer);
                return Err(Denied::NoRule);
            }
        };
        // This comes before the request is read: the server holds no bytes of a client that has the
        // right on no view.
        if let Some(right) = right.filter(|right| !caller.may_anywhere(*right)) {
            let denied = Denied::NoRight { caller: caller.name().to_owned(), right, view: None };
            self.log_denial(&denied, rpc, peer);
            return Err(denied);
        }
        Ok(Some(Access { caller, right, rpc, token, peer, gate: self.clone() }))
    }

    pub(super) fn known(
        &self,
        token: &Digest,
        rpc: &'static str,
        peer: Option<SocketAddr>,
    ) -> Result<Arc<Caller>, Denied> {
        let found = self.tokens.load().find(token).cloned();
        found.ok_or_else(|| {
            self.log_denial(&Denied::UnknownToken, rpc, peer);
            Denied::UnknownToken
        })
    }

    /// Counts a denial, and logs it to the audit log.
    pub(super) fn log_denial(&self, denied: &Denied, rpc: &'static str, peer: Option<SocketAddr>) {
        let reason = match denied {
            Denied::NoToken => 0,
            Denied::UnknownToken => 1,
            Denied::NoRule => 2,
            Denied::NoRight { .. } => 3,
        };
        self.denied[reason].add(1);
        let Some(untold) = self.may_log() else { return };
        let rpc = rpc.rsplit('/').next().unwrap_or_default();
        let peer = peer.map(tracing::field::display);
        match denied {
            Denied::NoRight { caller, right, view } => {
                let right = Right::name(*right);
                tracing::warn!(target: AUDIT, rpc, caller, right, feature_view = view, peer, untold, "denied: no right");
            }
            Denied::NoToken => tracing::warn!(target: AUDIT, rpc, peer, untold, "denied: no token"),
            Denied::UnknownToken => tracing::warn!(target: AUDIT, rpc, peer, untold, "denied: an unknown token"),
            Denied::NoRule => tracing::warn!(target: AUDIT, rpc, peer, untold, "denied: no rule"),
        }
    }

    /// None: enough denials were logged in this second. Otherwise the number of denials that were
    /// not logged since the last one that was, if there are any.
    fn may_log(&self) -> Option<Option<u64>> {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.since.elapsed() >= Duration::from_secs(1) {
            (logged.since, logged.denials) = (Instant::now(), 0);
        }
        if logged.denials == LOGGED_A_SECOND {
            logged.untold += 1;
            return None;
        }
        logged.denials += 1;
        let untold = std::mem::take(&mut logged.untold);
        Some((untold > 0).then_some(untold))
    }
}

/// The token in `authorization: Bearer <token>`.
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked("bearer ".len())?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_follows_the_word_bearer() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"bearer  abc "), Some(&b"abc"[..]));
        for other in [&b"abc"[..], b"Basic abc", b"Bearer", b"Bearer ", b"Bearerabc", b""] {
            assert_eq!(bearer(other), None);
        }
    }

    #[test]
    fn strangers_fill_no_log() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokens.toml");
        std::fs::write(&file, format!("[[tokens]]\nname = \"a\"\nsha256 = [{:?}]", "0".repeat(64))).unwrap();
        let gate = Gate::open(&file).unwrap();
        let told = (0..1000).filter(|_| gate.may_log().is_some()).count();
        assert!(told < 500, "{told}");
    }
}
