//! Device time of each launch of recordings. It also runs in a browser, where nothing can be waited for while a recording is submitted.
//!
//! Each launch is repeated in its place, so that it reads what it reads in a real run. Where a device has timestamps, a pass with the
//! repeated launch has one before and one after it. Elsewhere, or where timestamps read zero, the repeated launch is a submission of its own, which
//! the host's clock times, less the time of an empty submission.

use std::collections::HashMap;
use std::ops::Range;

use web_time::Instant;

use super::failure::{DeviceFailure, refused};
use super::ledger::Role;
use super::open_device::OpenDevice;
use super::record::{DispatchWork, RecordedCommand, RecordedDispatch, Recording};
use super::submit::UniformBuffer;
use super::{Gpu, Slot};
use crate::error::Result;

/// Way in which launches are timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TimingMethod {
    /// The device's timestamps. A browser may round them to 100 µs, which is divided by the number of repetitions.
    Timestamps,
    /// The host's clock around a submission of a repeated launch. Equal launches are timed once.
    Clock,
}

/// Times of a run's launches.
#[derive(Debug, Clone, PartialEq)]
pub struct LaunchTimes {
    /// Method of timing.
    pub method: TimingMethod,
    /// Repetitions per launch; with [`TimingMethod::Clock`], the most.
    pub repetitions: usize,
    /// Time of all recordings together, submitted as they usually are, in µs of the host's clock.
    pub whole_us: f64,
    /// Time of each launch in µs, in order; `None` for a launch that is too short to be timed.
    pub launches_us: Vec<Option<f64>>,
}

/// Most repetitions per launch.
const MOST_REPETITIONS: usize = 64;
/// Most timestamps of a query set, by WebGPU.
const MOST_QUERIES: usize = 4096;
/// Least time in µs that a repeated launch takes between two readings of the clock, where it can be repeated so often.
const LEAST_CLOCKED_US: f64 = 10_000.0;
/// Least time of a clocked submission, in times of an empty one. Below it, nothing is told of the launch.
const LEAST_OF_EMPTY: f64 = 1.25;

/// Recording that is ready to be encoded any number of times.
struct PreparedRecording<'g> {
    recording: Recording<'g>,
    uniforms: UniformBuffer,
    /// Number of launches of the recordings before this one.
    first_launch: usize,
}

impl Gpu {
    /// Times every launch of recordings that belong together, for about `seconds`. Afterwards the recordings' results are wrong, because launches
    /// that add to a tensor have run more than once: the caller restores what it needs.
    ///
    /// # Errors
    /// [`crate::Error::Gpu`].
    pub async fn time_launches(&self, recordings: Vec<Recording<'_>>, seconds: f64) -> Result<LaunchTimes> {
        let n_launches = recordings.iter().map(|recording| recording.n_launches).sum();
        let none = LaunchTimes {
            method: TimingMethod::Clock,
            repetitions: 0,
            whole_us: 0.0,
            launches_us: vec![None; n_launches],
        };
        let Some(live) = self.live.as_ref().filter(|live| !live.failure.is_set()) else {
            self.check()?;
            return Ok(none);
        };
        let prepared = self.prepare(live, recordings);
        self.check()?;
        let clock = HostClock { gpu: self, live, slot: self.alloc_persistent(Role::Batch, 1) };
        // The first run compiles what is compiled at a first dispatch.
        self.run_whole(live, &prepared);
        clock.wait().await?;
        let began = Instant::now();
        self.run_whole(live, &prepared);
        clock.wait().await?;
        let whole_us = began.elapsed().as_secs_f64() * 1e6;
        let repetitions = ((1e6 * seconds / whole_us) as usize).clamp(1, MOST_REPETITIONS);
        let none = LaunchTimes { whole_us, ..none };
        let times = match self.caps.timestamps {
            true => self.by_timestamps(live, &prepared, repetitions, &none).await?,
            false => None,
        };
        let times = match times {
            Some(times) => times,
            None => clock.time(&prepared, none).await?,
        };
        // Bind groups with the uniforms of these recordings.
        *self.bind_groups.lock().unwrap_or_else(|e| e.into_inner()) = Default::default();
        Ok(times)
    }

