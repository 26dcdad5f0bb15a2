//! Trains with a loss that is made of terms, here APO-zero (arXiv 2408.06266): (1 − σ(βs_c)) + σ(βs_r), where s is the log-ratio of policy and reference
//! of the chosen and of the rejected side. It raises the chosen side and lowers the rejected one, each by itself. `--loss apo_zero` is this loss by its name.
//!
//!     cargo run --release --example custom_loss -- examples/preferences.jsonl

use jointwise::objective::{LossFn, Objective, ReferencePoint, ScoreCoupling, Term};
use jointwise::{Gpu, LoraConfig, Policy, Preferences, Recipe, Result};

/// APO-zero as one term: each sequence is compared with zero, and the curve 1 − σ(z) has z = βs of a chosen side, −βs of a rejected one.
fn apo_zero(objective: Objective, beta: f64) -> Vec<Term> {
    vec![Term {
        scope: objective,
        coupling: ScoreCoupling::Sides(ReferencePoint::Zero),
        curve: LossFn::Sigmoid,
        scale: beta,
        ..Term::default()
    }]
}

fn main() -> Result<()> {
    let file = std::env::args().nth(1).unwrap_or_else(|| "examples/preferences.jsonl".into());
    let gpu = Gpu::open_best()?;
    let policy = Policy::open("models/demo")?.with_lora(LoraConfig::all_linear(8))?;
    let data = Preferences::read(file, &policy)?;
    let custom_terms = apo_zero(Objective::Dpo, 0.1);
    let recipe = Recipe { custom_terms, objective: Objective::Dpo, learning_rate: 1e-3, ..Recipe::default() };
    let recipe = Recipe { max_steps: Some(10), ..recipe };
    for step in policy.train(&gpu, &data, &recipe)? {
        let step = step?;
        println!("{:>3}  loss {:.4}  margin {:+.3}", step.number, step.loss, step.margin);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::apo_zero;
    use jointwise::objective::{LossInputs, Objective, PreferenceLoss, SequenceLogps};

    /// The gradient of each score equals the central difference of the loss, and a wrong one does not.
    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let loss = PreferenceLoss { custom_terms: apo_zero(Objective::Jpo, 0.3), ..PreferenceLoss::default() };
        let sums = |instruction, response| SequenceLogps {
            instruction,
            response,
            n_instruction: 3,
            n_response: 5,
            ..SequenceLogps::default()
        };
        let scores = [sums(-4.0, -9.0), sums(-5.0, -7.5), sums(-3.0, -2.0), sums(-6.0, -8.0)];
        let known = LossInputs {
            paired: true,
            reference: vec![-12.0, -13.0, -6.0, -12.5],
            desirable: vec![true, false, true, false],
            ..LossInputs::default()
        };
        let total = |scores: &[SequenceLogps]| loss.evaluate(scores, &known).iter().map(|s| s.loss).sum::<f64>();
        let step = 1e-5;
        for (i, outcome) in loss.evaluate(&scores, &known).iter().enumerate() {
            let moved = |by: f64| {
                let mut moved = scores;
                moved[i].response += by;
                total(&moved)
            };
            let slope = (moved(step) - moved(-step)) / (2.0 * step);
            assert!((outcome.d_sums[1] - slope).abs() < 1e-9, "sequence {i}: {} and {slope}", outcome.d_sums[1]);
            assert!((1.01 * outcome.d_sums[1] - slope).abs() > 1e-5, "a gradient that is 1 % wrong passes");
        }
    }
}
