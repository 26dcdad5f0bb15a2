//! Settings for sampling responses to test prompts.

use super::prompts::TestPrompt;
use crate::data::prompt_template::Template;
use crate::data::template_notes::template_line;
use crate::data::tokens::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::generate::GenerateSettings;
use crate::kernels::sample::Sampling;
use crate::validate::at_least_one;

/// Settings for sampling, with all defaults filled in.
#[derive(Debug, Clone)]
pub struct ResponseSampling {
    /// Name of the template, for files and reports.
    pub template_name: String,
    /// Template around prompts.
    pub template: Template,
    /// Temperatures; every model has a run at each.
    pub temperatures: Vec<f64>,
    /// Seeds; every model has a run with each, at every temperature.
    pub seeds: Vec<u64>,
    /// Longest response in tokens.
    pub max_new_tokens: usize,
    /// Top-k: number of likeliest tokens to sample from; 0 means all.
    pub top_k: usize,
    /// Top-p: probability that the tokens to sample from must reach together.
    pub top_p: f64,
    /// Prompts per batch.
    pub batch_size: usize,
}

impl ResponseSampling {
    /// Checks that values are in range, and that none is given twice.
    ///
    /// # Errors
    /// [`Error::Flag`].
    pub fn validate(&self) -> Result<()> {
        at_least_one("batch-size", self.batch_size)?;
        for &temperature in &self.temperatures {
            self.settings(temperature, 0, Vec::new()).validate().map_err(|error| match error {
                Error::Flag { flag: "temperature", reason } => Error::flag("temperatures", reason),
                other => other,
            })?;
        }
        let twice = |n: usize, same: &dyn Fn(usize, usize) -> bool| (0..n).any(|i| (0..i).any(|j| same(i, j)));
        let (t, s) = (&self.temperatures, &self.seeds);
        if twice(t.len(), &|i, j| t[i] == t[j]) {
            return Err(Error::flag("temperatures", "one is given twice"));
        }
        if twice(s.len(), &|i, j| s[i] == s[j]) {
            return Err(Error::flag("seeds", "one is given twice"));
        }
        Ok(())
    }

    /// Chooses the template by the prompts, where none was chosen, and prints which template the prompts get.
    pub fn settle(&mut self, tokenizer: &Tokenizer, prompts: &[TestPrompt]) {
        let Some(first) = prompts.first() else { return };
        note!("{}", template_line(tokenizer, &self.template, &first.instruction, "prompts"));
        if self.template.is_by_rows() {
            self.template = self.template.clone().settled(prompts.iter().map(|prompt| &prompt.instruction));
            self.template_name = self.template.name().into();
        }
    }

    /// Lists the temperature and the seed of each run of a model.
    pub fn pairs(&self) -> impl Iterator<Item = (f64, u64)> {
        self.temperatures.iter().flat_map(|&temperature| self.seeds.iter().map(move |&seed| (temperature, seed)))
    }

    /// Returns the settings of one run.
    pub fn settings(&self, temperature: f64, seed: u64, eos: Vec<u32>) -> GenerateSettings {
        GenerateSettings {
            sampling: Sampling { temperature: temperature as f32, top_k: self.top_k, top_p: self.top_p as f32 },
            max_new_tokens: self.max_new_tokens,
            seed,
            eos,
            with_lora: true,
        }
    }
}
