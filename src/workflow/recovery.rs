//! Recovery from a lost device: the command is run again with `--resume`, on a device that is opened anew.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::ranks::Ranks;
use crate::train::checkpoint::step_of;
use crate::train::metrics::METRICS;

/// Most runs in a row that may lose the device without saving anything new.
const MOST_IN_VAIN: u32 = 3;

/// Reaction to a lost device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnDeviceLost {
    /// Opens the device again and continues from what is saved, up to three times in a row without progress.
    #[default]
    Resume,
    /// Ends with an error.
    Stop,
}

impl OnDeviceLost {
    /// Returns the reaction of a run: the user's choice. Several ranks stop, because the others cannot go back with the one that lost its device.
    pub fn over(ranks: Ranks, choice: Option<Self>) -> Self {
        if ranks.are_several() { Self::Stop } else { choice.unwrap_or_default() }
    }
}

/// A run of a command: the first one, or one after the device was lost.
#[derive(Debug, Clone, Default)]
pub struct RunAttempt {
    /// Whether the run continues from what is saved.
    pub resume: bool,
    /// Device that was lost. Results may change on another one.
    device: Option<String>,
}

impl RunAttempt {
    /// Sets `device` to the device that was lost, unless it names one.
    pub fn keep_device(&self, device: &mut Option<String>) {
        if device.is_none() {
            device.clone_from(&self.device);
        }
    }

    /// Tells whether an error is of a device that may be there again in a moment.
    fn may_pass(&self, error: &Error) -> bool {
        match error {
            Error::DeviceLost { .. } => true,
            // It cannot be opened yet, or is not even listed.
            Error::Device(_) | Error::Flag { flag: "device", .. } => self.device.is_some(),
            _ => false,
        }
    }
}

/// Runs a command that writes to `out`, and runs it again each time that the device is lost, until `stop` is set. Gives up when three runs in a row
/// saved nothing new.
///
/// # Errors
/// Those of the command; [`Error::DeviceLost`] where the device does not come back.
pub fn with_recovery<T>(
    choice: OnDeviceLost,
    out: &Path,
    resume: bool,
    stop: &AtomicBool,
    command: impl Fn(&RunAttempt) -> Result<T>,
) -> Result<T> {
    let pause = |in_vain| std::thread::sleep(Duration::from_secs(u64::from(in_vain)));
    let stops = || stop.load(Ordering::Relaxed);
    recover(choice, &|| kept_work(out), resume, &stops, &pause, &command)
}

fn recover<T>(
    choice: OnDeviceLost,
    kept: &dyn Fn() -> u64,
    resume: bool,
    stops: &dyn Fn() -> bool,
    pause: &dyn Fn(u32),
    command: &dyn Fn(&RunAttempt) -> Result<T>,
) -> Result<T> {
    let mut attempt = RunAttempt { resume, device: None };
    let (mut kept_before, mut in_vain) = (kept(), 0);
    let mut lost = None;
    loop {
        let error = match command(&attempt) {
            Err(error) if attempt.may_pass(&error) => error,
            done => return done,
        };
        let kept_now = kept();
        in_vain = if kept_now > kept_before { 1 } else { in_vain + 1 };
        kept_before = kept_now;
        let text = error.to_string();
        if let Error::DeviceLost { device, .. } = &error {
            attempt.device = Some(device.clone());
            lost = Some(error);
        }
        if choice == OnDeviceLost::Stop || stops() || in_vain > MOST_IN_VAIN {
            return Err(lost.unwrap_or(Error::Device(text)));
        }
        note!("note: {text}");
        note!(
            "note: the device is opened again, and the run goes on from what is kept (attempt {in_vain} of {MOST_IN_VAIN} without progress)"
        );
        attempt.resume = true;
        pause(in_vain);
    }
}

