//! `score` and `grad`: the whole file as one batch.

use serde_json::{Value, json};

use super::objective_note::objective_note;
use super::output::{JsonlWriter, check_place};
use crate::data::batch::Example;
use crate::data::dataset::Dataset;
use crate::data::rows::DatasetType;
use crate::error::{Error, Result};
use crate::flags::{DataArgs, GradArgs, ModelArgs, ObjectiveArgs, ScoreArgs};
use crate::gpu::Gpu;
use crate::model::save::{OutputDtype, TensorToWrite, write_safetensors};
use crate::objective::{PreferenceLoss, SequenceLogps, TrainingLoss};
use crate::ranks::Ranks;
use crate::train::metrics::MetricsAccumulator;
use crate::train::outcome::{BatchResult, RowReference, known};
use crate::train::scoring::ScoredSequence;
use crate::train::steps::tally;
use crate::workflow::{Policy, Preferences, RowScores};

/// Opens a command's model, with the adapter and the tokenizer of its flags.
fn open_policy(model: &ModelArgs, data: &DataArgs) -> Result<Policy> {
    let open = model.open()?;
    let adapter = model.adapter.as_deref().map(|place| open.open_adapter(place)).transpose()?;
    let options = data.policy_options(open.base);
    Policy::from_model(open, adapter, options)
}

fn side_of(scored: &ScoredSequence, example: &Example, index: usize, p: &PreferenceLoss, tokens: bool) -> Value {
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

fn tell_objective(args: &ObjectiveArgs, p: &PreferenceLoss, data: &Dataset) {
    if let Some(note) = objective_note(args, Some(p), data) {
        note!("note: {note}");
    }
}

/// Runs `jointwise score`. Rank 0 alone writes.
pub fn score(args: &ScoreArgs, ranks: Ranks) -> Result<()> {
    let out = ranks.is_first().then(|| JsonlWriter::new(args.out.as_deref(), &args.data.data)).transpose()?;
    let p = args.objective.preference()?;
    args.objective.sft_loss(false)?;
    let device = args.model.device_options_of(ranks)?;
    let policy = open_policy(&args.model, &args.data)?;
    let options = args.data.options(DatasetType::Any)?;
    let preferences = Preferences::read_with(&args.data.data, &policy, &options)?;
    let data = preferences.dataset();
    tell_objective(&args.objective, &p, data);
    let is_imitated = |e: &Example| e.sequences.len() == 1 && e.desirable.is_none();
    args.data.check_last_turn_only(data.examples.iter().any(is_imitated))?;
    let has_pairs = data.examples.iter().any(|e| e.sequences.len() == 2);
    let judged = data.examples.iter().all(|e| e.desirable.is_some()) && !p.needs_pairs();
    let is_compared = has_pairs || judged;
    if let Some(single) = data.examples.iter().find(|e| has_pairs && e.sequences.len() != 2) {
        return Err(Error::file(data.place(single.row), "holds one text, the rows before it pairs"));
    }
    let gpu = Gpu::open_with(&device.for_model(policy.model()))?;
    let needs_references = is_compared && (args.objective.reference.is_some() || !p.needs_reference());
    let reference = args.objective.reference();
    let RowScores { sequences, references } =
        policy.score_rows(&gpu, &preferences, &p, needs_references.then_some(&reference), ranks)?;
    let Some(out) = out else { return Ok(()) };
    match is_compared {
        true => score_judged(data, &sequences, &p, references.as_deref(), args.tokens, out),
        false => score_single(data, &sequences, &p, args.tokens, out),
    }
}

/// Writes log-probabilities of rows with a preference or a label; with a reference, rewards and losses too.
fn score_judged(
    data: &Dataset,
    scored: &[ScoredSequence],
    p: &PreferenceLoss,
    references: Option<&[RowReference]>,
    tokens: bool,
    mut out: JsonlWriter,
) -> Result<()> {
    let (goal, examples) = (TrainingLoss::Preference(p.clone()), data.examples.iter().collect::<Vec<&Example>>());
    let known = known(&goal, &examples, references.unwrap_or_default(), &examples);
    let sums: Vec<SequenceLogps> = scored.iter().map(|s| s.sums).collect();
    let outcome = BatchResult::new(&goal, &sums, &known, examples.iter().map(|e| e.n_tokens(true)).sum());
    let mut total = MetricsAccumulator::default();
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

/// Writes log-probabilities and SFT losses of rows of one text each.
fn score_single(
    data: &Dataset,
    scored: &[ScoredSequence],
    p: &PreferenceLoss,
    tokens: bool,
    mut out: JsonlWriter,
) -> Result<()> {
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

/// Runs `jointwise grad`. Rank 0 alone writes.
pub fn grad(args: &GradArgs, ranks: Ranks) -> Result<()> {
    let out = check_place("out", &args.out, &args.data.data)?;
    args.data.check_last_turn_only(args.sft)?;
    let goal = args.objective.goal(args.sft)?;
    let device = args.model.device_options_of(ranks)?;
    let policy = open_policy(&args.model, &args.data)?;
    if policy.is_full() {
        policy.model().refuse_quantised("grad without --adapter")?;
    }
    let preference = match &goal {
        TrainingLoss::Preference(p) => Some(p),
        TrainingLoss::Sft(_) => None,
    };
    let options = args.data.options(DatasetType::for_loss(preference))?;
    let data = Preferences::read_with(&args.data.data, &policy, &options)?;
    preference.iter().for_each(|p| tell_objective(&args.objective, p, data.dataset()));
    let gpu = Gpu::open_with(&device.for_model(policy.model()))?;
    let found = policy.loss_gradients(&gpu, &data, goal, &args.objective.reference(), ranks)?;
    if !ranks.is_first() {
        return Ok(());
    }
    let planned: Vec<TensorToWrite> = found
        .tensors
        .iter()
        .map(|(name, shape, _)| {
            // A wrapped model's tensors have the names of its files, which transformers also changes in memory.
            let model = policy.model();
            let name = if model.description.wrapped { model.checkpoint.file_name(name) } else { name.into() };
            TensorToWrite { name: name.into_owned(), shape: shape.clone(), dtype: OutputDtype::F32 }
        })
        .collect();
    write_safetensors(&out, &planned, &mut |i| Ok(found.tensors[i].2.clone()))?;
    let step = found.step;
    say!("{}", json!({"loss": step.outcome.loss(), "grad_norm": step.grad_norm, "tensors": planned.len()}))?;
    Ok(())
}
