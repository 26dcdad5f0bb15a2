//! Sums over all ranks, on a thread of their own, so that the device's work is submitted meanwhile.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use web_time::Instant;

use super::{Ranks, ReduceDtype, world};

/// Sums over all ranks that are under way. Every rank sends equally many values in the same order, and calls nothing else of [`Ranks`] until
/// [`Self::end`].
pub struct BackgroundSums {
    ranks: Ranks,
    dtype: ReduceDtype,
    /// Channels to and from the thread; `None` where MPI allows the main thread alone.
    thread: Option<SumThread>,
    /// Sums that are not taken yet, where there is no thread.
    ready: std::collections::VecDeque<Vec<f32>>,
    seconds: Duration,
}

struct SumThread {
    values: Sender<Vec<f32>>,
    sums: Receiver<Vec<f32>>,
    thread: JoinHandle<Duration>,
}

impl Ranks {
    /// Begins to add up values over all ranks in the background.
    pub fn begin_sums(self, dtype: ReduceDtype) -> BackgroundSums {
        let thread = (self.are_several() && world::allows_threads()).then(|| {
            let ((values, to_sum), (done, sums)) = (channel::<Vec<f32>>(), channel());
            let work = move || {
                let mut seconds = Duration::ZERO;
                for mut values in to_sum {
                    let began = Instant::now();
                    self.all_sum_in_rank_order(&mut values, dtype);
                    seconds += began.elapsed();
                    // Nobody takes the sums of a step that has failed.
                    let _ = done.send(values);
                }
                seconds
            };
            SumThread { values, sums, thread: std::thread::spawn(work) }
        });
        BackgroundSums { ranks: self, dtype, thread, ready: Default::default(), seconds: Duration::ZERO }
    }
}

impl BackgroundSums {
    /// Adds up values of all ranks. The sums come in the order of these calls.
    pub fn add(&mut self, mut values: Vec<f32>) {
        match &self.thread {
            // The thread ends only with this object.
            Some(thread) => drop(thread.values.send(values)),
            None => {
                let began = Instant::now();
                self.ranks.all_sum_in_rank_order(&mut values, self.dtype);
                self.seconds += began.elapsed();
                self.ready.push_back(values);
            }
        }
    }

    /// Returns the next sums where they are done.
    pub fn try_next(&mut self) -> Option<Vec<f32>> {
        match &self.thread {
            Some(thread) => thread.sums.try_recv().ok(),
            None => self.ready.pop_front(),
        }
    }

    /// Waits for the next sums; `None` where the thread has panicked.
    pub fn wait_next(&mut self) -> Option<Vec<f32>> {
        match &self.thread {
            Some(thread) => thread.sums.recv().ok(),
            None => self.ready.pop_front(),
        }
    }

    /// Ends the thread. Returns the time that the sums took.
    pub fn end(self) -> Duration {
        match self.thread {
            Some(SumThread { values, thread, .. }) => {
                drop(values);
                thread.join().unwrap_or_default()
            }
            None => self.seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_rank_has_its_own_values_back_in_order() {
        let mut sums = Ranks::alone().begin_sums(ReduceDtype::Bf16);
        assert_eq!(sums.try_next(), None);
        sums.add(vec![1.0, f32::MIN_POSITIVE]);
        sums.add(vec![1.001]);
        assert_eq!(sums.wait_next(), Some(vec![1.0, f32::MIN_POSITIVE]));
        assert_eq!((sums.try_next(), sums.try_next()), (Some(vec![1.001]), None));
        sums.end();
    }
}
