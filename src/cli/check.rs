//! `check`: rows as tokens, before any GPU is needed.

use super::args::CheckArgs;
use super::session::{self, Model};
use crate::cli::tokenised;
use crate::data;
use crate::data::like_trl::TrlComparison;
use crate::data::rows::Purpose;
use crate::error::{Error, Result};
use crate::model::weights::BaseDtype;

/// `jointwise check`.
pub fn run(args: &CheckArgs) -> Result<()> {
    session::check_last_turn_only(&args.data, args.sft)?;
    let model = Model::named(args.model.as_deref(), BaseDtype::Auto)?;
    let adapter = model.adapter(args.adapter.as_deref())?;
    let tokenizer = session::row_tokenizer(&args.data, &model, adapter.as_ref())?;
    let purpose = if args.sft { Purpose::Sft } else { Purpose::Any };
    let data = match args.limit {
        Some(n) => tokenised::first_rows(&args.data, n, &model, &tokenizer, purpose)?,
        None => tokenised::dataset(&args.data, &args.data.data, &model, &tokenizer, purpose)?,
    };
    let mut report = data::check::check(&data, &tokenizer, args.rows);
    if args.like_trl {
        let rows = tokenised::rows(&args.data, args.limit, purpose)?;
        let max_length = session::limits(&args.data, &model.description)?.1.max_length;
        report.like_trl = Some(TrlComparison::new(&rows, &data, &tokenizer, max_length));
    }
    if args.json {
        say!("{}", serde_json::to_string(&report).map_err(|e| Error::file("standard output", e))?)?;
    } else {
        super::output::say(format_args!("{report}"))?;
    }
    Ok(())
}
