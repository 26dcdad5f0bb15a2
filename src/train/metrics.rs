//! Metrics of a training step, with TRL's names, and `metrics.jsonl`, which has one JSON object per line.

pub use super::across_ranks::exchange::ExchangeCost;
use crate::error::{Error, Result};
use crate::files::open_log;
use crate::ranks::Ranks;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Name of the metrics' file.
pub const METRICS: &str = "metrics.jsonl";

/// Line of `metrics.jsonl`: names and numbers in order.
pub type MetricsLine = Map<String, Value>;

/// Means over pairs, or over labelled texts, of which the desirable ones count as preferred. A mean over nothing is NaN. All sums of
/// log-probs are in nats.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PairMetrics {
    /// `rewards/chosen`: β·s of the preferred side.
    pub rewards_chosen: f64,
    /// `rewards/rejected`: β·s of the other side.
    pub rewards_rejected: f64,
    /// `rewards/margins`: difference of the two.
    pub margins: f64,
    /// `rewards/accuracies`: share of pairs with a positive margin, where ties count ½; NaN for labelled texts.
    pub accuracies: f64,
    /// `logps/chosen`: the objective's score of the preferred side.
    pub logps_chosen: f64,
    /// `logps/rejected`: the objective's score of the other side.
    pub logps_rejected: f64,
    /// `logps/instruction`: log π(I) of the preferred side, whatever the objective.
    pub logps_instruction: f64,
    /// `logps/response`: log π(R|I) of the preferred side.
    pub logps_response: f64,
}

impl PairMetrics {
    /// Returns the metrics that are not NaN, with their names.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, f64)> + use<> {
        let all = [
            ("rewards/chosen", self.rewards_chosen),
            ("rewards/rejected", self.rewards_rejected),
            ("rewards/margins", self.margins),
            ("rewards/accuracies", self.accuracies),
            ("logps/chosen", self.logps_chosen),
            ("logps/rejected", self.logps_rejected),
            ("logps/instruction", self.logps_instruction),
            ("logps/response", self.logps_response),
        ];
        all.into_iter().filter(|(_, value)| !value.is_nan())
    }
}

/// Contribution of one sequence to [`PairMetrics`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SideScores {
    /// Implicit reward; see [`crate::objective::PreferenceLoss::reward`].
    pub reward: f64,
    /// Score of the objective, in nats.
    pub logp: f64,
    /// log π(I).
    pub logp_instruction: f64,
    /// log π(R|I).
    pub logp_response: f64,
}

/// Number of sums and counts of a [`MetricsAccumulator`].
const N_NUMBERS: usize = 14;

/// Sums over the pairs and sequences of a step's micro-batches. They are divided once, at the end.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MetricsAccumulator {
    loss_sum: f64,
    n: usize,
    sums: PairMetrics,
    /// Number of preferred and of other sequences.
    n_sides: [usize; 2],
    n_pairs: usize,
    tokens: u64,
}

impl MetricsAccumulator {
    /// Adds the summed loss of `n` terms (pairs, or scored tokens for SFT), and the number of computed tokens.
    pub fn add_loss(&mut self, loss_sum: f64, n: usize, tokens: usize) {
        self.loss_sum += loss_sum;
        self.n += n;
        self.tokens += tokens as u64;
    }

    /// Adds a pair: first its preferred side, then the other.
    pub fn add_pair(&mut self, sides: [&SideScores; 2]) {
        let margin = sides[0].reward - sides[1].reward;
        self.sums.margins += margin;
        self.sums.accuracies += match margin {
            m if m > 0.0 => 1.0,
            0.0 => 0.5,
            _ => 0.0,
        };
        self.n_pairs += 1;
        self.add_side(true, sides[0]);
        self.add_side(false, sides[1]);
    }

    /// Adds a labelled text.
    pub fn add_side(&mut self, desirable: bool, side: &SideScores) {
        let s = &mut self.sums;
        if desirable {
            s.rewards_chosen += side.reward;
            s.logps_chosen += side.logp;
            s.logps_instruction += side.logp_instruction;
            s.logps_response += side.logp_response;
        } else {
            s.rewards_rejected += side.reward;
            s.logps_rejected += side.logp;
        }
        self.n_sides[usize::from(!desirable)] += 1;
    }

