//! Tensors that no file stores: each is derived from stored ones, and goes into entries as if it were stored.
//!
//! An operation is bound to such inputs as to any other. [`flatten`] puts what derives them between the operation and the
//! stored tensors, so that the engine sees stored tensors only.

use std::fmt::Debug;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use super::operation::{Bound, Cast, Operation, Piece, Read, Tiles};
use super::{Entry, Input, Made, Overflow, Rules};
use crate::blocks::BlockType;
use crate::buffer::{self, Fault, copied};
use crate::cast::swap_bytes;
use crate::dequantize::Apart;
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};

/// How a tensor is derived from stored ones.
#[derive(Clone, Debug)]
pub(crate) struct Derived {
    inputs: Arc<[Input]>,
    /// Makes it in the dtype that it is said to have.
    tiles: Arc<dyn Derive>,
    /// Makes it in `F32`, before values are rounded; `None` if that does not hold them.
    wide: Option<Arc<dyn Derive>>,
}

/// Tiles that are asked for several ranges of the output at a time, which together may need less than each alone.
pub(crate) trait Derive: Tiles {
    /// Of the output.
    fn dtype(&self) -> Dtype;

    /// The same, one range at a time.
    fn as_tiles(self: Arc<Self>) -> Arc<dyn Tiles>;

    /// Appends to `pieces` what these bytes of the output need.
    fn gather_all(&self, ranges: &[Range<u64>], pieces: &mut Vec<Piece>) {
        ranges.iter().for_each(|range| self.gather(range.clone(), pieces));
    }

    /// Makes these bytes of the output, one range after the other.
    ///
    /// # Errors
    ///
    /// As [`Tiles::compute`].
    fn compute_all<'t>(
        &self,
        ranges: &[Range<u64>],
        gathered: &[u8],
        out: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        let (mut ranges, mut rest) = (ranges.iter(), gathered);
        let mut pieces = Vec::new();
        buffer::fill::<Fault>(out, |_, into| {
            let Some(range) = ranges.next() else { return Ok(Some(&[])) };
            pieces.clear();
            self.gather(range.clone(), &mut pieces);
            let (gathered, behind) = rest.split_at_checked(len_of(&pieces)).ok_or_else(unlike)?;
            rest = behind;
            let into = into.get_mut(..(range.end - range.start) as usize).ok_or_else(unlike)?;
            Ok(Some(self.compute(range.clone(), gathered, into)?))
        })
        .map_err(|Fault(error)| error)
    }

    /// The same weights as blocks, and their type, if they can say them exactly.
    ///
    /// # Errors
    ///
    /// Fails where they cannot, and says why.
    fn blocks(&self, inputs: &[Input]) -> Result<(BlockType, Arc<dyn Tiles>)> {
        let _ = inputs;
        Err(no_module())
    }

    /// The same weights as codes and scales, if they are codes times scales.
    ///
    /// # Errors
    ///
    /// Fails where they are not, and says why.
    fn apart(&self, inputs: &[Input]) -> Result<Apart> {
        let _ = inputs;
        Err(no_module())
    }
}

impl Derived {
    /// What `wide` makes of `inputs`, in `F32`, and `tiles` in the dtype that it is said to have.
    pub(crate) fn new(inputs: Vec<Input>, tiles: Arc<dyn Derive>, wide: Option<Arc<dyn Derive>>) -> Self {
        Self { inputs: inputs.into(), tiles, wide }
    }

    /// What an entry makes.
    pub(crate) fn of(entry: &Entry) -> Self {
        let derive = |made: &Made| {
            Arc::new(Whole { of: Arc::clone(&made.tiles), dtype: made.dtype }) as Arc<dyn Derive>
        };
        let holds = is_narrow(entry.base.dtype) || entry.base.dtype == Dtype::F32;
        let wide = holds.then(|| entry.base.cast(Dtype::F32, Rules::new(Overflow::default())).ok()).flatten();
        Self {
            inputs: Arc::clone(&entry.inputs),
            tiles: derive(&entry.made),
            wide: wide.as_ref().map(derive),
        }
    }

