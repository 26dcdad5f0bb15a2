//! Gradient of the loss by each token's log-probability, on the device: nothing waits for the CPU inside a step.

mod cases;
mod curve;
mod divergence;
pub mod scores;
pub mod term;

#[cfg(test)]
pub(crate) use cases::has_case;

use super::packed_batch::PackedBatch;
use super::shapes::ModelShape;
use super::{Case, Kernel};
use crate::gpu::{Caps, Gpu, Recording, Shader, Slot, grid_1d};
use scores::{LossInputs, Objective};
use term::{FDivergence, LossFn, ReferencePoint, ScoreCoupling, ScoreKind, Term};

/// Row ranges of a batch's sequences, on the device.
#[derive(Debug)]
pub struct SequenceSpans {
    spans: Slot,  // (S, 6): prefix first, end; own first, end; first response row; first row of the tail
    owners: Slot, // (rows, 2): 4·sequence + part, or NONE
    /// (instruction, response) rows of each sequence.
    counts: Vec<(usize, usize)>,
    rows: usize,
}

const NONE: u32 = u32::MAX;

/// Parts of a sequence whose log-probabilities have derivatives of their own.
const INSTRUCTION: u32 = 0;
const RESPONSE: u32 = 1;
const TAIL: u32 = 2;

impl SequenceSpans {
    /// Uploads the row ranges of a packed batch.
    pub fn new(gpu: &Gpu, batch: &PackedBatch) -> Self {
        let mut words = Vec::new();
        let mut counts = Vec::new();
        let mut owners = vec![[NONE; 2]; batch.rows.len()];
        for (s, span) in batch.spans.iter().enumerate() {
            let (p, o) = (&span.prefix, &span.own);
            words.extend([p.start, p.end, o.start, o.end, span.response, span.tail].map(|x| x as u32));
            counts.push((p.len() + span.response - o.start, o.end - span.response));
            for r in p.clone().chain(o.clone()) {
                let part = match o.contains(&r) && r >= span.response {
                    true => {
                        if r < span.tail {
                            RESPONSE
                        } else {
                            TAIL
                        }
                    }
                    false => INSTRUCTION,
                };
                let owner = 4 * s as u32 + part;
                let free = usize::from(owners[r][0] != NONE);
                owners[r][free] = owner;
            }
        }
        Self { spans: gpu.upload(&words), owners: gpu.upload(&owners.concat()), counts, rows: batch.rows.len() }
    }

    /// Returns S, the number of sequences.
    pub fn len(&self) -> usize {
        self.counts.len()
    }
    /// Returns whether there are no sequences.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }
}

#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct ObjectiveParams {
    n: u32,
    add: u32,
    joint: u32,
    link: u32,
    curve: u32,
    shift: u32,
    scale: f32,
    offset: f32,
    up: f32,
    down: f32,
    divergence: u32,
    alpha: f32,
    tail_weight: f32,
    penalty: f32,
    weighted: u32,
}

/// Returns the uniform of one term's dispatch over `n` sequences.
fn term_params(n: usize, term: &Term, add: bool) -> ObjectiveParams {
    let (curve, up, down) = match term.curve {
        LossFn::Logistic { up, down } => (0, up, down),
        LossFn::Hinge => (1, 0.0, 0.0),
        LossFn::Square => (2, 0.0, 0.0),
        LossFn::Sigmoid => (3, 0.0, 0.0),
        LossFn::Linear => (4, 0.0, 0.0),
        LossFn::BernoulliKl { target } => (5, curve::log_odds(target), 0.0),
        LossFn::LogRatioModulated { tau } => (6, tau, 0.0),
    };
    let (divergence, alpha) = match term.divergence {
        FDivergence::ForwardKl => (1, 0.0),
        FDivergence::JensenShannon => (2, 0.0),
        FDivergence::Alpha(alpha) if !term.divergence.is_reverse_kl() => (3, alpha),
        FDivergence::ReverseKl | FDivergence::Alpha(_) => (0, 0.0),
    };
    ObjectiveParams {
        n: n as u32,
        add: u32::from(add),
        joint: u32::from(term.scope == Objective::Jpo),
        link: match term.link {
            ScoreKind::Sum => 0,
            // The shader divides by the host's number of tokens in both cases.
            ScoreKind::Mean | ScoreKind::TokenMean => 1,
            ScoreKind::LogOdds => 2,
        },
        curve,
        shift: match term.coupling {
            ScoreCoupling::Sides(ReferencePoint::Mean) => 1,
            ScoreCoupling::Sides(ReferencePoint::Positive) => 2,
            ScoreCoupling::Sides(ReferencePoint::Opposite) => 3,
            ScoreCoupling::Sides(ReferencePoint::Zero)
            | ScoreCoupling::Own
            | ScoreCoupling::Sorted
            | ScoreCoupling::SortedMargins
            | ScoreCoupling::Cross => 0,
        },
        scale: term.scale as f32,
        offset: term.offset as f32,
        up: up as f32,
        down: down as f32,
        divergence,
        alpha: alpha as f32,
        tail_weight: term.tail_weight as f32,
        penalty: term.penalty as f32,
        weighted: u32::from(term.is_weighted),
    }
}