    /// Returns the sums over all ranks, added up in their order.
    ///
    /// # Errors
    /// Those of [`Ranks::gather`].
    pub fn over(self, ranks: Ranks) -> Result<Self> {
        if !ranks.are_several() {
            return Ok(self);
        }
        // As bits, because JSON has no infinities.
        let all = ranks.gather(self.numbers().map(f64::to_bits).to_vec())?;
        let mut numbers = [0.0; N_NUMBERS];
        for of_rank in all {
            numbers.iter_mut().zip(of_rank).for_each(|(sum, bits)| *sum += f64::from_bits(bits));
        }
        Ok(Self::from_numbers(numbers))
    }

    fn numbers(&self) -> [f64; N_NUMBERS] {
        let (s, [chosen, rejected]) = (&self.sums, self.n_sides);
        let counts = [self.n, chosen, rejected, self.n_pairs].map(|n| n as f64);
        [
            self.loss_sum,
            counts[0],
            counts[1],
            counts[2],
            counts[3],
            self.tokens as f64,
            s.rewards_chosen,
            s.rewards_rejected,
            s.margins,
            s.accuracies,
            s.logps_chosen,
            s.logps_rejected,
            s.logps_instruction,
            s.logps_response,
        ]
    }

    fn from_numbers(numbers: [f64; N_NUMBERS]) -> Self {
        let [loss_sum, n, chosen, rejected, n_pairs, tokens, sums @ ..] = numbers;
        let [rewards_chosen, rewards_rejected, margins, accuracies, sums @ ..] = sums;
        let [logps_chosen, logps_rejected, logps_instruction, logps_response] = sums;
        let sums = PairMetrics {
            rewards_chosen,
            rewards_rejected,
            margins,
            accuracies,
            logps_chosen,
            logps_rejected,
            logps_instruction,
            logps_response,
        };
        let n_sides = [chosen as usize, rejected as usize];
        Self { loss_sum, n: n as usize, sums, n_sides, n_pairs: n_pairs as usize, tokens: tokens as u64 }
    }

    /// Returns the mean loss; NaN where nothing was added.
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.n as f64
    }

    /// Returns the number of computed tokens.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Returns the means over pairs or labelled texts; `None` where there are none (SFT).
    pub fn pairs(&self) -> Option<PairMetrics> {
        let [chosen, rejected] = self.n_sides.map(|n| n as f64);
        let (s, pairs) = (&self.sums, self.n_pairs as f64);
        let (rewards_chosen, rewards_rejected) = (s.rewards_chosen / chosen, s.rewards_rejected / rejected);
        (self.n_sides != [0; 2]).then(|| PairMetrics {
            rewards_chosen,
            rewards_rejected,
            margins: if self.n_pairs > 0 { s.margins / pairs } else { rewards_chosen - rewards_rejected },
            accuracies: s.accuracies / pairs,
            logps_chosen: s.logps_chosen / chosen,
            logps_rejected: s.logps_rejected / rejected,
            logps_instruction: s.logps_instruction / chosen,
            logps_response: s.logps_response / chosen,
        })
    }
}

/// Metrics of an optimiser step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepMetrics {
    /// Number of the step, from 1.
    pub step: u64,
    /// Number of passes over the data so far, a fraction.
    pub epoch: f64,
    /// Mean loss before the update.
    pub loss: f64,
    /// Norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Tokens computed in this step.
    pub tokens: u64,
    /// Tokens computed since the first step.
    pub num_tokens: u64,
    /// Time of this step, in seconds.
    pub seconds: f64,
    /// Means over pairs or labelled texts; `None` for SFT.
    pub pairs: Option<PairMetrics>,
    /// Cost of the exchange of gradients on rank 0; `None` for a single rank.
    pub exchange: Option<ExchangeCost>,
    /// Other metrics with their names, such as an SFT term or a KL estimate.
    pub extra: Vec<(String, f64)>,
}

impl StepMetrics {
    /// Returns the metrics as a line of `metrics.jsonl`.
    pub fn line(&self) -> MetricsLine {
        let mut line = MetricsLine::new();
        line.insert("step".into(), self.step.into());
        for (name, value) in [("epoch", self.epoch), ("loss", self.loss), ("grad_norm", self.grad_norm)] {
            line.insert(name.into(), number(value));
        }
        line.insert("learning_rate".into(), number(self.learning_rate));
        line.insert("tokens".into(), self.tokens.into());
        line.insert("num_tokens".into(), self.num_tokens.into());
        line.insert("seconds".into(), number(self.seconds));
        line.extend(self.pairs.iter().flat_map(PairMetrics::entries).map(|(k, v)| (k.into(), number(v))));
        if let Some(cost) = self.exchange {
            line.insert("exchange_bytes".into(), cost.bytes.into());
            line.insert("exchange_seconds".into(), number(cost.seconds));
            line.insert("exchange_wait_seconds".into(), number(cost.waited));
        }
        line.extend(self.extra.iter().map(|(k, v)| (k.clone(), number(*v))));
        line
    }
}

