//! Many requests for one key, one piece of work.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::{io, thread};

use environment::key::Key;
use environment::protocol::Progress;

/// The pieces of work that are under way.
#[derive(Debug, Default)]
pub struct Flights(Mutex<HashMap<Key, Arc<Flight>>>);

/// A piece of work and those who wait for it.
#[derive(Debug, Default)]
pub struct Flight {
    state: Mutex<State>,
    changed: Condvar,
}

/// Whether the environment had to be evaluated; or why there is none, for the user.
pub type Outcome = Result<bool, String>;

#[derive(Debug, Default)]
struct State {
    progress: Option<Progress>,
    reports: u64,
    outcome: Option<Outcome>,
}

impl Flights {
    /// Joins the work on `key`, which is started if there is none; it goes on when nobody waits any more.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn join(
        self: &Arc<Self>,
        key: Key,
        work: impl FnOnce(&Flight) -> Outcome + Send + 'static,
    ) -> io::Result<Arc<Flight>> {
        let flight = Arc::new(Flight::default());
        match lock(&self.0).entry(key) {
            Entry::Occupied(other) => return Ok(Arc::clone(other.get())),
            Entry::Vacant(place) => drop(place.insert(Arc::clone(&flight))),
        }
        let landing = Landing { flights: Arc::clone(self), flight: Arc::clone(&flight), key };
        thread::Builder::new().name("resolve".into()).spawn(move || {
            let outcome = work(&landing.flight);
            landing.flight.change(|state| state.outcome = Some(outcome));
        })?;
        Ok(flight)
    }
}

impl Flights {
    /// How many pieces of work are under way.
    pub fn count(&self) -> usize {
        lock(&self.0).len()
    }
}

impl Flight {
    /// Tells those who wait how far the work is, unless they know.
    pub fn report(&self, progress: Progress) {
        self.change(|state| {
            if state.progress.as_ref() != Some(&progress) {
                state.progress = Some(progress);
                state.reports += 1;
            }
        });
    }

    /// Waits for the end of the work; passes on the latest progress, as long as somebody listens.
    ///
    /// # Errors
    /// When `listen` fails: the asker is gone.
    pub fn wait<E>(&self, mut listen: impl FnMut(Progress) -> Result<(), E>) -> Result<Outcome, E> {
        let mut heard = 0;
        let mut state = lock(&self.state);
        loop {
            if let Some(outcome) = &state.outcome {
                return Ok(outcome.clone());
            }
            if let Some(progress) = state.progress.clone().filter(|_| state.reports > heard) {
                heard = state.reports;
                drop(state);
                listen(progress)?;
                state = lock(&self.state);
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.state));
        self.changed.notify_all();
    }
}

/// Ends a flight however its work ends.
struct Landing {
    flights: Arc<Flights>,
    flight: Arc<Flight>,
    key: Key,
}

impl Drop for Landing {
    fn drop(&mut self) {
        lock(&self.flights.0).remove(&self.key);
        let failed = || Err("the daemon failed; its log says where".to_owned());
        self.flight.change(|state| {
            state.outcome.get_or_insert_with(failed);
        });
    }
}

/// A bounded number of pieces of work at once; the bound may change from one to the next.
#[derive(Debug, Default)]
pub struct Slots {
    used: Mutex<usize>,
    freed: Condvar,
}

/// The right to work.
#[derive(Debug)]
pub struct Slot<'a>(&'a Slots);

impl Slots {
    /// Waits until fewer than `bound` slots are used.
    pub fn acquire(&self, bound: usize) -> Slot<'_> {
        let mut used = lock(&self.used);
        while *used >= bound.max(1) {
            used = self.freed.wait(used).unwrap_or_else(PoisonError::into_inner);
        }
        *used += 1;
        Slot(self)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *lock(&self.0.used) -= 1;
        self.0.freed.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use environment::digest::Digest;

    use super::*;

    fn key(text: &str) -> Key {
        Digest::of(text.as_bytes()).to_string().parse().unwrap()
    }

    fn wait(flight: &Flight) -> Outcome {
        flight.wait(|_| Ok::<(), Infallible>(())).unwrap()
    }

    #[test]
    fn twenty_requests_for_one_key_are_one_piece_of_work() {
        let (flights, runs) = (Arc::new(Flights::default()), Arc::new(AtomicUsize::new(0)));
        let (go, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let joined: Vec<_> = (0..20)
            .map(|_| {
                let (runs, gate) = (Arc::clone(&runs), Arc::clone(&gate));
                flights
                    .join(key("a"), move |_| {
                        runs.fetch_add(1, Ordering::SeqCst);
                        lock(&gate).recv().unwrap();
                        Ok(true)
                    })
                    .unwrap()
            })
            .collect();
        go.send(()).unwrap();
        assert!(joined.iter().all(|flight| wait(flight) == Ok(true)));
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        while flights.0.lock().unwrap().contains_key(&key("a")) {
            thread::yield_now();
        }
        assert_eq!(wait(&flights.join(key("a"), |_| Ok(false)).unwrap()), Ok(false));
    }

    #[test]
    fn work_that_panics_fails_its_waiters() {
        let flight = Arc::new(Flights::default()).join(key("a"), |_| panic!("on purpose")).unwrap();
        assert!(wait(&flight).unwrap_err().contains("log"));
    }

    #[test]
    fn a_waiter_hears_the_latest_progress_and_may_leave() {
        let (go, gate) = mpsc::channel::<()>();
        let flight = Arc::new(Flights::default())
            .join(key("a"), move |flight| {
                for detail in ["one", "two"] {
                    let (phase, detail) = ("evaluate".to_owned(), detail.to_owned());
                    flight.report(Progress { phase, done: 0, total: 0, detail });
                }
                let _ = gate.recv();
                Ok(true)
            })
            .unwrap();
        while lock(&flight.state).reports < 2 {
            thread::yield_now();
        }
        assert_eq!(flight.wait(|progress| Err(progress.detail)), Err("two".to_owned()));
        drop(go);
        assert_eq!(wait(&flight), Ok(true));
    }

    #[test]
    fn slots_bound_what_runs_at_once() {
        let (slots, most, now) = (Slots::default(), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let _slot = slots.acquire(2);
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(5));
                    now.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(most.load(Ordering::SeqCst), 2);
    }
}
