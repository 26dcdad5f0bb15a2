//! Cases of the objective's kernels: each kind of term, over pairs that share a prefix or do not, and over single sequences.

use std::ops::Range;

use super::scores::{LossInputs, Objective, SequenceLogps, cross_weights};
use super::term::{FDivergence, LossFn, ReferencePoint, ScoreCoupling, ScoreKind, Term};
use super::{SequenceSpans, objective_bwd, objective_dynamic, objective_log_weights, objective_sums};
use crate::gpu::{Recording, Slot};
use crate::kernels::packed_batch::{PackedBatch, ScoredRow, SequenceSpan};
use crate::kernels::{Case, CaseOutputs, Cost, HostTensor};
use crate::rng::Rng;

/// β of the cases; `TAU` is τ of their cross weights.
const BETA: f64 = 0.1;
const TAU: f64 = 0.3;

/// Base term −logσ(β·(x_c − x_r)); the other terms replace some of its fields.
const LOGISTIC: Term = Term {
    link: ScoreKind::Sum,
    scope: Objective::Jpo,
    referenced: true,
    coupling: ScoreCoupling::Own,
    curve: LossFn::Logistic { up: 1.0, down: 0.0 },
    scale: BETA,
    offset: 0.0,
    weights: [1.0; 2],
    divergence: FDivergence::ReverseKl,
    tail_weight: 1.0,
    penalty: 0.0,
    is_weighted: false,
};

const SMOOTHED: LossFn = LossFn::Logistic { up: 0.9, down: 0.1 };

/// Term of the mean negative log-probability of the tokens of desirable sequences.
const LIKELIHOOD: Term = Term {
    link: ScoreKind::TokenMean,
    referenced: false,
    coupling: ScoreCoupling::Sides(ReferencePoint::Zero),
    curve: LossFn::Linear,
    scale: 1.0,
    weights: [1.0, 0.0],
    ..LOGISTIC
};

const OF_BOTH: Term =
    Term { coupling: ScoreCoupling::Sides(ReferencePoint::Opposite), curve: LossFn::Sigmoid, ..LOGISTIC };
const SORTED: Term = Term { coupling: ScoreCoupling::Sorted, curve: SMOOTHED, ..LOGISTIC };
const CROSS: Term = Term { coupling: ScoreCoupling::Cross, ..LOGISTIC };
const ALONE: Term = Term { coupling: ScoreCoupling::Sides(ReferencePoint::Zero), ..LOGISTIC };
const APO: Term = Term { curve: LossFn::Sigmoid, ..ALONE };
const MARGINS: Term = Term { coupling: ScoreCoupling::SortedMargins, curve: SMOOTHED, ..LOGISTIC };
const IPO: Term = Term { link: ScoreKind::Mean, curve: LossFn::Square, scale: 1.0, offset: 0.5 / BETA, ..LOGISTIC };
const CENTRED: Term = Term { coupling: ScoreCoupling::Sides(ReferencePoint::Mean), ..LOGISTIC };
const ODDS: Term = Term { link: ScoreKind::LogOdds, referenced: false, scale: 1.0, weights: [BETA; 2], ..LOGISTIC };

