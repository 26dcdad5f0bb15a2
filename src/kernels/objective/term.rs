//! Terms that losses are made of.

pub use super::curve::LossFn;
pub use super::divergence::FDivergence;
use super::scores::{LossInputs, Objective, SequenceLogps, SequenceOutcome};

/// Kind of score x of a sequence, computed from the sequence's score: f'(eˢ) of [`FDivergence`], where s is a sum over n tokens, less the
/// reference's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ScoreKind {
    /// x = score.
    Sum,
    /// x = score/n.
    Mean,
    /// x = score/n̄, where n̄ is the scored tokens of all desirable sequences of a step, per row. The mean of x over rows is then the mean
    /// of log-probabilities over these tokens.
    TokenMean,
    /// x = log(p/(1−p)), p = exp(score/n); score/n is at most [`CERTAIN`].
    LogOdds,
}

/// Largest mean log-probability for which odds are computed: about the largest value below 0 that f32 distinguishes from 0. Log-odds are
/// constant above it.
pub const CERTAIN: f64 = -1.0 / (1 << 20) as f64;

/// Comparison of sequences within a micro-batch, which turns x into z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ScoreCoupling {
    /// Compares a pair's sides: z = scale·(x_c − x_r) − offset.
    Own,
    /// Compares the chosen and the rejected sequences of equal rank by x (ties by index), with z as in [`Self::Own`].
    Sorted,
    /// Sorts the pairs' margins x_c − x_r, from which no reference is subtracted, and the margins ρ of the reference, and compares those of equal
    /// rank (ties by index): z = scale·(x_c − x_r − ρ) − offset. ρ is 0 where the term has no reference. Scores are sums.
    SortedMargins,
    /// Averages over all pairs (i, j) of sides: z = scale·ω_ij·(x_c,i − x_r,j) − offset, with ω of [`LossInputs::cross`].
    Cross,
    /// Compares each sequence alone: z = ±scale·(x − shift) − offset, with a minus where the sequence is not desirable.
    Sides(ReferencePoint),
}

/// Reference point that single sequences are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ReferencePoint {
    /// Zero: x is not shifted.
    Zero,
    /// Mean of x over all sequences, without a gradient.
    Mean,
    /// Mean of x over all sequences, or 0 if that is larger, without a gradient.
    Positive,
    /// Mean of x over the sequences of the opposite desirability, or 0 if that is larger, with its gradient. Pairs only.
    Opposite,
}

/// Term of a loss, a composition of three maps: `link` (score to x), `coupling` (x to z), `curve` (z to loss).
///
/// # Examples
/// ```
/// use jointwise::objective::{LossFn, Objective, ScoreCoupling, ScoreKind};
/// use jointwise::{Recipe, Term};
/// // −logσ(0.1·Δ), which is DPO.
/// let term = Term {
///     link: ScoreKind::Sum,
///     scope: Objective::Dpo,
///     referenced: true,
///     coupling: ScoreCoupling::Own,
///     curve: LossFn::Logistic { up: 1.0, down: 0.0 },
///     scale: 0.1,
///     ..Term::default()
/// };
/// let recipe = Recipe { custom_terms: vec![term], objective: Objective::Dpo, ..Recipe::default() };
/// # assert!(recipe.settings().is_ok());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Term {
    /// Map from a score to x.
    pub link: ScoreKind,
    /// Objective whose tokens the score sums over.
    pub scope: Objective,
    /// Whether the reference's score is subtracted, or its margin.
    pub referenced: bool,
    /// Map from x to z.
    pub coupling: ScoreCoupling,
    /// Map from z to the loss.
    pub curve: LossFn,
    /// Factor of x in z.
    pub scale: f64,
    /// Offset of z.
    pub offset: f64,
    /// Weights of the loss of a desirable and of an undesirable sequence; pairs use the first.
    pub weights: [f64; 2],
    /// Divergence whose f' maps a log-ratio to a score.
    pub divergence: FDivergence,
    /// Weight α of the response tokens past the length of the pair's shorter response (LD-DPO); 1 for all losses without it.
    pub tail_weight: f64,
    /// Penalty λ of desirable sequences below 0: x becomes x + λ·min(0, x) (DPO-Positive).
    pub penalty: f64,
    /// Whether a pair's loss is multiplied by the product of its sides' weights, exp of [`SequenceLogps::log_weight`] (WPO).
    pub is_weighted: bool,
}

