//! Decides which calls are traced, by `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`. The SDK
//! would make a span before it decides.

use http::HeaderMap;

/// The caller's span from `traceparent`, as far as the decision needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    /// The part of the trace id that ratios compare.
    low: u64,
    sampled: bool,
}

impl Parent {
    /// None: there is no valid header.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        Self::parse(headers.get("traceparent")?.as_bytes())
    }

    /// Parses the format of the W3C: `00-<32 hex digits>-<16 hex digits>-<2 hex digits>`; later
    /// versions may append more.
    fn parse(header: &[u8]) -> Option<Self> {
        let (known, more) = header.split_at_checked(55)?;
        let hex = |from: usize, to: usize| {
            known[from..to].iter().try_fold(0_u128, |sum, digit| {
                let digit = match digit {
                    b'0'..=b'9' => digit - b'0',
                    b'a'..=b'f' => digit - b'a' + 10,
                    _ => return None,
                };
                Some(sum << 4 | u128::from(digit))
            })
        };
        let (version, trace, span, flags) = (hex(0, 2)?, hex(3, 35)?, hex(36, 52)?, hex(53, 55)?);
        let is_whole = [2, 35, 52].into_iter().all(|dash| known[dash] == b'-')
            && if version == 0 { more.is_empty() } else { more.is_empty() || more[0] == b'-' };
        let is_valid = is_whole && version != 0xff && trace != 0 && span != 0;
        is_valid.then_some(Self { low: trace as u64, sampled: flags & 1 == 1 })
    }
}

/// Decides which calls are traced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Whether callers decide for their own traces.
    parent_based: bool,
    /// The share of the other calls that is traced, from 0 to 1.
    share: f64,
}

impl Sampler {
    /// Parses the two variables. A value that cannot be used is returned as a warning, and the
    /// default takes its place: everything is traced, unless the caller decided otherwise.
    pub fn parse(name: Option<&str>, arg: Option<&str>) -> (Self, Option<String>) {
        let everything = Self { parent_based: true, share: 1.0 };
        let unused = |name: &str| {
            arg.map(|_| format!("OTEL_TRACES_SAMPLER_ARG: is not used, because the sampler {name} takes no argument"))
        };
        let Some(given) = name.map(str::trim).filter(|name| !name.is_empty()) else {
            return (everything, unused("parentbased_always_on"));
        };
        let name = given.to_ascii_lowercase();
        let name = name.as_str();
        let (parent_based, kind) = name.strip_prefix("parentbased_").map_or((false, name), |kind| (true, kind));
        let sampler = |share| Self { parent_based, share };
        match kind {
            "always_on" => (sampler(1.0), unused(name)),
            "always_off" => (sampler(0.0), unused(name)),
            "traceidratio" => {
                let share = arg.map_or(Ok(1.0), |arg| arg.trim().parse().map_err(|_| arg));
                match share {
                    Ok(share) if (0.0..=1.0).contains(&share) => (sampler(share), None),
                    _ => {
                        let arg = arg.unwrap_or_default();
                        let wrong = format!("OTEL_TRACES_SAMPLER_ARG: {arg:?} is not a number from 0 to 1; 1 is used");
                        (sampler(1.0), Some(wrong))
                    }
                }
            }
            _ => {
                let wrong = format!(
                    "OTEL_TRACES_SAMPLER: {given:?} is not supported, so parentbased_always_on is used; supported are \
                     always_on, always_off, traceidratio, and the same with the prefix parentbased_"
                );
                (everything, Some(wrong))
            }
        }
    }

    pub(super) fn samples(&self, parent: Option<Parent>) -> bool {
        match parent {
            Some(parent) if self.parent_based => parent.sampled,
            _ if self.share >= 1.0 => true,
            _ if self.share <= 0.0 => false,
            // The same computation as in every SDK, so that all of them agree about a trace.
            parent => {
                let low = parent.map_or_else(rand::random, |parent| parent.low);
                low >> 1 < (self.share * (1_u64 << 63) as f64) as u64
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(low: u64, sampled: bool) -> Option<Parent> {
        Some(Parent { low, sampled })
    }

    #[test]
    fn a_traceparent_is_read_as_w3c_has_it() {
        let parse = |header: &str| Parent::parse(header.as_bytes());
        let low = 0x8448_eb21_1c80_319c;
        assert_eq!(parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), parent(low, true));
        assert_eq!(parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"), parent(low, false));
        assert_eq!(parse("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03-more"), parent(low, true));
        for wrong in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333g-01",
        ] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn callers_decide_where_the_sampler_lets_them() {
        let sampler = |name, arg| Sampler::parse(Some(name), arg).0;
        for name in ["parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio"] {
            assert!(sampler(name, Some("0.5")).samples(parent(1, true)), "{name}");
            assert!(!sampler(name, Some("0.5")).samples(parent(1, false)), "{name}");
        }
        assert!(sampler("always_on", None).samples(parent(1, false)));
        assert!(!sampler("always_off", None).samples(parent(1, true)));
        assert!(!sampler("parentbased_always_off", None).samples(None));
        assert!(Sampler::parse(None, None).0.samples(None));
    }

    #[test]
    fn a_ratio_is_that_of_the_trace_ids() {
        let tenth = Sampler::parse(Some("traceidratio"), Some("0.1")).0;
        assert!(tenth.samples(parent(u64::MAX / 11, false)) && !tenth.samples(parent(u64::MAX / 9, true)));
        let sampled = (0..100_000).filter(|_| tenth.samples(None)).count();
        assert!((8_000..12_000).contains(&sampled), "{sampled}");
    }

    #[test]
    fn what_is_wrong_is_told_and_nothing_is_lost() {
        for (name, arg) in [("sometimes", None), ("traceidratio", Some("2")), ("parentbased_traceidratio", Some("x"))] {
            let (sampler, wrong) = Sampler::parse(Some(name), arg);
            assert!(
                wrong.is_some_and(|wrong| wrong.starts_with("OTEL_TRACES_SAMPLER")) && sampler.samples(None),
                "{name}"
            );
        }
        assert_eq!(Sampler::parse(Some(""), None).1, None);
        for name in [None, Some("always_on"), Some("parentbased_always_off")] {
            let told = Sampler::parse(name, Some("0.1")).1.unwrap();
            assert!(told.starts_with("OTEL_TRACES_SAMPLER_ARG: is not used"), "{told}");
        }
        assert_eq!(Sampler::parse(Some("ALWAYS_OFF"), None), (Sampler { parent_based: false, share: 0.0 }, None));
        assert_eq!(Sampler::parse(Some("traceidratio"), None), (Sampler { parent_based: false, share: 1.0 }, None));
    }
}