    fn prepare<'g>(&self, live: &OpenDevice, recordings: Vec<Recording<'g>>) -> Vec<PreparedRecording<'g>> {
        let mut first_launch = 0;
        let prepare = |mut recording: Recording<'g>| {
            if let Err(error) = self.pipelines.compile(live, &recording.distinct()) {
                live.failure.set(DeviceFailure::Refused(error.to_string()));
            }
            recording.split_long();
            let uniforms = recording.uniform_buffer(live, &mut None);
            if self.caps.is_cpu && !live.failure.is_set() {
                recording.run_first(live, &uniforms);
            }
            let first = first_launch;
            first_launch += recording.n_launches;
            PreparedRecording { recording, uniforms, first_launch: first }
        };
        recordings.into_iter().map(prepare).collect()
    }

    fn run_whole(&self, live: &OpenDevice, prepared: &[PreparedRecording<'_>]) {
        let mut budget = self.budget.lock().unwrap_or_else(|e| e.into_inner());
        for PreparedRecording { recording, uniforms, .. } in prepared {
            recording.submit_parts(live, uniforms, &mut budget, &[], &mut |_| ());
        }
    }

    /// Times each launch by a pass of its own; `None` where all timestamps are equal.
    async fn by_timestamps(
        &self,
        live: &OpenDevice,
        prepared: &[PreparedRecording<'_>],
        repetitions: usize,
        none: &LaunchTimes,
    ) -> Result<Option<LaunchTimes>> {
        let n_commands: usize = prepared.iter().map(|p| p.recording.commands.len()).sum();
        let ticks = self.alloc_persistent(Role::Batch, 4 * n_commands.max(1));
        let Some((into, start, _)) = ticks.binding() else { return Ok(None) };
        let queries = live.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: None,
            ty: wgpu::QueryType::Timestamp,
            count: MOST_QUERIES as u32,
        });
        let resolved = wgpu::BufferDescriptor {
            label: Some("timestamps"),
            size: 8 * MOST_QUERIES as u64,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        };
        let resolved = live.create_buffer(&resolved, || refused("timestamps", resolved.size, self.ledger().total()));
        let mut launches = Vec::new();
        for PreparedRecording { recording, uniforms, first_launch } in prepared {
            let mut commands = recording.commands.as_slice();
            while !commands.is_empty() {
                let n = {
                    let budget = self.budget.lock().unwrap_or_else(|e| e.into_inner());
                    budget.next_submission(commands, MOST_QUERIES / 2).0
                };
                let (now, later) = commands.split_at((n / repetitions).max(1));
                commands = later;
                let mut encoder = live.device.create_command_encoder(&Default::default());
                let before = launches.len();
                for command in now {
                    let RecordedCommand::Dispatch(dispatch) = command else {
                        recording.encode(live, uniforms, &mut encoder, std::slice::from_ref(command));
                        continue;
                    };
                    let query = 2 * (launches.len() - before) as u32;
                    let writes = wgpu::ComputePassTimestampWrites {
                        query_set: &queries,
                        beginning_of_pass_write_index: Some(query),
                        end_of_pass_write_index: Some(query + 1),
                    };
                    let pass = wgpu::ComputePassDescriptor { label: None, timestamp_writes: Some(writes) };
                    let mut pass = encoder.begin_compute_pass(&pass);
                    for _ in 0..repetitions {
                        recording.encode_dispatch(live, uniforms, &mut pass, dispatch, dispatch.grid);
                    }
                    launches.push(first_launch + dispatch.launch);
                }
                let n_queries = 2 * (launches.len() - before) as u32;
                if n_queries > 0 {
                    encoder.resolve_query_set(&queries, 0..n_queries, &resolved, 0);
                    let at = start + 16 * before as u64;
                    encoder.copy_buffer_to_buffer(&resolved, 0, &into, at, 8 * u64::from(n_queries));
                }
                if live.submit(encoder, None, || "kernels that are timed".into()).is_none() || !live.wait(None) {
                    self.check()?;
                }
            }
        }
        let words = self.read::<u32>(&[&ticks]).await?.concat();
        let ticks: Vec<u64> = words.chunks_exact(2).map(|w| u64::from(w[0]) | u64::from(w[1]) << 32).collect();
        let period_us = f64::from(live.queue.get_timestamp_period()) / 1e3;
        let mut sums = vec![0_u64; none.launches_us.len()];
        for (launch, tick) in launches.into_iter().zip(ticks.chunks_exact(2)) {
            sums[launch] += tick[1].saturating_sub(tick[0]);
        }
        if sums.iter().all(|&sum| sum == 0) {
            return Ok(None);
        }
        let us = |sum: u64| (sum > 0).then_some(sum as f64 * period_us / repetitions as f64);
        let launches_us = sums.into_iter().map(us).collect();
        Ok(Some(LaunchTimes { method: TimingMethod::Timestamps, repetitions, launches_us, ..*none }))
    }
}

