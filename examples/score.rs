//! Scores two responses to one instruction: log π(I, R), what JPO compares, and log π(R | I), what DPO compares.
//!
//!     cargo run --release --example score -- models/demo

use std::path::PathBuf;
use std::rc::Rc;

use jointwise::data::batch::Example;
use jointwise::data::rows::{Instruction, Text};
use jointwise::data::template::Template;
use jointwise::data::tokens::Tokenizer;
use jointwise::gpu::{DeviceChoice, Gpu};
use jointwise::model::checkpoint::Checkpoint;
use jointwise::model::decoder::Decoder;
use jointwise::model::description::Description;
use jointwise::model::load::{LoadOptions, Trained};
use jointwise::model::scores::DEFAULT_SCORE_TOKENS;
use jointwise::model::weights::{BaseDtype, Source, Training};
use jointwise::objective::Objective;
use jointwise::train::trainer::score;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "models/demo".into()));
    let config = dir.join("config.json");
    let description = Description::from_json(&config, &std::fs::read_to_string(&config)?)?;
    let checkpoint = Checkpoint::open(&dir)?;
    checkpoint.verify(&description)?;

    // A pair: chosen, then rejected. The instruction they share is computed once.
    let tokenizer = Tokenizer::load(&dir)?;
    let text =
        |response: &str| Text { instruction: Instruction::Plain("Say hello.".into()), response: response.into() };
    let encode = |response| tokenizer.encode(&text(response), &Template::Paper);
    let pair = Example { row: 0, sequences: vec![encode(" Hello!")?, encode(" No.")?], desirable: None };

    let gpu = pollster::block_on(Gpu::open(&DeviceChoice::Best))?;
    let n_positions = pair.sequences.iter().map(|s| s.ids.len()).max().unwrap_or(1);
    let options = LoadOptions {
        trained: Trained::Nothing,
        lora: None,
        training: Training::NONE,
        n_positions,
        base: BaseDtype::Auto,
    };
    let source: Rc<dyn Source> = Rc::new(checkpoint);
    let decoder = Decoder::load(&gpu, &description, &source, &options)?;

    let scored = pollster::block_on(score(&gpu, &decoder, &[&pair], false, true, DEFAULT_SCORE_TOKENS, &mut |_| ()))?;
    for (side, s) in ["chosen", "rejected"].iter().zip(&scored) {
        let [joint, conditional] = [Objective::Jpo, Objective::Dpo].map(|o| s.sums.score(o));
        println!("{side:<9} log π(I, R) = {joint:9.4}   log π(R | I) = {conditional:9.4}   on {}", gpu.caps().name);
    }
    Ok(())
}
