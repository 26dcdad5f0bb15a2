//! Scores two responses to one instruction: log π(I, R), which JPO compares, and log π(R | I), which DPO compares.
//!
//!     cargo run --release --example score -- models/demo

use jointwise::{Gpu, Policy, Result, Template};

fn main() -> Result<()> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "models/demo".into());
    let (gpu, policy) = (Gpu::open_best()?, Policy::open(&model)?);
    let responses = [" Hello!", " No."];
    let scores = policy.score(&gpu, "Say hello.", &responses, &Template::Paper)?;
    for (response, score) in responses.iter().zip(&scores) {
        println!("{response:<9} log π(I, R) = {:9.4}   log π(R | I) = {:9.4}", score.joint, score.conditional);
    }
    Ok(())
}
