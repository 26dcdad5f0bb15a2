//! Win rates of responses against gold responses or another checkpoint's, judged in both orders, by temperature and by length, with
//! intervals. The input is judged rows, so this module needs neither a device nor a judge.
//!
//! A *run* is one checkpoint at one temperature and sampling seed. A *method* is a group of runs, such as those of checkpoints of several
//! training seeds. A method's win rate is the mean over its runs, with their sample standard deviation (divisor n − 1). Its interval is a
//! percentile bootstrap interval over *prompts*: a draw takes whole prompts with the results of every run, because responses to one prompt
//! are not independent.
//!
//! [`prompts`] reads test rows, [`responses`] answers them, [`compare`] makes comparisons for [`super::acquire`] and turns the judged ones
//! into runs, [`evaluate()`] counts, and [`crate::report::evaluation`] shows the results.

pub mod compare;
#[cfg(feature = "native")]
pub mod folder;
pub mod lengths;
pub mod prompts;
pub mod response_sampling;
pub mod responses;

use serde::Serialize;

use super::interplay::BootstrapSettings;
use super::judge::Verdict;
use super::statistics::{ClusterResampler, Interval};
use lengths::{RATIO_NAMES, features, length_controlled, ratio_bin};

/// Default sampling temperatures, as in the paper.
pub const DEFAULT_TEMPERATURES: [f64; 3] = [0.001, 0.5, 1.0];

/// Judged response, with its opponent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JudgedResponse {
    /// Index of the prompt.
    pub prompt: usize,
    /// Verdict; [`Verdict::First`] means that the response is better.
    pub verdict: Verdict,
    /// Whether both orders gave the same letter.
    pub is_flip: bool,
    /// Lengths of the response and of its opponent, in characters ([`lengths::length`]).
    pub lengths: [usize; 2],
    /// Number of tokens of the response.
    pub n_tokens: usize,
    /// Whether the response was cut at the largest number of tokens.
    pub cut: bool,
}

impl JudgedResponse {
    /// Returns 1 for a win, ½ for a tie and 0 for a loss; `None` without a verdict.
    pub fn score(&self) -> Option<f64> {
        match self.verdict {
            Verdict::First => Some(1.0),
            Verdict::Tie => Some(0.5),
            Verdict::Second => Some(0.0),
            Verdict::NoAnswer => None,
        }
    }
}

/// Responses of one checkpoint at one temperature and seed.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluatedRun {
    /// Name of the run's files.
    pub name: String,
    /// Name of the checkpoint.
    pub checkpoint: String,
    /// Method; runs of one method are averaged.
    pub method: String,
    /// Temperature of sampling.
    pub temperature: f64,
    /// Seed of sampling.
    pub seed: u64,
    /// Outcome per prompt.
    pub outcomes: Vec<JudgedResponse>,
}

/// Counts of the verdicts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct VerdictTally {
    /// Number of comparisons in which the response is better.
    pub wins: usize,
    /// Number of comparisons in which neither response is better.
    pub ties: usize,
    /// Number of comparisons in which the opponent is better.
    pub losses: usize,
    /// Number of ties in which both orders gave the same letter.
    pub flips: usize,
    /// Number of comparisons without a verdict. They do not count in any rate.
    pub no_answer: usize,
}

impl VerdictTally {
    fn from_outcomes<'a>(outcomes: impl Iterator<Item = &'a JudgedResponse>) -> Self {
        let mut tally = Self::default();
        for outcome in outcomes {
            *match outcome.verdict {
                Verdict::First => &mut tally.wins,
                Verdict::Tie => &mut tally.ties,
                Verdict::Second => &mut tally.losses,
                Verdict::NoAnswer => &mut tally.no_answer,
            } += 1;
            tally.flips += usize::from(outcome.is_flip);
        }
        tally
    }

    /// Returns the number of comparisons with a verdict.
    pub fn judged(&self) -> usize {
        self.wins + self.ties + self.losses
    }
}