/// Terms over pairs: (name of a loss that has such terms, terms).
const OF_PAIRS: [(&str, &[Term]); 23] = [
    ("sigmoid", &[Term { curve: SMOOTHED, ..LOGISTIC }]),
    ("robust", &[Term { curve: LossFn::Logistic { up: 1.125, down: -0.125 }, ..LOGISTIC }]),
    ("hinge", &[Term { curve: LossFn::Hinge, ..LOGISTIC }]),
    ("ipo", &[IPO]),
    ("sigmoid_norm", &[Term { link: ScoreKind::Mean, scale: 4.0, ..LOGISTIC }]),
    ("exo_pair", &[Term { curve: LossFn::BernoulliKl { target: 0.9 }, ..LOGISTIC }]),
    ("discopop", &[Term { curve: LossFn::LogRatioModulated { tau: 0.2 }, ..LOGISTIC }]),
    ("dpop", &[Term { penalty: 5.0, ..LOGISTIC }]),
    ("simpo", &[Term { link: ScoreKind::Mean, offset: 0.5, referenced: false, ..LOGISTIC }]),
    ("orpo", &[ODDS, LIKELIHOOD]),
    ("cpo", &[Term { referenced: false, ..LOGISTIC }, Term { scope: Objective::Dpo, ..LIKELIHOOD }]),
    ("kto_pair", &[Term { weights: [0.5; 2], ..OF_BOTH }]),
    ("kto", &[Term { coupling: ScoreCoupling::Sides(ReferencePoint::Positive), weights: [0.75, 0.5], ..OF_BOTH }]),
    ("apo_zero", &[APO]),
    ("apo_down", &[Term { scale: -BETA, weights: [1.0, 0.0], ..APO }, Term { curve: LossFn::Sigmoid, ..LOGISTIC }]),
    ("nca_pair", &[Term { curve: LossFn::Logistic { up: 1.0, down: 0.5 }, weights: [1.0, 0.0], ..ALONE }]),
    ("bco_pair", &[ALONE]),
    ("bco_shift", &[CENTRED]),
    ("sppo_hard", &[Term { curve: LossFn::Square, scale: 1.0, offset: 0.5 / BETA, ..ALONE }]),
    ("aot", &[MARGINS]),
    ("aot_unpaired", &[SORTED]),
    ("rpo", &[CROSS]),
    ("sft", &[Term { scope: Objective::Dpo, ..LIKELIHOOD }]),
];

/// Terms over pairs with modifiers: divergences, a weight on the longer response's tail, weights of pairs.
const MODIFIED: [(&str, Term); 8] = [
    ("sigmoid forward_kl", Term { divergence: FDivergence::ForwardKl, scale: 0.02, ..LOGISTIC }),
    ("sigmoid js", Term { divergence: FDivergence::JensenShannon, scale: 1.0, ..LOGISTIC }),
    ("ipo alpha=0.5", Term { divergence: FDivergence::Alpha(0.5), ..IPO }),
    ("sigmoid alpha=1.5", Term { divergence: FDivergence::Alpha(1.5), scale: 0.01, ..LOGISTIC }),
    ("sigmoid ld_alpha", Term { tail_weight: 0.25, ..LOGISTIC }),
    ("ipo ld_alpha", Term { tail_weight: 0.0, ..IPO }),
    ("sigmoid wpo", Term { is_weighted: true, ..LOGISTIC }),
    ("apo_zero wpo ld_alpha", Term { is_weighted: true, tail_weight: 0.5, ..APO }),
];

/// Returns every case, under both objectives.
pub(super) fn all() -> Vec<Box<dyn Case>> {
    let sum_of_responses = Term { link: ScoreKind::Sum, scope: Objective::Dpo, weights: [1.0; 2], ..LIKELIHOOD };
    let mut all: Vec<Box<dyn Case>> = Vec::new();
    let mut add = |name: &str, terms: Vec<Term>, rows, paired| {
        all.push(Box::new(ObjectiveCase { name: name.into(), terms, rows, paired }));
    };
    add("sft of responses", vec![sum_of_responses], 4, false);
    for scope in [Objective::Jpo, Objective::Dpo] {
        let scoped = |terms: &[Term]| -> Vec<Term> {
            terms
                .iter()
                .map(|term| Term { scope: if term.scope == Objective::Dpo { term.scope } else { scope }, ..*term })
                .collect()
        };
        let mut add = |name: &str, terms: &[Term], rows, paired| {
            add(&format!("{scope:?} {name}"), scoped(terms), rows, paired);
        };
        // More pairs than a workgroup has invocations.
        OF_PAIRS.into_iter().for_each(|(name, terms)| add(name, terms, 70, true));
        MODIFIED.into_iter().for_each(|(name, term)| add(name, &[term], 70, true));
        let unpaired =
            Term { coupling: ScoreCoupling::Sides(ReferencePoint::Positive), weights: [1.5, 1.0], ..OF_BOTH };
        add("kto", &[unpaired], 69, false);
        // Means below 0: the reference point is then 0, and no gradient flows through it.
        add("kto_pair reference-free", &[Term { referenced: false, weights: [0.5; 2], ..OF_BOTH }], 70, true);
        for (name, term) in [("sigmoid", LOGISTIC), ("aot_unpaired", SORTED), ("aot", MARGINS), ("rpo", CROSS)] {
            add(name, &[term], 1, true);
        }
        add("apo_zero_unpaired", &[Term { weights: [1.5, 1.0], ..APO }], 69, false);
        let likelihood = Term { scope: Objective::Dpo, ..LIKELIHOOD }.times(0.25);
        add("sigmoid and sft", &[LOGISTIC, likelihood], 70, true);
        add("rpo, orpo and bco_shift", &[CROSS, ODDS.times(2.0), LIKELIHOOD.times(2.0), CENTRED.times(0.3)], 3, true);
    }
    all.push(Box::new(DynamicCase));
    all
}

