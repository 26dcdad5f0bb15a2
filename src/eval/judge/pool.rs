//! Pool of threads that ask several questions at a time, while one thread listens.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use super::{Question, Reply};
use crate::error::Result;

/// Function that asks one question and reports replies: `work(thread, question, halted, say)`. An error that it reports ends the asking.
pub type PoolWork<'w> = dyn Fn(usize, &Question<'_>, &dyn Fn() -> bool, &dyn Fn(Result<Reply>)) + Sync + 'w;

/// Implements [`super::Judge::ask`] with `concurrency` threads. A thread begins the next question only after its last reply was handled, so
/// that it does not begin one after a reply that ends the asking. Every question that was begun is listened to until its end, because its
/// tokens are paid for.
///
/// # Errors
/// The first error of `work` or `tell`.
pub fn ask(
    questions: &[Question<'_>],
    concurrency: usize,
    stop: &AtomicBool,
    work: &PoolWork<'_>,
    tell: &mut dyn FnMut(usize, Reply) -> Result<()>,
) -> Result<()> {
    let (next, halt) = (AtomicUsize::new(0), AtomicBool::new(false));
    let halted = || stop.load(Ordering::Relaxed) || halt.load(Ordering::Relaxed);
    let mut first_error = None;
    std::thread::scope(|scope| {
        let (send, receive) = mpsc::channel();
        for thread in 0..concurrency.min(questions.len()) {
            let (send, next, halted) = (send.clone(), &next, &halted);
            scope.spawn(move || {
                while !halted() {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(question) = questions.get(i) else { break };
                    work(thread, question, halted, &|said| {
                        let (heard, wait) = mpsc::channel::<()>();
                        let _ = send.send((i, said, heard));
                        // Waits until the listener has handled the reply and dropped `heard`.
                        let _ = wait.recv();
                    });
                }
            });
        }
        drop(send);
        for (i, said, _heard) in receive {
            if let Err(error) = said.and_then(|reply| tell(i, reply)) {
                halt.store(true, Ordering::Relaxed);
                first_error.get_or_insert(error);
            }
        }
    });
    first_error.map_or(Ok(()), Err)
}
