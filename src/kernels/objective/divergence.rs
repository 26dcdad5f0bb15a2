//! f-divergences, which turn a log-ratio into another score (f-DPO, arXiv 2309.16240).

use std::fmt;
use std::str::FromStr;

use super::curve::{log_sigmoid, sigmoid};

/// f-divergence that keeps the policy near its reference. A sequence's log-ratio s = log(π/π_ref) is replaced by f'(eˢ).
///
/// # Examples
/// ```
/// use jointwise::objective::FDivergence;
/// assert_eq!("alpha=0.5".parse(), Ok(FDivergence::Alpha(0.5)));
/// assert_eq!(FDivergence::JensenShannon.to_string(), "js");
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum FDivergence {
    /// f'(eˢ) = s, which is DPO. (The constant 1 cancels in differences.)
    #[default]
    ReverseKl,
    /// f'(eˢ) = 1 − e⁻ˢ.
    ForwardKl,
    /// f'(eˢ) = log 2 + logσ(s).
    JensenShannon,
    /// f'(eˢ) = (e^((α−1)s) − 1)/(α − 1). α = 1 is the limit, [`FDivergence::ReverseKl`].
    Alpha(f64),
}

/// Largest exponent of e in a score: TRL's limit for f32. Scores are constant beyond it.
pub const MAX_EXPONENT: f64 = 80.0;

/// Computes eˣ and its slope; both end at [`MAX_EXPONENT`].
fn bounded_exp(x: f64) -> (f64, f64) {
    let value = x.min(MAX_EXPONENT).exp();
    (value, if x < MAX_EXPONENT { value } else { 0.0 })
}

impl FDivergence {
    /// Computes f'(eˢ) and its slope by s.
    pub(super) fn at(self, s: f64) -> (f64, f64) {
        match self {
            Self::ReverseKl => (s, 1.0),
            Self::ForwardKl => {
                let (value, slope) = bounded_exp(-s);
                (1.0 - value, slope)
            }
            Self::JensenShannon => (std::f64::consts::LN_2 + log_sigmoid(s), sigmoid(-s)),
            Self::Alpha(_) if self.is_reverse_kl() => (s, 1.0),
            Self::Alpha(alpha) => {
                let (value, slope) = bounded_exp((alpha - 1.0) * s);
                ((value - 1.0) / (alpha - 1.0), slope)
            }
        }
    }

    /// Tells whether the score is the log-ratio itself.
    pub fn is_reverse_kl(self) -> bool {
        match self {
            Self::ReverseKl => true,
            Self::Alpha(alpha) => (alpha - 1.0).abs() < 1e-6,
            Self::ForwardKl | Self::JensenShannon => false,
        }
    }
}

impl FromStr for FDivergence {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let alpha = |text: &str| text.parse::<f64>().ok().filter(|alpha| alpha.is_finite());
        match (text, text.strip_prefix("alpha=").and_then(alpha)) {
            ("reverse_kl", _) => Ok(Self::ReverseKl),
            ("forward_kl", _) => Ok(Self::ForwardKl),
            ("js", _) => Ok(Self::JensenShannon),
            (_, Some(alpha)) => Ok(Self::Alpha(alpha)),
            _ => Err("expected reverse_kl, forward_kl, js or alpha=A, such as alpha=0.5".into()),
        }
    }
}

impl fmt::Display for FDivergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReverseKl => f.write_str("reverse_kl"),
            Self::ForwardKl => f.write_str("forward_kl"),
            Self::JensenShannon => f.write_str("js"),
            Self::Alpha(alpha) => write!(f, "alpha={alpha}"),
        }
    }
}

impl From<FDivergence> for String {
    fn from(divergence: FDivergence) -> Self {
        divergence.to_string()
    }
}

impl TryFrom<String> for FDivergence {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergences_are_read_as_they_are_written() {
        for text in ["reverse_kl", "forward_kl", "js", "alpha=0.5", "alpha=-1"] {
            assert_eq!(text.parse::<FDivergence>().unwrap().to_string(), text);
        }
        for text in ["alpha", "alpha=", "alpha=nan", "alpha=inf", "kl", ""] {
            assert!(text.parse::<FDivergence>().unwrap_err().contains("alpha=A"), "{text}");
        }
    }

    #[test]
    fn slopes_are_differences_and_end_with_the_score() {
        let all = [FDivergence::ReverseKl, FDivergence::ForwardKl, FDivergence::JensenShannon, FDivergence::Alpha(1.0)];
        for divergence in all.into_iter().chain([0.0, 0.3, 2.0].map(FDivergence::Alpha)) {
            for s in [-3.0, 0.0, 1.5] {
                let slope = (divergence.at(s + 1e-5).0 - divergence.at(s - 1e-5).0) / 2e-5;
                assert!((divergence.at(s).1 - slope).abs() < 1e-7, "{divergence} {s}");
            }
        }
        assert_eq!(FDivergence::Alpha(1.0).at(2.5), (2.5, 1.0));
        let (far, flat) = (FDivergence::ForwardKl.at(-1e5), FDivergence::ForwardKl.at(-80.0));
        assert!(far == flat && far.0.is_finite() && far.1 == 0.0);
    }
}
