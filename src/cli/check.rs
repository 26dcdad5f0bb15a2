//! `check`: rows as tokens, before any GPU is needed.

use crate::data;
use crate::data::like_trl::TrlComparison;
use crate::data::rows::DatasetType;
use crate::error::{Error, Result};
use crate::flags::CheckArgs;
use crate::flags::open_model;
use crate::model::weights::BaseDtype;
use crate::workflow::tokenised_rows::{read_first_rows, read_rows};
use crate::workflow::{Policy, Preferences};

/// Runs `jointwise check`.
pub fn run(args: &CheckArgs) -> Result<()> {
    args.data.check_last_turn_only(args.sft)?;
    let model = open_model(args.model.as_deref(), BaseDtype::Auto)?;
    let adapter = args.adapter.as_deref().map(|place| model.open_adapter(place)).transpose()?;
    let policy = Policy::from_model(model, adapter, args.data.policy_options(BaseDtype::Auto))?;
    let options = args.data.options(if args.sft { DatasetType::Sft } else { DatasetType::Any })?;
    let limits = options.limits(policy.description())?;
    let (tokenizer, files) = (policy.tokenizer(), &args.data.data);
    let preferences = match args.limit {
        Some(n) => {
            Preferences::from_dataset(read_first_rows(files, n, tokenizer, &options, limits)?, options.template.clone())
        }
        None => Preferences::read_with(files, &policy, &options)?,
    };
    let data = preferences.dataset();
    let mut report = data::check::check(data, tokenizer, args.rows);
    if args.like_trl {
        let rows = read_rows(files, args.limit, &options)?;
        report.like_trl = Some(TrlComparison::new(&rows, data, tokenizer, limits.max_length));
    }
    if args.json {
        say!("{}", serde_json::to_string(&report).map_err(|e| Error::file("standard output", e))?)?;
    } else {
        super::output::say(format_args!("{report}"))?;
    }
    Ok(())
}
