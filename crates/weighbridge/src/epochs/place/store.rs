//! A prefix of an object store, where the manifest is written only if it is still the one that was there.
//!
//! Nobody is kept out: who saves writes under a name that no checkpoint had, and of two that save at once the
//! second to commit is refused. So what no manifest names may be another's who is still writing, and is removed
//! when it is old.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use weighbridge_remote::{
    Address, ErrorKind as RemoteErrorKind, Listed, Place as Remotely, Remote, Tag, When,
};

use super::{Hold, Place, Read, check_length};
use crate::checkpoint::Checkpoint;
use crate::epochs::manifest::{Committed, MANIFEST, parse};
use crate::epochs::milestone::Milestone;
use crate::epochs::parts::Parts;
use crate::error::{Error, ErrorKind, Result};
use crate::remote::{self, label, told};

/// What an attempt that was killed has left is removed by a later save when it is as old as this.
const LEFT: Duration = Duration::from_secs(24 * 60 * 60);

/// A larger manifest is none.
const MOST: u64 = 64 << 20;

/// How the names of all checkpoints' folders begin.
const FOLDERS: [&str; 2] = ["epoch-", "step-"];

/// A place on a network. All are read; stores are written.
pub(in crate::epochs) struct Far {
    place: Remotely,
    address: Address,
    remote: Option<Remote>,
}

impl Far {
    /// What an address means, as a folder.
    pub(in crate::epochs) fn at(address: &Address, remote: Option<&Remote>) -> Result<Self> {
        let folder = PathBuf::from(format!("{}/", address.to_string().trim_end_matches('/')));
        let address = remote::address(&folder).unwrap_or_else(|| Ok(address.clone()))?;
        let place = remote::place(&address, remote)?;
        Ok(Self { place, address, remote: remote.cloned() })
    }

    /// The version of the manifest. On the hub the place is of one commit, and a web server is believed.
    fn tag(&self) -> Result<Option<Tag>> {
        match self.address {
            Address::Store(_) => self.of(MANIFEST, Remotely::tag),
            _ => Ok(None),
        }
    }

    fn text(&self) -> Result<Option<String>> {
        let Some(bytes) = self.of(MANIFEST, |place, name| place.read(name, MOST))? else { return Ok(None) };
        // What is no UTF-8 is no manifest, either.
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn of<T>(
        &self,
        name: &str,
        work: impl FnOnce(&Remotely, &str) -> weighbridge_remote::Result<T>,
    ) -> Result<T> {
        work(&self.place, name).map_err(|error| told(error).in_file(&self.path(name)))
    }
}

impl Place for Far {
    fn root(&self) -> PathBuf {
        PathBuf::from(self.place.address())
    }

    fn path(&self, name: &str) -> PathBuf {
        label(&self.place, name)
    }

    fn manifest(&self) -> Result<Read<'_>> {
        // If it is replaced after this, the version is an old one.
        let before = self.tag()?;
        let text = self.text()?;
        Ok(Read { text, is_current: Box::new(move || Ok(self.tag()? == before)) })
    }

    fn length(&self, name: &str) -> Result<u64> {
        Ok(self.of(name, Remotely::open)?.size())
    }

    fn open(&self, name: &str, committed: u64) -> Result<Checkpoint> {
        let path = self.path(name);
        let options = match &self.remote {
            Some(remote) => Checkpoint::options().remote(remote.clone()),
            None => Checkpoint::options(),
        };
        let opened = options.open(&path);
        let length = match opened.as_ref().map(|opened| opened.shards().first()) {
            Ok(Some(shard)) => shard.source().size(),
            // That it was cut off says more than what is wrong with the rest.
            _ => self.length(name)?,
        };
        check_length(length, committed, &path)?;
        opened
    }

    fn hold(self: Box<Self>, _create: bool) -> Result<Box<dyn Hold>> {
        // Says what else can be written to.
        remote::place_to_write(&self.address, self.remote.as_ref())?;
        let before = self.tag()?;
        let text = if before.is_some() { self.text()? } else { None };
        Ok(Box::new(Held { far: *self, before, text, is_lost: false }))
    }
}

