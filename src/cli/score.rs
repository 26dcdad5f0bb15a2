//! `score` and `grad`: the whole file as one batch.

use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};

use super::args::{GradArgs, ObjectiveArgs, ScoreArgs};
use super::objective_note::objective_note;
use super::output::{Lines, check_place};
use super::session::{self, Model};
use crate::cli::tokenised;
use crate::data::batch::Example;
use crate::data::dataset::Dataset;
use crate::data::rows::Purpose;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::model::decoder::Decoder;
use crate::model::load::{LoadOptions, Trained};
use crate::model::save::{OutputDtype, Planned, write_safetensors};
use crate::model::scores::DEFAULT_SCORE_TOKENS;
use crate::model::trace::Keep;
use crate::model::weights::Training;
use crate::objective::Goal;
use crate::objective::{Preference, Sums};
use crate::progress::ProgressReporter;
use crate::train::metrics::Accumulator;
use crate::train::outcome::{Outcome, Reference, known};
use crate::train::reference::{OtherModel, ReferenceModel, ReferenceScorer, Rows, Scoring, Watch};
use crate::train::settings::ReferenceChoice;
use crate::train::steps::tally;
use crate::train::trainer::{self, Scored, Trainer};

/// The decoder's scores of all sequences, at most `max_tokens` a forward pass.
fn scores(gpu: &Gpu, decoder: &Decoder, data: &Dataset, with_lora: bool, max_tokens: usize) -> Result<Vec<Scored>> {
    let examples: Vec<&Example> = data.examples.iter().collect();
    let progress = ProgressReporter::items("scoring", examples.len());
    pollster::block_on(trainer::score(gpu, decoder, &examples, with_lora, true, max_tokens, &mut |n| {
        progress.advance(n as u64);
    }))
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

/// Returns what is known of all rows before their losses are: the reference's scores (by `scored`, the policy's own, where that is the reference and they are
/// there) and, where a loss compares them, the directions of instructions. `other`: the model of the choice.
fn references(
    gpu: &Gpu,
    decoder: &Decoder,
    data: &Dataset,
    args: &ObjectiveArgs,
    scored: Option<&[Scored]>,
    other: Option<&Model>,
) -> Result<Vec<Reference>> {
    let (p, longest) = (session::preference(args)?, session::longest(data));
    let model = match (session::reference(args), other) {
        (_, Some(model)) => {
            let load = || model.load(gpu, &session::frozen(model.base, None, longest));
            ReferenceModel::Other(OtherModel::new(load))
        }
        (ReferenceChoice::Base, None) => ReferenceModel::WithoutAdapter,
        (_, None) => ReferenceModel::Untrained,
    };
    let mut scorer = ReferenceScorer::new(gpu, &p, model, DEFAULT_SCORE_TOKENS, None);
    let n = data.examples.len();
    let mut known = scorer.rows(n);
    let mut rows = Rows { examples: &data.examples, references: &mut known };
    scored.iter().for_each(|scored| scorer.take(&mut rows, scored));
    let progress = ProgressReporter::items("scoring with the reference", n);
    let tell = &mut |scoring: &Scoring<'_>| {
        if let Scoring::Rows { done, .. } = scoring {
            progress.set_done(*done);
        }
    };
    let (stop, all) = (AtomicBool::new(false), (0..n).collect::<Vec<_>>());
    pollster::block_on(scorer.find(decoder, &mut rows, &all, &mut Watch { stop: &stop, tell }))?;
    Ok(all.iter().map(|&row| known.get(row)).collect())
}

