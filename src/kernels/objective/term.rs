//! What losses are made of.

use super::scores::{Known, Objective, SequenceOutcome, Sums};

/// What is taken from a sequence: x, of its score (a sum over n tokens) less the reference's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// x = score.
    Sum,
    /// x = score/n.
    Mean,
    /// x = score/n̄, n̄ being the scored tokens of all desirable sequences of a step per row: means over rows are then means over those tokens.
    TokenMean,
    /// x = log(p/(1−p)), p = exp(score/n); p is at most exp([`CERTAIN`]).
    LogOdds,
}

/// The largest mean log-probability of which odds are taken, nearly the largest below 0 that f32 tells from 0; above it they stand still.
pub const CERTAIN: f64 = -1.0 / (1 << 20) as f64;

/// What x is compared with, over a micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coupling {
    /// A pair's sides: z = scale·(x_c − x_r) − offset.
    Own,
    /// The same of the chosen and the rejected of the same rank (of equals, the earlier first).
    Sorted,
    /// The mean over all pairs (i, j) of sides: z = scale·ω_ij·(x_c,i − x_r,j) − offset, ω of [`Known::cross`].
    Cross,
    /// Each sequence alone: z = scale·(x − shift), or −z where it is not desirable.
    Sides(Shift),
}

/// What single sequences are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shift {
    /// 0.
    Zero,
    /// The mean of x over all sequences, without a gradient.
    Mean,
    /// The same, at least 0.
    Positive,
    /// The mean of x over the sequences that are the other way desirable, at least 0, with its gradient. Of pairs.
    Opposite,
}

/// The loss over z.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Curve {
    /// −up·logσ(z) − down·logσ(−z).
    Logistic {
        /// Weight of z being positive.
        up: f64,
        /// Weight of the contrary.
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
}

/// A part of a loss: curve ∘ coupling ∘ link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Term {
    /// From a score to x.
    pub link: Link,
    /// Whose score: the objective that sums it.
    pub scope: Objective,
    /// The reference's score is subtracted.
    pub referenced: bool,
    /// From x to z.
    pub coupling: Coupling,
    /// From z to the loss.
    pub curve: Curve,
    /// Of x in z.
    pub scale: f64,
    /// Of z; 0 for single sequences.
    pub offset: f64,
    /// Of the loss of a desirable and of an undesirable sequence; of pairs the first.
    pub weights: [f64; 2],
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// logσ(x) without overflow.
fn log_sigmoid(x: f64) -> f64 {
    if x >= 0.0 { -(-x).exp().ln_1p() } else { x - x.exp().ln_1p() }
}

impl Curve {
    /// Loss and slope.
    fn at(self, z: f64) -> (f64, f64) {
        match self {
            Self::Logistic { up, down } => {
                (-up * log_sigmoid(z) - down * log_sigmoid(-z), down * sigmoid(z) - up * sigmoid(-z))
            }
            Self::Hinge => ((1.0 - z).max(0.0), if z < 1.0 { -1.0 } else { 0.0 }),
            Self::Square => (z * z, 2.0 * z),
            // σ(−z) keeps the digits that 1 − σ(z) loses.
            Self::Sigmoid => (sigmoid(-z), -sigmoid(z) * sigmoid(-z)),
            Self::Linear => (-z, -1.0),
        }
    }
}

/// x of a sequence, and ∂x/∂score.
#[derive(Clone, Copy)]
struct X {
    value: f64,
    slope: f64,
}

/// A chosen and a rejected sequence that are compared.
struct Meeting {
    chosen: usize,
    rejected: usize,
    omega: f64,
    /// Of a row's loss.
    share: f64,
}

impl Term {
    /// Of this weight.
    #[must_use]
    pub fn times(self, weight: f64) -> Self {
        Self { weights: self.weights.map(|w| weight * w), ..self }
    }

    /// `n_mean`: n̄ of [`Link::TokenMean`].
    fn x(&self, sums: &Sums, reference: f64, n_mean: f64) -> X {
        let score = sums.score(self.scope) - if self.referenced { reference } else { 0.0 };
        let n = sums.n_scored(self.scope) as f64;
        match self.link {
            Link::Sum => X { value: score, slope: 1.0 },
            Link::Mean => X { value: score / n, slope: 1.0 / n },
            Link::TokenMean => X { value: score / n_mean, slope: 1.0 / n_mean },
            Link::LogOdds => {
                let mean = (score / n).min(CERTAIN);
                let rest = -mean.exp_m1(); // 1 − p
                X { value: mean - rest.ln(), slope: if score / n < CERTAIN { 1.0 / (n * rest) } else { 0.0 } }
            }
        }
    }

