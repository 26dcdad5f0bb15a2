//! `export`: writes a model or an adapter as a GGUF file.

use std::path::Path;

use super::output::check_place;
use crate::error::{Error, Result};
use crate::flags::{ExportArgs, GgufTypeArg, open_model};
use crate::model::weights::BaseDtype;
use crate::workflow::adapter_base;

/// Runs `jointwise export`.
pub fn run(args: &ExportArgs) -> Result<()> {
    let input = args.model.iter().map(|model| Path::new(model).to_path_buf()).collect::<Vec<_>>();
    let place = check_place("gguf", &args.gguf, &input)?;
    match &args.adapter {
        Some(adapter) => {
            let base = args.model.clone().map_or_else(|| adapter_base(adapter), Ok)?;
            let model = open_model(Some(&base), BaseDtype::Auto)?;
            model.export_gguf_adapter(&model.open_adapter(adapter)?, &adapter.to_string_lossy(), &place)?;
            note!("adapter in {}", args.gguf.display());
        }
        None if args.model.is_none() => {
            return Err(Error::flag("model", "is missing: the model to write, or --adapter"));
        }
        None => {
            let model = open_model(args.model.as_deref(), BaseDtype::Auto)?;
            model.export_gguf(&place, args.r#type.unwrap_or(GgufTypeArg::F16).into())?;
            note!("model in {}", args.gguf.display());
        }
    }
    Ok(())
}
