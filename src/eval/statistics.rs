//! Agreement and its uncertainty: Cohen's κ, and percentile bootstrap intervals over units that several observations may share.

use std::collections::HashMap;

use serde::Serialize;

use crate::rng::Rng;

/// Default number of resamples of a bootstrap.
pub const DEFAULT_RESAMPLES: usize = 2000;

/// Largest number of resamples of a bootstrap. More would change no digit that is shown.
pub const MOST_RESAMPLES: usize = 1_000_000;

/// Default confidence level of a bootstrap's intervals.
pub const DEFAULT_LEVEL: f64 = 0.95;

/// Computes Cohen's κ of weighted pairs of categories below `n` (Cohen 1960): (p_o − p_e)/(1 − p_e). Returns NaN where both always give the
/// same single category, or where there are no pairs.
pub fn kappa(pairs: impl IntoIterator<Item = ([usize; 2], f64)>, n: usize) -> f64 {
    let (mut agreed, mut total) = (0.0, 0.0);
    let mut says = [vec![0.0; n], vec![0.0; n]];
    for ([a, b], weight) in pairs {
        total += weight;
        agreed += if a == b { weight } else { 0.0 };
        says[0][a] += weight;
        says[1][b] += weight;
    }
    let expected: f64 = says[0].iter().zip(&says[1]).map(|(a, b)| a * b).sum::<f64>() / (total * total);
    let observed = agreed / total;
    if expected < 1.0 { (observed - expected) / (1.0 - expected) } else { f64::NAN }
}

/// Returns the `q`-quantile of sorted values, interpolated linearly (numpy's default); NaN where there are none.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * sorted.len().saturating_sub(1) as f64;
    let (low, high) = (sorted.get(at.floor() as usize), sorted.get(at.ceil() as usize));
    low.zip(high).map_or(f64::NAN, |(low, high)| low + (high - low) * at.fract())
}

/// Number with its confidence interval. NaN becomes null in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// Value on the data themselves.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// Number of observations.
    pub n: usize,
    /// Units that the bootstrap draws.
    pub units: ResamplingUnits,
}

/// Units that the bootstrap draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ResamplingUnits {
    /// Groups of observations that share units, directly or through other observations. An observation that shares no unit is a group of
    /// its own; without shared units, this is the ordinary bootstrap.
    Groups,
    /// The units themselves. An observation's weight is the product of its units' draws (the pigeonhole bootstrap, Owen 2007, whose
    /// intervals tend to be too wide). Used for data that are so connected that there are too few groups to draw from.
    Rows,
}

/// Largest share of all observations in one group, under [`ResamplingUnits::Groups`].
const LARGEST_GROUP: f64 = 0.1;
/// Smallest number of groups under [`ResamplingUnits::Groups`].
const FEWEST_GROUPS: usize = 10;

/// Bootstrap over observations and the units that they come from.
#[derive(Debug, Clone)]
pub struct ClusterResampler {
    /// Indices of each observation's group (one index), or of its units.
    members: Vec<Vec<usize>>,
    n_drawn: usize,
    units: ResamplingUnits,
}

impl ClusterResampler {
    /// Creates the bootstrap. `units` are the names of each observation's units, at least one.
    pub fn new<'a>(units: impl IntoIterator<Item = Vec<&'a str>>) -> Self {
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let mut members: Vec<Vec<usize>> = Vec::new();
        for names in units {
            let mut own: Vec<usize> = Vec::with_capacity(names.len());
            for name in names {
                let next = numbers.len();
                own.push(*numbers.entry(name).or_insert(next));
            }
            own.sort_unstable();
            own.dedup();
            members.push(own);
        }
        let groups = clusters(&members, numbers.len());
        let n_groups = groups.iter().max().map_or(0, |g| g + 1);
        let mut sizes = vec![0; n_groups];
        groups.iter().for_each(|&g| sizes[g] += 1);
        let largest = sizes.iter().max().copied().unwrap_or(0);
        let shares = largest > 1;
        if shares && (n_groups < FEWEST_GROUPS || largest as f64 > LARGEST_GROUP * members.len() as f64) {
            return Self { members, n_drawn: numbers.len(), units: ResamplingUnits::Rows };
        }
        Self {
            members: groups.into_iter().map(|g| vec![g]).collect(),
            n_drawn: n_groups,
            units: ResamplingUnits::Groups,
        }
    }

    /// Returns the units that the bootstrap draws.
    pub fn units(&self) -> ResamplingUnits {
        self.units
    }

    /// Draws one resample, and computes each observation's weight in it: the number of times that the observation counts.
    fn draw(&self, rng: &mut Rng, counts: &mut Vec<f64>, weights: &mut Vec<f64>) {
        counts.clear();
        counts.resize(self.n_drawn, 0.0);
        (0..self.n_drawn).for_each(|_| counts[rng.below(self.n_drawn as u32) as usize] += 1.0);
        weights.clear();
        weights.extend(self.members.iter().map(|own| own.iter().map(|&u| counts[u]).product::<f64>()));
    }

    /// Computes a statistic of the weighted observations, and its percentile interval at `level` over `draws` draws. Returns value, lower
    /// and upper end. Draws in which the statistic is NaN, because no matching observation was drawn, are left out. If these are more than
    /// half of the draws, the ends are NaN.
    pub fn interval(&self, statistic: &dyn Fn(&[f64]) -> f64, level: f64, draws: usize, seed: u64) -> [f64; 3] {
        let value = statistic(&vec![1.0; self.members.len()]);
        let mut rng = Rng::new(seed, 14);
        let (mut counts, mut weights, mut drawn) = (Vec::new(), Vec::new(), Vec::with_capacity(draws));
        for _ in 0..draws {
            self.draw(&mut rng, &mut counts, &mut weights);
            drawn.push(statistic(&weights));
        }
        drawn.retain(|value| !value.is_nan());
        if 2 * drawn.len() <= draws || value.is_nan() {
            return [value, f64::NAN, f64::NAN];
        }
        drawn.sort_unstable_by(f64::total_cmp);
        let tail = (1.0 - level) / 2.0;
        [value, quantile(&drawn, tail), quantile(&drawn, 1.0 - tail)]
    }
}

/// Returns each observation's group, numbered in the order of appearance. Observations that share a unit, directly or through others, are
/// in one group.
fn clusters(members: &[Vec<usize>], n_units: usize) -> Vec<usize> {
    let mut parent: Vec<usize> = (0..n_units).collect();
    fn root(parent: &mut [usize], mut x: usize) -> usize {
        while parent[x] != x {
            parent[x] = parent[parent[x]];
            x = parent[x];
        }
        x
    }
    for own in members {
        for pair in own.windows(2) {
            let (a, b) = (root(&mut parent, pair[0]), root(&mut parent, pair[1]));
            parent[a] = b;
        }
    }
    let mut numbers: HashMap<usize, usize> = HashMap::new();
    let of = |own: &Vec<usize>| {
        let next = numbers.len();
        let root = own.first().map_or(usize::MAX, |&u| root(&mut parent, u));
        *numbers.entry(root).or_insert(next)
    };
    members.iter().map(of).collect()
}

/// Returns the weighted share of observations for which `are` is true; NaN where there are none.
pub fn share(weights: &[f64], are: &[bool]) -> f64 {
    let all: f64 = weights.iter().sum();
    let some: f64 = weights.iter().zip(are).filter(|(_, are)| **are).map(|(weight, _)| weight).sum();
    // An empty sum is -0, which this turns into 0.
    if all > 0.0 { (some + 0.0) / all } else { f64::NAN }
}
