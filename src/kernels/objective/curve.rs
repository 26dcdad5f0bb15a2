//! Losses as functions of one number z, with their slopes.

/// Loss as a function of z.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum LossFn {
    /// −up·logσ(z) − down·logσ(−z).
    Logistic {
        /// Weight of z being positive.
        up: f64,
        /// Weight of z being negative.
        down: f64,
    },
    /// max(0, 1 − z).
    Hinge,
    /// z².
    Square,
    /// 1 − σ(z).
    Sigmoid,
    /// −z.
    Linear,
    /// q·log(q/target) + (1−q)·log((1−q)/(1−target)), q = σ(z): the KL divergence of two Bernoulli distributions (EXO, arXiv 2402.00856).
    BernoulliKl {
        /// Probability that the second distribution gives to the chosen side, between 0 and 1.
        target: f64,
    },
    /// −(1−m)·logσ(z) + m·exp(−z), m = σ(z/τ): a blend of the logistic and the exponential loss (DiscoPOP, arXiv 2406.08414).
    LogRatioModulated {
        /// Temperature τ of the blend, above 0.
        tau: f64,
    },
}

pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Computes logσ(x) without overflow.
pub(super) fn log_sigmoid(x: f64) -> f64 {
    if x >= 0.0 { -(-x).exp().ln_1p() } else { x - x.exp().ln_1p() }
}

/// Computes log(p/(1−p)).
pub(super) fn log_odds(p: f64) -> f64 {
    p.ln() - (-p).ln_1p()
}

impl LossFn {
    /// Computes the loss and its slope at z.
    pub(super) fn at(self, z: f64) -> (f64, f64) {
        match self {
            Self::Logistic { up, down } => {
                (-up * log_sigmoid(z) - down * log_sigmoid(-z), down * sigmoid(z) - up * sigmoid(-z))
            }
            Self::Hinge => ((1.0 - z).max(0.0), if z < 1.0 { -1.0 } else { 0.0 }),
            Self::Square => (z * z, 2.0 * z),
            // σ(−z) keeps the digits that 1 − σ(z) loses.
            Self::Sigmoid => (sigmoid(-z), -sigmoid(z) * sigmoid(-z)),
            Self::Linear => (-z, -1.0),
            Self::BernoulliKl { target } => {
                let (q, rest) = (sigmoid(z), sigmoid(-z));
                let loss = q * (log_sigmoid(z) - target.ln()) + rest * (log_sigmoid(-z) - (-target).ln_1p());
                (loss, q * rest * (z - log_odds(target)))
            }
            Self::LogRatioModulated { tau } => {
                let (m, rest) = (sigmoid(z / tau), sigmoid(-z / tau));
                let logistic = -log_sigmoid(z);
                // m·exp(−z) in one exponential, because exp(−z) alone overflows where m is 0.
                let blended = (log_sigmoid(z / tau) - z).exp();
                let slope = -rest * sigmoid(-z) - blended + rest * (blended - m * logistic) / tau;
                (rest * logistic + blended, slope)
            }
        }
    }
}
