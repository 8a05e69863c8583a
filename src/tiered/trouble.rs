//! What is wrong with a tier, told once and then now and again: who looks at the log must find it, and it must not fill the
//! log.

use std::time::Duration;

use tokio::time::Instant;

/// How long the same trouble is not told again.
const REMINDER: Duration = Duration::from_secs(60);
/// How long another one is not.
const OTHER: Duration = Duration::from_secs(5);

/// What was told last, and when.
#[derive(Debug, Default)]
pub(super) struct Trouble(Option<(String, Instant)>);

impl Trouble {
    /// Whether this should be told now.
    pub(super) fn is_news(&mut self, text: &str) -> bool {
        let quiet = match &self.0 {
            None => false,
            Some((told, at)) => at.elapsed() < if told == text { REMINDER } else { OTHER },
        };
        if !quiet {
            self.0 = Some((text.to_owned(), Instant::now()));
        }
        !quiet
    }

    /// All is well again.
    pub(super) fn is_over(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_trouble_is_told_at_once_and_then_now_and_again() {
        let mut trouble = Trouble::default();
        assert!(trouble.is_news("a") && !trouble.is_news("a") && !trouble.is_news("b"));
        tokio::time::advance(OTHER).await;
        assert!(!trouble.is_news("a") && trouble.is_news("b") && !trouble.is_news("b"));
        tokio::time::advance(REMINDER).await;
        assert!(trouble.is_news("b") && !trouble.is_news("b"));
        trouble.is_over();
        assert!(trouble.is_news("b"));
    }
}
