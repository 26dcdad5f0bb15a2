//! Size of submissions. A watchdog ends a submission that takes too long (2 s on Windows and amdgpu). Submissions are therefore limited to
//! a fraction of that time, by each kernel's expected time, and a longer dispatch is split into parts of its grid. Kernels that were not
//! measured are assumed to be slow; each submission that was waited for corrects their speeds. One submission is always queued behind the
//! running one.

use std::collections::HashMap;

use web_time::Instant;

use super::open_device::OpenDevice;
use super::record::{RecordedCommand, RecordedDispatch};

/// Seconds that a submission should take.
const TARGET_SECONDS: f64 = 0.2;

/// Assumed work per second of a kernel that was not measured yet: a first submission has 1 GFLOP. Nothing is measured in a browser, because
/// its submissions cannot be waited for.
const FIRST_SPEED: f64 = if cfg!(target_arch = "wasm32") { 1e11 } else { 5e9 };

/// Largest factor by which one submission changes a kernel's speed.
const MOST_CHANGE: f64 = 4.0;

/// Speeds of kernels, from which submissions are sized, and the submission in flight.
#[derive(Debug)]
pub(super) struct SubmissionBudget {
    /// Work per second, by entry point.
    speeds: HashMap<&'static str, f64>,
    first_speed: f64,
    in_flight: Option<InFlight>,
}

/// Submission that runs now, or runs next.
#[derive(Debug)]
struct InFlight {
    index: wgpu::SubmissionIndex,
    expected: ExpectedTime,
    /// Earliest time at which the submission can have begun.
    began: Instant,
}

/// Expected seconds of a submission, by entry point.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ExpectedTime(Vec<(&'static str, f64)>);

impl ExpectedTime {
    fn add(&mut self, entry: &'static str, seconds: f64) {
        match self.0.iter_mut().find(|(known, _)| *known == entry) {
            Some((_, sum)) => *sum += seconds,
            None => self.0.push((entry, seconds)),
        }
    }

    fn seconds(&self) -> f64 {
        self.0.iter().map(|(_, seconds)| seconds).sum()
    }
}

impl Default for SubmissionBudget {
    fn default() -> Self {
        Self { speeds: HashMap::new(), first_speed: FIRST_SPEED, in_flight: None }
    }
}

impl SubmissionBudget {
    /// Discards all measurements, and assumes `speed` (work per second) for every kernel.
    pub fn begin_with(&mut self, speed: f64) {
        self.speeds.clear();
        self.first_speed = speed;
    }

    fn seconds(&self, entry: &'static str, work: u64) -> f64 {
        work as f64 / self.speeds.get(entry).unwrap_or(&self.first_speed)
    }

    /// Returns the number of parts that a dispatch should be split into.
    pub fn n_parts(&self, dispatch: &RecordedDispatch) -> u32 {
        (self.seconds(dispatch.entry, dispatch.work) / TARGET_SECONDS).ceil().clamp(1.0, f64::from(u32::MAX)) as u32
    }

    /// Returns the number of commands in the next submission, at most `most`, and their expected time. A first command that takes longer
    /// than a submission should is submitted alone.
    pub fn next_submission(&self, commands: &[RecordedCommand], most: usize) -> (usize, ExpectedTime) {
        let work = commands.iter().map(|command| match command {
            RecordedCommand::Dispatch(dispatch) => Some((dispatch.entry, dispatch.work)),
            RecordedCommand::Clear(..) | RecordedCommand::Copy { .. } => None,
        });
        self.cut(work.take(most))
    }

    fn cut(&self, commands: impl Iterator<Item = Option<(&'static str, u64)>>) -> (usize, ExpectedTime) {
        let (mut n, mut sum, mut expected) = (0, 0.0, ExpectedTime::default());
        for command in commands {
            if let Some((entry, work)) = command {
                let seconds = self.seconds(entry, work);
                // Sums of the times of parts are not exact, so a submission may exceed the target slightly.
                if n > 0 && sum + seconds > TARGET_SECONDS * 1.001 {
                    break;
                }
                sum += seconds;
                expected.add(entry, seconds);
            }
            n += 1;
        }
        (n, expected)
    }

    /// Waits for the previous submission and corrects the speeds by its time; then records this submission as the one in flight.
    pub fn queued(&mut self, live: &OpenDevice, index: wgpu::SubmissionIndex, expected: ExpectedTime) {
        if let Some(before) = self.in_flight.take() {
            // In a browser, a wait returns at once, so nothing can be measured.
            if !cfg!(target_arch = "wasm32") && live.wait(Some(before.index)) {
                self.took(&before.expected, before.began.elapsed().as_secs_f64());
            }
        }
        self.in_flight = Some(InFlight { index, expected, began: Instant::now() });
    }

    /// Corrects the kernels' speeds by their shares of a submission's measured time.
    pub fn took(&mut self, expected: &ExpectedTime, seconds: f64) {
        let whole = expected.seconds();
        let is_telling = if seconds < whole { whole > TARGET_SECONDS / 2.0 } else { seconds > TARGET_SECONDS / 4.0 };
        // Short submissions measure only overheads.
        if !is_telling || whole <= 0.0 {
            return;
        }
        let change = (whole / seconds.max(1e-6)).clamp(1.0 / MOST_CHANGE, MOST_CHANGE);
        for (entry, part) in &expected.0 {
            let speed = self.speeds.entry(entry).or_insert(self.first_speed);
            *speed *= 1.0 + (change - 1.0) * part / whole;
        }
    }
}

/// Part of a dispatch's grid: its first workgroup, and its extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GridPart {
    pub first: [u32; 2],
    pub grid: [u32; 3],
}

