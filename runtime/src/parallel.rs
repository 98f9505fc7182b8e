//! Runs jobs on a few threads. The results do not depend on how many.
//!
//! Jobs are taken from a queue, one after the other; results are put in their places. With one
//! worker nothing leaves the calling thread. Nobody spins.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Runs every job once, with one worker's memory at a time, and gives the results in order.
pub fn run<W, J, T>(workers: &mut [W], jobs: Vec<J>, work: impl Fn(&mut W, J) -> T + Sync) -> Vec<T>
where
    W: Send,
    J: Send,
    T: Send,
{
    let used = workers.len().min(jobs.len());
    if let ([only, ..], 0 | 1) = (&mut *workers, used) {
        return jobs.into_iter().map(|job| work(only, job)).collect();
    }
    let jobs: Vec<Mutex<Option<J>>> = jobs.into_iter().map(|j| Mutex::new(Some(j))).collect();
    let results: Vec<Mutex<Option<T>>> = jobs.iter().map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    let serve = |worker: &mut W| {
        while let Some((job, slot)) = take(&next, &jobs, &results) {
            let result = work(worker, job);
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        }
    };
    std::thread::scope(|scope| {
        let mut rest = workers.iter_mut().take(used);
        let first = rest.next();
        for worker in rest {
            scope.spawn(|| serve(worker));
        }
        if let Some(worker) = first {
            serve(worker);
        }
    });
    results.into_iter().filter_map(|r| r.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}

type Slot<T> = Mutex<Option<T>>;

fn take<'a, J, T>(next: &AtomicUsize, jobs: &[Slot<J>], results: &'a [Slot<T>]) -> Option<(J, &'a Slot<T>)> {
    let k = next.fetch_add(1, Ordering::Relaxed);
    let job = jobs.get(k)?.lock().unwrap_or_else(PoisonError::into_inner).take()?;
    Some((job, &results[k]))
}

/// Cuts `0..rows` into at most 16 chunks whose sizes differ by at most one.
pub fn chunks(rows: usize) -> Vec<std::ops::Range<usize>> {
    let count = rows.min(16);
    (0..count).map(|k| k * rows / count..(k + 1) * rows / count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_their_order() {
        for threads in [1, 2, 5, 40] {
            let mut workers = vec![0usize; threads];
            let found = run(&mut workers, (0..30).collect(), |count, job: usize| {
                *count += 1;
                job * job
            });
            assert_eq!(found, (0..30).map(|k| k * k).collect::<Vec<_>>());
            assert_eq!(workers.iter().sum::<usize>(), 30);
        }
        assert!(run(&mut [()], vec![], |(), x: u8| x).is_empty());
    }

    #[test]
    fn one_row_or_one_worker_stays_on_the_calling_thread() {
        let here = std::thread::current().id();
        for (threads, rows) in [(8, 1), (1, 30), (1, 1)] {
            let mut workers = vec![(); threads];
            let jobs = chunks(rows);
            let on = run(&mut workers, jobs, |(), _| std::thread::current().id());
            assert!(on.iter().all(|id| *id == here), "{threads} threads, {rows} rows");
        }
    }

    /// Nanoseconds that the calling thread has spent on a processor, where the system tells.
    fn busy() -> Option<u64> {
        std::fs::read_to_string("/proc/thread-self/schedstat").ok()?.split_whitespace().next()?.parse().ok()
    }

    #[test]
    fn waiting_threads_sleep() {
        let Some(before) = busy() else { return };
        let long = std::time::Duration::from_millis(400);
        let spent = run(&mut [(); 3], vec![long, long / 4, long / 8], |(), time: std::time::Duration| {
            let before = busy();
            std::thread::sleep(time);
            busy().zip(before).map_or(0, |(now, before)| now - before)
        });
        let all = busy().map_or(0, |now| now - before) + spent.iter().sum::<u64>();
        assert!(u128::from(all) < long.as_nanos() / 4, "{all} ns on a processor for nothing");
    }

    #[test]
    fn chunks_cover_all_rows() {
        for rows in [1, 2, 15, 16, 17, 30, 512] {
            let c = chunks(rows);
            assert!(c.len() <= 16);
            assert_eq!(c.iter().flat_map(|r| r.clone()).collect::<Vec<_>>(), (0..rows).collect::<Vec<_>>());
            let sizes: Vec<usize> = c.iter().map(|r| r.len()).collect();
            assert!(sizes.iter().max().zip(sizes.iter().min()).is_some_and(|(a, b)| a - b <= 1));
        }
    }
}
