//! A checkpoint whose parts are all of one commit.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Epochs;
use super::manifest::{Committed, Manifest};
use super::milestone::Milestone;
use super::parts::Parts;
use super::place::Place;
use super::scalar::Scalars;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};

/// How often a checkpoint is opened once more because others were committed in the meantime.
const ATTEMPTS: usize = 100;

/// A checkpoint with all its parts open, as they were at one moment. What is read from them belongs together, and
/// can be read until this is dropped, whatever is saved or removed in the meantime. What was removed from a store
/// is an error when it is read.
#[derive(Clone, Debug)]
pub struct Opened {
    milestone: Milestone,
    scalars: Scalars,
    directory: PathBuf,
    /// By the names of their files. One that cannot be opened is an error when it is asked for.
    parts: BTreeMap<String, Result<Checkpoint>>,
}

impl Opened {
    /// When the checkpoint was taken.
    pub fn milestone(&self) -> Milestone {
        self.milestone
    }

    /// The numbers that were [kept](Epochs::note) with it.
    pub fn scalars(&self) -> &Scalars {
        &self.scalars
    }

    /// Whether it has a part.
    pub fn has(&self, part: &str) -> bool {
        self.parts.contains_key(&Parts::file_name(part))
    }

    /// The file of a part. It may be gone by now; [`part`](Self::part) is still there.
    pub fn file(&self, part: &str) -> PathBuf {
        self.directory.join(Parts::file_name(part))
    }

    /// A part.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::NotFound`] when the checkpoint has no such part, with [`ErrorKind::DataLength`] when
    /// the file does not have the length that was committed, and as [`Checkpoint::open`].
    pub fn part(&self, part: &str) -> Result<&Checkpoint> {
        match self.parts.get(&Parts::file_name(part)) {
            Some(Ok(ckpt)) => Ok(ckpt),
            Some(Err(error)) => Err(error.clone()),
            None => {
                let message = format!("the checkpoint of {} has no part {part:?}", self.milestone);
                Err(Error::new(ErrorKind::NotFound, message).in_file(&self.directory))
            }
        }
    }

    /// What `read` makes of a part; its errors say which file it was.
    ///
    /// # Errors
    ///
    /// As [`part`](Self::part), and what `read` fails with.
    pub fn read<T>(&self, part: &str, read: impl FnOnce(&Checkpoint) -> Result<T>) -> Result<T> {
        read(self.part(part)?).map_err(|error| error.in_file(&self.file(part)))
    }

    fn of(place: &dyn Place, committed: &Committed) -> Self {
        let folder = &committed.directory;
        let open =
            |(file, &bytes): (&String, &u64)| (file.clone(), place.open(&format!("{folder}/{file}"), bytes));
        let parts = committed.bytes.iter().map(open).collect();
        let (milestone, scalars) = (committed.milestone, committed.scalars.clone());
        Self { milestone, scalars, directory: place.path(folder), parts }
    }
}

impl Epochs {
    /// Opens a committed checkpoint. Its numbers and all its parts are of one commit, also when another process
    /// saves the same checkpoint anew, or removes it, in the meantime.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::NotFound`] when there is no such checkpoint, when the manifest cannot be read, and with
    /// [`ErrorKind::Busy`] when others are committed all the time. A part that cannot be opened is an error of
    /// [`Opened::part`].
    pub fn open(&self, milestone: Milestone) -> Result<Opened> {
        self.open_one(|manifest| manifest.find(milestone).map(Some))?
            .ok_or_else(|| Error::new(ErrorKind::Internal, "a checkpoint that was found is none"))
    }

    /// Opens the checkpoint that was committed last, if there is one.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_latest(&self) -> Result<Option<Opened>> {
        self.open_one(|manifest| Ok(manifest.committed.last()))
    }

    fn open_one(
        &self,
        choose: impl for<'m> Fn(&'m Manifest<'_>) -> Result<Option<&'m Committed>>,
    ) -> Result<Option<Opened>> {
        for _ in 0..ATTEMPTS {
            let place = self.place()?;
            let manifest = Manifest::read(&*place)?;
            let Some(chosen) = choose(&manifest)? else { return Ok(None) };
            let opened = Opened::of(&*place, chosen);
            // What a manifest names is neither changed nor removed before another one is in its place.
            if manifest.is_current()? {
                return Ok(Some(opened));
            }
        }
        let message = "checkpoints are committed faster than one can be opened; try again";
        Err(Error::new(ErrorKind::Busy, message).in_file(&self.directory))
    }
}
