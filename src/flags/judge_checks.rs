//! Checks of `judge`'s flags: which go together, and their ranges.

use std::time::Duration;

use super::{AnswerArg, JudgeArgs};
use crate::error::{Error, Result};
use crate::eval::MOST_ROWS;
use crate::validate::{at_least_one, at_most, not_negative, positive};

/// Longest time that a flag may give, in seconds: a day.
const MOST_SECONDS: f64 = 86_400.0;
/// Most questions at a time, each of which has a thread.
const MOST_AT_A_TIME: usize = 1024;
/// Most repetitions of a question.
const MOST_RETRIES: usize = 1000;

/// Checks that exactly one of the flags that name a judge is given.
///
/// # Errors
/// [`Error::Flag`].
pub fn one_judge(args: &JudgeArgs) -> Result<()> {
    let named = [
        ("endpoint", args.ask.endpoint.is_some()),
        ("model", args.model.model.is_some()),
        ("command", args.ask.command.is_some()),
        ("person", args.ask.person),
        ("grader", args.ask.grader),
    ];
    let mut given = named.into_iter().filter(|(_, given)| *given).map(|(name, _)| name);
    match (given.next(), given.next()) {
        (None, _) => Err(Error::flag(
            "endpoint",
            "who judges? One of --endpoint URL, --model DIR, --command COMMAND, --person, --grader",
        )),
        (Some(first), Some(second)) => {
            Err(Error::flag(second, format!("cannot be used with --{first}: one judge at a time")))
        }
        _ => Ok(()),
    }
}

/// Returns the time of a flag that is given in seconds.
///
/// # Errors
/// [`Error::Flag`] for a time that is not above 0, or is above a day.
pub fn seconds(flag: &'static str, value: f64) -> Result<Duration> {
    positive(flag, value)?;
    match value > MOST_SECONDS {
        true => Err(Error::flag(flag, format!("{value} is above {MOST_SECONDS}"))),
        false => Duration::try_from_secs_f64(value).map_err(|e| Error::flag(flag, e)),
    }
}

/// Checks that flags are in their ranges, and that every given flag has an effect.
///
/// # Errors
/// [`Error::Flag`].
pub fn check(args: &JudgeArgs) -> Result<()> {
    let endpoint = args.ask.endpoint.is_some();
    let of_endpoint = [
        ("judge-model", args.ask.judge_model.is_some()),
        ("answer-format", args.ask.answer_format.is_some()),
        ("api-key-env", args.ask.api_key_env.is_some()),
        ("temperature", args.temperature.is_some()),
        ("request", args.ask.request.is_some()),
        ("retries", args.ask.retries.is_some()),
        ("backoff", args.ask.backoff.is_some()),
        ("max-wait", args.ask.max_wait.is_some()),
        ("requests-per-minute", args.ask.requests_per_minute.is_some()),
        ("tokens-per-minute", args.ask.tokens_per_minute.is_some()),
        ("price-in", args.ask.price_in.is_some()),
        ("price-out", args.ask.price_out.is_some()),
        ("max-cost", args.ask.max_cost.is_some()),
        ("estimate", args.ask.estimate),
    ];
    if let Some((flag, _)) = of_endpoint.into_iter().find(|(_, given)| *given && !endpoint) {
        return Err(Error::flag(flag, "needs --endpoint"));
    }
    let generates = args.ask.answer == Some(AnswerArg::Generate);
    if args.max_tokens.is_some() && !endpoint && !generates {
        return Err(Error::flag("max-tokens", "needs --endpoint, or with --answer generate"));
    }
    if args.ask.grader_noise.is_some() && !args.ask.grader {
        return Err(Error::flag("grader-noise", "needs --grader"));
    }
    let local = args.model.model.is_some();
    let of_local = [
        ("template", args.template.is_some()),
        ("chat-template", args.chat_template.is_some()),
        ("max-length", args.max_length.is_some()),
        ("batch-tokens", args.ask.batch_tokens.is_some()),
        ("answer", args.ask.answer.is_some()),
        ("adapter", args.model.adapter.is_some()),
        ("base-dtype", args.model.base_dtype.is_some()),
    ];
    if let Some((flag, _)) = of_local.into_iter().find(|(_, given)| *given && !local) {
        return Err(Error::flag(flag, "needs --model, a local judge"));
    }
    for (flag, value) in [
        ("price-in", args.ask.price_in),
        ("price-out", args.ask.price_out),
        ("max-cost", args.ask.max_cost),
        ("requests-per-minute", args.ask.requests_per_minute),
        ("tokens-per-minute", args.ask.tokens_per_minute),
        ("temperature", args.temperature),
    ] {
        value.map_or(Ok(()), |value| not_negative(flag, value))?;
    }
    if args.ask.max_cost.is_some() && (args.ask.price_in.is_none() || args.ask.price_out.is_none()) {
        return Err(Error::flag("max-cost", "needs --price-in and --price-out"));
    }
    for (flag, value) in
        [("concurrency", args.ask.concurrency), ("pairs", args.pairs), ("batch-tokens", args.ask.batch_tokens)]
    {
        value.map_or(Ok(()), |value| at_least_one(flag, value))?;
    }
    args.pairs.map_or(Ok(()), |n| at_most("pairs", n, MOST_ROWS))?;
    args.ask.retries.map_or(Ok(()), |n| at_most("retries", n, MOST_RETRIES))?;
    if let Some(n) = args.ask.concurrency.filter(|&n| n > MOST_AT_A_TIME) {
        return Err(Error::flag("concurrency", format!("{n} is above {MOST_AT_A_TIME}")));
    }
    args.max_tokens.map_or(Ok(()), |n| at_least_one("max-tokens", n as usize))?;
    if let Some(noise) = args.ask.grader_noise.filter(|noise| !(0.0..=1.0).contains(noise)) {
        return Err(Error::flag("grader-noise", format!("{noise} is not in 0 .. 1")));
    }
    if let Some(n) = args.dry_run {
        at_least_one("dry-run", n)?;
        if args.ask.person || args.ask.grader {
            return Err(Error::flag("dry-run", "is for models and commands, which are sent a prompt"));
        }
        if args.resume || args.ask.estimate {
            let other = if args.resume { "resume" } else { "estimate" };
            return Err(Error::flag("dry-run", format!("cannot be used with --{other}: it keeps nothing, and asks")));
        }
    }
    match args.ask.person || args.ask.grader {
        true if args.ask.prompt.is_some() => Err(Error::flag("prompt", "is for models and commands")),
        _ => Ok(()),
    }
}
