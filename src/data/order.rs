//! Order of rows: a function of (seed, epoch), so that a run can resume from two numbers.

use crate::rng::Rng;

/// Returns the rows of epoch `epoch` (from 0): 0..n, shuffled or in order.
pub fn epoch_order(n: usize, seed: u64, epoch: u64, shuffle: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    if shuffle {
        // The epoch selects the random stream, and the seed is the run's, so that epochs have different orders.
        Rng::new(seed, epoch).shuffle(&mut order);
    }
    order
}

/// Position of a run in its data. Together with (n, seed, shuffle) it determines all rows that follow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SamplerState {
    /// Number of finished epochs.
    pub epoch: u64,
    /// Number of rows already taken in this epoch.
    pub taken: usize,
}

/// Sampler of rows, epoch after epoch.
#[derive(Debug, Clone)]
pub struct EpochSampler {
    seed: u64,
    shuffle: bool,
    position: SamplerState,
    rows: Vec<usize>,
}

impl EpochSampler {
    /// Starts from a position. [`SamplerState::default`] is the start of a run. A position beyond an epoch's end starts the next epoch.
    pub fn new(n: usize, seed: u64, shuffle: bool, position: SamplerState) -> Self {
        let mut order = Self { seed, shuffle, position, rows: epoch_order(n, seed, position.epoch, shuffle) };
        order.turn();
        order
    }

    /// Takes the next `count` rows. There are fewer at the end of an epoch, because a batch does not cross it, and none only where there
    /// are no rows at all.
    pub fn take(&mut self, count: usize) -> Vec<usize> {
        let taken = self.next_rows(count).to_vec();
        self.position.taken += taken.len();
        self.turn();
        taken
    }

    /// Returns the rows that [`EpochSampler::take`] will return.
    pub fn next_rows(&self, count: usize) -> &[usize] {
        &self.rows[self.position.taken..(self.position.taken + count).min(self.rows.len())]
    }

    fn turn(&mut self) {
        if self.position.taken >= self.rows.len() {
            self.position = SamplerState { epoch: self.position.epoch + 1, taken: 0 };
            self.rows = epoch_order(self.rows.len(), self.seed, self.position.epoch, self.shuffle);
        }
    }

    /// Returns the number of rows per epoch.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns the position, for a checkpoint.
    pub fn position(&self) -> SamplerState {
        self.position
    }

    /// Returns the number of finished epochs plus the finished fraction of the current one.
    pub fn epochs(&self) -> f64 {
        self.position.epoch as f64 + self.position.taken as f64 / self.rows.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_is_another_permutation() {
        let sorted = |mut v: Vec<usize>| {
            v.sort_unstable();
            v
        };
        let (a, b) = (epoch_order(50, 1, 0, true), epoch_order(50, 1, 1, true));
        assert_ne!(a, b);
        assert_ne!(a, epoch_order(50, 2, 0, true));
        assert_eq!(a, epoch_order(50, 1, 0, true));
        assert_eq!(sorted(a), epoch_order(50, 1, 0, false));
        assert_eq!(sorted(b), (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn pinned_so_that_old_checkpoints_resume() {
        // The expected orders come from the same shuffle in Python.
        assert_eq!(epoch_order(8, 42, 0, true), [2, 7, 5, 1, 4, 3, 0, 6]);
    }

    #[test]
    fn resumes_anywhere() {
        for stop in 0..20 {
            let mut whole = EpochSampler::new(7, 3, true, SamplerState::default());
            let all: Vec<Vec<usize>> = (0..20).map(|_| whole.take(3)).collect();
            let mut first = EpochSampler::new(7, 3, true, SamplerState::default());
            (0..stop).for_each(|_| drop(first.take(3)));
            let saved = serde_json::to_string(&first.position()).unwrap();
            let mut second = EpochSampler::new(7, 3, true, serde_json::from_str(&saved).unwrap());
            let rest: Vec<Vec<usize>> = (stop..20).map(|_| second.take(3)).collect();
            assert_eq!(rest, all[stop..]);
        }
    }

    #[test]
    fn no_batch_crosses_an_epoch() {
        let mut order = EpochSampler::new(5, 0, false, SamplerState::default());
        assert_eq!(
            [order.take(2), order.take(2), order.take(2), order.take(2)],
            [vec![0, 1], vec![2, 3], vec![4], vec![0, 1]]
        );
        assert!((order.epochs() - 1.4).abs() < 1e-12);
        assert!(EpochSampler::new(0, 0, true, SamplerState::default()).take(3).is_empty());
    }
}
