//! Timing of a case on a device: by timestamps where the device has them, else by the host's clock around a submission.

use web_time::Instant;

use super::{Case, Cost, HostTensor};
use crate::error::Result;
use crate::gpu::{Gpu, Slot};
use crate::rng::Rng;

/// Smallest total size of the copies of a case's inputs. Runs alternate among the copies, so that a cache does not serve what a training
/// step would read from memory.
const ROTATION_BYTES: usize = 64 << 20;
/// Largest number of copies.
const MOST_COPIES: usize = 8;
/// Smallest and largest number of runs per case.
const RUNS: (usize, usize) = (5, 50);

/// Times of a case, as [`time`] measures them.
#[derive(Debug, Clone)]
pub struct CaseTiming {
    /// Work of one run.
    pub cost: Cost,
    /// Device time of each run in µs, ascending.
    pub runs_us: Vec<f64>,
    /// Device time by entry point in µs, mean over the runs, the longest first; empty without timestamps.
    pub by_entry_us: Vec<(String, f64)>,
}

impl CaseTiming {
    /// Returns the median run's time in µs.
    pub fn median_us(&self) -> f64 {
        self.runs_us[self.runs_us.len() / 2]
    }
    /// Returns half the interquartile range as a fraction of the median: the noise of a run.
    pub fn noise(&self) -> f64 {
        let n = self.runs_us.len();
        (self.runs_us[3 * n / 4] - self.runs_us[n / 4]) / 2.0 / self.median_us()
    }
    /// Returns the rate in GB/s at the median time, over the bytes that must move.
    pub fn gb_s(&self) -> f64 {
        self.cost.bytes as f64 / self.median_us() / 1e3
    }
    /// Returns GFLOP/s, at the median time.
    pub fn gflop_s(&self) -> f64 {
        self.cost.flops as f64 / self.median_us() / 1e3
    }
}

/// Peak rates of a device, measured on it.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct DevicePeaks {
    /// Rate of a copy, bytes read and written together.
    pub copy_gb_s: f64,
    /// Rate of f32 multiply-adds in registers, two operations each.
    pub fma_gflop_s: f64,
}

impl DevicePeaks {
    /// Measures both rates, for about `seconds` each.
    ///
    /// # Errors
    /// [`crate::Error::Gpu`].
    pub async fn measure(gpu: &Gpu, seconds: f64) -> Result<Self> {
        let copy = time(gpu, super::ceiling::copy().as_ref(), seconds).await?;
        let fma = time(gpu, super::ceiling::fma(gpu.caps()).as_ref(), seconds).await?;
        Ok(Self { copy_gb_s: copy.gb_s(), fma_gflop_s: fma.gflop_s() })
    }

    /// Returns the least time for some work in µs: by its bytes or by its operations, whichever takes longer.
    pub fn least_us(&self, cost: &Cost) -> f64 {
        (cost.bytes as f64 / self.copy_gb_s / 1e3).max(cost.flops as f64 / self.fma_gflop_s / 1e3)
    }
}

/// Case with its inputs on a device, ready to run.
pub struct PreparedCase<'a> {
    gpu: &'a Gpu,
    case: &'a dyn Case,
    /// Copies of (inputs, incoming gradients).
    sets: Vec<(Vec<Slot>, Vec<Slot>)>,
    next: usize,
}

/// Times of one run of a case.
#[derive(Debug, Clone)]
pub struct CaseRun {
    /// Device time in µs; the host's time where there are no timestamps, or where they read zero.
    pub us: f64,
    /// Device time by entry point in µs; empty without timestamps.
    pub by_entry_us: Vec<(String, f64)>,
}