const ENTRIES: [&str; 9] = [
    "objective_sums",
    "objective_log_weights",
    "objective_pairs",
    "objective_sorted",
    "objective_margins",
    "objective_cross",
    "objective_unpaired",
    "objective_scatter",
    "objective_dynamic",
];

fn shader(entry: &'static str) -> Shader {
    Shader::new("objective", entry).with("WG", 64.0)
}

/// Computes sums (S, 4) of logp (rows): over the instruction, over the response, and over the response's tail; the fourth number is 0.
pub fn objective_sums(rec: &mut Recording, spans: &SequenceSpans, logp: &Slot, sums: &Slot) {
    let params = ObjectiveParams { n: spans.len() as u32, ..Default::default() };
    let grid = [spans.len() as u32, 1, 1];
    rec.dispatch(&shader("objective_sums"), &params, &[&spans.spans, logp, sums], grid, spans.rows as u64);
}

/// Writes the logarithms of WPO's weights to the fourth numbers of sums (S, 4): means of logp − log_squares (rows, both) over response rows.
pub fn objective_log_weights(rec: &mut Recording, spans: &SequenceSpans, logp: &Slot, log_squares: &Slot, sums: &Slot) {
    let params = ObjectiveParams { n: spans.len() as u32, ..Default::default() };
    let slots = [&spans.spans, logp, log_squares, sums];
    rec.dispatch(&shader("objective_log_weights"), &params, &slots, [spans.len() as u32, 1, 1], 2 * spans.rows as u64);
}

/// Multiplies d_logp (rows) by the probabilities of logp (rows), as constants: the gradient of dynamic fine-tuning.
pub fn objective_dynamic(rec: &mut Recording, rows: usize, logp: &Slot, d_logp: &Slot) {
    let params = ObjectiveParams { n: rows as u32, ..Default::default() };
    rec.dispatch(&shader("objective_dynamic"), &params, &[logp, d_logp], grid_1d(rows, 64), 2 * rows as u64);
}

/// Computes d_logp (rows) of the sum of the terms from sums (S, 4).
pub fn objective_bwd(
    rec: &mut Recording,
    terms: &[Term],
    spans: &SequenceSpans,
    sums: &Slot,
    known: &LossInputs,
    d_logp: &Slot,
) {
    let (gpu, n) = (rec.gpu(), spans.len());
    let d_sums = gpu.alloc_activation(4 * n);
    for (i, term) in terms.iter().enumerate() {
        let n_scored = |&(instruction, response): &(usize, usize)| {
            response + if term.scope == Objective::Jpo { instruction } else { 0 }
        };
        let n_mean = known.tokens_per_row(term.scope, spans.counts.iter().map(n_scored));
        let of = |(s, counts): (usize, &(usize, usize))| {
            let tokens = if term.link == ScoreKind::TokenMean { n_mean } else { n_scored(counts) as f64 };
            let (weight, sign) = if known.desirable[s] { (term.weights[0], 1.0) } else { (term.weights[1], -1.0) };
            [
                if term.subtracts_reference() { known.reference[s] as f32 } else { 0.0 },
                tokens as f32,
                weight as f32,
                sign,
            ]
        };
        let known_words: Vec<[f32; 4]> = spans.counts.iter().enumerate().map(of).collect();
        let of_sequences = gpu.upload(&known_words.concat());
        let (entry, more) = match term.coupling {
            ScoreCoupling::Own => ("objective_pairs", None),
            ScoreCoupling::Sorted => ("objective_sorted", Some(gpu.alloc_activation(n / 2))),
            ScoreCoupling::SortedMargins => {
                let margins: Vec<f32> = term.sorted_reference_margins(known).iter().map(|&m| m as f32).collect();
                ("objective_margins", Some(gpu.upload(&margins)))
            }
            ScoreCoupling::Cross => {
                let omega: Vec<f32> = known.cross.iter().map(|&w| w as f32).collect();
                ("objective_cross", Some(gpu.upload(&omega)))
            }
            ScoreCoupling::Sides(_) => ("objective_unpaired", None),
        };
        let slots: Vec<&Slot> = [sums, &of_sequences, &d_sums].into_iter().chain(&more).collect();
        // A sequence is compared once, or with all others.
        let looks = if more.is_some() { n * n / 2 } else { n };
        rec.dispatch(&shader(entry), &term_params(n, term, i > 0), &slots, [1, 1, 1], 20 * looks as u64);
    }
    let spread = ObjectiveParams { n: spans.rows as u32, ..Default::default() };
    let grid = grid_1d(spans.rows, 64);
    rec.dispatch(&shader("objective_scatter"), &spread, &[&spans.owners, &d_sums, d_logp], grid, 2 * spans.rows as u64);
}

/// Objective kernels, in the order of a step: `objective_sums`, and `objective_log_weights` for WPO; one of `objective_pairs`, `_sorted`,
/// `_margins`, `_cross` and `_unpaired` per term; `objective_scatter`, and `objective_dynamic` for dynamic fine-tuning.
pub struct ObjectiveKernels;

impl Kernel for ObjectiveKernels {
    fn name(&self) -> &'static str {
        "objective"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["objective"]
    }
    fn variants(&self) -> Vec<Shader> {
        ENTRIES.map(shader).into()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("ObjectiveParams", size_of::<ObjectiveParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        cases::all()
    }
    fn benches(&self, _: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        cases::bench(t)
    }
}
