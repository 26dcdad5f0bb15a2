//! How responses are made.

use crate::cli::args::EvaluateArgs;
use crate::cli::session;
use crate::cli::tokenised;
use crate::data::template::Template;
use crate::error::{Error, Result};
use crate::eval::evaluate::DEFAULT_TEMPERATURES;
use crate::eval::evaluate::prompts::TestPrompt;
use crate::eval::generate::Settings;
use crate::eval::generate::{DEFAULT_BATCH_SIZE, DEFAULT_MAX_NEW_TOKENS};
use crate::kernels::sample::Sampling;
use crate::validate::at_least_one;

/// How responses are made, with every default filled in.
pub struct Sampled {
    pub template_name: String,
    pub template: Template,
    pub temperatures: Vec<f64>,
    pub seeds: Vec<u64>,
    pub max_new_tokens: usize,
    pub top_k: usize,
    pub top_p: f64,
    pub batch_size: usize,
}

impl Sampled {
    /// # Errors
    /// [`Error::Flag`] for a value out of range, or given twice.
    pub fn of(args: &EvaluateArgs) -> Result<Self> {
        let template = session::template(args.template.as_deref(), args.chat_template.as_deref())?;
        let template_name = args.template.clone().unwrap_or_else(|| template.name().into());
        let or = |given: &[f64]| if given.is_empty() { DEFAULT_TEMPERATURES.to_vec() } else { given.to_vec() };
        let sampled = Self {
            template,
            template_name,
            temperatures: or(&args.temperatures),
            seeds: if args.seeds.is_empty() { vec![0] } else { args.seeds.clone() },
            max_new_tokens: args.max_new_tokens.unwrap_or(DEFAULT_MAX_NEW_TOKENS),
            top_k: args.top_k.unwrap_or(0),
            top_p: args.top_p.unwrap_or(1.0),
            batch_size: args.batch_size.unwrap_or(DEFAULT_BATCH_SIZE),
        };
        at_least_one("batch-size", sampled.batch_size)?;
        for &temperature in &sampled.temperatures {
            sampled.settings(temperature, 0, Vec::new()).validate().map_err(|error| match error {
                Error::Flag { flag: "temperature", reason } => Error::flag("temperatures", reason),
                other => other,
            })?;
        }
        let twice = |n: usize, same: &dyn Fn(usize, usize) -> bool| (0..n).any(|i| (0..i).any(|j| same(i, j)));
        let (t, s) = (&sampled.temperatures, &sampled.seeds);
        if twice(t.len(), &|i, j| t[i] == t[j]) {
            return Err(Error::flag("temperatures", "one is given twice"));
        }
        if twice(s.len(), &|i, j| s[i] == s[j]) {
            return Err(Error::flag("seeds", "one is given twice"));
        }
        Ok(sampled)
    }

    /// Lets the prompts decide on the template where no flag does, and says which one they get.
    pub fn settle(&mut self, args: &EvaluateArgs, prompts: &[TestPrompt]) {
        let Some(first) = prompts.first() else { return };
        let flag = if args.template.is_some() { "--template" } else { "--chat-template" };
        note!("{}", tokenised::template_line(&self.template, &first.instruction, "prompts", flag));
        if self.template.is_by_rows() {
            self.template = self.template.clone().settled(prompts.iter().map(|prompt| &prompt.instruction));
            self.template_name = self.template.name().into();
        }
    }

    /// Of one run.
    pub fn settings(&self, temperature: f64, seed: u64, eos: Vec<u32>) -> Settings {
        Settings {
            sampling: Sampling { temperature: temperature as f32, top_k: self.top_k, top_p: self.top_p as f32 },
            max_new_tokens: self.max_new_tokens,
            seed,
            eos,
            with_lora: true,
        }
    }
}
