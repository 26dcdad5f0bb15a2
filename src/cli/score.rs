//! `score` and `grad`: the whole file as one batch.

use serde_json::{Value, json};

use super::args::{GradArgs, ScoreArgs};
use super::output::{Lines, check_out};
use super::session::{self, Model};
use crate::config::{Defaults, ReferenceChoice};
use crate::data::batch::Example;
use crate::data::dataset::Dataset;
use crate::data::rows::Purpose;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::kernels::objective::Goal;
use crate::model::decoder::Decoder;
use crate::model::load::{LoadOptions, Trained};
use crate::model::save::{OutputDtype, Planned, write_safetensors};
use crate::model::trace::Keep;
use crate::model::weights::{BaseDtype, Training};
use crate::objective::{PairScores, Preference};
use crate::train::metrics::{self, Accumulator};
use crate::train::trainer::{self, Reference, Scored, Trainer};

/// The decoder's scores of all sequences, at most `max_tokens` a forward pass.
pub fn scores(gpu: &Gpu, decoder: &Decoder, data: &Dataset, with_lora: bool, max_tokens: usize) -> Result<Vec<Scored>> {
    let examples: Vec<&Example> = data.examples.iter().collect();
    let bar = super::train::bar(examples.len(), "scoring");
    let scored = pollster::block_on(trainer::score(gpu, decoder, &examples, with_lora, true, max_tokens, &mut |n| {
        bar.inc(n as u64);
    }));
    bar.finish_and_clear();
    scored
}

/// Scores that are shown, or that gradients are taken against, are numbers.
fn finite(data: &Dataset, scored: Vec<Scored>) -> Result<Vec<Scored>> {
    let sides = data.examples.iter().flat_map(|e| e.sequences.iter().map(|_| e.row));
    match sides.zip(&scored).find(|(_, s)| s.token_logps.iter().any(|l| !l.is_finite())) {
        Some((row, _)) => {
            Err(Error::NotFinite { place: format!("row {row}"), what: "a token's log-probability".into() })
        }
        None => Ok(scored),
    }
}

/// The reference's scores (the objective's sums) of each example, by policy scores or another pass. `base`: how another model is held.
#[expect(clippy::too_many_arguments, reason = "the policy, and what tells its reference")]
pub fn reference_scores(
    gpu: &Gpu,
    decoder: &Decoder,
    data: &Dataset,
    choice: &ReferenceChoice,
    p: &Preference,
    policy: Option<&[Scored]>,
    max_tokens: usize,
    base: BaseDtype,
) -> Result<Vec<Reference>> {
    let pairs = |scored: &[Scored]| -> Vec<Reference> {
        scored.chunks(2).map(|c| [c[0].sums.score(p.objective), c[c.len() - 1].sums.score(p.objective)]).collect()
    };
    Ok(match (choice, policy) {
        _ if p.reference_free => vec![[0.0; 2]; data.examples.len()],
        (ReferenceChoice::Initial, Some(policy)) => pairs(policy),
        (ReferenceChoice::Initial, None) => pairs(&scores(gpu, decoder, data, true, max_tokens)?),
        (ReferenceChoice::Base, _) => pairs(&scores(gpu, decoder, data, false, max_tokens)?),
        (ReferenceChoice::Model(name), _) => {
            let model = Model::reference(name, base)?;
            if model.description.vocab != decoder.description.vocab {
                let (theirs, ours) = (model.description.vocab, decoder.description.vocab);
                return Err(Error::flag("reference", format!("{name} has {theirs} tokens, the policy {ours}")));
            }
            let other = model.load(gpu, &session::frozen(base, None, session::longest(data)))?;
            pairs(&scores(gpu, &other, data, true, max_tokens)?)
        }
    })
}

fn side(scored: &Scored, example: &Example, index: usize, p: &Preference, tokens: bool) -> Value {
    let sequence = &example.sequences[index];
    let mut object = json!({
        "n_tokens": sequence.ids.len(),
        "n_scored": scored.sums.n_scored(p.objective),
        "logp": scored.sums.score(p.objective),
        "logp_instruction": scored.sums.instruction,
        "logp_response": scored.sums.response,
    });
    if tokens {
        let logps: Vec<Value> =
            std::iter::once(Value::Null).chain(scored.token_logps.iter().map(|&x| json!(x))).collect();
        object["ids"] = json!(sequence.ids);
        object["token_logps"] = json!(logps);
    }
    object
}

/// What metrics take from a pair.
pub fn pair_metrics(scores: &PairScores, rewards: [f64; 2], p: &Preference) -> metrics::PairScores {
    let chosen = &scores.policy[0];
    metrics::PairScores {
        reward_chosen: rewards[0],
        reward_rejected: rewards[1],
        logp_chosen: chosen.score(p.objective),
        logp_rejected: scores.policy[1].score(p.objective),
        logp_instruction: chosen.instruction,
        logp_response: chosen.response,
    }
}