impl Default for Term {
    /// −logσ(Δ) of a pair's joint log-ratios.
    fn default() -> Self {
        Self {
            link: ScoreKind::Sum,
            scope: Objective::Jpo,
            referenced: true,
            coupling: ScoreCoupling::Own,
            curve: LossFn::Logistic { up: 1.0, down: 0.0 },
            scale: 1.0,
            offset: 0.0,
            weights: [1.0; 2],
            divergence: FDivergence::ReverseKl,
            tail_weight: 1.0,
            penalty: 0.0,
            is_weighted: false,
        }
    }
}

/// Score x of a sequence, and ∂x/∂score.
#[derive(Clone, Copy)]
struct LinkedScore {
    value: f64,
    slope: f64,
}

/// Compared pair: a chosen and a rejected sequence.
struct ComparedPair {
    chosen: usize,
    rejected: usize,
    omega: f64,
    /// Margin of the reference that is subtracted from x_c − x_r.
    margin: f64,
    /// Weight of the pair in a row's loss.
    share: f64,
}

impl Term {
    /// Returns the term with its weights multiplied by `weight`.
    #[must_use]
    pub fn times(self, weight: f64) -> Self {
        Self { weights: self.weights.map(|w| weight * w), ..self }
    }

    /// Returns the margins of the pairs' reference scores, ascending, or zeros where the term has no reference: (S/2).
    pub(crate) fn sorted_reference_margins(&self, known: &LossInputs) -> Vec<f64> {
        let margin = |pair: &[f64]| if self.referenced { pair[0] - pair[1] } else { 0.0 };
        let mut margins: Vec<f64> = known.reference.chunks_exact(2).map(margin).collect();
        margins.sort_by(f64::total_cmp);
        margins
    }

    /// Tells whether the reference's score is subtracted from the sequence's. Sorted margins are compared with the reference's margins instead.
    pub(crate) fn subtracts_reference(&self) -> bool {
        self.referenced && self.coupling != ScoreCoupling::SortedMargins
    }

    /// Computes x of a sequence; `n_mean` is n̄ of [`ScoreKind::TokenMean`].
    fn x(&self, sums: &SequenceLogps, desirable: bool, reference: f64, n_mean: f64) -> LinkedScore {
        let log_ratio = sums.weighted_score(self.scope, self.tail_weight)
            - if self.subtracts_reference() { reference } else { 0.0 };
        let (score, score_slope) = self.divergence.at(log_ratio);
        let n = sums.n_scored(self.scope) as f64;
        let (value, slope) = match self.link {
            ScoreKind::Sum => (score, 1.0),
            ScoreKind::Mean => (score / n, 1.0 / n),
            ScoreKind::TokenMean => (score / n_mean, 1.0 / n_mean),
            ScoreKind::LogOdds => {
                let mean = (score / n).min(CERTAIN);
                let rest = -mean.exp_m1(); // 1 − p
                (mean - rest.ln(), if score / n < CERTAIN { 1.0 / (n * rest) } else { 0.0 })
            }
        };
        let penalty = if desirable && value < 0.0 { self.penalty } else { 0.0 };
        LinkedScore { value: (1.0 + penalty) * value, slope: (1.0 + penalty) * slope * score_slope }
    }

    fn all_x(&self, sums: &[SequenceLogps], known: &LossInputs) -> Vec<LinkedScore> {
        let n_mean = known.tokens_per_row(self.scope, sums.iter().map(|s| s.n_scored(self.scope)));
        let of = |((s, &reference), &desirable)| self.x(s, desirable, reference, n_mean);
        sums.iter().zip(&known.reference).zip(&known.desirable).map(of).collect()
    }

    /// Computes the reference points of desirable and of undesirable sequences; 0 for pairs.
    pub(crate) fn shift(&self, sums: &[SequenceLogps], known: &LossInputs) -> [f64; 2] {
        let x = self.all_x(sums, known);
        let mean = |side: Option<bool>| {
            let of = |(x, desirable): (&LinkedScore, &bool)| side.is_none_or(|d| d == *desirable).then_some(x.value);
            let values: Vec<f64> = x.iter().zip(&known.desirable).filter_map(of).collect();
            values.iter().sum::<f64>() / values.len() as f64
        };
        match self.coupling {
            ScoreCoupling::Sides(ReferencePoint::Mean) => [mean(None); 2],
            ScoreCoupling::Sides(ReferencePoint::Positive) => [mean(None).max(0.0); 2],
            ScoreCoupling::Sides(ReferencePoint::Opposite) => [mean(Some(false)).max(0.0), mean(Some(true)).max(0.0)],
            ScoreCoupling::Sides(ReferencePoint::Zero)
            | ScoreCoupling::Own
            | ScoreCoupling::Sorted
            | ScoreCoupling::SortedMargins
            | ScoreCoupling::Cross => [0.0; 2],
        }
    }

