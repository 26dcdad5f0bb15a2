//! `plan`: the memory of a run, from the same program on a device that only counts.

use std::collections::BTreeMap;

use serde_json::json;

use super::args::{PlanArgs, with_config};
use super::session::{self, Model};
use super::train;
use crate::data::batch::{Example, Sequence};
use crate::data::rows::Purpose;
use crate::error::{Error, Result};
use crate::gpu::Caps;
use crate::kernels::objective::Goal;
use crate::model::trace::Keep;
use crate::train::trainer::{Rehearsal, largest_micro_batch, rehearse};

/// Of a micro-batch that is planned without data: no device has the memory for more.
const MOST_TOKENS: usize = 1 << 24;

/// `jointwise plan`.
pub fn run(args: PlanArgs) -> Result<()> {
    let PlanArgs { train: args, sft } = args;
    let config = args.config.clone();
    let args = with_config(args, config.as_deref())?;
    let settings = train::settings(&args, sft)?;
    let model = Model::of(&args.model)?;
    let adapter = train::adapter(&args, &model, settings.seed)?;
    let (_, limits) = session::limits(&args.data, &model.description)?;
    // The largest micro-batch: of the data where they are given, of the longest rows allowed where they are not.
    let examples: Vec<Example> = if args.data.data.is_empty() {
        let side = || Sequence { ids: vec![0; limits.max_length], response_start: limits.max_length / 2 };
        let example = |row| {
            let mut rejected = side();
            rejected.ids[0] = 1;
            let sides = if sft { vec![side()] } else { vec![side(), rejected] };
            Example { row, sequences: sides }
        };
        let tokens = settings.batch_size.saturating_mul(limits.max_length).saturating_mul(if sft { 1 } else { 2 });
        if tokens > MOST_TOKENS {
            let reason =
                format!("{} rows of --max-length {} are {tokens} tokens", settings.batch_size, limits.max_length);
            return Err(Error::flag("batch-size", reason));
        }
        (0..settings.batch_size).map(example).collect()
    } else {
        let tokenizer = model.tokenizer()?;
        let purpose = if sft { Purpose::Sft } else { Purpose::Preference };
        let data = session::dataset(&args.data, &args.data.data, &model, &tokenizer, purpose)?;
        let all: Vec<&Example> = data.examples.iter().collect();
        largest_micro_batch(&all, settings.batch_size, settings.share_prefix).into_iter().cloned().collect()
    };
    // The variants of the device that would be used, where there is one.
    let caps = match session::open_unchecked(&args.model.device) {
        Ok(gpu) => gpu.caps().clone(),
        Err(error @ Error::Flag { .. }) => return Err(error),
        Err(_) => Caps::baseline(),
    };
    let longest = examples.iter().flat_map(|e| &e.sequences).map(|s| s.ids.len()).max().unwrap_or(1);
    let options = train::load_options(&settings, model.base, adapter.as_ref(), longest);
    let refs: Vec<&Example> = examples.iter().collect();
    let goal = settings.preference.map_or(Goal::Sft, Goal::Preference);
    let rehearse = |keep| rehearse(&caps, |gpu| model.load(gpu, &options), &goal, &refs, settings.share_prefix, keep);
    let (keep, Rehearsal { ledger, cost, trained }) = train::choose_keep(&args, &caps, &rehearse)?;
    let recompute = keep.recompute();
    let peaks = Keep::TRAINING.map(|keep| Ok((keep.recompute(), rehearse(keep)?.ledger.peak_bytes())));
    let peaks = peaks.into_iter().collect::<Result<Vec<(&str, u64)>>>()?;
    if args.json {
        let roles: serde_json::Map<_, _> = ledger
            .peak_by_role()
            .into_iter()
            .filter_map(|(role, bytes)| Some((serde_json::to_value(role).ok()?.as_str()?.to_string(), json!(bytes))))
            .collect();
        say!(
            "{}",
            json!({
                "peak_bytes": ledger.peak_bytes(), "roles": roles, "trained_parameters": trained,
                "tokens": cost.tokens, "dispatches": cost.dispatches, "flops": cost.flops,
                "recompute": recompute, "peak_bytes_by_recompute": peaks.iter().copied().collect::<BTreeMap<_, _>>(),
                "base_dtype": model.base.name(), "optim": settings.optim.name(),
                "param_dtype": settings.param_dtype.name(), "device_memory_bytes": caps.memory_bytes,
            })
        )?;
        return Ok(());
    }
    say!("{} trained parameters; largest micro-batch {} tokens\n", trained, cost.tokens)?;
    for (role, bytes) in ledger.peak_by_role() {
        let name = serde_json::to_value(role).ok().and_then(|v| v.as_str().map(String::from)).unwrap_or_default();
        say!("{name:<12} {:>10.1} MiB", bytes as f64 / 1_048_576.0)?;
    }
    say!("{:<12} {:>10.1} MiB", "peak", ledger.peak_bytes() as f64 / 1_048_576.0)?;
    if let Some(bytes) = caps.memory_bytes {
        say!("{:<12} {:>10.1} MiB  ({})", "device", bytes as f64 / 1_048_576.0, caps.name)?;
    }
    for (name, bytes) in &peaks {
        say!("{:<12} {:>10.1} MiB  with --recompute {name}", "peak", *bytes as f64 / 1_048_576.0)?;
    }
    let (base, optim, params) = (model.base.name(), settings.optim.name(), settings.param_dtype.name());
    say!("\n--recompute {recompute} --base-dtype {base} --optim {optim} --param-dtype {params}")?;
    say!("a micro-batch: {} dispatches, {:.1} GFLOP", cost.dispatches, cost.flops as f64 / 1e9)?;
    Ok(())
}
