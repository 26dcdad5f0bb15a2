//! `merge`: merges an adapter into its base model.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::flags::{MergeArgs, open_model};
use crate::model::load::linear_modules;
use crate::model::peft::merged;
use crate::model::save::{OutputDtype, save_model};
use crate::model::weights::{BaseDtype, WeightSource, transpose};
use crate::workflow::OutputFolder;

/// Runs `jointwise merge`.
pub fn run(args: &MergeArgs) -> Result<()> {
    let model = open_model(args.model.as_deref(), BaseDtype::Auto)?;
    let adapter = args.adapter.as_deref().map(|place| model.open_adapter(place)).transpose()?;
    let adapter = adapter.ok_or_else(|| Error::flag("adapter", "is missing: what to merge"))?;
    // Notes on a tokenizer that differs; one that does not fit is refused before anything is written.
    if adapter.side.has_tokenizer_files() {
        model.tokenizer(Some(&adapter))?;
    }
    let side = model.side_files(Some(&adapter));
    side.check_copied()?;
    let _folder = OutputFolder::open(&args.output_dir, false)?;
    let modules: BTreeMap<String, _> =
        linear_modules(&model.description).map(|m| (format!("{}.weight", m.name), &m.name)).collect();
    save_model(
        &args.output_dir,
        &model.checkpoint,
        &side,
        &model.description,
        args.output_dtype.map(OutputDtype::from),
        &[],
        &mut |spec| {
            let lora = &adapter.lora;
            if let Some(Some(values)) = lora.whole.get(&spec.name) {
                return Ok(values.to_vec());
            }
            let mut values = model.checkpoint.values(spec)?;
            if let Some(tokens) = lora.tokens.as_ref().filter(|_| spec.name == model.description.embedding) {
                tokens.apply(&mut values, model.description.d_model);
            }
            let pair = modules.get(&spec.name).and_then(|name| lora.modules.get_key_value(*name));
            let Some((module, (a, b))) = pair else { return Ok(values) };
            let (rank, scale) = (lora.rank_of(module), lora.scale_of(module));
            if !spec.transposed {
                return Ok(merged(&values, a, b, rank, scale));
            }
            let [n_in, n_out] = [spec.shape[0], spec.shape[1]];
            let held = transpose(&values, n_in, n_out);
            Ok(transpose(&merged(&held, a, b, rank, scale), n_out, n_in))
        },
    )?;
    note!("merged model in {}", args.output_dir.display());
    Ok(())
}