/// A place in a store in which somebody saves.
struct Held {
    far: Far,
    /// The version of the manifest, and what it says.
    before: Option<Tag>,
    text: Option<String>,
    /// A manifest was sent, and whether it arrived is not known.
    is_lost: bool,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&self.far.place).finish()
    }
}

impl Held {
    /// The objects below a prefix.
    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        self.far.place.list(prefix).map_err(|error| told(error).in_file(&self.far.root()))
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.far.of(name, Remotely::delete)
    }

    fn path_of_manifest(&self) -> PathBuf {
        self.far.path(MANIFEST)
    }
}

impl Hold for Held {
    fn committed(&self) -> Result<Vec<Committed>> {
        parse(self.text.as_deref(), &self.path_of_manifest())
    }

    fn begin(&self, milestone: Milestone, _parts: &Parts) -> Result<String> {
        let committed = self.committed()?;
        loop {
            let name = format!("{}-{:010}", milestone.directory(), remote::random());
            if !committed.iter().any(|other| other.directory == name) {
                return Ok(name);
            }
        }
    }

    fn lengths(&self, folder: &str, files: BTreeSet<String>) -> Result<BTreeMap<String, u64>> {
        let listed = self.list(&format!("{folder}/"))?;
        let lengths = files.into_iter().map(|file| {
            let name = format!("{folder}/{file}");
            match listed.iter().find(|object| object.name == name) {
                Some(object) => Ok((file, object.size)),
                None => {
                    Err(Error::new(ErrorKind::NotFound, "it was not written").in_file(&self.far.path(&name)))
                }
            }
        });
        lengths.collect()
    }

    fn commit(&mut self, manifest: &str) -> Result<()> {
        let when = self.before.clone().map_or(When::Absent, When::Unchanged);
        match self.far.place.put(MANIFEST, manifest.as_bytes(), when) {
            Ok(tag) => {
                self.before = Some(tag);
                self.text = Some(manifest.to_owned());
                Ok(())
            }
            Err(error) => {
                self.is_lost |= error.kind() == RemoteErrorKind::Io;
                Err(remote::switched(error).in_file(&self.path_of_manifest()))
            }
        }
    }

    fn give_up(&self, folder: &str, parts: &Parts) {
        // What was sent last may arrive yet.
        if self.is_lost {
            return;
        }
        let is_named = |committed: &Committed| committed.directory == folder;
        let now = self.far.text().and_then(|text| parse(text.as_deref(), &self.path_of_manifest()));
        if now.is_ok_and(|committed| !committed.iter().any(is_named)) {
            for file in parts.files_of(None) {
                // What cannot be deleted now is left for a later save.
                let _ = self.delete(&format!("{folder}/{file}"));
            }
        }
    }

    fn clean(&self, is_used: &dyn Fn(&str) -> bool, before: &[Committed], parts: &Parts) -> Result<()> {
        match self.remove_unused(is_used, before, parts) {
            // A run does not end because a store could not be reached for once: a later save removes it.
            Err(error) if error.kind() != ErrorKind::Io => {
                let message =
                    format!("the checkpoint is saved, but those that it replaces are not deleted: {error}");
                Err(Error::new(error.kind(), message).with_source(error))
            }
            _ => Ok(()),
        }
    }
}

impl Held {
    fn remove_unused(
        &self,
        is_used: &dyn Fn(&str) -> bool,
        before: &[Committed],
        parts: &Parts,
    ) -> Result<()> {
        for prefix in FOLDERS {
            // Parts of uploads that were killed are seen by nobody, and cost.
            let _ = self.far.place.abort_stale(prefix, LEFT);
            for object in self.list(prefix)? {
                let Some((folder, file)) = object.name.split_once('/') else { continue };
                if !Milestone::is_directory(folder) || is_used(folder) {
                    continue;
                }
                let was = before.iter().find(|committed| committed.directory == folder);
                let is_left =
                    || object.modified.and_then(|at| at.elapsed().ok()).is_some_and(|age| age >= LEFT);
                if parts.files_of(was).contains(file) && (was.is_some() || is_left()) {
                    self.delete(&object.name)?;
                }
            }
        }
        Ok(())
    }
}
