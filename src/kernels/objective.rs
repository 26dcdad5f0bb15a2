//! Gradient of the loss by each token's log-probability, on the device: nothing waits for the CPU inside a step.

use super::shapes::ModelShape;
use super::{Case, Cost, Host, Kernel, Outputs};
use crate::data::batch::Batch;
use crate::gpu::{Caps, Gpu, Recording, Shader, Slot, grid_1d};
use crate::objective::{
    Coupling, Curve, Known, Link, Loss, Mix, Objective, Preference, Shift, Sums, Term, cross_weights,
};
use crate::rng::Rng;

/// What training minimises.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// A preference loss over rows.
    Preference(Preference),
    /// Σ −log π(response token).
    Sft,
}

impl Goal {
    /// The terms of its loss, over rows that are pairs or not.
    pub fn terms(&self, paired: bool) -> Vec<Term> {
        match self {
            Self::Preference(p) => p.terms(paired),
            Self::Sft => vec![Term {
                link: Link::Sum,
                scope: Objective::Dpo,
                referenced: false,
                coupling: Coupling::Sides(Shift::Zero),
                curve: Curve::Linear,
                scale: 1.0,
                offset: 0.0,
                weights: [1.0; 2],
            }],
        }
    }
}

/// Where the sequences' rows are, on the device.
#[derive(Debug)]
pub struct Spans {
    spans: Slot,
    owners: Slot,
    /// (instruction, response) rows of each sequence.
    counts: Vec<(usize, usize)>,
    rows: usize,
}

const NONE: u32 = u32::MAX;