/// Returns a number that rises with the work saved in a folder: steps of checkpoints, and bytes of answers and responses. Metrics do not count, because they
/// are written again from the last checkpoint on.
fn kept_work(dir: &Path) -> u64 {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let name = name.to_string_lossy();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        sum += match step_of(&name) {
            Some(step) => step as u64,
            None if is_folder && !name.starts_with('.') => kept_work(&path),
            None if name.ends_with(".jsonl") && name != METRICS => entry.metadata().map_or(0, |m| m.len()),
            None => 0,
        };
    }
    sum
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    fn lost() -> Error {
        Error::DeviceLost { device: "RTX (vulkan)".into(), reason: "Device is lost".into() }
    }

    /// The results of runs one after the other, and how each was begun; `kept` has what is kept behind each.
    fn runs(
        choice: OnDeviceLost,
        results: Vec<Result<u32>>,
        kept: &[u64],
    ) -> (Result<u32>, Vec<(bool, Option<String>)>) {
        let (begun, results) = (RefCell::new(Vec::new()), RefCell::new(results.into_iter()));
        let done =
            recover(choice, &|| kept[begun.borrow().len()], false, &|| false, &|_| (), &|attempt: &RunAttempt| {
                begun.borrow_mut().push((attempt.resume, attempt.device.clone()));
                results.borrow_mut().next().unwrap()
            });
        (done, begun.into_inner())
    }

    #[test]
    fn a_lost_device_is_opened_again_and_the_run_resumed() {
        let device = Some("RTX (vulkan)".to_string());
        let closed = || Error::Device("RTX (vulkan) cannot be opened".into());
        let (done, begun) = runs(OnDeviceLost::Resume, vec![Err(lost()), Err(closed()), Ok(7)], &[0; 4]);
        assert_eq!(done.unwrap(), 7);
        assert_eq!(begun, [(false, None), (true, device.clone()), (true, device)]);
        // One that cannot be opened in the first place was not lost.
        assert_eq!(runs(OnDeviceLost::Resume, vec![Err(closed())], &[0; 2]).1.len(), 1);
        let (done, begun) = runs(OnDeviceLost::Stop, vec![Err(lost())], &[0; 2]);
        assert!(matches!(done, Err(Error::DeviceLost { .. })) && begun.len() == 1);
        let other = Error::OutOfMemory { refused: String::new(), advice: String::new() };
        assert_eq!(runs(OnDeviceLost::Resume, vec![Err(other)], &[0; 2]).1.len(), 1);
    }

    #[test]
    fn three_runs_in_a_row_may_be_in_vain() {
        let all_lost = |n: usize| (0..n).map(|_| Err(lost())).collect::<Vec<_>>();
        let (done, begun) = runs(OnDeviceLost::Resume, all_lost(9), &[5; 9]);
        assert!(matches!(done, Err(Error::DeviceLost { .. })), "{done:?}");
        assert_eq!(begun.len(), 4);
        // Two in vain, then something is kept: three more.
        let (_, begun) = runs(OnDeviceLost::Resume, all_lost(9), &[0, 0, 0, 4, 4, 4, 4, 4]);
        assert_eq!(begun.len(), 6);
        // Where it does not come back, the loss is told.
        let gone = || Err(Error::flag("device", "RTX: no such device"));
        let (done, _) = runs(OnDeviceLost::Resume, vec![Err(lost()), gone(), gone(), gone()], &[0; 9]);
        assert!(matches!(done, Err(Error::DeviceLost { .. })), "{done:?}");
        let calls = Cell::new(0);
        let flag = recover(OnDeviceLost::Resume, &|| 0, true, &|| false, &|_| (), &|attempt: &RunAttempt| {
            calls.set(calls.get() + 1);
            assert!(attempt.resume);
            Err::<(), _>(Error::flag("device", "99: no such device"))
        });
        assert!(matches!(flag, Err(Error::Flag { .. })) && calls.get() == 1);
    }

    #[test]
    fn kept_work_is_checkpoints_and_answers() {
        let dir = tempfile::tempdir().unwrap();
        let kept = || kept_work(dir.path());
        assert_eq!(kept_work(&dir.path().join("absent")), 0);
        for folder in ["checkpoint-3", "best/checkpoint-2", ".checkpoint-9.tmp", "responses"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        assert_eq!(kept(), 5);
        std::fs::write(dir.path().join(METRICS), "{}\n{}\n").unwrap();
        assert_eq!(kept(), 5);
        std::fs::write(dir.path().join("responses/a.jsonl"), "{}\n").unwrap();
        assert_eq!(kept(), 8);
        std::fs::create_dir(dir.path().join("checkpoint-6")).unwrap();
        std::fs::remove_dir(dir.path().join("checkpoint-3")).unwrap();
        assert_eq!(kept(), 11);
    }
}
