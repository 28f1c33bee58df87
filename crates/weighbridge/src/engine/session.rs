//! A plan that is being carried out.
//!
//! This is what its user has in hand; [`Shared`] is what its threads do.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use super::Settings;
use super::placement::Placement;
use super::report::Report;
use super::shared::Shared;
use crate::buffer::HostBuffer;
use crate::checkpoint::Checkpoint;
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Entry, Plan};

/// A plan that is being carried out by several threads.
///
/// Tensors are [taken](Session::take) by name, in any order, from any thread. Dropping the session stops it:
/// reads under way are finished, no more are started. What a tensor is, `T`, depends on where the session
/// [was told](super::SessionBuilder) to put it.
///
/// ```
/// use weighbridge::{Checkpoint, HostBuffer, Plan};
///
/// # fn main() -> weighbridge::Result<()> {
/// # let bytes = b"\x35\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}xy".to_vec();
/// let ckpt = Checkpoint::from_bytes(bytes)?;
/// let session = Plan::of(&ckpt).build()?.session().start()?;
/// let (entry, values) = session.take("a", None)?;
/// assert_eq!(entry.shape(), [2]);
/// assert_eq!(values, HostBuffer::U8(b"xy".to_vec()));
/// # Ok(())
/// # }
/// ```
pub struct Session<T = HostBuffer> {
    work: Arc<dyn Work<T>>,
    plan: Arc<Planned>,
    threads: Vec<JoinHandle<()>>,
}

/// What a session does, wherever it puts tensors.
trait Work<T>: Send + Sync {
    fn take(&self, place: Option<usize>, entry: Arc<Entry>) -> Result<(Arc<Entry>, T)>;
    fn stop(&self, cancelled: bool);
    fn stop_handle(&self) -> StopHandle;
}

/// The entries of a session's plan.
pub(super) struct Planned {
    pub(super) checkpoint: Checkpoint,
    pub(super) entries: Vec<Arc<Entry>>,
    by_name: HashMap<String, usize>,
    pub(super) report: Report,
}

impl<T: Send + 'static> Session<T> {
    pub(super) fn start<P: Placement<Tensor = T>>(
        plan: Plan,
        settings: Settings,
        placement: P,
    ) -> Result<Self> {
        let entries = plan.entries().to_vec();
        let mut by_name = HashMap::with_capacity(entries.len());
        for (place, entry) in entries.iter().enumerate() {
            if by_name.insert(entry.name().to_owned(), place).is_some() {
                let error = Error::new(ErrorKind::DuplicateTensor, "the plan has two entries of this name");
                return Err(error.in_tensor(entry.name()));
            }
        }
        let report = Report::new(&entries);
        let plan = Arc::new(Planned { checkpoint: plan.checkpoint().clone(), entries, by_name, report });
        let more_threads = settings.threads - 1;
        let shared = Arc::new(Shared::new(Arc::clone(&plan), settings, placement));
        // The caller is the remaining thread. Where threads cannot be had it is the only one.
        let threads = (0..more_threads)
            .map_while(|_| {
                let shared = Arc::clone(&shared);
                let builder = std::thread::Builder::new().name("weighbridge".to_owned());
                builder.spawn(move || shared.work()).ok()
            })
            .collect();
        Ok(Self { work: Arc::new(Handle(shared)), plan, threads })
    }

    /// Takes a tensor, waiting for it if need be; `dtype` may ask for another dtype than the plan has. It
    /// returns the entry as it was carried out, and the values.
    ///
    /// What was taken is no longer held; taken again, it is read again.
    ///
    /// # Errors
    ///
    /// Fails when the plan has no entry of this name, when there is no cast to `dtype`, when reading or
    /// converting fails, and with [`ErrorKind::Cancelled`] when the session was cancelled.
    pub fn take(&self, name: &str, dtype: Option<Dtype>) -> Result<(Arc<Entry>, T)> {
        let Some(&place) = self.plan.by_name.get(name) else {
            let error = Error::new(ErrorKind::MissingTensor, "there is no such tensor in the plan");
            return Err(error.in_tensor(name));
        };
        let planned = &self.plan.entries[place];
        let entry = match dtype {
            Some(dtype) if dtype != planned.dtype() => Arc::new(planned.recast(dtype)?),
            _ => Arc::clone(planned),
        };
        self.work.take(Some(place), entry)
    }

    /// Makes a tensor that the plan does not have, of the plan's checkpoint, with all threads: a part that only
    /// whoever asks for it can name, say.
    ///
    /// # Errors
    ///
    /// Fails when reading or converting fails, and with [`ErrorKind::Cancelled`] when the session was cancelled.
    pub fn make(&self, entry: Entry) -> Result<T> {
        self.work.take(None, Arc::new(entry)).map(|(_, tensor)| tensor)
    }

    /// The names of the plan's entries, in their order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.plan.entries.iter().map(|entry| entry.name())
    }

    /// The entry of that name, as planned.
    pub fn entry(&self, name: &str) -> Option<&Arc<Entry>> {
        self.plan.by_name.get(name).map(|&place| &self.plan.entries[place])
    }

    /// What has been done so far; the handle keeps counting.
    pub fn report(&self) -> Report {
        self.plan.report.clone()
    }

    /// Stops reading: whoever waits for a tensor, or asks for one from now on, gets
    /// [`ErrorKind::Cancelled`]. Chunks that are being read, of a few megabytes each, are finished. The [progress
    /// handler](super::SessionBuilder::progress) can do the same.
    pub fn cancel(&self) {
        self.work.stop(true);
    }

    /// Cancels from elsewhere, and outlives the session.
    pub fn stop_handle(&self) -> StopHandle {
        self.work.stop_handle()
    }
}

/// Cancels a [`Session`] from anywhere: a signal handler's thread, a button.
#[derive(Clone)]
pub struct StopHandle(Weak<dyn Stop>);

trait Stop: Send + Sync {
    fn cancel(&self);
}

impl StopHandle {
    /// As [`Session::cancel`]; nothing if the session is gone.
    pub fn cancel(&self) {
        if let Some(session) = self.0.upgrade() {
            session.cancel();
        }
    }
}

impl std::fmt::Debug for StopHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StopHandle")
    }
}

impl<T> Drop for Session<T> {
    fn drop(&mut self) {
        self.work.stop(false);
        for thread in self.threads.drain(..) {
            // A thread's panics were caught and have become errors.
            let _ = thread.join();
        }
    }
}

impl<T> std::fmt::Debug for Session<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("checkpoint", &self.plan.checkpoint)
            .field("entries", &self.plan.entries.len())
            .field("threads", &(self.threads.len() + 1))
            .finish_non_exhaustive()
    }
}

struct Handle<P: Placement>(Arc<Shared<P>>);

impl<P: Placement> Work<P::Tensor> for Handle<P> {
    fn take(&self, place: Option<usize>, entry: Arc<Entry>) -> Result<(Arc<Entry>, P::Tensor)> {
        match place {
            Some(place) => self.0.take(place, entry),
            None => {
                let place = self.0.add_place();
                let taken = self.0.take(place, entry);
                self.0.give_place_back(place);
                taken
            }
        }
    }

    fn stop(&self, cancelled: bool) {
        self.0.stop(cancelled);
    }

    fn stop_handle(&self) -> StopHandle {
        let stop: Arc<dyn Stop> = self.0.clone();
        StopHandle(Arc::downgrade(&stop))
    }
}

impl<P: Placement> Stop for Shared<P> {
    fn cancel(&self) {
        self.stop(true);
    }
}