/// Metrics of an evaluation on the validation set. Their names begin with `eval_`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EvalMetrics {
    /// Number of the step before the evaluation; 0 before the first step.
    pub step: u64,
    /// Epochs of data seen, as in [`StepMetrics`].
    pub epoch: f64,
    /// Mean loss.
    pub loss: f64,
    /// Duration of the evaluation, in seconds.
    pub seconds: f64,
    /// Means over pairs or labelled texts; `None` for SFT.
    pub pairs: Option<PairMetrics>,
}

impl EvalMetrics {
    /// Returns the metrics as a line of `metrics.jsonl`.
    pub fn line(&self) -> MetricsLine {
        let mut line = MetricsLine::new();
        line.insert("step".into(), self.step.into());
        line.insert("epoch".into(), number(self.epoch));
        line.insert("eval_loss".into(), number(self.loss));
        line.insert("eval_seconds".into(), number(self.seconds));
        let pairs = self.pairs.iter().flat_map(PairMetrics::entries);
        line.extend(pairs.map(|(k, v)| (format!("eval_{k}"), number(v))));
        line
    }
}

/// Converts a number to JSON. NaN and infinities become null, because JSON has none.
fn number(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// Returns the step of a line.
pub fn step(line: &MetricsLine) -> Option<u64> {
    line.get("step").and_then(Value::as_u64)
}

/// `metrics.jsonl`, opened for appending.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Creates the file; an existing file is replaced.
    pub fn create(path: &Path) -> Result<Self> {
        let file = open_log(path)?;
        file.set_len(0).map_err(|e| Error::file(path, e))?;
        Ok(Self { path: path.into(), file })
    }

    /// Opens the file of a run that resumes after the checkpoint of `last_step`; a missing file is created. Removes lines of later steps, a
    /// last line that was cut short and, where the run `evaluates_again`, the evaluation of `last_step`. Also returns how many of the steps
    /// up to `last_step` have no line.
    pub fn resume(path: &Path, last_step: u64, evaluates_again: bool) -> Result<(Self, u64)> {
        let fail = |e| Error::file(path, e);
        let mut file = open_log(path)?;
        let lines = split(path, &std::fs::read(path).map_err(fail)?)?;
        let is_training = |line: &&MetricsLine| line.contains_key("loss");
        let is_kept =
            |line: &MetricsLine, s: u64| s < last_step || (s == last_step && (is_training(&line) || !evaluates_again));
        let is_old = |line: &MetricsLine| step(line).is_none_or(|s| is_kept(line, s));
        let kept: Vec<_> = lines.iter().take_while(|(_, line)| is_old(line)).collect();
        let steps: BTreeSet<u64> = kept.iter().map(|(_, line)| line).filter(is_training).filter_map(step).collect();
        file.set_len(kept.last().map_or(0, |(end, _)| *end as u64)).map_err(fail)?;
        file.seek(SeekFrom::End(0)).map_err(fail)?;
        Ok((Self { path: path.into(), file }, last_step.saturating_sub(steps.len() as u64)))
    }

    /// Appends a line in a single write.
    pub fn append(&mut self, line: &MetricsLine) -> Result<()> {
        let mut text = Value::Object(line.clone()).to_string();
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(|e| Error::file(&self.path, e))
    }
}

/// Reads the lines of a `metrics.jsonl`. A last line that was cut short is left out.
pub fn read(path: &Path) -> Result<Vec<MetricsLine>> {
    let bytes = std::fs::read(path).map_err(|e| Error::file(path, e))?;
    Ok(split(path, &bytes)?.into_iter().map(|(_, line)| line).collect())
}

/// Parses each line, with the offset of its end. Only the last line may be incomplete.
fn split(path: &Path, bytes: &[u8]) -> Result<Vec<(usize, MetricsLine)>> {
    let mut lines = Vec::new();
    let mut end = 0;
    for (i, text) in bytes.split_inclusive(|&b| b == b'\n').enumerate() {
        end += text.len();
        match serde_json::from_slice::<MetricsLine>(text) {
            Ok(line) if text.ends_with(b"\n") => lines.push((end, line)),
            _ if end == bytes.len() => {}
            Ok(_) => unreachable!("only the last piece lacks its newline"),
            Err(e) => {
                return Err(Error::line(
                    path,
                    i + 1,
                    format!("not a JSON object: {e}; without this line the rest can be read"),
                ));
            }
        }
    }
    Ok(lines)
}
