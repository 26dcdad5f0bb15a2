//! Gradient of the loss by each token's log-probability, on the device: nothing waits for the CPU inside a step.

mod cases;
pub mod scores;
pub mod term;

#[cfg(test)]
pub(crate) use cases::has_case;

use super::packed_batch::PackedBatch;
use super::shapes::ModelShape;
use super::{Case, Kernel};
use crate::gpu::{Caps, Gpu, Recording, Shader, Slot, grid_1d};
use scores::{LossInputs, Objective};
use term::{LossFn, ReferencePoint, ScoreCoupling, ScoreKind, Term};

/// Row ranges of a batch's sequences, on the device.
#[derive(Debug)]
pub struct SequenceSpans {
    spans: Slot,
    owners: Slot,
    /// (instruction, response) rows of each sequence.
    counts: Vec<(usize, usize)>,
    rows: usize,
}

const NONE: u32 = u32::MAX;

impl SequenceSpans {
    /// Uploads the row ranges of a packed batch.
    pub fn new(gpu: &Gpu, batch: &PackedBatch) -> Self {
        let mut words = Vec::new();
        let mut counts = Vec::new();
        let mut owners = vec![[NONE; 2]; batch.rows.len()];
        for (s, span) in batch.spans.iter().enumerate() {
            let (p, o) = (&span.prefix, &span.own);
            words.extend([p.start, p.end, o.start, o.end, span.response].map(|x| x as u32));
            counts.push((p.len() + span.response - o.start, o.end - span.response));
            for r in p.clone().chain(o.clone()) {
                let owner = 2 * s as u32 + u32::from(o.contains(&r) && r >= span.response);
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
}

/// Returns the uniform of one term's dispatch over `n` sequences.
fn term_params(n: usize, term: &Term, add: bool) -> ObjectiveParams {
    let (curve, up, down) = match term.curve {
        LossFn::Logistic { up, down } => (0, up, down),
        LossFn::Hinge => (1, 0.0, 0.0),
        LossFn::Square => (2, 0.0, 0.0),
        LossFn::Sigmoid => (3, 0.0, 0.0),
        LossFn::Linear => (4, 0.0, 0.0),
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
            | ScoreCoupling::Cross => 0,
        },
        scale: term.scale as f32,
        offset: term.offset as f32,
        up: up as f32,
        down: down as f32,
    }
}

const ENTRIES: [&str; 6] = [
    "objective_sums",
    "objective_pairs",
    "objective_sorted",
    "objective_cross",
    "objective_unpaired",
    "objective_scatter",
];

fn shader(entry: &'static str) -> Shader {
    Shader::new("objective", entry).with("WG", 64.0)
}

/// Computes sums (S, 2) of logp (rows): over the instruction, and over the response.
pub fn objective_sums(rec: &mut Recording, spans: &SequenceSpans, logp: &Slot, sums: &Slot) {
    let params = ObjectiveParams { n: spans.len() as u32, ..Default::default() };
    let grid = [spans.len() as u32, 1, 1];
    rec.dispatch(&shader("objective_sums"), &params, &[&spans.spans, logp, sums], grid, spans.rows as u64);
}

/// Computes d_logp (rows) of the sum of the terms.
pub fn objective_bwd(
    rec: &mut Recording,
    terms: &[Term],
    spans: &SequenceSpans,
    sums: &Slot,
    known: &LossInputs,
    d_logp: &Slot,
) {
    let (gpu, n) = (rec.gpu(), spans.len());
    let d_sums = gpu.alloc_activation(2 * n);
    for (i, term) in terms.iter().enumerate() {
        let n_scored = |&(instruction, response): &(usize, usize)| {
            response + if term.scope == Objective::Jpo { instruction } else { 0 }
        };
        let n_mean = known.tokens_per_row(term.scope, spans.counts.iter().map(n_scored));
        let of = |(s, counts): (usize, &(usize, usize))| {
            let tokens = if term.link == ScoreKind::TokenMean { n_mean } else { n_scored(counts) as f64 };
            let (weight, sign) = if known.desirable[s] { (term.weights[0], 1.0) } else { (term.weights[1], -1.0) };
            [if term.referenced { known.reference[s] as f32 } else { 0.0 }, tokens as f32, weight as f32, sign]
        };
        let known_words: Vec<[f32; 4]> = spans.counts.iter().enumerate().map(of).collect();
        let of_sequences = gpu.upload(&known_words.concat());
        let (entry, more) = match term.coupling {
            ScoreCoupling::Own => ("objective_pairs", None),
            ScoreCoupling::Sorted => ("objective_sorted", Some(gpu.alloc_activation(n / 2))),
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

/// Objective kernels, in the order of a step: `objective_sums`; one of `objective_pairs`, `_sorted`, `_cross` and `_sides` per term;
/// `objective_scatter`.
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