/// Mean lengths over all responses, judged or not.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LengthRates {
    /// Characters per response.
    pub response: f64,
    /// Characters per opponent's response.
    pub other: f64,
    /// Tokens per response.
    pub tokens: f64,
    /// Share of the responses that were cut at the largest number of tokens.
    pub cut: f64,
}

/// Results of a run.
#[derive(Debug, Clone, Serialize)]
pub struct RunResult {
    /// Name of the run's files.
    pub name: String,
    /// Name of the checkpoint.
    pub checkpoint: String,
    /// Method that the run belongs to.
    pub method: String,
    /// Temperature of sampling.
    pub temperature: f64,
    /// Seed of sampling.
    pub seed: u64,
    /// Counts of the verdicts.
    #[serde(flatten)]
    pub tally: VerdictTally,
    /// Win rate: (wins + ½ ties) / judged.
    pub win_rate: Interval,
    /// Win rate for equal lengths ([`lengths`]).
    pub length_controlled: f64,
    /// Mean lengths of the responses.
    pub mean_lengths: LengthRates,
}

/// Mean win rate over runs.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct MeanRate {
    /// Number of runs with a verdict.
    pub runs: usize,
    /// Mean of the runs' win rates, with its interval.
    pub mean: Interval,
    /// Sample standard deviation of the runs' win rates (divisor n − 1); NaN for one run.
    pub sd: f64,
}

/// Win rate at one temperature.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct AtTemperature {
    /// Temperature of sampling.
    pub temperature: f64,
    /// Win rate over checkpoints and seeds.
    #[serde(flatten)]
    pub win_rate: MeanRate,
}

/// Win rate of responses by the ratio of their length to the opponent's.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct AtRatio {
    /// Range of ratios, one of [`RATIO_NAMES`].
    pub ratio: &'static str,
    /// Win rate of all runs together.
    pub win_rate: Interval,
}

/// Results of a method.
#[derive(Debug, Clone, Serialize)]
pub struct MethodResult {
    /// Name of the method.
    pub name: String,
    /// Names of the method's checkpoints.
    pub checkpoints: Vec<String>,
    /// Counts of the verdicts, over all runs.
    #[serde(flatten)]
    pub tally: VerdictTally,
    /// Win rate over checkpoints, temperatures and seeds.
    pub win_rate: MeanRate,
    /// Win rates per temperature, from the lowest.
    pub by_temperature: Vec<AtTemperature>,
    /// Win rates per ratio of lengths, from the shortest responses.
    pub by_length_ratio: Vec<AtRatio>,
    /// Win rate of all runs together for equal lengths ([`lengths`]). Every draw uses the standard deviation of lengths in the whole data.
    pub length_controlled: Interval,
    /// φ, the coefficient of length: above 0 where longer responses win.
    pub length_coefficient: f64,
    /// Mean lengths of the responses.
    pub mean_lengths: LengthRates,
}

/// Difference of two methods' win rates, over the same draws of prompts.
#[derive(Debug, Clone, Serialize)]
pub struct RateDifference {
    /// Names of the two methods.
    pub methods: [String; 2],
    /// Win rate of the first method less that of the second.
    pub win_rate: Interval,
}

/// Results of an evaluation.
#[derive(Debug, Clone, Serialize)]
pub struct EvaluationResult {
    /// Opponent of the responses: `gold`, or a checkpoint.
    pub against: String,
    /// Name of the judge.
    pub judge: String,
    /// Number of prompts that were answered.
    pub prompts: usize,
    /// Settings of the bootstrap intervals.
    pub bootstrap: BootstrapSettings,
    /// Results per method, in the order of their first run.
    pub methods: Vec<MethodResult>,
    /// Differences between every two methods.
    pub differences: Vec<RateDifference>,
    /// Results per run.
    pub runs: Vec<RunResult>,
}

/// Returns (wins + ½ ties) / judged of outcomes whose prompts have weights; NaN where none was judged.
fn rate<'a>(outcomes: impl Iterator<Item = &'a JudgedResponse>, weights: &[f64]) -> f64 {
    let (mut won, mut judged) = (0.0, 0.0);
    for outcome in outcomes {
        if let Some(score) = outcome.score() {
            won += weights[outcome.prompt] * score;
            judged += weights[outcome.prompt];
        }
    }
    if judged > 0.0 { won / judged } else { f64::NAN }
}

