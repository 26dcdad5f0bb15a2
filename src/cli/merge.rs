//! `merge`: an adapter into its base.

use std::collections::BTreeMap;

use super::args::{DtypeArg, MergeArgs};
use super::output_folder::OutputFolder;
use super::session::Model;
use crate::error::{Error, Result};
use crate::model::load::linear_modules;
use crate::model::peft::merged;
use crate::model::save::{OutputDtype, save_model};
use crate::model::weights::{BaseDtype, Source, transpose};

/// As typed; `None`: as the input is.
pub fn dtype(arg: Option<DtypeArg>) -> Option<OutputDtype> {
    arg.map(|arg| match arg {
        DtypeArg::F32 => OutputDtype::F32,
        DtypeArg::Bf16 => OutputDtype::Bf16,
        DtypeArg::F16 => OutputDtype::F16,
    })
}

/// `jointwise merge`.
pub fn run(args: &MergeArgs) -> Result<()> {
    let model = Model::named(args.model.as_deref(), BaseDtype::Auto)?;
    let adapter = model.adapter(args.adapter.as_deref())?;
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
        dtype(args.output_dtype),
        &[],
        &mut |spec| {
            let values = model.checkpoint.values(spec)?;
            let lora = &adapter.lora;
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
