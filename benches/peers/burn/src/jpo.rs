//! Steps of JPO over all parameters.

use std::path::PathBuf;
use std::time::Instant;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::activation::{log_sigmoid, log_softmax};
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::llama::Llama;

/// What is to be done, as `run.py` writes it for every peer.
#[derive(Deserialize)]
pub struct Task {
    model: PathBuf,
    /// Pairs of a step.
    pairs: usize,
    /// Ids of chosen and rejected by pair, all of one length.
    rows: Vec<[Vec<i64>; 2]>,
    beta: f64,
    learning_rate: f64,
    adam_beta1: f32,
    adam_beta2: f32,
    adam_epsilon: f32,
    weight_decay: f32,
    max_grad_norm: f64,
}

/// What was measured, by step.
#[derive(Serialize)]
pub struct Steps {
    losses: Vec<f32>,
    seconds: Vec<f64>,
}

/// Every step of the task.
pub fn run(task: &Task, device: &Device) -> Steps {
    let device = device.clone().autodiff();
    let mut model = Llama::load(&task.model, &device);
    let reference = model.valid();
    let batches = task.rows.chunks_exact(task.pairs);
    let reference: Vec<TensorData> =
        batches.clone().map(|rows| scores(&reference, rows, &device.clone().inner()).into_data()).collect();
    let mut optimiser = AdamWConfig::new()
        .with_beta_1(task.adam_beta1)
        .with_beta_2(task.adam_beta2)
        .with_epsilon(task.adam_epsilon)
        .with_weight_decay(task.weight_decay)
        .init();
    let mut steps = Steps { losses: Vec::new(), seconds: Vec::new() };
    for (rows, reference) in batches.zip(reference) {
        let started = Instant::now();
        let s = (scores(&model, rows, &device) - Tensor::from_data(reference, &device)).reshape([task.pairs, 2]);
        let margin = s.clone().narrow(1, 0, 1) - s.narrow(1, 1, 1);
        let loss = -log_sigmoid(margin * task.beta).mean();
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        let gradients = clipped(&model, gradients, task.max_grad_norm);
        model = optimiser.step(task.learning_rate, model, gradients);
        steps.losses.push(loss.into_scalar::<f32>());
        device.sync().expect("the device");
        steps.seconds.push(started.elapsed().as_secs_f64());
        eprintln!("step {}: {:?} s", steps.losses.len(), steps.seconds.last());
    }
    steps
}

/// log π of each sequence, (S), chosen and rejected in turns.
fn scores(model: &Llama, rows: &[[Vec<i64>; 2]], device: &Device) -> Tensor<1> {
    let sequences: Vec<&Vec<i64>> = rows.iter().flatten().collect();
    let [s, t] = [sequences.len(), sequences[0].len()];
    let ids: Vec<i64> = sequences.iter().flat_map(|ids| ids.iter().copied()).collect();
    // The token after each; after the last, any: it is cut off below, where that costs nothing.
    let next: Vec<i64> = sequences.iter().flat_map(|ids| ids.iter().copied().cycle().skip(1).take(t)).collect();
    let tensor = |ids| Tensor::<2, Int>::from_data(TensorData::new(ids, [s, t]), device);
    let log_probabilities = log_softmax(model.forward(tensor(ids)), 2);
    log_probabilities
        .gather(2, tensor(next).unsqueeze_dim(2))
        .reshape([s, t])
        .narrow(1, 0, t - 1)
        .sum_dim(1)
        .reshape([s])
}

/// Gradients scaled so that their norm, over all parameters together, is at most `most`. Burn's own clipping is by parameter.
fn clipped(model: &Llama, gradients: GradientsParams, most: f64) -> GradientsParams {
    let mut squares = Squares { gradients: &gradients, sum: None };
    model.visit(&mut squares);
    let norm = squares.sum.expect("the model has parameters").sqrt();
    let factor = (norm + 1e-6).recip().mul_scalar(most).clamp_max(1.0);
    let mut scaled = Scaled { gradients, factor };
    model.visit(&mut scaled);
    scaled.gradients
}

struct Squares<'a> {
    gradients: &'a GradientsParams,
    sum: Option<Tensor<1>>,
}

impl ModuleVisitor for Squares<'_> {
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
        let gradient = self.gradients.get::<D>(parameter.id).expect("a gradient for every parameter");
        let square = gradient.square().sum();
        self.sum = Some(match self.sum.take() {
            Some(sum) => sum + square,
            None => square,
        });
    }
}

struct Scaled {
    gradients: GradientsParams,
    factor: Tensor<1>,
}

impl ModuleVisitor for Scaled {
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
        let gradient = self.gradients.remove::<D>(parameter.id).expect("a gradient for every parameter");
        self.gradients.register(parameter.id, gradient * self.factor.clone().unsqueeze());
    }
}
