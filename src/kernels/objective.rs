//! Gradient of the loss by each token's log-probability, on the device: nothing waits for the CPU inside a step.

use super::shapes::ModelShape;
use super::{Case, Cost, Host, Kernel, Outputs};
use crate::data::batch::Batch;
use crate::gpu::{Caps, Gpu, Recording, Shader, Slot, grid_1d};
use crate::objective::{Loss, Objective, PairScores, Preference, Sums};
use crate::rng::Rng;

/// What training minimises.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// A preference loss over pairs.
    Preference(Preference),
    /// Σ −log π(response token).
    Sft,
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
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ObjectiveParams {
    n: u32,
    kind: u32,
    joint: u32,
    pad: u32,
    beta: f32,
    smoothing: f32,
    sft_weight: f32,
    pad1: f32,
}

fn params(n: usize, goal: &Goal) -> ObjectiveParams {
    let zero = ObjectiveParams {
        n: n as u32,
        kind: 4,
        joint: 0,
        pad: 0,
        beta: 0.0,
        smoothing: 0.0,
        sft_weight: 0.0,
        pad1: 0.0,
    };
    match goal {
        Goal::Sft => zero,
        Goal::Preference(p) => ObjectiveParams {
            kind: match p.loss {
                Loss::Sigmoid => 0,
                Loss::Hinge => 1,
                Loss::Ipo => 2,
                Loss::KtoPair => 3,
            },
            joint: u32::from(p.objective == Objective::Jpo),
            beta: p.beta as f32,
            smoothing: p.label_smoothing as f32,
            sft_weight: p.sft_weight as f32,
            ..zero
        },
    }
}

fn shader(entry: &'static str) -> Shader {
    Shader::new("objective", entry).with("WG", 64.0)
}

/// sums (S, 2): instruction and response, of logp (rows).
pub fn objective_sums(rec: &mut Recording, spans: &Spans, logp: &Slot, sums: &Slot) {
    let params = params(spans.len(), &Goal::Sft);
    let grid = [spans.len() as u32, 1, 1];
    rec.dispatch(&shader("objective_sums"), &params, &[&spans.spans, logp, sums], grid, spans.rows as u64);
}

/// d_logp (rows) of the summed loss. `reference`: the objective's score of each sequence (S).
pub fn objective_bwd(rec: &mut Recording, goal: &Goal, spans: &Spans, sums: &Slot, reference: &[f64], d_logp: &Slot) {
    let gpu = rec.gpu();
    let known = |(s, &(instruction, response)): (usize, &(usize, usize))| {
        let (reference, scored) = match goal {
            Goal::Sft => (0.0, response),
            Goal::Preference(p) => (
                if p.reference_free { 0.0 } else { reference[s] },
                response + if p.objective == Objective::Jpo { instruction } else { 0 },
            ),
        };
        [reference as f32, scored as f32, response as f32, 0.0]
    };
    let known: Vec<[f32; 4]> = spans.counts.iter().enumerate().map(known).collect();
    let (known, d_sums) = (gpu.upload(&known.concat()), gpu.slot(2 * spans.len()));
    let pairs = params(spans.len(), goal);
    rec.dispatch(&shader("objective_pairs"), &pairs, &[sums, &known, &d_sums], [1, 1, 1], 20 * spans.len() as u64);
    let spread = params(spans.rows, goal);
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
        ["objective_sums", "objective_pairs", "objective_spread"].map(shader).into()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("ObjectiveParams", size_of::<ObjectiveParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let mut all: Vec<Box<dyn Case>> = vec![Box::new(ObjectiveCase { goal: Goal::Sft, pairs: 2 })];
        for objective in [Objective::Jpo, Objective::Dpo] {
            for loss in Loss::ALL {
                let label_smoothing = if loss == Loss::Sigmoid { 0.1 } else { 0.0 };
                let p = Preference { objective, loss, label_smoothing, sft_weight: 0.25, ..Preference::default() };
                all.push(Box::new(ObjectiveCase {
                    goal: Goal::Preference(p),
                    pairs: if loss == Loss::Ipo { 1 } else { 70 },
                }));
            }
        }
        all
    }
    fn benches(&self, _: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        // Pairs of some 64 rows.
        let goal = Goal::Preference(Preference::default());
        vec![Box::new(ObjectiveCase { goal, pairs: t.div_ceil(64) })]
    }
}

/// Pairs whose first `PREFIX` rows are shared, then own rows of different lengths; every third pair shares nothing.
struct ObjectiveCase {
    goal: Goal,
    pairs: usize,
}

const PREFIX: usize = 5;

impl ObjectiveCase {
    fn batch(&self) -> Batch {
        let mut batch = Batch::default();
        let row = crate::data::batch::ScoredRow { hidden: 0, target: 0 };
        for pair in 0..self.pairs {
            let start = batch.rows.len();
            let shared = if pair % 3 == 2 { 0 } else { PREFIX };
            batch.rows.resize(start + shared, row);
            for side in 0..2 {
                let own = batch.rows.len();
                let (instruction, response) = (2 + pair % 4, 3 + side);
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
    fn reference(&self) -> Vec<f64> {
        (0..2 * self.pairs)
            .map(|s| f64::from(((s as f32) * 0.7).sin()) * 2.0 - 1.0)
            .map(|x| f64::from(x as f32))
            .collect()
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
        format!("pairs={} {:?}", self.pairs, self.goal)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<Host> {
        vec![Host::normal(rng, self.batch().rows.len())]
    }
    /// The summed loss by each row is this case's *output*: what the device computes. The twin goes through objective.rs, whose own
    /// gradient is tested against differences there.
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let sums = self.sums(&x[0]);
        let d_sums: Vec<[f64; 2]> = match self.goal {
            Goal::Sft => sums.iter().map(|_| [0.0, -1.0]).collect(),
            Goal::Preference(p) => {
                let reference = self.reference();
                let pair = |i: usize| PairScores {
                    policy: [sums[2 * i], sums[2 * i + 1]],
                    reference: [reference[2 * i], reference[2 * i + 1]],
                };
                let pairs: Vec<PairScores> = (0..self.pairs).map(pair).collect();
                let joint = f64::from(u8::from(p.objective == Objective::Jpo));
                let of = |o: &crate::objective::PairOutcome| {
                    let [c, r] = o.d_score;
                    [[joint * c, c + o.d_chosen_response], [joint * r, r]]
                };
                p.evaluate(&pairs).iter().flat_map(of).collect()
            }
        };
        let mut d = vec![0.0; x[0].len()];
        for (span, d_sum) in self.batch().spans.iter().zip(d_sums) {
            span.prefix.clone().for_each(|r| d[r] += d_sum[0]);
            span.own.clone().for_each(|r| d[r] += d_sum[usize::from(r >= span.response)]);
        }
        vec![d, sums.iter().flat_map(|s| [s.instruction, s.response]).collect()]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> Outputs {
        let spans = Spans::new(rec.gpu(), &self.batch());
        let (sums, d_logp) = (rec.gpu().slot(2 * spans.len()), rec.gpu().slot(x[0].len()));
        objective_sums(rec, &spans, &x[0], &sums);
        objective_bwd(rec, &self.goal, &spans, &sums, &self.reference(), &d_logp);
        Outputs { y: vec![d_logp, sums], d_x: Vec::new() }
    }
    fn reduction(&self) -> usize {
        self.pairs.max(16)
    }
    fn cost(&self) -> Cost {
        Cost { bytes: 4 * 60 * self.pairs as u64, flops: 100 * self.pairs as u64 }
    }
}
