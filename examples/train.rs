//! Tunes a model on preferences: JPO of a low-rank adapter.
//!
//!     cargo run --release --example train -- examples/preferences.jsonl runs/first

use jointwise::{Gpu, LoraConfig, Objective, Policy, Preferences, Recipe, Result};

fn main() -> Result<()> {
    let [file, out] = [(1, "examples/preferences.jsonl"), (2, "runs/first")]
        .map(|(n, d)| std::env::args().nth(n).unwrap_or(d.into()));
    let gpu = Gpu::open_best()?;
    let policy = Policy::open("models/demo")?.with_lora(LoraConfig::all_linear(16))?;
    let data = Preferences::read(file, &policy)?;
    let recipe = Recipe { objective: Objective::Jpo, learning_rate: 2e-4, max_steps: Some(60), ..Recipe::default() };
    let mut training = policy.train(&gpu, &data, &recipe)?;
    for step in &mut training {
        let step = step?;
        println!("{:>3}  loss {:.4}  accuracy {:.2}", step.number, step.loss, step.accuracy);
    }
    training.finish()?.save(out)
}