    /// A stored tensor of floats in a wider dtype.
    pub(super) fn cast(input: &Input, dtype: Dtype) -> Option<Self> {
        let read = Read.bind(std::slice::from_ref(input)).ok().filter(|_| is_narrow(input.dtype()))?;
        let tiles = Cast::tiles(&read.tiles, input.dtype(), dtype, Overflow::default()).ok()?;
        let tiles: Arc<dyn Derive> = Arc::new(tiles);
        Some(Self { inputs: Arc::new([input.clone()]), wide: Some(Arc::clone(&tiles)), tiles })
    }

    /// The same in `F32`, if that holds its values.
    pub(super) fn widened(&self) -> Option<Self> {
        Some(Self { tiles: Arc::clone(self.wide.as_ref()?), ..self.clone() })
    }

    /// Its tiles: in `F32` if that holds its values, and in the dtype that it is said to have.
    pub(super) fn made(&self) -> (Option<Arc<dyn Tiles>>, Arc<dyn Tiles>) {
        (self.wide.clone().map(Derive::as_tiles), Arc::clone(&self.tiles).as_tiles())
    }

    /// The same as blocks.
    ///
    /// # Errors
    ///
    /// As [`Derive::blocks`].
    pub(crate) fn blocks(&self) -> Result<(BlockType, Arc<dyn Tiles>)> {
        self.wide.as_ref().unwrap_or(&self.tiles).blocks(&self.inputs)
    }

    /// The same as codes and scales.
    ///
    /// # Errors
    ///
    /// As [`Derive::apart`].
    pub(crate) fn apart(&self) -> Result<Apart> {
        self.wide.as_ref().unwrap_or(&self.tiles).apart(&self.inputs)
    }

    /// The stored tensors.
    pub(crate) fn inputs(&self) -> &[Input] {
        &self.inputs
    }
}

/// Whether all values of a dtype are among those of `F32`, and it is another one.
fn is_narrow(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::F8_E8M0)
}

/// The tiles of an entry, for one range after the other.
#[derive(Debug)]
struct Whole {
    of: Arc<dyn Tiles>,
    dtype: Dtype,
}

impl Tiles for Whole {
    fn gather(&self, tile: Range<u64>, pieces: &mut Vec<Piece>) {
        self.of.gather(tile, pieces);
    }

    fn run(&self, tile: &Range<u64>) -> Option<Range<u64>> {
        self.of.run(tile)
    }

    fn is_direct(&self) -> bool {
        self.of.is_direct()
    }

    fn compute<'t>(
        &self,
        tile: Range<u64>,
        gathered: &[u8],
        out: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        match self.of.is_direct() {
            true if gathered.len() == out.len() => Ok(copied(out, gathered)),
            true => Err(unlike()),
            false => self.of.compute(tile, gathered, out),
        }
    }

    fn step(&self) -> u64 {
        self.of.step()
    }

    fn in_dtype(&self, dtype: Dtype, overflow: Overflow) -> Option<Arc<dyn Tiles>> {
        self.of.in_dtype(dtype, overflow)
    }

    fn is_native(&self) -> bool {
        self.of.is_native()
    }
}

impl Derive for Whole {
    fn as_tiles(self: Arc<Self>) -> Arc<dyn Tiles> {
        self
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }
}

/// What an operation is bound to, and the stored tensors behind it: the operation's tiles are made of those.
pub(super) fn flatten(inputs: &Arc<[Input]>, bound: Bound) -> (Arc<[Input]>, Bound) {
    if !inputs.iter().any(|input| input.derived().is_some()) {
        return (Arc::clone(inputs), bound);
    }
    let mut stored = Vec::new();
    let origins = inputs.iter().map(|input| {
        let first = stored.len();
        match input.derived() {
            Some(derived) => {
                stored.extend_from_slice(&derived.inputs);
                Origin { first, tiles: Some(Arc::clone(&derived.tiles)) }
            }
            None => {
                stored.push(input.clone());
                Origin { first, tiles: None }
            }
        }
    });
    let origins: Vec<_> = origins.collect();
    let tiles: Arc<dyn Tiles> = match &*origins {
        [Origin { tiles: Some(tiles), .. }] if Read::is(&bound.tiles) => Arc::clone(tiles).as_tiles(),
        _ => Arc::new(Through { outer: bound.tiles, origins }),
    };
    (stored.into(), Bound { tiles, ..bound })
}

/// The tiles of an operation, some of whose inputs are derived.
#[derive(Debug)]
struct Through {
    outer: Arc<dyn Tiles>,
    /// Of each of its inputs.
    origins: Vec<Origin>,
}

