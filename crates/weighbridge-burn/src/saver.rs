//! A module into files.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{BoolStore, DType, TensorData as Data};
use weighbridge::write::{Save, Saved, TensorData};
use weighbridge::{Dtype, Error, ErrorKind, Names, Renames, Result};

use crate::dtype::{narrow_bools, to_stored};
use crate::mapping::{Mapping, Part, Target};
use crate::metadata::{IDS, QUANTISED, Quantised, ids, quantised_entry};
use crate::place::caught;
use crate::problems::selects_none;
use crate::walk::{self, Site};

/// Writes a module's parameters: streamed, some megabytes of one tensor at a time, into one file or a sharded directory.
///
/// How it is written a [`Save`] says; what it promises when something fails holds here too. The same values give the same
/// bytes every time: the ids of parameters, which are random, are left out unless they are [asked for](Self::ids).
#[must_use]
pub struct Saver {
    sites: Vec<Site>,
    mapping: Mapping,
    renames: Renames,
    save: Save,
    ids: bool,
    plain: bool,
    problem: Option<Error>,
}

/// Saves `module`: by Burn's own names and layouts, unless more is said.
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
    // Should a module panic at it, it is saved as it is.
    let _ = caught("running statistics were brought up to date", || {
        walk::settle(module);
        Ok(())
    });
    Saver {
        sites: walk::sites(module),
        mapping: Mapping::new(),
        renames: Renames::new(),
        save: Save::new(),
        ids: false,
        plain: false,
        problem: None,
    }
}

impl Saver {
    /// Gives names and layouts of [PyTorch](crate::Convention::PyTorch): short for `mapping(Mapping::pytorch())`.
    pub fn pytorch(self) -> Self {
        self.mapping(Mapping::pytorch())
    }

    /// Sets how the module's parameters lie in the files.
    pub fn mapping(mut self, mapping: Mapping) -> Self {
        self.mapping = mapping;
        self
    }

    /// Renames tensors, after everything else.
    pub fn rename(mut self, renames: Renames) -> Self {
        self.renames = renames;
        self
    }

    /// Saves only the parameters whose paths in the module are in the set. Each further call narrows the selection. A
    /// selection without any parameter is an error.
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

    /// Adds no metadata of its own accord.
    #[cfg(feature = "store")]
    pub(crate) fn plain(mut self) -> Self {
        self.plain = true;
        self
    }

    /// Sets how files are written: metadata, sizes of shards. The metadata gets `format: pt`, which readers in Python ask
    /// for, if it has no `format`.
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
    /// As [`Save::file`]; fails, too, when two tensors would have one name, when tied weights differ, and when a device
    /// fails.
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

