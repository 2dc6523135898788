//! How work is run: detached from its caller, on a blocking thread, or joined by its repeats.
//!
//! tonic drops the future of an RPC when the client goes away. Half a pod must not be left then, so every mutating verb
//! runs as a task of its own. The kubelet repeats a mutating call whose answer it did not get in time; the repeat must
//! neither start the work again nor be told that "the name is reserved": it joins the run in progress.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::task::JoinHandle;
use tracing::Instrument;

use crate::sys::cgroup::hasten_moves;

/// Runs `work` to its end even if the caller goes away.
pub(crate) async fn detached<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    finished(tokio::spawn(work.in_current_span())).await
}

/// Runs blocking `work` off the async threads, to its end even if the caller goes away.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let span = tracing::Span::current();
    finished(tokio::task::spawn_blocking(move || span.in_scope(work))).await
}

/// Starts what makes the kernel put new processes into their cgroups sooner, and does not wait: for the beginning of
/// every call that makes a process. See [`hasten_moves`].
pub(crate) fn expect_new_process() {
    drop(tokio::task::spawn_blocking(hasten_moves));
}

async fn finished<T>(task: JoinHandle<T>) -> T {
    match task.await {
        Ok(done) => done,
        // Only the end of the runtime cancels it, and then this waiter ends too.
        Err(error) if error.is_cancelled() => std::future::pending().await,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// An error with its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

type Run<T> = Shared<BoxFuture<'static, T>>;

/// The runs in progress by what they are about. A key is forgotten when its run ends.
pub(crate) struct Joined<K, T: Clone>(Arc<Mutex<HashMap<K, Run<T>>>>);

impl<K, T: Clone> fmt::Debug for Joined<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joined").finish_non_exhaustive()
    }
}

impl<K, T: Clone> Default for Joined<K, T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, T> Joined<K, T>
where
    K: Eq + Hash + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// The answer of the run for `key`: the one in progress, else `work`, started now.
    ///
    /// Cancel-safe: dropping the returned future leaves the work running.
    pub(crate) async fn run<F>(&self, key: K, work: impl FnOnce() -> F) -> T
    where
        F: Future<Output = T> + Send + 'static,
    {
        let run = {
            let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match runs.get(&key) {
                Some(run) => run.clone(),
                None => {
                    let (work, all, own) = (work(), Arc::clone(&self.0), key.clone());
                    let task = tokio::spawn(async move {
                        let answer = work.await;
                        all.lock().unwrap_or_else(PoisonError::into_inner).remove(&own);
                        answer
                    });
                    let run = finished(task).boxed().shared();
                    runs.insert(key, run.clone());
                    run
                }
            }
        };
        run.await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn repeats_join_the_run_in_progress_and_a_later_call_runs_anew() {
        let (joined, runs) = (Joined::<&str, u32>::default(), Arc::new(AtomicU32::new(0)));
        let (go, gate) = oneshot::channel::<()>();
        let counter = Arc::clone(&runs);
        let first = joined.run("a", move || async move {
            gate.await.ok();
            counter.fetch_add(1, Ordering::SeqCst) + 1
        });
        let second = joined.run("a", || async { unreachable!("joined the first run") });
        let (a, b, _) = tokio::join!(first, second, async { go.send(()) });
        assert_eq!((a, b, runs.load(Ordering::SeqCst)), (1, 1, 1));
        assert_eq!(joined.run("a", || async { 7 }).await, 7);
    }

    #[tokio::test]
    async fn work_goes_on_when_the_caller_goes_away() {
        let joined = Joined::<u8, ()>::default();
        let ((go, gate), (done, finished)) = (oneshot::channel::<()>(), oneshot::channel::<()>());
        let mut call = Box::pin(joined.run(1, move || async move {
            gate.await.ok();
            done.send(()).ok();
        }));
        assert!(futures_util::poll!(call.as_mut()).is_pending());
        drop(call);
        go.send(()).expect("the work still waits");
        finished.await.expect("the work ran to its end");
    }
}