fn side_of(scored: &Scored, example: &Example, index: usize, p: &Preference, tokens: bool) -> Value {
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

fn tell_objective(args: &ObjectiveArgs, p: &Preference, data: &Dataset) {
    if let Some(note) = objective_note(args, Some(p), data) {
        note!("note: {note}");
    }
}

/// `jointwise score`.
pub fn score(args: &ScoreArgs) -> Result<()> {
    let out = Lines::new(args.out.as_deref(), &args.data.data)?;
    let p = session::preference(&args.objective)?;
    let model = Model::of(&args.model)?;
    let adapter = model.adapter(args.model.adapter.as_deref())?;
    let tokenizer = session::row_tokenizer(&args.data, &model, adapter.as_ref())?;
    let data = tokenised::dataset(&args.data, &args.data.data, &model, &tokenizer, Purpose::Any)?;
    tell_objective(&args.objective, &p, &data);
    let is_imitated = |e: &Example| e.sequences.len() == 1 && e.desirable.is_none();
    session::check_last_turn_only(&args.data, data.examples.iter().any(is_imitated))?;
    let gpu = session::open_gpu(&args.model.device)?;
    let decoder = model.load(&gpu, &session::frozen(model.base, adapter.map(|a| a.lora), session::longest(&data)))?;
    let scored = finite(&data, scores(&gpu, &decoder, &data, true, DEFAULT_SCORE_TOKENS)?)?;
    let has_pairs = data.examples.iter().any(|e| e.sequences.len() == 2);
    let judged = data.examples.iter().all(|e| e.desirable.is_some()) && !p.loss.needs_pairs();
    if !has_pairs && !judged {
        return score_single(&data, &scored, &p, args.tokens, out);
    }
    if let Some(single) = data.examples.iter().find(|e| has_pairs && e.sequences.len() != 2) {
        return Err(Error::file(data.place(single.row), "holds one text, the rows before it pairs"));
    }
    let references = if args.objective.reference.is_some() || !p.needs_reference() {
        let other = session::reference_model(&session::reference(&args.objective), &model)?;
        Some(references(&gpu, &decoder, &data, &args.objective, Some(&scored), other.as_ref())?)
    } else {
        None
    };
    score_judged(&data, &scored, &p, references.as_deref(), args.tokens, out)
}

/// Rows with a preference or a label: log-probs, and with a reference rewards and losses.
fn score_judged(
    data: &Dataset,
    scored: &[Scored],
    p: &Preference,
    references: Option<&[Reference]>,
    tokens: bool,
    mut out: Lines,
) -> Result<()> {
    let (goal, examples) = (Goal::Preference(*p), data.examples.iter().collect::<Vec<&Example>>());
    let known = known(&goal, &examples, references.unwrap_or_default(), &examples);
    let sums: Vec<Sums> = scored.iter().map(|s| s.sums).collect();
    let outcome = Outcome::of(&goal, &sums, &known, examples.iter().map(|e| e.n_tokens(true)).sum());
    let mut total = Accumulator::default();
    tally(&goal, &outcome, &mut total);
    for (i, (example, row)) in examples.iter().zip(&outcome.rows).enumerate() {
        let sides = i * known.row_len()..(i + 1) * known.row_len();
        let text = |side: usize| side_of(&scored[sides.start + side], example, side, p, tokens);
        let reference = &known.reference[sides.clone()];
        let loss: f64 = row.iter().map(|s| s.outcome.loss).sum();
        let mut line = match example.desirable {
            None => json!({"row": example.row, "chosen": text(0), "rejected": text(1)}),
            Some(label) => json!({"row": example.row, "text": text(0), "label": label}),
        };
        if references.is_some() {
            let more = match row.as_slice() {
                [chosen, rejected] => {
                    let [chosen, rejected] = [chosen, rejected].map(|s| s.outcome.reward);
                    json!({
                        "reference_chosen_logp": reference[0], "reference_rejected_logp": reference[1],
                        "rewards_chosen": chosen, "rewards_rejected": rejected, "margin": chosen - rejected, "loss": loss,
                    })
                }
                one => json!({
                    "reference_logp": reference[0], "reward": one.iter().map(|s| s.outcome.reward).sum::<f64>(), "loss": loss,
                }),
            };
            if let (Some(line), Value::Object(more)) = (line.as_object_mut(), more) {
                line.extend(more);
            }
        }
        out.push(&line)?;
    }
    let mut summary = serde_json::Map::new();
    if references.is_some() {
        summary.insert("loss".into(), json!(total.loss()));
    }
    for (name, value) in total.pairs().iter().flat_map(|m| m.entries()) {
        if references.is_some() || !name.starts_with("rewards/") {
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
        let text = side_of(s, example, 0, p, tokens);
        out.push(&json!({"row": example.row, "text": text, "loss": -s.sums.response / s.sums.n_response as f64}))?;
    }
    out.push(&json!({"summary": {"loss": loss / n.max(1) as f64, "n_scored": n}}))?;
    out.finish()
}

/// `jointwise grad`.
pub fn grad(args: &GradArgs) -> Result<()> {
    let out = check_place("out", &args.out, &args.data.data)?;
    session::check_last_turn_only(&args.data, args.sft)?;
    let p = session::preference(&args.objective)?;
    let model = Model::of(&args.model)?;
    let adapter = model.adapter(args.model.adapter.as_deref())?;
    let tokenizer = session::row_tokenizer(&args.data, &model, adapter.as_ref())?;
    if adapter.is_none() {
        session::refuse_quantised(model.base, "grad without --adapter")?;
    }
    let purpose = session::purpose(Some(&p).filter(|_| !args.sft));
    let data = tokenised::dataset(&args.data, &args.data.data, &model, &tokenizer, purpose)?;
    if !args.sft {
        tell_objective(&args.objective, &p, &data);
    }
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
        let other = session::reference_model(&session::reference(&args.objective), &model)?;
        (Goal::Preference(p), references(&gpu, &decoder, &data, &args.objective, None, other.as_ref())?)
    };
    let trainer = Trainer { gpu: &gpu, decoder, goal, share_prefix: true, keep: Keep::Everything, seed: 0 };
    let examples: Vec<&Example> = data.examples.iter().collect();
    // One batch, because some losses look at all of it; others could be cut, and memory would then not depend on the file.
    let gradients = {
        let _progress = ProgressReporter::uncounted("computing gradients");
        let step = pollster::block_on(trainer.gradients(&examples, &reference, examples.len()))?;
        (step, pollster::block_on(trainer.read_gradients(&examples))?)
    };
    let (step, gradients) = gradients;
    let planned: Vec<Planned> = gradients
        .iter()
        .map(|(name, shape, _)| Planned { name: name.clone(), shape: shape.clone(), dtype: OutputDtype::F32 })
        .collect();
    write_safetensors(&out, &planned, &mut |i| Ok(gradients[i].2.clone()))?;
    say!("{}", json!({"loss": step.outcome.loss(), "grad_norm": step.grad_norm, "tensors": planned.len()}))?;
    Ok(())
}