/// Returns the mean of the runs' win rates.
fn mean_rate(runs: &[&EvaluatedRun], weights: &[f64]) -> f64 {
    let rates = runs.iter().map(|run| rate(run.outcomes.iter(), weights)).filter(|rate| !rate.is_nan());
    let (n, sum) = rates.fold((0, 0.0), |(n, sum), rate| (n + 1, sum + rate));
    if n > 0 { sum / f64::from(n) } else { f64::NAN }
}

/// Bootstrap over prompts. An interval comes from draws of as many prompts as there are, with replacement.
struct PromptBootstrap<'a> {
    resampler: ClusterResampler,
    bootstrap: &'a BootstrapSettings,
    /// Weight 1 for each prompt, which stands for the data themselves.
    ones: Vec<f64>,
}

impl<'a> PromptBootstrap<'a> {
    fn new(n_prompts: usize, bootstrap: &'a BootstrapSettings) -> Self {
        let names: Vec<String> = (0..n_prompts).map(|i| i.to_string()).collect();
        let resampler = ClusterResampler::new(names.iter().map(|name| vec![name.as_str()]));
        Self { resampler, bootstrap, ones: vec![1.0; n_prompts] }
    }

    fn interval(&self, n: usize, statistic: &dyn Fn(&[f64]) -> f64) -> Interval {
        let b = self.bootstrap;
        let [value, low, high] = self.resampler.interval(statistic, b.level, b.draws, b.seed);
        Interval { value, low, high, n, units: self.resampler.units() }
    }

    fn mean(&self, runs: &[&EvaluatedRun]) -> MeanRate {
        let rates: Vec<f64> = runs.iter().map(|run| rate(run.outcomes.iter(), &self.ones)).collect();
        let rates: Vec<f64> = rates.into_iter().filter(|rate| !rate.is_nan()).collect();
        let n = rates.len() as f64;
        let mean = rates.iter().sum::<f64>() / n;
        let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let judged = runs.iter().map(|run| VerdictTally::from_outcomes(run.outcomes.iter()).judged()).sum();
        MeanRate {
            runs: rates.len(),
            mean: self.interval(judged, &|weights| mean_rate(runs, weights)),
            sd: if rates.len() > 1 { variance.sqrt() } else { f64::NAN },
        }
    }

    /// Returns the win rate for equal lengths, and φ.
    fn controlled(&self, runs: &[&EvaluatedRun], with_interval: bool) -> (Interval, f64) {
        let judged: Vec<(&JudgedResponse, f64)> =
            runs.iter().flat_map(|run| &run.outcomes).filter_map(|o| Some((o, o.score()?))).collect();
        let difference = |o: &JudgedResponse| o.lengths[0] as f64 - o.lengths[1] as f64;
        let differences: Vec<f64> = judged.iter().map(|(o, _)| difference(o)).collect();
        let y: Vec<f64> = judged.iter().map(|(_, score)| *score).collect();
        let Some(x) = features(&differences).filter(|_| !judged.is_empty()) else {
            let none = self.interval(judged.len(), &|_| f64::NAN);
            return (none, f64::NAN);
        };
        let fit = |weights: &[f64]| {
            let weights: Vec<f64> = judged.iter().map(|(o, _)| weights[o.prompt]).collect();
            length_controlled(&x, &y, &weights)
        };
        let (value, phi) = fit(&self.ones);
        let interval = match with_interval {
            true => self.interval(judged.len(), &|weights| fit(weights).0),
            false => Interval { value, low: f64::NAN, high: f64::NAN, n: judged.len(), units: self.resampler.units() },
        };
        (interval, phi)
    }
}