/// `jointwise score`.
pub fn score(args: &ScoreArgs) -> Result<()> {
    let mut out = Lines::new(args.out.as_deref(), &args.data.data)?;
    let p = session::preference(&args.objective)?;
    let model = Model::of(&args.model)?;
    let adapter = model.adapter(args.model.adapter.as_deref())?;
    let tokenizer = model.tokenizer()?;
    let data = session::dataset(&args.data, &args.data.data, &model, &tokenizer, Purpose::Any)?;
    let gpu = session::open_gpu(&args.model.device)?;
    let decoder = model.load(&gpu, &session::frozen(model.base, adapter.map(|a| a.lora), session::longest(&data)))?;
    let scored = finite(&data, scores(&gpu, &decoder, &data, true, Defaults::SCORE_TOKENS)?)?;
    let has_pairs = data.examples.iter().any(|e| e.sequences.len() == 2);
    if !has_pairs {
        return score_single(&data, &scored, &p, args.tokens, out);
    }
    if let Some(single) = data.examples.iter().find(|e| e.sequences.len() != 2) {
        return Err(Error::file(data.place(single.row), "holds one text, the rows before it pairs"));
    }
    let reference = args.objective.reference.is_some() || p.reference_free;
    let choice = session::reference(&args.objective);
    let references = match reference {
        true => {
            let (policy, most) = (Some(scored.as_slice()), Defaults::SCORE_TOKENS);
            reference_scores(&gpu, &decoder, &data, &choice, &p, policy, most, model.base)?
        }
        false => vec![[0.0; 2]; data.examples.len()],
    };
    let pairs: Vec<PairScores> = scored
        .chunks(2)
        .zip(&references)
        .map(|(s, &reference)| PairScores { policy: [s[0].sums, s[1].sums], reference })
        .collect();
    let outcomes = p.evaluate(&pairs);
    let mut total = Accumulator::default();
    for (i, example) in data.examples.iter().enumerate() {
        let (pair, outcome) = (&pairs[i], &outcomes[i]);
        total.add_loss(outcome.loss, 1, example.n_tokens(true));
        total.add_pair(&pair_metrics(pair, outcome.rewards, &p));
        let mut row = json!({
            "row": example.row,
            "chosen": side(&scored[2 * i], example, 0, &p, args.tokens),
            "rejected": side(&scored[2 * i + 1], example, 1, &p, args.tokens),
        });
        if reference {
            row["reference_chosen_logp"] = json!(pair.reference[0]);
            row["reference_rejected_logp"] = json!(pair.reference[1]);
            row["rewards_chosen"] = json!(outcome.rewards[0]);
            row["rewards_rejected"] = json!(outcome.rewards[1]);
            row["margin"] = json!(outcome.rewards[0] - outcome.rewards[1]);
            row["loss"] = json!(outcome.loss);
        }
        out.push(&row)?;
    }
    let mut summary = serde_json::Map::new();
    if reference {
        summary.insert("loss".into(), json!(total.loss()));
    }
    for (name, value) in total.pairs().iter().flat_map(|m| m.entries()) {
        if reference || !name.starts_with("rewards/") {
            summary.insert(name.into(), json!(value));
        }
    }
    summary.insert("num_tokens".into(), json!(total.tokens()));
    out.push(&json!({ "summary": summary }))?;
    out.finish()
}

/// Rows of one text each: log-probs, and SFT's loss.
fn score_single(data: &Dataset, scored: &[Scored], p: &Preference, tokens: bool, mut out: Lines) -> Result<()> {
    let (mut loss, mut n) = (0.0, 0);
    for (example, s) in data.examples.iter().zip(scored) {
        loss -= s.sums.response;
        n += s.sums.n_response;
        let text = side(s, example, 0, p, tokens);
        out.push(&json!({"row": example.row, "text": text, "loss": -s.sums.response / s.sums.n_response as f64}))?;
    }
    out.push(&json!({"summary": {"loss": loss / n.max(1) as f64, "n_scored": n}}))?;
    out.finish()
}

/// `jointwise grad`.
pub fn grad(args: &GradArgs) -> Result<()> {
    check_out(&args.out, &args.data.data)?;
    let p = session::preference(&args.objective)?;
    let model = Model::of(&args.model)?;
    let adapter = model.adapter(args.model.adapter.as_deref())?;
    let tokenizer = model.tokenizer()?;
    if adapter.is_none() {
        session::refuse_quantised(model.base, "grad without --adapter")?;
    }
    let purpose = if args.sft { Purpose::Sft } else { Purpose::Preference };
    let data = session::dataset(&args.data, &args.data.data, &model, &tokenizer, purpose)?;
    let gpu = session::open_gpu(&args.model.device)?;
    let options = LoadOptions {
        trained: if adapter.is_some() { Trained::Lora } else { Trained::Full },
        lora: adapter.map(|a| a.lora),
        training: Training::NONE,
        n_positions: session::longest(&data),
        base: model.base,
    };
    let decoder = model.load(&gpu, &options)?;
    let (goal, reference) = if args.sft {
        (Goal::Sft, Vec::new())
    } else {
        let choice = session::reference(&args.objective);
        let most = Defaults::SCORE_TOKENS;
        (Goal::Preference(p), reference_scores(&gpu, &decoder, &data, &choice, &p, None, most, model.base)?)
    };
    let trainer = Trainer { gpu: &gpu, decoder, goal, share_prefix: true, keep: Keep::Everything, seed: 0 };
    let examples: Vec<&Example> = data.examples.iter().collect();
    // One batch, because kto_pair's means run over all of it; other losses could be cut, and memory would then not depend on the file.
    let step = pollster::block_on(trainer.gradients(&examples, &reference, examples.len()))?;
    let gradients = pollster::block_on(trainer.read_gradients(&examples))?;
    let planned: Vec<Planned> = gradients
        .iter()
        .map(|(name, shape, _)| Planned { name: name.clone(), shape: shape.clone(), dtype: OutputDtype::F32 })
        .collect();
    write_safetensors(&args.out, &planned, &mut |i| Ok(gradients[i].2.clone()))?;
    say!("{}", json!({"loss": step.outcome.loss(), "grad_norm": step.grad_norm, "tensors": planned.len()}))?;
    Ok(())
}