/// Returns a case of about `t` rows in all, about 64 rows per pair.
pub(super) fn bench(t: usize) -> Vec<Box<dyn Case>> {
    vec![Box::new(ObjectiveCase {
        name: "Jpo sigmoid".into(),
        terms: vec![LOGISTIC],
        rows: t.div_ceil(64),
        paired: true,
    })]
}

/// Returns whether some case has a term of these choices.
#[cfg(test)]
pub(crate) fn has_case(term: &Term) -> bool {
    let kind = |term: &Term| {
        (term.link, term.referenced, term.coupling, std::mem::discriminant(&term.curve), term.penalty > 0.0)
    };
    OF_PAIRS.iter().flat_map(|(_, terms)| *terms).any(|case| kind(case) == kind(term))
}

/// Case of `rows` rows of data: pairs whose first `PREFIX` rows are shared, followed by own rows of different lengths. Every third pair
/// shares nothing. An unpaired row is a single sequence.
struct ObjectiveCase {
    name: String,
    terms: Vec<Term>,
    rows: usize,
    paired: bool,
}

const PREFIX: usize = 5;

impl ObjectiveCase {
    fn batch(&self) -> PackedBatch {
        let mut batch = PackedBatch::default();
        let row = ScoredRow { hidden: 0, target: 0 };
        for row_of_data in 0..self.rows {
            let start = batch.rows.len();
            let shared = if row_of_data % 3 == 2 || !self.paired { 0 } else { PREFIX };
            batch.rows.resize(start + shared, row);
            for side in 0..1 + usize::from(self.paired) {
                let own = batch.rows.len();
                // The longer response is now the chosen one, now the rejected one.
                let (instruction, response) = (2 + row_of_data % 4, 3 + 2 * ((side + row_of_data) % 2));
                batch.rows.resize(own + instruction + response, row);
                batch.spans.push(SequenceSpan {
                    prefix: start..start + shared,
                    own: own..batch.rows.len(),
                    response: own + instruction,
                    tail: if self.paired { own + instruction + 3 } else { batch.rows.len() },
                });
            }
        }
        batch
    }
    fn known(&self) -> LossInputs {
        let n = self.rows * if self.paired { 2 } else { 1 };
        let wave = |s: usize| f64::from(((s as f32) * 0.7).sin());
        let reference = (0..n).map(|s| f64::from((2.0 * wave(s) - 11.0) as f32)).collect();
        let mut known = LossInputs { paired: self.paired, ..LossInputs::pairs(reference) };
        if !self.paired && self.terms.iter().all(|term| term.weights[0] == term.weights[1]) {
            known.desirable.fill(true);
        }
        if self.terms.iter().any(|term| term.coupling == ScoreCoupling::Cross) {
            let cosine = |k| if k % (self.rows + 1) == 0 { 1.0 } else { wave(k) };
            let cosines: Vec<f64> = (0..self.rows.pow(2)).map(cosine).collect();
            known.cross = cross_weights(&cosines, self.rows, TAU);
        }
        known
    }
    /// Tells whether a term weighs its pairs, by the second input.
    fn is_weighted(&self) -> bool {
        self.terms.iter().any(|term| term.is_weighted)
    }
    fn sums(&self, x: &[Vec<f64>]) -> Vec<SequenceLogps> {
        let (spans, logp) = (self.batch().spans, &x[0]);
        let sum = |r: Range<usize>| logp[r].iter().sum::<f64>();
        let log_weight = |s: &SequenceSpan| {
            let of = |r: usize| x.get(1).map_or(0.0, |log_squares| logp[r] - log_squares[r]);
            (s.response..s.own.end).map(of).sum::<f64>() / (s.own.end - s.response) as f64
        };
        let of = |s: &SequenceSpan| SequenceLogps {
            instruction: sum(s.prefix.clone()) + sum(s.own.start..s.response),
            response: sum(s.response..s.own.end),
            n_instruction: s.prefix.len() + s.response - s.own.start,
            n_response: s.own.end - s.response,
            response_tail: sum(s.tail..s.own.end),
            log_weight: log_weight(s),
            response_p_logp: 0.0,
        };
        spans.iter().map(of).collect()
    }
}