/// Clock of the host around submissions.
struct HostClock<'g> {
    gpu: &'g Gpu,
    live: &'g OpenDevice,
    /// Slot that is read to wait for the device.
    slot: Slot,
}

/// Key of launches that [`HostClock::time`] takes for equal: pipeline, grid and work.
type LaunchKey = (usize, [u32; 3], DispatchWork);

impl HostClock<'_> {
    /// Waits for everything that was submitted.
    async fn wait(&self) -> Result<()> {
        self.gpu.read::<f32>(&[&self.slot]).await.map(drop)
    }

    /// Submits some commands `n` times, and returns the time until the device has run them, in µs.
    async fn run(&self, prepared: &PreparedRecording<'_>, commands: &[RecordedCommand], n: usize) -> Result<f64> {
        let began = Instant::now();
        let mut encoder = self.live.device.create_command_encoder(&Default::default());
        for _ in 0..n {
            prepared.recording.encode(self.live, &prepared.uniforms, &mut encoder, commands);
        }
        self.live.submit(encoder, None, || "kernels that are timed".into());
        self.wait().await?;
        Ok(began.elapsed().as_secs_f64() * 1e6)
    }

    async fn time(&self, prepared: &[PreparedRecording<'_>], none: LaunchTimes) -> Result<LaunchTimes> {
        let Some(first) = prepared.first() else { return Ok(none) };
        let mut empty = Vec::new();
        for _ in 0..5 {
            empty.push(self.run(first, &[], 1).await?);
        }
        empty.sort_by(f64::total_cmp);
        let empty_us = empty[2];
        let mut known: HashMap<LaunchKey, Option<f64>> = HashMap::new();
        let (mut launches_us, mut most) = (none.launches_us, 1);
        for one in prepared {
            for range in launch_ranges(&one.recording.commands) {
                let commands = &one.recording.commands[range];
                let RecordedCommand::Dispatch(dispatch) = &commands[0] else {
                    self.run(one, commands, 1).await?;
                    continue;
                };
                let key = launch_key(dispatch);
                let us = match known.get(&key) {
                    Some(&us) => {
                        self.submit_once(one, commands);
                        us
                    }
                    None => {
                        self.wait().await?;
                        let once = self.run(one, commands, 1).await?;
                        let guess = (once - empty_us).max(LEAST_CLOCKED_US / MOST_REPETITIONS as f64);
                        let n = ((LEAST_CLOCKED_US / guess).ceil() as usize).clamp(1, MOST_REPETITIONS);
                        let us = if n == 1 { once } else { self.run(one, commands, n).await? };
                        most = most.max(n);
                        let alone = (us > LEAST_OF_EMPTY * empty_us).then_some((us - empty_us) / n as f64);
                        *known.entry(key).or_insert(alone)
                    }
                };
                launches_us[one.first_launch + dispatch.launch] = us;
            }
        }
        Ok(LaunchTimes { method: TimingMethod::Clock, repetitions: most, launches_us, ..none })
    }

    fn submit_once(&self, prepared: &PreparedRecording<'_>, commands: &[RecordedCommand]) {
        let mut encoder = self.live.device.create_command_encoder(&Default::default());
        prepared.recording.encode(self.live, &prepared.uniforms, &mut encoder, commands);
        self.live.submit(encoder, None, || "kernels that are timed".into());
    }
}

fn launch_key(dispatch: &RecordedDispatch) -> LaunchKey {
    (std::sync::Arc::as_ptr(&dispatch.pipeline) as usize, dispatch.grid, dispatch.counted)
}

/// Divides commands into launches: the parts of a split launch together, every other command alone.
fn launch_ranges(commands: &[RecordedCommand]) -> Vec<Range<usize>> {
    let launch = |command: &RecordedCommand| match command {
        RecordedCommand::Dispatch(dispatch) => Some(dispatch.launch),
        RecordedCommand::Clear(..) | RecordedCommand::Copy { .. } => None,
    };
    let mut start = 0;
    let one = |run: &[RecordedCommand]| {
        let range = start..start + run.len();
        start = range.end;
        range
    };
    commands.chunk_by(|a, b| launch(a).is_some() && launch(a) == launch(b)).map(one).collect()
}
