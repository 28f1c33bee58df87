//! A plan that is being carried out.
//!
//! This is what its user has in hand; [`Crew`] is what its threads do.

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use super::crew::Crew;
use super::options::Settings;
use super::placement::Placement;
use super::planned::Planned;
use super::report::Report;
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
#[must_use]
pub struct Session<T = HostBuffer> {
    work: Arc<dyn Work<T>>,
    plan: Arc<Planned>,
    threads: Vec<JoinHandle<()>>,
}

/// What a session does, wherever it puts tensors.
trait Work<T>: Stop {
    fn take(&self, slot: usize, entry: &Arc<Entry>) -> Result<T>;
    fn make(&self, entry: &Arc<Entry>) -> Result<T>;
    fn abandon(&self, slot: usize);
    fn as_stop(self: Arc<Self>) -> Arc<dyn Stop>;
}

trait Stop: Send + Sync {
    fn stop(&self, is_cancelled: bool);
}

impl<T: Send + 'static> Session<T> {
    pub(super) fn start<P: Placement<Tensor = T>>(
        plan: &Plan,
        settings: Settings,
        placement: P,
    ) -> Result<Self> {
        let plan = Arc::new(Planned::new(plan)?);
        let settings = settings.suited_to(&plan.entries);
        let more_threads = settings.threads - 1;
        let crew = Arc::new(Crew::new(Arc::clone(&plan), settings, placement));
        // The caller is the remaining thread. Where no threads can be started it is the only one.
        let threads = (0..more_threads)
            .map_while(|_| {
                let crew = Arc::clone(&crew);
                let builder = std::thread::Builder::new().name("weighbridge".to_owned());
                builder.spawn(move || crew.work()).ok()
            })
            .collect();
        Ok(Self { work: crew, plan, threads })
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
        let Some(&slot) = self.plan.by_name.get(name) else {
            let error = Error::new(ErrorKind::MissingTensor, "there is no such tensor in the plan");
            return Err(error.in_tensor(name));
        };
        let planned = &self.plan.entries[slot];
        let (entry, tensor) = match dtype {
            Some(dtype) if dtype != planned.dtype() => {
                let entry = Arc::new(planned.recast(dtype)?);
                self.work.abandon(slot);
                let tensor = self.work.make(&entry)?;
                (entry, tensor)
            }
            _ => (Arc::clone(planned), self.work.take(slot, planned)?),
        };
        self.plan.report.note_taken(&entry);
        Ok((entry, tensor))
    }

    /// Makes a tensor that the plan does not have, of any checkpoint, with all threads: a part that is known only when it is
    /// asked for, say.
    ///
    /// # Errors
    ///
    /// Fails when reading or converting fails, and with [`ErrorKind::Cancelled`] when the session was cancelled.
    pub fn make(&self, entry: Entry) -> Result<T> {
        let entry = Arc::new(entry);
        let tensor = self.work.make(&entry)?;
        self.plan.report.note_taken(&entry);
        Ok(tensor)
    }

    /// The names of the plan's entries, in their order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.plan.entries.iter().map(|entry| entry.name())
    }

    /// The entry of that name, as planned.
    pub fn entry(&self, name: &str) -> Option<&Arc<Entry>> {
        self.plan.by_name.get(name).map(|&index| &self.plan.entries[index])
    }

    /// What has been done so far; the handle keeps counting.
    pub fn report(&self) -> Report {
        self.plan.report.clone()
    }

    /// Stops reading: whoever waits for a tensor, or asks for one from now on, gets
    /// [`ErrorKind::Cancelled`]. Chunks that are being read, of a few megabytes each, are finished. The [progress
    /// handler](super::LoadOptions::progress) can do the same.
    pub fn cancel(&self) {
        self.work.stop(true);
    }

    /// Cancels from elsewhere, and outlives the session.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle(Arc::downgrade(&Arc::clone(&self.work).as_stop()))
    }
}

impl Checkpoint {
    /// Reads one tensor, in its stored dtype.
    ///
    /// To read several, a [`Session`] is faster: it reads ahead, with all cores.
    ///
    /// ```
    /// use weighbridge::{Checkpoint, HostBuffer};
    ///
    /// # fn main() -> weighbridge::Result<()> {
    /// # let bytes = b"\x35\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}xy".to_vec();
    /// let ckpt = Checkpoint::from_bytes(bytes)?;
    /// assert_eq!(ckpt.read("a")?, HostBuffer::U8(b"xy".to_vec()));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::MissingTensor`] when there is no tensor of this name, and when reading fails.
    pub fn read(&self, name: &str) -> Result<HostBuffer> {
        let Some(tensor) = self.tensor(name) else {
            let near = self.nearest_names(name).hint();
            let message = format!("the checkpoint has no tensor of this name{near}");
            return Err(Error::new(ErrorKind::MissingTensor, message).in_tensor(name));
        };
        let plan = Plan::new([Entry::of(&tensor, None)?]);
        Ok(plan.session().start()?.take(name, None)?.1)
    }
}

/// Cancels a [`Session`] from anywhere: a signal handler's thread, a button.
#[derive(Clone)]
pub struct StopHandle(Weak<dyn Stop>);

impl StopHandle {
    /// As [`Session::cancel`]; nothing if the session is gone.
    pub fn cancel(&self) {
        if let Some(session) = self.0.upgrade() {
            session.stop(true);
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
            .field("entries", &self.plan.entries.len())
            .field("threads", &(self.threads.len() + 1))
            .finish_non_exhaustive()
    }
}

impl<P: Placement> Work<P::Tensor> for Crew<P> {
    fn take(&self, slot: usize, entry: &Arc<Entry>) -> Result<P::Tensor> {
        self.take(slot, entry)
    }

    fn make(&self, entry: &Arc<Entry>) -> Result<P::Tensor> {
        self.make(entry)
    }

    fn abandon(&self, slot: usize) {
        self.abandon(slot);
    }

    fn as_stop(self: Arc<Self>) -> Arc<dyn Stop> {
        self
    }
}

impl<P: Placement> Stop for Crew<P> {
    fn stop(&self, is_cancelled: bool) {
        self.stop(is_cancelled);
    }
}
