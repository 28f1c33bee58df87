//! Values encoded in groups: what quantised weights are made by.

use std::borrow::Cow;
use std::fmt::Debug;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use super::{Bound, Piece, Tiles, made_by};
use crate::buffer;
use crate::cast::swap_bytes;
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::text::brief;

/// Encodes values group by group: a fixed number of successive values of a row-major tensor becomes a fixed
/// number of bytes, whatever the other groups hold. The last group may be shorter.
///
/// Codes that need a scale and the scale itself are two encodings of the same values.
///
/// ```
/// use std::sync::Arc;
///
/// use weighbridge::plan::{Bound, Cast, Encode, Input, Operation};
/// use weighbridge::{Checkpoint, Dtype, Entry, Plan, Result};
///
/// /// The largest value of each row.
/// #[derive(Debug)]
/// struct Largest {
///     columns: usize,
/// }
///
/// impl Encode for Largest {
///     fn values(&self) -> usize {
///         self.columns
///     }
///
///     fn bytes(&self, _: usize) -> usize {
///         4
///     }
///
///     fn encode(&self, values: &[f32], out: &mut [u8]) -> Result<()> {
///         let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
///         out.copy_from_slice(&largest.to_le_bytes());
///         Ok(())
///     }
/// }
///
/// #[derive(Debug)]
/// struct LargestOfRows;
///
/// impl Operation for LargestOfRows {
///     fn bind(&self, inputs: &[Input]) -> Result<Bound> {
///         let values = Cast::to(Dtype::F32).bind(inputs)?;
///         let (rows, columns) = (values.shape()[0], values.shape()[1]);
///         values.encoded(Largest { columns }, Dtype::F32, [rows])
///     }
/// }
///
/// # fn main() -> Result<()> {
/// # let header = r#"{"a":{"dtype":"BF16","shape":[2,1],"data_offsets":[0,4]}}"#;
/// # let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), b"\x80\x3f\0\x40"].concat();
/// let ckpt = Checkpoint::from_bytes(bytes)?;
/// let input = Input::of(&ckpt.tensor("a").unwrap());
/// let entry = Entry::new("largest", vec![input], Arc::new(LargestOfRows))?;
/// let session = Plan::new([entry]).session().start()?;
/// assert_eq!(session.take("largest", None)?.1.as_bytes(), [0, 0, 128, 63, 0, 0, 0, 64]);
/// # Ok(())
/// # }
/// ```
pub trait Encode: Debug + Send + Sync {
    /// The number of values in a group.
    fn values(&self) -> usize;

    /// The number of bytes that a group becomes: of [`values`](Self::values) values, or of fewer, if it is
    /// the last one.
    fn bytes(&self, values: usize) -> usize;

    /// Encodes a group, into as many bytes as [`bytes`](Self::bytes) says, which are zero before. Numbers in
    /// them are little-endian.
    ///
    /// # Errors
    ///
    /// Fails when a value cannot be encoded.
    fn encode(&self, values: &[f32], out: &mut [u8]) -> Result<()>;
}

impl Bound {
    /// What `encoder` makes of the values, which must be `F32`, as a tensor of another dtype and shape.
    ///
    /// # Errors
    ///
    /// Fails when the values are not `F32`, and when the groups do not have as many bytes as the shape needs.
    pub fn encoded(
        self,
        encoder: impl Encode + 'static,
        dtype: Dtype,
        shape: impl Into<Vec<usize>>,
    ) -> Result<Self> {
        let shape = shape.into();
        if self.dtype != Dtype::F32 {
            let message = format!("values of {} cannot be encoded: cast them to F32", self.dtype);
            return Err(Error::new(ErrorKind::Dtype, message));
        }
        let total = self.dtype.size_of(&self.shape)? / VALUE;
        let (values, bytes) = (encoder.values().max(1), encoder.bytes(encoder.values()) as u64);
        let rest = match (total % values as u64) as usize {
            0 => 0,
            rest => encoder.bytes(rest) as u64,
        };
        let len = (total / values as u64).checked_mul(bytes).and_then(|len| len.checked_add(rest));
        if len != Some(dtype.size_of(&shape)?) || (bytes == 0 && total > 0) {
            let message = format!(
                "values of shape {} are not encoded as {dtype} of shape {}",
                brief(&self.shape),
                brief(&shape)
            );
            return Err(Error::new(ErrorKind::Shape, message));
        }
        let tiles = Encoded {
            of: self.tiles,
            encoder: Box::new(encoder),
            total,
            values: values as u64,
            bytes: bytes.max(1),
        };
        Ok(Self::new(dtype, shape, tiles))
    }
}

/// The bytes of a value before it is encoded.
const VALUE: u64 = 4;

/// So many values are encoded at a time, or a group if it has more: they fill half of a usual second-level
/// cache.
const BATCH: u64 = 64 << 10;

#[derive(Debug)]
struct Encoded {
    /// Makes the values.
    of: Arc<dyn Tiles>,
    encoder: Box<dyn Encode>,
    /// The number of values.
    total: u64,
    /// Of a group.
    values: u64,
    bytes: u64,
}

impl Encoded {
    /// The groups that a tile touches.
    fn groups(&self, tile: &Range<u64>) -> Range<u64> {
        let start = tile.start / self.bytes;
        if tile.is_empty() { start..start } else { start..tile.end.div_ceil(self.bytes) }
    }