impl Spans {
    /// From a packed batch.
    pub fn new(gpu: &Gpu, batch: &Batch) -> Self {
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

    /// S.
    pub fn len(&self) -> usize {
        self.counts.len()
    }
    /// No sequences.
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

/// Of one term's dispatch over `n` sequences.
fn term_params(n: usize, term: &Term, add: bool) -> ObjectiveParams {
    let (curve, up, down) = match term.curve {
        Curve::Logistic { up, down } => (0, up, down),
        Curve::Hinge => (1, 0.0, 0.0),
        Curve::Square => (2, 0.0, 0.0),
        Curve::Sigmoid => (3, 0.0, 0.0),
        Curve::Linear => (4, 0.0, 0.0),
    };
    ObjectiveParams {
        n: n as u32,
        add: u32::from(add),
        joint: u32::from(term.scope == Objective::Jpo),
        link: match term.link {
            Link::Sum => 0,
            // A mean over other tokens, by the host's number.
            Link::Mean | Link::TokenMean => 1,
            Link::LogOdds => 2,
        },
        curve,
        shift: match term.coupling {
            Coupling::Sides(Shift::Mean) => 1,
            Coupling::Sides(Shift::Positive) => 2,
            Coupling::Sides(Shift::Opposite) => 3,
            Coupling::Sides(Shift::Zero) | Coupling::Own | Coupling::Sorted | Coupling::Cross => 0,
        },
        scale: term.scale as f32,
        offset: term.offset as f32,
        up: up as f32,
        down: down as f32,
    }
}

const ENTRIES: [&str; 6] =
    ["objective_sums", "objective_pairs", "objective_sorted", "objective_cross", "objective_sides", "objective_spread"];

fn shader(entry: &'static str) -> Shader {
    Shader::new("objective", entry).with("WG", 64.0)
}

/// sums (S, 2): instruction and response, of logp (rows).
pub fn objective_sums(rec: &mut Recording, spans: &Spans, logp: &Slot, sums: &Slot) {
    let params = ObjectiveParams { n: spans.len() as u32, ..Default::default() };
    let grid = [spans.len() as u32, 1, 1];
    rec.dispatch(&shader("objective_sums"), &params, &[&spans.spans, logp, sums], grid, spans.rows as u64);
}

/// d_logp (rows) of the summed loss.
pub fn objective_bwd(rec: &mut Recording, goal: &Goal, spans: &Spans, sums: &Slot, known: &Known, d_logp: &Slot) {
    let (gpu, n) = (rec.gpu(), spans.len());
    let d_sums = gpu.slot(2 * n);
    for (i, term) in goal.terms(known.paired).iter().enumerate() {
        let n_scored = |&(instruction, response): &(usize, usize)| {
            response + if term.scope == Objective::Jpo { instruction } else { 0 }
        };
        let n_mean = known.tokens_per_row(term.scope, spans.counts.iter().map(n_scored));
        let of = |(s, counts): (usize, &(usize, usize))| {
            let tokens = if term.link == Link::TokenMean { n_mean } else { n_scored(counts) as f64 };
            let (weight, sign) = if known.desirable[s] { (term.weights[0], 1.0) } else { (term.weights[1], -1.0) };
            [if term.referenced { known.reference[s] as f32 } else { 0.0 }, tokens as f32, weight as f32, sign]
        };
        let known_words: Vec<[f32; 4]> = spans.counts.iter().enumerate().map(of).collect();
        let of_sequences = gpu.upload(&known_words.concat());
        let (entry, more) = match term.coupling {
            Coupling::Own => ("objective_pairs", None),
            Coupling::Sorted => ("objective_sorted", Some(gpu.slot(n / 2))),
            Coupling::Cross => {
                let omega: Vec<f32> = known.cross.iter().map(|&w| w as f32).collect();
                ("objective_cross", Some(gpu.upload(&omega)))
            }
            Coupling::Sides(_) => ("objective_sides", None),
        };
        let slots: Vec<&Slot> = [sums, &of_sequences, &d_sums].into_iter().chain(&more).collect();
        // Each sequence is looked at once, or by all others.
        let looks = if more.is_some() { n * n / 2 } else { n };
        rec.dispatch(&shader(entry), &term_params(n, term, i > 0), &slots, [1, 1, 1], 20 * looks as u64);
    }
    let spread = ObjectiveParams { n: spans.rows as u32, ..Default::default() };
    let grid = grid_1d(spans.rows, 64);
    rec.dispatch(&shader("objective_spread"), &spread, &[&spans.owners, &d_sums, d_logp], grid, 2 * spans.rows as u64);
}

/// The family.
pub struct PairLosses;

impl Kernel for PairLosses {
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
        let mut all: Vec<Box<dyn Case>> = vec![Box::new(ObjectiveCase { goal: Goal::Sft, rows: 4, paired: false })];
        let [sigmoid, kto_pair, rpo] = [Loss::Sigmoid, Loss::KtoPair, Loss::Rpo].map(Mix::of);
        for objective in [Objective::Jpo, Objective::Dpo] {
            let mut add = |loss: Mix, reference_free, rows, paired| {
                let smoothed = Loss::SMOOTHED.iter().any(|&l| loss.has(l));
                let label_smoothing = if smoothed { 0.1 } else { 0.0 };
                let p = Preference { objective, loss, label_smoothing, reference_free, ..Preference::default() };
                let p = Preference { desirable_weight: 1.5, rpo_tau: 0.3, ..p };
                all.push(Box::new(ObjectiveCase { goal: Goal::Preference(p), rows, paired }));
            };
            // More pairs than a workgroup has invocations.
            Loss::ALL.into_iter().for_each(|loss| add(Mix::of(loss), false, 70, true));
            add(Mix::of(Loss::Kto), false, 69, false);
            // Means below 0: nothing is shifted, and no gradient flows through them.
            add(kto_pair, true, 70, true);
            [sigmoid, Mix::of(Loss::AotUnpaired), rpo].into_iter().for_each(|loss| add(loss, false, 1, true));
            add(sigmoid.plus(Loss::Sft, 0.25), false, 70, true);
            add(rpo.plus(Loss::Orpo, 2.0).plus(Loss::BcoPair, 0.3), false, 3, true);
        }
        all
    }
    fn benches(&self, _: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        // Pairs of some 64 rows.
        let goal = Goal::Preference(Preference::default());
        vec![Box::new(ObjectiveCase { goal, rows: t.div_ceil(64), paired: true })]
    }
}

/// Rows of data: pairs whose first `PREFIX` rows are shared, then own rows of different lengths; every third pair shares nothing. Or single
/// sequences.
struct ObjectiveCase {
    goal: Goal,
    rows: usize,
    paired: bool,
}

const PREFIX: usize = 5;

impl ObjectiveCase {
    fn batch(&self) -> Batch {
        let mut batch = Batch::default();
        let row = crate::data::batch::ScoredRow { hidden: 0, target: 0 };
        for row_of_data in 0..self.rows {
            let start = batch.rows.len();
            let shared = if row_of_data % 3 == 2 || !self.paired { 0 } else { PREFIX };
            batch.rows.resize(start + shared, row);
            for side in 0..1 + usize::from(self.paired) {
                let own = batch.rows.len();
                let (instruction, response) = (2 + row_of_data % 4, 3 + side);
                batch.rows.resize(own + instruction + response, row);
                batch.spans.push(crate::data::batch::Span {
                    prefix: start..start + shared,
                    own: own..batch.rows.len(),
                    response: own + instruction,
                });
            }
        }
        batch
    }
    fn known(&self) -> Known {
        let n = self.rows * if self.paired { 2 } else { 1 };
        let wave = |s: usize| f64::from(((s as f32) * 0.7).sin());
        let reference = (0..n).map(|s| f64::from((2.0 * wave(s) - 11.0) as f32)).collect();
        let mut known = Known { paired: self.paired, ..Known::pairs(reference) };
        match self.goal {
            Goal::Sft => known.desirable.fill(true),
            Goal::Preference(p) if p.loss.has(Loss::Rpo) => {
                let cosine = |k| if k % (self.rows + 1) == 0 { 1.0 } else { wave(k) };
                known.cross =
                    cross_weights(&(0..self.rows.pow(2)).map(cosine).collect::<Vec<_>>(), self.rows, p.rpo_tau);
            }
            Goal::Preference(_) => {}
        }
        known
    }
    fn sums(&self, logp: &[f64]) -> Vec<Sums> {
        let spans = self.batch().spans;
        let sum = |r: std::ops::Range<usize>| logp[r].iter().sum::<f64>();
        let of = |s: &crate::data::batch::Span| Sums {
            instruction: sum(s.prefix.clone()) + sum(s.own.start..s.response),
            response: sum(s.response..s.own.end),
            n_instruction: s.prefix.len() + s.response - s.own.start,
            n_response: s.own.end - s.response,
        };
        spans.iter().map(of).collect()
    }
}

impl Case for ObjectiveCase {
    fn label(&self) -> String {
        let goal = match self.goal {
            Goal::Sft => "sft of responses".into(),
            Goal::Preference(Preference { objective, loss, reference_free, .. }) => {
                let free = if reference_free { " reference-free" } else { "" };
                format!("{objective:?} {loss}{free}")
            }
        };
        format!("rows={} paired={} {goal}", self.rows, self.paired)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<Host> {
        // Log-probabilities: below 0.
        let n = self.batch().rows.len();
        vec![Host::F32((0..n).map(|_| -(rng.normal() * 0.8 - 0.7).exp()).collect())]
    }
    /// The summed loss by each row is this case's *output*: what the device computes. The twin goes through objective.rs, whose own
    /// gradient is tested against differences there.
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (sums, known) = (self.sums(&x[0]), self.known());
        let mut outcomes = vec![Default::default(); sums.len()];
        self.goal.terms(known.paired).iter().for_each(|term| term.add(&sums, &known, &mut outcomes));
        let mut d = vec![0.0; x[0].len()];
        for (span, outcome) in self.batch().spans.iter().zip(outcomes) {
            span.prefix.clone().for_each(|r| d[r] += outcome.d_sums[0]);
            span.own.clone().for_each(|r| d[r] += outcome.d_sums[usize::from(r >= span.response)]);
        }
        vec![d, sums.iter().flat_map(|s| [s.instruction, s.response]).collect()]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> Outputs {
        let spans = Spans::new(rec.gpu(), &self.batch());
        let (sums, d_logp) = (rec.gpu().slot(2 * spans.len()), rec.gpu().slot(x[0].len()));
        objective_sums(rec, &spans, &x[0], &sums);
        objective_bwd(rec, &self.goal, &spans, &sums, &self.known(), &d_logp);
        Outputs { y: vec![d_logp, sums], d_x: Vec::new() }
    }
    fn reduction(&self) -> usize {
        self.rows.max(16)
    }
    fn cost(&self) -> Cost {
        Cost { bytes: 4 * 60 * self.rows as u64, flops: 100 * self.rows as u64 }
    }
}