impl Case for ObjectiveCase {
    fn label(&self) -> String {
        format!("rows={} paired={} {}", self.rows, self.paired, self.name)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        // Log-probabilities are below 0.
        let n = self.batch().rows.len();
        let mut below_zero = || HostTensor::F32((0..n).map(|_| -(rng.normal() * 0.8 - 0.7).exp()).collect());
        (0..1 + usize::from(self.is_weighted())).map(|_| below_zero()).collect()
    }
    /// Computes the gradient of the summed loss by each row, which is this case's *output*. The twin uses the host's gradient, which the
    /// tests of objective.rs compare with finite differences.
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (sums, known) = (self.sums(x), self.known());
        let mut outcomes = vec![Default::default(); sums.len()];
        self.terms.iter().for_each(|term| term.add(&sums, &known, &mut outcomes));
        let mut d = vec![0.0; x[0].len()];
        for (span, outcome) in self.batch().spans.iter().zip(outcomes) {
            span.prefix.clone().for_each(|r| d[r] += outcome.d_sums[0]);
            span.own.clone().for_each(|r| d[r] += outcome.d_sums[usize::from(r >= span.response)]);
            (span.tail..span.own.end).for_each(|r| d[r] += outcome.d_tail);
        }
        let of = |s: &SequenceLogps| [s.instruction, s.response, s.response_tail, s.log_weight];
        vec![d, sums.iter().flat_map(of).collect()]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> CaseOutputs {
        let spans = SequenceSpans::new(rec.gpu(), &self.batch());
        let (sums, d_logp) = (rec.gpu().alloc_activation(4 * spans.len()), rec.gpu().alloc_activation(x[0].len()));
        objective_sums(rec, &spans, &x[0], &sums);
        if let Some(log_squares) = x.get(1) {
            objective_log_weights(rec, &spans, &x[0], log_squares, &sums);
        }
        objective_bwd(rec, &self.terms, &spans, &sums, &self.known(), &d_logp);
        CaseOutputs { y: vec![d_logp, sums], d_x: Vec::new() }
    }
    fn reduction_len(&self) -> usize {
        self.rows.max(16)
    }
    fn cost(&self) -> Cost {
        Cost { bytes: 4 * 60 * self.rows as u64, flops: 100 * self.rows as u64 }
    }
}

/// Case of dynamic fine-tuning: a gradient times the probabilities of more rows than a workgroup has.
struct DynamicCase;

impl Case for DynamicCase {
    fn label(&self) -> String {
        "rows=130 dynamic".into()
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let logp = (0..130).map(|_| -(rng.normal() * 0.8 - 0.7).exp()).collect();
        vec![HostTensor::F32(logp), HostTensor::normal(rng, 130)]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![x[0].iter().zip(&x[1]).map(|(logp, d)| d * logp.exp()).collect()]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> CaseOutputs {
        objective_dynamic(rec, 130, &x[0], &x[1]);
        CaseOutputs { y: vec![x[1].clone()], d_x: Vec::new() }
    }
    fn reduction_len(&self) -> usize {
        1
    }
    fn cost(&self) -> Cost {
        Cost { bytes: 4 * 3 * 130, flops: 2 * 130 }
    }
}