fn mean_lengths<'a>(outcomes: impl Iterator<Item = &'a JudgedResponse>) -> LengthRates {
    let (mut n, mut sums) = (0.0, [0.0; 4]);
    for o in outcomes {
        n += 1.0;
        let values = [o.lengths[0] as f64, o.lengths[1] as f64, o.n_tokens as f64, f64::from(u8::from(o.cut))];
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
    let [response, other, tokens, cut] = sums.map(|sum| sum / n);
    LengthRates { response, other, tokens, cut }
}

/// Returns the distinct values, in the order of their first occurrence.
fn distinct<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for one in all {
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

fn method(name: &str, runs: &[&EvaluatedRun], draws: &PromptBootstrap<'_>) -> MethodResult {
    let mut temperatures = distinct(runs.iter().map(|run| run.temperature));
    temperatures.sort_by(f64::total_cmp);
    let at = |temperature: f64| {
        let some: Vec<&EvaluatedRun> = runs.iter().copied().filter(|run| run.temperature == temperature).collect();
        AtTemperature { temperature, win_rate: draws.mean(&some) }
    };
    let outcomes = || runs.iter().flat_map(|run| &run.outcomes);
    let at_ratio = |(i, name): (usize, &'static str)| {
        let some: Vec<&JudgedResponse> = outcomes().filter(|o| ratio_bin(o.lengths[0], o.lengths[1]) == i).collect();
        let n = some.iter().filter(|o| o.score().is_some()).count();
        AtRatio { ratio: name, win_rate: draws.interval(n, &|weights| rate(some.iter().copied(), weights)) }
    };
    let (length_controlled, length_coefficient) = draws.controlled(runs, true);
    MethodResult {
        name: name.into(),
        checkpoints: distinct(runs.iter().map(|run| run.checkpoint.clone())),
        tally: VerdictTally::from_outcomes(outcomes()),
        win_rate: draws.mean(runs),
        by_temperature: temperatures.into_iter().map(at).collect(),
        by_length_ratio: RATIO_NAMES.into_iter().enumerate().map(at_ratio).collect(),
        length_controlled,
        length_coefficient,
        mean_lengths: mean_lengths(outcomes()),
    }
}

/// Computes the results of runs, whose outcomes name prompts below `n_prompts`.
pub fn evaluate(
    runs: &[EvaluatedRun],
    n_prompts: usize,
    against: &str,
    judge: &str,
    bootstrap: BootstrapSettings,
) -> EvaluationResult {
    let draws = PromptBootstrap::new(n_prompts, &bootstrap);
    let names = distinct(runs.iter().map(|run| run.method.as_str()));
    let of = |name: &str| runs.iter().filter(|run| run.method == name).collect::<Vec<&EvaluatedRun>>();
    let judged = |runs: &[&EvaluatedRun]| {
        runs.iter().map(|run| VerdictTally::from_outcomes(run.outcomes.iter()).judged()).sum::<usize>()
    };
    let pairs = (0..names.len()).flat_map(|i| (i + 1..names.len()).map(move |j| (i, j)));
    let difference = |(i, j): (usize, usize)| {
        let (a, b) = (of(names[i]), of(names[j]));
        let n = judged(&a) + judged(&b);
        let win_rate = draws.interval(n, &|weights| mean_rate(&a, weights) - mean_rate(&b, weights));
        RateDifference { methods: [names[i].into(), names[j].into()], win_rate }
    };
    let run = |run: &EvaluatedRun| {
        let tally = VerdictTally::from_outcomes(run.outcomes.iter());
        RunResult {
            name: run.name.clone(),
            checkpoint: run.checkpoint.clone(),
            method: run.method.clone(),
            temperature: run.temperature,
            seed: run.seed,
            tally,
            win_rate: draws.interval(tally.judged(), &|weights| rate(run.outcomes.iter(), weights)),
            length_controlled: draws.controlled(&[run], false).0.value,
            mean_lengths: mean_lengths(run.outcomes.iter()),
        }
    };
    EvaluationResult {
        against: against.into(),
        judge: judge.into(),
        prompts: n_prompts,
        bootstrap,
        methods: names.iter().map(|name| method(name, &of(name), &draws)).collect(),
        differences: pairs.map(difference).collect(),
        runs: runs.iter().map(run).collect(),
    }
}