impl<'a> PreparedCase<'a> {
    /// Uploads the inputs, and runs once to compile and to warm up.
    ///
    /// # Errors
    /// [`crate::Error::Gpu`].
    pub async fn new(gpu: &'a Gpu, case: &'a dyn Case) -> Result<Self> {
        let mut rng = Rng::new(0, 2);
        let inputs = case.inputs(&mut rng);
        let d_y: Vec<HostTensor> = case.d_y_lens().into_iter().map(|n| HostTensor::normal(&mut rng, n)).collect();
        let bytes: usize = inputs.iter().chain(&d_y).map(|h| 4 * h.len()).sum();
        let copies = ROTATION_BYTES.div_ceil(bytes.max(1)).clamp(1, MOST_COPIES);
        let upload = |hosts: &[HostTensor]| hosts.iter().map(|h| h.upload(gpu)).collect::<Vec<Slot>>();
        let sets = (0..copies).map(|_| (upload(&inputs), upload(&d_y))).collect();
        let mut prepared = Self { gpu, case, sets, next: 0 };
        prepared.run().await?;
        Ok(prepared)
    }

    /// Runs on the next copy of the inputs, and waits for the end.
    ///
    /// # Errors
    /// [`crate::Error::Gpu`].
    pub async fn run(&mut self) -> Result<CaseRun> {
        let (x, d_y) = &self.sets[self.next];
        self.next = (self.next + 1) % self.sets.len();
        // A profile is read back at once, which a browser does not allow; a browser's timestamps are coarse, too.
        let timestamps = self.gpu.caps().timestamps && !cfg!(target_arch = "wasm32");
        if timestamps {
            self.gpu.start_profile();
        }
        let mut rec = self.gpu.record();
        let out = self.case.launch(&mut rec, x, d_y);
        let started = Instant::now();
        rec.submit();
        // Reading waits for the run; its outputs are held until then.
        self.gpu.read::<f32>(&[&self.gpu.alloc_activation(1)]).await?;
        let wall_us = started.elapsed().as_secs_f64() * 1e6;
        drop(out);
        let by_entry_us: Vec<_> = self
            .gpu
            .end_profile()
            .map_or(Vec::new(), |p| p.rows().into_iter().map(|(entry, _, us)| (entry, us)).collect());
        Ok(CaseRun { us: device_us(&by_entry_us).unwrap_or(wall_us), by_entry_us })
    }
}

/// Sums the entry points' times; `None` where there are no timestamps, or where they read zero.
fn device_us(by_entry_us: &[(String, f64)]) -> Option<f64> {
    Some(by_entry_us.iter().map(|e| e.1).sum()).filter(|&us| us > 0.0)
}

/// Times a case for about `seconds`.
///
/// # Errors
/// [`crate::Error::Gpu`].
pub async fn time(gpu: &Gpu, case: &dyn Case, seconds: f64) -> Result<CaseTiming> {
    let mut prepared = PreparedCase::new(gpu, case).await?;
    let started = Instant::now();
    let (mut runs_us, mut by_entry_us): (Vec<f64>, Vec<(String, f64)>) = (Vec::new(), Vec::new());
    while runs_us.len() < RUNS.0 || (started.elapsed().as_secs_f64() < seconds && runs_us.len() < RUNS.1) {
        let run = prepared.run().await?;
        runs_us.push(run.us);
        for (entry, us) in run.by_entry_us {
            match by_entry_us.iter_mut().find(|e| e.0 == entry) {
                Some(known) => known.1 += us,
                None => by_entry_us.push((entry, us)),
            }
        }
    }
    let n = runs_us.len() as f64;
    by_entry_us.iter_mut().for_each(|e| e.1 /= n);
    by_entry_us.sort_by(|a, b| b.1.total_cmp(&a.1));
    runs_us.sort_by(f64::total_cmp);
    Ok(CaseTiming { cost: case.cost(), runs_us, by_entry_us })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_serves_where_timestamps_do_not() {
        let times = |us: &[f64]| us.iter().map(|&us| ("add".to_string(), us)).collect::<Vec<_>>();
        assert_eq!(device_us(&times(&[1.5, 2.0])), Some(3.5));
        assert_eq!(device_us(&times(&[0.0, 0.0])), None);
        assert_eq!(device_us(&[]), None);
    }
}