    /// Returns the pairs of a chosen and a rejected sequence that the coupling compares.
    fn meetings(&self, x: &[LinkedScore], known: &LossInputs) -> Vec<ComparedPair> {
        let n = x.len() / 2;
        // Ascending by x; ties by index.
        let ranked = |side: usize| {
            let mut all: Vec<usize> = (side..x.len()).step_by(2).collect();
            all.sort_by(|&a, &b| x[a].value.total_cmp(&x[b].value));
            all
        };
        let alone = |(chosen, rejected)| ComparedPair { chosen, rejected, omega: 1.0, margin: 0.0, share: 1.0 };
        match self.coupling {
            ScoreCoupling::Sorted => ranked(0).into_iter().zip(ranked(1)).map(alone).collect(),
            ScoreCoupling::SortedMargins => {
                let mut ranked: Vec<usize> = (0..n).collect();
                let margin = |p: usize| x[2 * p].value - x[2 * p + 1].value;
                ranked.sort_by(|&a, &b| margin(a).total_cmp(&margin(b)));
                let meet = |(p, margin)| ComparedPair { margin, ..alone((2 * p, 2 * p + 1)) };
                ranked.into_iter().zip(self.sorted_reference_margins(known)).map(meet).collect()
            }
            ScoreCoupling::Cross => {
                let meet = |(k, &omega)| {
                    let (i, j) = (k / n, k % n);
                    ComparedPair { omega, share: 1.0 / n as f64, ..alone((2 * i, 2 * j + 1)) }
                };
                known.cross.iter().enumerate().map(meet).collect()
            }
            ScoreCoupling::Own | ScoreCoupling::Sides(_) => (0..n).map(|p| alone((2 * p, 2 * p + 1))).collect(),
        }
    }

    /// Returns the product of the weights of both sides of the pair that sequence `s` belongs to; 1 without them.
    fn pair_weight(&self, sums: &[SequenceLogps], s: usize) -> f64 {
        if self.is_weighted { (sums[s].log_weight + sums[s ^ 1].log_weight).exp() } else { 1.0 }
    }

    /// Adds each sequence's loss and gradient to `into`. A pair's loss counts at its chosen sequence.
    pub fn add(&self, sums: &[SequenceLogps], known: &LossInputs, into: &mut [SequenceOutcome]) {
        self.add_from(sums, known, self.shift(sums, known), into);
    }

    /// Adds each sequence's loss and gradient, like [`Self::add`], with `shift` as the reference points.
    pub(crate) fn add_from(
        &self,
        sums: &[SequenceLogps],
        known: &LossInputs,
        shift: [f64; 2],
        into: &mut [SequenceOutcome],
    ) {
        let x = self.all_x(sums, known);
        let mut d_x = vec![0.0; x.len()];
        match self.coupling {
            ScoreCoupling::Sides(kind) => {
                let mut d_shift = [0.0; 2];
                for (s, &desirable) in known.desirable.iter().enumerate() {
                    let (side, sign) = if desirable { (0, 1.0) } else { (1, -1.0) };
                    let z = sign * self.scale * (x[s].value - shift[side]) - self.offset;
                    let ((loss, slope), weight) = (self.curve.at(z), self.weights[side] * self.pair_weight(sums, s));
                    into[s].loss += weight * loss;
                    d_x[s] = weight * slope * sign * self.scale;
                    d_shift[side] -= d_x[s];
                }
                if kind == ReferencePoint::Opposite {
                    for (s, &desirable) in known.desirable.iter().enumerate() {
                        let other = usize::from(desirable);
                        d_x[s] += if shift[other] > 0.0 { d_shift[other] / (x.len() / 2) as f64 } else { 0.0 };
                    }
                }
            }
            ScoreCoupling::Own | ScoreCoupling::Sorted | ScoreCoupling::SortedMargins | ScoreCoupling::Cross => {
                for ComparedPair { chosen, rejected, omega, margin, share } in self.meetings(&x, known) {
                    let (scale, weight) =
                        (self.scale * omega, self.weights[0] * share * self.pair_weight(sums, chosen));
                    let difference = x[chosen].value - x[rejected].value - margin;
                    let (loss, slope) = self.curve.at(scale * difference - self.offset);
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
            outcome.d_tail += (self.tail_weight - 1.0) * d;
        }
    }
}