    /// The bytes of the values in the groups that a tile touches.
    fn before(&self, tile: &Range<u64>) -> Range<u64> {
        let groups = self.groups(tile);
        let byte = |group: u64| group.saturating_mul(self.values).min(self.total) * VALUE;
        byte(groups.start)..byte(groups.end)
    }
}

impl Tiles for Encoded {
    fn gather(&self, tile: Range<u64>, pieces: &mut Vec<Piece>) {
        self.of.gather(self.before(&tile), pieces);
    }

    fn run(&self, tile: &Range<u64>) -> Option<Range<u64>> {
        self.of.run(&self.before(tile))
    }

    fn compute<'t>(
        &self,
        tile: Range<u64>,
        gathered: &[u8],
        out: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        let before = self.before(&tile);
        let (mut scratch, len) = (Vec::new(), (before.end - before.start) as usize);
        let made = made_by(&*self.of, Dtype::F32, before, gathered, &mut scratch)?;
        if made.len() != len || out.len() as u64 != tile.end - tile.start {
            return Err(Error::new(ErrorKind::Internal, "a tile and its input differ in length"));
        }
        let mut made = Cow::Borrowed(made);
        if cfg!(target_endian = "big") {
            swap_bytes(Dtype::F32, made.to_mut());
        }
        let values: Cow<'_, [f32]> = match bytemuck::try_cast_slice(&made) {
            Ok(values) => Cow::Borrowed(values),
            Err(_) => Cow::Owned(made.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()),
        };
        let out = buffer::zeroed(out);
        let (mut group, mut start) = (Vec::new(), self.groups(&tile).start * self.bytes);
        for values in values.chunks(self.values as usize) {
            let len = self.encoder.bytes(values.len());
            let end = start + len as u64;
            // The part of the group that lies in the tile.
            let part = start.max(tile.start)..end.min(tile.end);
            let place = (part.start - tile.start) as usize..(part.end - tile.start) as usize;
            if part == (start..end) {
                self.encoder.encode(values, &mut out[place])?;
            } else {
                group.clear();
                group.resize(len, 0);
                self.encoder.encode(values, &mut group)?;
                out[place]
                    .copy_from_slice(&group[(part.start - start) as usize..(part.end - start) as usize]);
            }
            start = end;
        }
        Ok(out)
    }

    fn step(&self) -> u64 {
        (BATCH / self.values).max(1).saturating_mul(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Cast, Input, Operation};
    use crate::write::{Save, Values};
    use crate::{Checkpoint, Entry, Plan};

    /// A group as the number of its values, and each value in a byte.
    #[derive(Debug)]
    struct Counted;

    impl Encode for Counted {
        fn values(&self) -> usize {
            3
        }

        fn bytes(&self, values: usize) -> usize {
            1 + values
        }

        fn encode(&self, values: &[f32], out: &mut [u8]) -> Result<()> {
            out[0] = 100 + values.len() as u8;
            out[1..].iter_mut().zip(values).for_each(|(out, value)| *out = *value as u8);
            if values.contains(&99.0) {
                return Err(Error::new(ErrorKind::Value, "99"));
            }
            Ok(())
        }
    }

    /// The tensor cast to `F32`, and encoded.
    #[derive(Debug)]
    struct Count(usize);

    impl Operation for Count {
        fn bind(&self, inputs: &[Input]) -> Result<Bound> {
            Cast::to(Dtype::F32).bind(inputs)?.encoded(Counted, Dtype::U8, [self.0])
        }
    }

    fn counted<T: crate::Element>(values: &[T], bytes: usize) -> Result<Vec<u8>> {
        let saved = Save::new().bytes([("w", Values::new(&[values.len()], values)?)])?;
        let checkpoint = Checkpoint::from_bytes(saved)?;
        let input = Input::of(&checkpoint.tensor("w").unwrap());
        let entry = Entry::new("w", vec![input], Arc::new(Count(bytes)))?;
        let whole = Plan::new([entry.clone()]).session().start()?.take("w", None)?.1.as_bytes().to_vec();
        // Every part of it is the same, however groups are cut.
        let stored = bytemuck::cast_slice::<T, u8>(values);
        for start in 0..whole.len() as u64 {
            for end in start..=whole.len() as u64 {
                let (mut pieces, mut out) = (Vec::new(), vec![MaybeUninit::uninit(); (end - start) as usize]);
                entry.tiles().gather(start..end, &mut pieces);
                let gathered: Vec<u8> = pieces
                    .iter()
                    .flat_map(|piece| &stored[piece.bytes.start as usize..piece.bytes.end as usize])
                    .copied()
                    .collect();
                let made = entry.tiles().compute(start..end, &gathered, &mut out)?;
                assert_eq!(*made, whole[start as usize..end as usize]);
            }
        }
        Ok(whole)
    }

    #[test]
    fn groups_are_encoded_wherever_a_tile_cuts_them() {
        let expected = [103, 1, 2, 3, 103, 4, 5, 6, 102, 7, 8];
        assert_eq!(counted(&[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 11).unwrap(), expected);
        assert_eq!(counted(&[1_u8, 2, 3, 4, 5, 6, 7, 8], 11).unwrap(), expected);
        assert_eq!(counted::<f32>(&[], 0).unwrap(), [0_u8; 0]);
    }

    #[test]
    fn what_does_not_fit_and_what_fails_is_an_error() {
        let error = counted(&[1.0_f32; 8], 12).unwrap_err().to_string();
        assert_eq!(error, "tensor \"w\": values of shape [8] are not encoded as U8 of shape [12]");
        assert_eq!(counted(&[99.0_f32], 2).unwrap_err().kind(), ErrorKind::Value);
    }
}
