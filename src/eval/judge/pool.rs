//! Several questions at a time: threads that ask, one that listens.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use super::{Question, Reply};
use crate::error::Result;

/// Asks one question, and says what becomes of it: `work(thread, question, halted, say)`. An error that it says ends the asking.
pub type PoolWork<'w> = dyn Fn(usize, &Question<'_>, &dyn Fn() -> bool, &dyn Fn(Result<Reply>)) + Sync + 'w;

/// [`super::Judge::ask`] with `concurrency` threads. A thread begins with the next question when what it said was heard, so that none is begun
/// that its last answer forbids. Everything that was begun is listened to, whatever happens: it is paid for.
///
/// # Errors
/// The first of `work` and `tell`.
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
                        // It is dropped there.
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