/// Splits a grid into about `n` parts along x and y, of at most `limit` workgroups per dimension. Rows (y) are split first, because heads
/// or tiles of rows have equal costs.
pub(super) fn grid_parts([x, y, z]: [u32; 3], n: u32, limit: u32) -> Vec<GridPart> {
    let in_y = n.max(y.div_ceil(limit)).min(y).max(1);
    let in_x = n.div_ceil(in_y).max(x.div_ceil(limit)).min(x).max(1);
    let ranges = |extent: u32, n: u32| {
        (0..n).map(move |i| {
            let at = |i: u32| (u64::from(extent) * u64::from(i) / u64::from(n)) as u32;
            (at(i), at(i + 1) - at(i))
        })
    };
    let rows = ranges(y, in_y);
    let part =
        |(first_y, y)| ranges(x, in_x).map(move |(first_x, x)| GridPart { first: [first_x, first_y], grid: [x, y, z] });
    rows.flat_map(part).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn budget(speed: f64) -> SubmissionBudget {
        let mut budget = SubmissionBudget::default();
        budget.begin_with(speed);
        budget
    }

    #[test]
    fn submissions_are_cut_by_expected_time() {
        // A submission has room for 200 units of work.
        let mut budget = budget(1000.0);
        let count = |budget: &SubmissionBudget, work: &[u64]| budget.cut(work.iter().map(|&w| Some(("a", w)))).0;
        assert_eq!(count(&budget, &[80, 80, 80, 80]), 2);
        assert_eq!(count(&budget, &[0, 0, 100, 0, 101]), 4);
        assert_eq!(count(&budget, &[10, 20]), 2);
        // A command that takes too long is submitted alone; a command without work joins others.
        assert_eq!(count(&budget, &[1000, 1]), 1);
        assert_eq!(count(&budget, &[]), 0);
        assert_eq!(budget.cut([None, Some(("a", 150)), None, Some(("a", 60))].into_iter()).0, 3);
        // Fewer commands of another, slower kernel fit.
        budget.speeds.insert("b", 100.0);
        let (n, expected) = budget.cut([Some(("a", 100)), Some(("b", 10)), Some(("b", 1))].into_iter());
        assert_eq!((n, expected), (2, ExpectedTime(vec![("a", 0.1), ("b", 0.1)])));
    }

    #[test]
    fn kernels_are_corrected_by_their_shares() {
        let mut budget = budget(1000.0);
        let has =
            |budget: &SubmissionBudget, entry: &str, speed: f64| (budget.speeds[entry] / speed - 1.0).abs() < 1e-12;
        budget.took(&ExpectedTime(vec![("a", 0.2)]), 0.4);
        assert!(has(&budget, "a", 500.0), "{budget:?}");
        budget.took(&ExpectedTime(vec![("a", 0.05), ("b", 0.15)]), 0.1);
        assert!(has(&budget, "a", 625.0) && has(&budget, "b", 1750.0), "{budget:?}");
        // A speed changes by a factor of four at most; short submissions change nothing.
        budget.took(&ExpectedTime(vec![("b", 0.2)]), 10.0);
        assert!(has(&budget, "b", 437.5), "{budget:?}");
        budget.took(&ExpectedTime(vec![("b", 1e-6)]), 0.01);
        budget.took(&ExpectedTime(vec![("b", 0.02)]), 0.001);
        assert!(has(&budget, "b", 437.5), "{budget:?}");
        // A submission expected to be short changes the speed if it took long.
        budget.took(&ExpectedTime(vec![("b", 0.01)]), 1.0);
        assert!(has(&budget, "b", 109.375), "{budget:?}");
    }

    #[test]
    fn rows_are_split_before_columns() {
        let grids = |grid, n, limit| grid_parts(grid, n, limit).iter().map(|part| part.grid).collect::<Vec<_>>();
        assert_eq!(grids([7, 3, 1], 1, 100), [[7, 3, 1]]);
        assert_eq!(grids([7, 3, 1], 3, 100), [[7, 1, 1]; 3]);
        assert_eq!(grids([4, 2, 1], 4, 100), [[2, 1, 1]; 4]);
        assert_eq!(grids([1, 1, 1], 9, 100), [[1, 1, 1]]);
        assert_eq!(grids([8, 74_880, 1], 1, 65_535), [[8, 37_440, 1]; 2]);
        assert_eq!(grids([10, 4, 1], 1, 5), [[5, 4, 1]; 2]);
    }

    proptest! {
        #[test]
        fn parts_cover_a_grid_once(x in 1..40_u32, y in 1..40_u32, n in 1..100_u32, limit in 1..50_u32) {
            let mut seen = vec![0; (x * y) as usize];
            for GridPart { first, grid } in grid_parts([x, y, 1], n, limit) {
                prop_assert!(grid.iter().all(|&extent| (1..=limit).contains(&extent)), "{grid:?}");
                for j in first[1]..first[1] + grid[1] {
                    for i in first[0]..first[0] + grid[0] {
                        seen[(j * x + i) as usize] += 1;
                    }
                }
            }
            prop_assert!(seen.iter().all(|&n| n == 1));
        }
    }
}