/// Where an input comes from.
#[derive(Debug)]
struct Origin {
    /// The index of the first stored tensor that it is made of.
    first: usize,
    /// What makes it; it is stored if there is nothing.
    tiles: Option<Arc<dyn Derive>>,
}

/// Ranges of one input that follow each other.
struct Run<'o> {
    origin: &'o Origin,
    ranges: Vec<Range<u64>>,
}

impl Run<'_> {
    fn len(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    /// What it is made of.
    fn gather(&self, pieces: &mut Vec<Piece>) {
        let Origin { first, tiles } = self.origin;
        let start = pieces.len();
        match tiles {
            Some(tiles) => tiles.gather_all(&self.ranges, pieces),
            None => pieces.extend(self.ranges.iter().map(|bytes| Piece { input: 0, bytes: bytes.clone() })),
        }
        pieces[start..].iter_mut().for_each(|piece| piece.input += first);
    }
}

impl Through {
    fn runs(&self, tile: Range<u64>) -> Vec<Run<'_>> {
        let mut pieces = Vec::new();
        self.outer.gather(tile, &mut pieces);
        let mut runs: Vec<Run<'_>> = Vec::new();
        for Piece { input, bytes } in pieces {
            let Some(origin) = self.origins.get(input) else { continue };
            match runs.last_mut().filter(|run| std::ptr::eq(run.origin, origin)) {
                Some(run) => run.ranges.push(bytes),
                None => runs.push(Run { origin, ranges: vec![bytes] }),
            }
        }
        runs
    }

    /// The inputs, as the operation wants them, into `out`.
    fn derive<'t>(
        runs: Vec<Run<'_>>,
        gathered: &[u8],
        out: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        let (mut runs, mut rest, mut pieces) = (runs.into_iter(), gathered, Vec::new());
        buffer::fill::<Fault>(out, |_, into| {
            let Some(run) = runs.next() else { return Ok(Some(&[])) };
            pieces.clear();
            run.gather(&mut pieces);
            let (gathered, behind) = rest.split_at_checked(len_of(&pieces)).ok_or_else(unlike)?;
            rest = behind;
            let into = into.get_mut(..run.len() as usize).ok_or_else(unlike)?;
            Ok(Some(match &run.origin.tiles {
                Some(tiles) => {
                    let made = tiles.compute_all(&run.ranges, gathered, into)?;
                    if cfg!(target_endian = "big") && tiles.is_native() {
                        swap_bytes(tiles.dtype(), made);
                    }
                    made
                }
                None if into.len() == gathered.len() => copied(into, gathered),
                None => return Err(unlike().into()),
            }))
        })
        .map_err(|Fault(error)| error)
    }
}

impl Tiles for Through {
    fn gather(&self, tile: Range<u64>, pieces: &mut Vec<Piece>) {
        self.runs(tile).iter().for_each(|run| run.gather(pieces));
    }

    fn is_direct(&self) -> bool {
        let moves = |origin: &Origin| origin.tiles.as_ref().is_none_or(|tiles| tiles.is_direct());
        self.outer.is_direct() && self.origins.iter().all(moves)
    }

    fn compute<'t>(
        &self,
        tile: Range<u64>,
        gathered: &[u8],
        out: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        let runs = self.runs(tile.clone());
        if self.outer.is_direct() {
            return Self::derive(runs, gathered, out);
        }
        let len: u64 = runs.iter().map(Run::len).sum();
        let mut scratch = Vec::with_capacity(len as usize);
        let scratch = Self::derive(runs, gathered, &mut scratch.spare_capacity_mut()[..len as usize])?;
        self.outer.compute(tile, scratch, out)
    }

    fn step(&self) -> u64 {
        let derived = self.origins.iter().filter_map(|origin| origin.tiles.as_ref());
        self.outer.step().min(derived.map(|tiles| tiles.step()).max().unwrap_or(u64::MAX))
    }

    fn is_native(&self) -> bool {
        !self.outer.is_direct() && self.outer.is_native()
    }
}

fn len_of(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| (piece.bytes.end - piece.bytes.start) as usize).sum()
}

fn no_module() -> Error {
    Error::new(ErrorKind::Unsupported, "it is no weight of a quantised module")
}

fn unlike() -> Error {
    Error::new(ErrorKind::Internal, "a derived tensor and what was gathered for it differ in length")
}