    fn all_x(&self, sums: &[Sums], known: &Known) -> Vec<X> {
        let n_mean = known.tokens_per_row(self.scope, sums.iter().map(|s| s.n_scored(self.scope)));
        sums.iter().zip(&known.reference).map(|(s, &reference)| self.x(s, reference, n_mean)).collect()
    }

    /// What desirable and undesirable sequences are compared with; 0 for pairs.
    pub(crate) fn shift(&self, sums: &[Sums], known: &Known) -> [f64; 2] {
        let x = self.all_x(sums, known);
        let mean = |side: Option<bool>| {
            let of = |(x, desirable): (&X, &bool)| side.is_none_or(|d| d == *desirable).then_some(x.value);
            let values: Vec<f64> = x.iter().zip(&known.desirable).filter_map(of).collect();
            values.iter().sum::<f64>() / values.len() as f64
        };
        match self.coupling {
            Coupling::Sides(Shift::Mean) => [mean(None); 2],
            Coupling::Sides(Shift::Positive) => [mean(None).max(0.0); 2],
            Coupling::Sides(Shift::Opposite) => [mean(Some(false)).max(0.0), mean(Some(true)).max(0.0)],
            Coupling::Sides(Shift::Zero) | Coupling::Own | Coupling::Sorted | Coupling::Cross => [0.0; 2],
        }
    }

    /// Who meets whom, of pairs.
    fn meetings(&self, x: &[X], known: &Known) -> Vec<Meeting> {
        let n = x.len() / 2;
        // By x, of equals the earlier first.
        let ranked = |side: usize| {
            let mut all: Vec<usize> = (side..x.len()).step_by(2).collect();
            all.sort_by(|&a, &b| x[a].value.total_cmp(&x[b].value));
            all
        };
        let alone = |(chosen, rejected)| Meeting { chosen, rejected, omega: 1.0, share: 1.0 };
        match self.coupling {
            Coupling::Sorted => ranked(0).into_iter().zip(ranked(1)).map(alone).collect(),
            Coupling::Cross => {
                let meet = |(k, &omega)| {
                    let (i, j) = (k / n, k % n);
                    Meeting { chosen: 2 * i, rejected: 2 * j + 1, omega, share: 1.0 / n as f64 }
                };
                known.cross.iter().enumerate().map(meet).collect()
            }
            Coupling::Own | Coupling::Sides(_) => (0..n).map(|p| alone((2 * p, 2 * p + 1))).collect(),
        }
    }

    /// Adds loss and gradient of every sequence. A pair's loss is its chosen side's.
    pub fn add(&self, sums: &[Sums], known: &Known, into: &mut [SequenceOutcome]) {
        self.add_from(sums, known, self.shift(sums, known), into);
    }

    /// The same, compared with `shift`.
    pub(crate) fn add_from(&self, sums: &[Sums], known: &Known, shift: [f64; 2], into: &mut [SequenceOutcome]) {
        let x = self.all_x(sums, known);
        let mut d_x = vec![0.0; x.len()];
        match self.coupling {
            Coupling::Sides(kind) => {
                let mut d_shift = [0.0; 2];
                for (s, &desirable) in known.desirable.iter().enumerate() {
                    let (side, sign) = if desirable { (0, 1.0) } else { (1, -1.0) };
                    let (loss, slope) = self.curve.at(sign * self.scale * (x[s].value - shift[side]));
                    into[s].loss += self.weights[side] * loss;
                    d_x[s] = self.weights[side] * slope * sign * self.scale;
                    d_shift[side] -= d_x[s];
                }
                if kind == Shift::Opposite {
                    for (s, &desirable) in known.desirable.iter().enumerate() {
                        let other = usize::from(desirable);
                        d_x[s] += if shift[other] > 0.0 { d_shift[other] / (x.len() / 2) as f64 } else { 0.0 };
                    }
                }
            }
            Coupling::Own | Coupling::Sorted | Coupling::Cross => {
                for Meeting { chosen, rejected, omega, share } in self.meetings(&x, known) {
                    let (scale, weight) = (self.scale * omega, self.weights[0] * share);
                    let (loss, slope) = self.curve.at(scale * (x[chosen].value - x[rejected].value) - self.offset);
                    into[chosen].loss += weight * loss;
                    d_x[chosen] += weight * slope * scale;
                    d_x[rejected] -= weight * slope * scale;
                }
            }
        }
        for ((outcome, x), d_x) in into.iter_mut().zip(&x).zip(d_x) {
            let d = d_x * x.slope;
            outcome.d_sums[0] += if self.scope == Objective::Jpo { d } else { 0.0 };
            outcome.d_sums[1] += d;
        }
    }
}
