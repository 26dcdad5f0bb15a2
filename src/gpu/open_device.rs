//! Open device, and the calls of wgpu that fail where a GPU fails: allocating, submitting, waiting.

use std::sync::Mutex;
use std::time::Duration;

use web_time::Instant;

use super::failure::{DeviceFailure, FirstFailure, catch_panic};
use super::submission_count::SubmissionCount;

/// Time after which a wait is reported. The report is repeated each time that this time passes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Callback for waits without progress: the last submission's label, and the duration of the wait.
pub type OnWait = Box<dyn Fn(&str, Duration) + Send + Sync>;

pub(super) struct OpenDevice {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    /// First failure that the device reported.
    pub failure: FirstFailure,
    /// File name of the pipeline cache; `None` where the driver has no cache.
    pub cache_name: Option<String>,
    /// Name and backend of the device.
    pub title: String,
    count: SubmissionCount,
    /// Label of the last submission: its first dispatch.
    running: Mutex<String>,
    on_wait: Mutex<Option<OnWait>>,
    patience: Duration,
}

/// Submission that the queue has accepted.
pub(super) struct SubmittedWork {
    pub index: wgpu::SubmissionIndex,
    /// Number of this submission. The device counts submissions, too.
    pub number: u32,
}

impl OpenDevice {
    /// Installs the error callbacks of a device that was just opened, and creates its count of submissions.
    ///
    /// # Errors
    /// The failure's message, where the device's first pipeline cannot be created.
    pub fn new(
        device: wgpu::Device,
        queue: wgpu::Queue,
        cache_name: Option<String>,
        title: String,
    ) -> Result<Self, String> {
        let failure = FirstFailure::default();
        let (first, lost) = (failure.clone(), failure.clone());
        device.on_uncaptured_error(std::sync::Arc::new(move |error| {
            first.set(match error {
                wgpu::Error::OutOfMemory { .. } => DeviceFailure::OutOfMemory(None),
                other => DeviceFailure::Refused(other.to_string()),
            });
        }));
        device.set_device_lost_callback(move |reason, words| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                lost.set(DeviceFailure::lost(&words));
            }
        });
        let count = catch_panic(|| SubmissionCount::new(&device));
        let made = count.map_err(|panic| failure.set(DeviceFailure::Refused(panic)));
        match (made, failure.get()) {
            (Ok(count), None) => Ok(Self {
                device,
                queue,
                failure,
                cache_name,
                title,
                count,
                running: Mutex::default(),
                on_wait: Mutex::default(),
                patience: PATIENCE,
            }),
            (_, failed) => {
                Err(format!("it makes no pipeline: {}", failed.map_or("no reason".into(), DeviceFailure::words)))
            }
        }
    }

    pub fn set_on_wait(&self, tell: Option<OnWait>) {
        *self.on_wait.lock().unwrap_or_else(|e| e.into_inner()) = tell;
    }

    /// Creates a buffer. If it is refused, `what` describes the allocation in the error message.
    pub fn create_buffer(
        &self,
        descriptor: &wgpu::BufferDescriptor<'_>,
        what: impl FnOnce() -> String,
    ) -> wgpu::Buffer {
        let buffer = self.device.create_buffer(descriptor);
        self.failure.name_refusal(what);
        buffer
    }

    /// Submits an encoder's commands, followed by the increment of the device's count of submissions; `None` where the device has failed.
    /// The count is also copied to `count_to`. `running` labels the submission for [`OnWait`].
    pub fn submit(
        &self,
        mut encoder: wgpu::CommandEncoder,
        count_to: Option<(&wgpu::Buffer, u64)>,
        running: impl FnOnce() -> String,
    ) -> Option<SubmittedWork> {
        if self.failure.is_set() {
            return None;
        }
        self.count.encode(&mut encoder);
        if let Some((buffer, offset)) = count_to {
            self.count.copy(&mut encoder, buffer, offset);
        }
        *self.running.lock().unwrap_or_else(|e| e.into_inner()) = running();
        let submit = || self.count.submit(|| self.queue.submit([encoder.finish()]));
        match catch_panic(submit) {
            Ok((index, number)) => {
                self.failure.name_refusal(|| "a submission".into());
                Some(SubmittedWork { index, number })
            }
            Err(panic) => {
                self.failure.set(DeviceFailure::lost(&panic));
                None
            }
        }
    }

    /// Compares the device's count of submissions, as a readback copied it, with `number`. A difference means that the device was lost.
    pub fn compare_count(&self, number: u32, counted: u32) {
        if number != counted {
            let words = format!(
                "of {number} submissions it has executed {counted}, and told nothing of the others: what it computed is not used"
            );
            self.failure.set(DeviceFailure::Lost(words));
        }
    }

    /// Waits for a submission, or for all submissions; returns false where the device has failed. In a browser, returns at once.
    pub fn wait(&self, index: Option<wgpu::SubmissionIndex>) -> bool {
        let began = Instant::now();
        while !self.failure.is_set() {
            let poll = wgpu::PollType::Wait { submission_index: index.clone(), timeout: Some(self.patience) };
            match catch_panic(|| self.device.poll(poll)) {
                Ok(Ok(_)) => break,
                Ok(Err(wgpu::PollError::Timeout)) => self.tell_wait(began.elapsed()),
                Ok(Err(error)) => self.failure.set(DeviceFailure::Lost(error.to_string())),
                // In most cases, the callback has reported the failure before.
                Err(panic) => self.failure.set(DeviceFailure::lost(&panic)),
            }
        }
        !self.failure.is_set()
    }

    fn tell_wait(&self, since: Duration) {
        if let Some(tell) = &*self.on_wait.lock().unwrap_or_else(|e| e.into_inner()) {
            tell(&self.running.lock().unwrap_or_else(|e| e.into_inner()), since);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::error::Error;
    use crate::gpu::{DeviceChoice, Gpu};

    fn open() -> Gpu {
        pollster::block_on(Gpu::open(&DeviceChoice::Best)).unwrap()
    }

    fn read(gpu: &Gpu, values: &[u32]) -> crate::Result<Vec<Vec<u32>>> {
        pollster::block_on(gpu.read::<u32>(&[&gpu.upload(values)]))
    }

    #[test]
    fn the_device_counts_submissions_and_a_missing_one_is_a_loss() {
        let gpu = open();
        for _ in 0..3 {
            assert_eq!(read(&gpu, &[7, 8]).unwrap(), [[7, 8]]);
        }
        let live = gpu.live.as_ref().unwrap();
        // The host expects one more than the device will have executed.
        live.count.submit(|| ());
        let error = read(&gpu, &[7]).unwrap_err();
        assert!(matches!(error, Error::DeviceLost { .. }), "{error}");
        assert!(error.to_string().contains("of 5 submissions it has executed 4"), "{error}");
        // After a failure nothing is submitted, and the first failure is kept.
        assert!(live.submit(live.device.create_command_encoder(&Default::default()), None, String::new).is_none());
        assert!(!live.wait(None));
        assert_eq!(read(&gpu, &[7]).unwrap_err().to_string(), error.to_string());
    }

    #[test]
    fn a_long_wait_is_told() {
        let mut gpu = open();
        gpu.live.as_mut().unwrap().patience = Duration::from_nanos(1);
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = told.clone();
        gpu.on_wait(Some(Box::new(move |running, since| sink.lock().unwrap().push((running.to_string(), since)))));
        let [from, to] = [gpu.alloc_activation(8 << 20), gpu.alloc_activation(8 << 20)];
        let mut rec = gpu.record();
        (0..64).for_each(|_| rec.copy(&from, &to));
        rec.submit();
        assert!(gpu.live.as_ref().unwrap().wait(None));
        let told = told.lock().unwrap();
        assert!(
            told.first().is_some_and(|(running, _)| running == "copies") && told.is_sorted_by_key(|t| t.1),
            "{told:?}"
        );
    }
}