    fn prepare(&self) -> Result<(Save, Vec<(String, Stored<'_>)>)> {
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

    /// Tied weights are written once; they must be the same.
    fn check_ties(&self, tensors: &[(String, Stored<'_>)]) -> Result<()> {
        for (name, other) in self.mapping.ties() {
            let own = self.sites.iter().enumerate().find(|(_, site)| self.mapping.name(site) == *name);
            let written = |name: &str| tensors.iter().find(|(_, stored)| stored.target.name == name);
            let (Some((site, own)), Some((_, written)), None) = (own, written(other), written(name)) else {
                continue;
            };
            let part = Part { site, range: None, exchanged: self.mapping.is_exchanged(own) };
            let target = Target { name: name.clone(), parts: vec![part], axis: 0 };
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

/// A tensor of a file, and the parameters that go into it.
struct Stored<'s> {
    sites: &'s [Site],
    target: Target,
    dtype: Dtype,
    shape: Vec<usize>,
    quantised: Option<Quantised>,
}

/// So many bytes are read from a device at a time: memory that the allocator keeps, and does not get anew each time.
const CHUNK: usize = 2 << 20;

impl<'s> Stored<'s> {
    fn new(sites: &'s [Site], target: Target) -> Result<Self> {
        let shapes: Vec<_> = target.parts.iter().map(|part| part.shape(sites, target.axis)).collect();
        let dtypes = target
            .parts
            .iter()
            .map(|part| caught("a parameter was initialised", || Ok(sites[part.site].slot.dtype())));
        let dtypes = dtypes.collect::<Result<Vec<_>>>()?;
        let (Some(mut shape), Some(&dtype)) = (shapes.first().cloned(), dtypes.first()) else {
            return Err(Error::new(ErrorKind::Internal, "a tensor is made of nothing"));
        };
        for (other, &other_dtype) in shapes.iter().zip(&dtypes).skip(1) {
            let fits = other.len() == shape.len()
                && other.iter().zip(&shape).enumerate().all(|(dim, (a, b))| dim == target.axis || a == b);
            if !fits || other_dtype != dtype {
                let message =
                    format!("{shape:?} of {dtype:?} and {other:?} of {other_dtype:?} cannot be put together");
                return Err(Error::new(ErrorKind::Shape, message));
            }
            if let (Some(size), Some(more)) = (shape.get_mut(target.axis), other.get(target.axis)) {
                *size += more;
            }
        }
        let stored = match dtype {
            DType::Bool(_) => Dtype::Bool,
            DType::QFloat(_) => {
                let [Part { site, range: None, exchanged }] = &*target.parts else {
                    let message = "a quantised tensor cannot be put together with others, or divided";
                    return Err(Error::new(ErrorKind::Dtype, message));
                };
                if *exchanged {
                    let message =
                        "a quantised weight cannot be laid out as PyTorch's; save it by Burn's convention";
                    return Err(Error::new(ErrorKind::Dtype, message));
                }
                let bytes = read(&sites[*site], false, &whole(&shape))?.as_bytes().len();
                let quantised = Some(Quantised { shape, dtype });
                return Ok(Self { sites, target, dtype: Dtype::U8, shape: vec![bytes], quantised });
            }
            other => to_stored(other)
                .ok_or_else(|| Error::new(ErrorKind::Dtype, format!("the format has no {other:?}")))?,
        };
        Ok(Self { sites, target, dtype: stored, shape, quantised: None })
    }

    /// The values, some rows at a time.
    fn chunks(&self) -> impl Iterator<Item = Result<Data>> {
        // A tensor whose parts lie side by side has no chunk of one part.
        let groups: Vec<_> =
            self.target.parts.iter().map(|part| self.rows_of(std::slice::from_ref(part))).collect();
        groups.into_iter().flatten().flat_map(move |(parts, rows)| {
            parts.iter().map(move |part| self.read(part, &rows)).collect::<Vec<_>>()
        })
    }

    /// Some rows of these parts at a time.
    fn rows_of<'p>(&self, parts: &'p [Part]) -> Vec<(&'p [Part], Range<usize>)> {
        let size = |part: &Part| {
            let shape = part.shape(self.sites, self.target.axis);
            let rows = shape.first().copied().unwrap_or(1);
            (rows, shape.iter().skip(1).product::<usize>())
        };
        let rows = parts.first().map_or(0, |part| size(part).0);
        let row: usize = parts.iter().map(|part| size(part).1).sum();
        let bytes = row * (self.dtype.bits() as usize).div_ceil(8);
        let step = (CHUNK / bytes.max(1)).max(1);
        if self.quantised.is_some() {
            return vec![(parts, 0..rows)];
        }
        (0..rows).step_by(step).map(|start| (parts, start..rows.min(start + step))).collect()
    }

    fn read(&self, part: &Part, rows: &Range<usize>) -> Result<Data> {
        let mut ranges = whole(&part.shape(self.sites, self.target.axis));
        if let (Some(range), Some(part)) = (ranges.get_mut(self.target.axis), &part.range) {
            *range = part.clone();
        }
        if self.quantised.is_none()
            && let Some(first) = ranges.first_mut()
        {
            *first = first.start + rows.start..first.start + rows.end;
        }
        read(&self.sites[part.site], part.exchanged, &ranges)
    }

    fn write(&self, out: &mut dyn Write) -> Result<io::Result<()>> {
        if self.target.axis == 0 || self.target.parts.len() == 1 {
            for chunk in self.chunks() {
                if let Err(error) = write_data(&chunk?, out) {
                    return Ok(Err(error));
                }
            }
            return Ok(Ok(()));
        }
        // Side by side: of each row the parts in turn.
        for (parts, rows) in self.rows_of(&self.target.parts) {
            let data = parts.iter().map(|part| self.read(part, &rows));
            let data = data.map(|data| Ok(little_endian(&data?))).collect::<Result<Vec<_>>>()?;
            for row in 0..rows.len() {
                for part in &data {
                    let len = part.len() / rows.len();
                    if let Err(error) = out.write_all(&part[row * len..(row + 1) * len]) {
                        return Ok(Err(error));
                    }
                }
            }
        }
        Ok(Ok(()))
    }
}

fn whole(shape: &[usize]) -> Vec<Range<usize>> {
    shape.iter().map(|&dim| 0..dim).collect()
}

fn read(site: &Site, exchanged: bool, ranges: &[Range<usize>]) -> Result<Data> {
    caught("it was read", || site.slot.read(exchanged, ranges))
}

impl TensorData for Stored<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        self.write(out).map_err(io::Error::other)?
    }
}

fn write_data(data: &Data, out: &mut dyn Write) -> io::Result<()> {
    match data.dtype() {
        DType::Bool(BoolStore::U32) => out.write_all(&little_endian(data)),
        _ if cfg!(target_endian = "little") => out.write_all(data.as_bytes()),
        _ => out.write_all(&little_endian(data)),
    }
}

/// The bytes as a file has them.
fn little_endian(data: &Data) -> Vec<u8> {
    let bytes = data.as_bytes();
    match data.dtype() {
        DType::Bool(BoolStore::U32) => narrow_bools(bytes),
        DType::QFloat(_) => bytes.to_vec(),
        dtype if cfg!(target_endian = "big") => {
            bytes.chunks(dtype.size().max(1)).flat_map(|value| value.iter().rev().copied()).collect()
        }
        _ => bytes.to_vec(),
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
