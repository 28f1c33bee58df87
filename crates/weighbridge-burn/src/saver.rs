//! A module into files.

mod tensor;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use burn::module::Module;
use weighbridge::write::{Save, Saved};
use weighbridge::{Error, ErrorKind, Names, Renames, Result};

use self::tensor::Stored;
use crate::mapping::Mapping;
use crate::mapping::targets::{Share, Target};
use crate::metadata::{IDS, QUANTISED, ids, quantised_entry};
use crate::panics::caught;
use crate::problems::selects_none;
use crate::walk::{self, Site};

/// Writes a module's parameters into one file or a sharded directory. They are streamed: a few megabytes of
/// one tensor are in memory at a time.
///
/// A [`Save`] says how files are written, and its promises in the case of a failure hold here, too. The same
/// values give the same bytes every time: the ids of parameters, which are random, are left out unless they
/// are [asked for](Self::ids).
#[must_use = "nothing is saved until `file`, `directory` or `bytes` is called"]
pub struct Saver {
    sites: Vec<Site>,
    mapping: Mapping,
    renames: Renames,
    save: Save,
    ids: bool,
    plain: bool,
    problem: Option<Error>,
}

/// Starts a save of `module`, as [`Saver::new`] does.
///
/// ```
/// use weighbridge_burn::burn::nn::LinearConfig;
/// # use weighbridge_burn::burn::tensor::Device;
///
/// # fn main() -> weighbridge_burn::weighbridge::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let device = Device::default();
/// let linear = LinearConfig::new(3, 2).init(&device);
/// weighbridge_burn::save(&linear).pytorch().directory(&directory, "model")?;
/// # Ok(())
/// # }
/// ```
pub fn save<M: Module>(module: &M) -> Saver {
    Saver::new(module)
}

impl Saver {
    /// A save of every parameter of `module`, by Burn's own names and layouts.
    pub fn new<M: Module>(module: &M) -> Self {
        // A module that panics here is saved as it is.
        let _ = caught("running statistics were brought up to date", || {
            walk::settle(module);
            Ok(())
        });
        Self {
            sites: walk::sites(module),
            mapping: Mapping::new(),
            renames: Renames::new(),
            save: Save::new(),
            ids: false,
            plain: false,
            problem: None,
        }
    }

    /// Saves by the names and layouts of [PyTorch](crate::Convention::PyTorch): short for
    /// `mapping(Mapping::pytorch())`.
    pub fn pytorch(self) -> Self {
        self.mapping(Mapping::pytorch())
    }

    /// Sets how files name and lay out the module's parameters.
    pub fn mapping(mut self, mapping: Mapping) -> Self {
        self.mapping = mapping;
        self
    }

    /// Renames the tensors after the mapping has named them.
    pub fn rename(mut self, renames: Renames) -> Self {
        self.renames = renames;
        self
    }

    /// Saves only the parameters whose paths in the module are in the set. Each further call narrows the
    /// selection. A selection without any parameter is an error.
    pub fn only(mut self, paths: Names) -> Self {
        let is_kept = |site: &Site| paths.contains(&site.path());
        if let Some(first) = self.sites.first()
            && !self.sites.iter().any(is_kept)
        {
            self.problem = Some(selects_none(first));
        }
        self.keep(is_kept)
    }

    pub(crate) fn keep(mut self, keep: impl Fn(&Site) -> bool) -> Self {
        self.sites.retain(keep);
        self
    }

    /// Adds no metadata but what the `Save` has.
    #[cfg(feature = "store")]
    pub(crate) fn plain(mut self) -> Self {
        self.plain = true;
        self
    }

    /// Sets how files are written: metadata, the size of shards. Unless the metadata has a `format`, it gets
    /// `format: pt`, which readers in Python ask for.
    pub fn with(mut self, save: Save) -> Self {
        self.save = save;
        self
    }

    /// Saves the ids of parameters in the metadata, so that the state of an optimizer finds them again.
    pub fn ids(mut self) -> Self {
        self.ids = true;
        self
    }

    /// Writes one file; see [`Save::file`].
    ///
    /// # Errors
    ///
    /// As [`Save::file`]; and when two tensors would have one name, when tied weights differ, when a
    /// parameter is loaded through an [operation](Mapping::operation), and when a device fails.
    pub fn file(&self, path: impl AsRef<Path>) -> Result<()> {
        let (save, tensors) = self.prepare()?;
        save.file(path, tensors)
    }

    /// Writes a checkpoint into a directory; see [`Save::directory`].
    ///
    /// # Errors
    ///
    /// As [`Save::directory`] and [`file`](Self::file).
    pub fn directory(&self, directory: impl AsRef<Path>, name: &str) -> Result<Saved> {
        let (save, tensors) = self.prepare()?;
        save.directory(directory, name, tensors)
    }

    /// Writes to memory; see [`Save::bytes`].
    ///
    /// # Errors
    ///
    /// As [`Save::bytes`] and [`file`](Self::file).
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let (save, tensors) = self.prepare()?;
        save.bytes(tensors)
    }

    /// How files are written, and the tensors that they will have.
    pub(crate) fn prepare(&self) -> Result<(Save, Vec<(String, Stored<'_>)>)> {
        if let Some(problem) = &self.problem {
            return Err(problem.clone());
        }
        let mut save = self.save.clone();
        if !self.plain && save.metadata_value("format").is_none() {
            save = save.metadata("format", "pt");
        }
        if self.ids {
            let paths: Vec<_> = self.sites.iter().map(|site| (site.path(), site.id.val())).collect();
            save = save.metadata(IDS, ids(paths.iter().map(|(path, id)| (&**path, *id))));
        }
        let mut quantised = BTreeMap::new();
        let mut tensors = Vec::new();
        for target in self.mapping.targets(&self.sites)? {
            let name = self.renames.apply(&target.name);
            let stored = Stored::new(&self.sites, target).map_err(|error| error.in_tensor(&name))?;
            if let Some(scheme) = &stored.quantised {
                quantised.insert(name.clone(), scheme.clone());
            }
            tensors.push((name, stored));
        }
        if !quantised.is_empty() {
            save = save.metadata(QUANTISED, quantised_entry(&quantised));
        }
        self.check_ties(&tensors)?;
        Ok((save, tensors))
    }

    /// Checks that tied weights, of which only one is written, are the same.
    fn check_ties(&self, tensors: &[(String, Stored<'_>)]) -> Result<()> {
        for (name, other) in self.mapping.ties() {
            let own = self.sites.iter().enumerate().find(|(_, site)| self.mapping.name(site) == *name);
            let written = |name: &str| tensors.iter().find(|(_, stored)| stored.target.name == name);
            let (Some((site, own)), Some((_, written)), None) = (own, written(other), written(name)) else {
                continue;
            };
            let share = Share { site, range: None, transposed: self.mapping.is_transposed(own) };
            let target = Target { name: name.clone(), shares: vec![share], axis: 0 };
            let own = Stored::new(&self.sites, target)?;
            let mut same = own.shape == written.shape && own.dtype == written.dtype;
            let mut written = written.chunks();
            for chunk in own.chunks() {
                same = same
                    && match written.next() {
                        Some(other) => chunk?.as_bytes() == other?.as_bytes(),
                        None => false,
                    };
            }
            if !same {
                let message = format!("it is tied to {other:?}, but does not have its values");
                return Err(Error::new(ErrorKind::Value, message).in_tensor(name));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Saver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Saver")
            .field("parameters", &self.sites.len())
            .field("mapping", &self.mapping)
            .finish_non_exhaustive()
    }
}
