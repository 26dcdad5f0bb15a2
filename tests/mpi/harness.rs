//! Training runs of one process and of several ranks, and comparisons of what they wrote.

use std::fs;

use serde_json::Value;

use crate::launched::{mpirun, ranks};
use crate::program::{Ran, Sandbox, fixture, metrics, rows};

/// Largest difference of a loss between several ranks and one process, whose sums of gradients have another order.
pub const NOISE: f64 = 1e-6;
pub const ADAPTER: &str = "adapter_model.safetensors";

pub struct Setting {
    pub sandbox: Sandbox,
    pub command: &'static str,
    pub model: String,
    pub data: String,
    pub flags: Vec<&'static str>,
}

impl Setting {
    pub fn new(command: &'static str, lines: &[String], flags: &[&'static str]) -> Self {
        let sandbox = Sandbox::new();
        let model = fixture("mistral-odd/model").to_str().expect("UTF-8").to_string();
        let data = sandbox.write("rows.jsonl", lines.join("\n"));
        Self { sandbox, command, model, data, flags: flags.to_vec() }
    }

    /// Preferences, trained for ten steps: two and a half epochs, of which the last batch is short.
    pub fn pairs(n: usize) -> Self {
        Self::pairs_for(n, "10")
    }

    pub fn pairs_for(n: usize, steps: &'static str) -> Self {
        let flags = ["--lora-r", "4", "--learning-rate", "1e-2", "--seed", "3", "--max-steps", steps];
        Self::new("train", &rows("mistral-odd")[..n], &flags)
    }

    pub fn args<'a>(&'a self, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let mut all = vec![self.command, "--model", &self.model, "--data", &self.data, "--output-dir", out];
        all.extend(&self.flags);
        all.extend(more);
        all
    }

    pub fn one(&self, out: &str, more: &[&str]) -> Ran {
        self.sandbox.run(&self.args(out, more))
    }

    pub fn several(&self, n: usize, out: &str, more: &[&str]) -> Ran {
        Ran::of(&mut mpirun(&self.sandbox, &[ranks(n, self.args(out, more))]))
    }

    pub fn metrics(&self, out: &str) -> Vec<Value> {
        metrics(&self.sandbox.path(out))
    }

    /// Largest difference of a number of two runs' metrics; infinity where lines differ in number.
    pub fn difference(&self, a: &str, b: &str, name: &str) -> f64 {
        let [a, b] = [a, b].map(|out| self.metrics(out));
        if a.len() != b.len() {
            return f64::INFINITY;
        }
        let of = |line: &Value| line.get(name).map(|value| value.as_f64().expect("a number"));
        let pairs = a.iter().zip(&b).filter_map(|(a, b)| Some((of(a)? - of(b)?).abs()));
        pairs.fold(f64::NEG_INFINITY, f64::max)
    }

    /// Two runs with the same losses and metrics to f32 noise.
    #[track_caller]
    pub fn close(&self, a: &str, b: &str) {
        self.close_by(NOISE, a, b);
    }

    #[track_caller]
    pub fn close_by(&self, most: f64, a: &str, b: &str) {
        let loss = self.difference(a, b, "loss");
        assert!((0.0..=most).contains(&loss), "{a}, {b}: losses differ by {loss}");
        let norm = self.difference(a, b, "grad_norm");
        assert!((0.0..=100.0 * most).contains(&norm), "{a}, {b}: norms differ by {norm}");
        for name in ["tokens", "num_tokens", "learning_rate", "epoch", "rewards/accuracies"] {
            assert!(self.difference(a, b, name) <= 0.0, "{a}, {b}: {name}");
        }
    }

    /// Two runs with the same bits.
    #[track_caller]
    pub fn same(&self, a: &str, b: &str) {
        assert_eq!(self.metrics(a), self.metrics(b));
        let bits = |out: &str| fs::read(self.sandbox.path(out).join(ADAPTER)).expect("a result");
        assert!(bits(a) == bits(b), "{ADAPTER} differs");
    }
}
