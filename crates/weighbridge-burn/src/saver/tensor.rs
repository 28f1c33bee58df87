//! A tensor of a file, written from the parameters that go into it.

use std::io::{self, Write};
use std::ops::Range;

use burn::tensor::{BoolStore, DType, TensorData as Data};
use weighbridge::write::TensorData;
use weighbridge::{Dtype, Error, ErrorKind, Result};

use crate::dtype::{narrow_bools, to_stored};
use crate::mapping::targets::{Share, Target};
use crate::metadata::Quantised;
use crate::panics::caught;
use crate::walk::Site;

/// A tensor of a file, and the parameters that go into it.
pub(crate) struct Stored<'s> {
    sites: &'s [Site],
    pub(super) target: Target,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) quantised: Option<Quantised>,
}

/// The bytes that are read from a device at a time: few enough for the allocator to reuse its memory from one
/// to the next.
const CHUNK: usize = 2 << 20;

impl<'s> Stored<'s> {
    pub(super) fn new(sites: &'s [Site], target: Target) -> Result<Self> {
        let shapes: Vec<_> = target.shares.iter().map(|share| share.shape(sites, target.axis)).collect();
        let dtypes = target
            .shares
            .iter()
            .map(|share| caught("a parameter was initialised", || Ok(sites[share.site].slot.dtype())));
        let dtypes = dtypes.collect::<Result<Vec<_>>>()?;
        let (Some(mut shape), Some(&dtype)) = (shapes.first().cloned(), dtypes.first()) else {
            return Err(Error::new(ErrorKind::Internal, "no parameter goes into the tensor"));
        };
        for (other, &other_dtype) in shapes.iter().zip(&dtypes).skip(1) {
            let fits = other.len() == shape.len()
                && other.iter().zip(&shape).enumerate().all(|(dim, (a, b))| dim == target.axis || a == b);
            if !fits || other_dtype != dtype {
                let message =
                    format!("{shape:?} of {dtype:?} and {other:?} of {other_dtype:?} cannot be joined");
                return Err(Error::new(ErrorKind::Shape, message));
            }
            if let (Some(size), Some(more)) = (shape.get_mut(target.axis), other.get(target.axis)) {
                *size += more;
            }
        }
        let stored = match dtype {
            DType::Bool(_) => Dtype::Bool,
            DType::QFloat(_) => {
                let [Share { site, range: None, transposed }] = &*target.shares else {
                    let message = "a quantised tensor cannot be joined with others or divided";
                    return Err(Error::new(ErrorKind::Dtype, message));
                };
                if *transposed {
                    let message = "a quantised weight cannot be laid out as PyTorch has it; save it by Burn's convention";
                    return Err(Error::new(ErrorKind::Dtype, message));
                }
                let bytes = read(&sites[*site], false, &whole(&shape))?.as_bytes().len();
                let quantised = Some(Quantised { shape, dtype });
                return Ok(Self { sites, target, dtype: Dtype::U8, shape: vec![bytes], quantised });
            }
            other => to_stored(other)
                .ok_or_else(|| Error::new(ErrorKind::Dtype, format!("safetensors has no {other:?}")))?,
        };
        Ok(Self { sites, target, dtype: stored, shape, quantised: None })
    }

    /// The values, some rows at a time.
    pub(super) fn chunks(&self) -> impl Iterator<Item = Result<Data>> {
        let groups: Vec<_> =
            self.target.shares.iter().map(|share| self.rows_of(std::slice::from_ref(share))).collect();
        groups.into_iter().flatten().flat_map(move |(shares, rows)| {
            shares.iter().map(move |share| self.read(share, &rows)).collect::<Vec<_>>()
        })
    }

    /// These shares, some rows at a time.
    fn rows_of<'p>(&self, shares: &'p [Share]) -> Vec<(&'p [Share], Range<usize>)> {
        let size = |share: &Share| {
            let shape = share.shape(self.sites, self.target.axis);
            let rows = shape.first().copied().unwrap_or(1);
            (rows, shape.iter().skip(1).product::<usize>())
        };
        let rows = shares.first().map_or(0, |share| size(share).0);
        let row: usize = shares.iter().map(|share| size(share).1).sum();
        let bytes = row * (self.dtype.bits() as usize).div_ceil(8);
        let step = (CHUNK / bytes.max(1)).max(1);
        if self.quantised.is_some() {
            return vec![(shares, 0..rows)];
        }
        (0..rows).step_by(step).map(|start| (shares, start..rows.min(start + step))).collect()
    }

    fn read(&self, share: &Share, rows: &Range<usize>) -> Result<Data> {
        let mut ranges = whole(&share.shape(self.sites, self.target.axis));
        if let (Some(range), Some(part)) = (ranges.get_mut(self.target.axis), &share.range) {
            *range = part.clone();
        }
        if self.quantised.is_none()
            && let Some(first) = ranges.first_mut()
        {
            *first = first.start + rows.start..first.start + rows.end;
        }
        read(&self.sites[share.site], share.transposed, &ranges)
    }

    fn write(&self, out: &mut dyn Write) -> Result<io::Result<()>> {
        if self.target.axis == 0 || self.target.shares.len() == 1 {
            for chunk in self.chunks() {
                if let Err(error) = write_data(&chunk?, out) {
                    return Ok(Err(error));
                }
            }
            return Ok(Ok(()));
        }
        // The shares are joined along a later dimension: each row is put together from theirs.
        for (shares, rows) in self.rows_of(&self.target.shares) {
            let data = shares.iter().map(|share| self.read(share, &rows));
            let data = data.map(|data| Ok(little_endian(&data?))).collect::<Result<Vec<_>>>()?;
            for row in 0..rows.len() {
                for share in &data {
                    let len = share.len() / rows.len();
                    if let Err(error) = out.write_all(&share[row * len..(row + 1) * len]) {
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

fn read(site: &Site, transposed: bool, ranges: &[Range<usize>]) -> Result<Data> {
    caught("it was read", || site.slot.read(transposed, ranges))
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

/// The bytes as files have them.
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
