//! Parts, joins, transposes and casts of them, against what counting every element gives; whatever the number of
//! threads and the size of the reads.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use safetensors::Dtype as St;
use weighbridge::plan::{
    BitCast, Bound, Cast, Entry, Input, Join, Operation, Overflow, Part, Piece, Read, Tiles, Transpose,
};
use weighbridge::{Checkpoint, Dtype, ErrorKind, Hints, HostBuffer, Plan, Result, Slice, Source};
use weighbridge_tests::{Stored, file, in_file_order};

/// A file in memory that is read, not lent, in pieces of a given size, and counted.
struct Counted {
    bytes: Vec<u8>,
    chunk: usize,
    read: Arc<AtomicU64>,
}

impl Source for Counted {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.copy_from_slice(&self.bytes[offset as usize..][..buf.len()]);
        self.read.fetch_add(buf.len() as u64, Ordering::SeqCst);
        Ok(())
    }

    fn hints(&self) -> Hints {
        Hints::default().chunk(self.chunk)
    }
}

fn counted(tensors: &[(&str, Stored)], chunk: usize) -> (Checkpoint, Arc<AtomicU64>) {
    let read = Arc::new(AtomicU64::new(0));
    let source = Counted { bytes: file(tensors), chunk, read: Arc::clone(&read) };
    let ckpt = Checkpoint::from_source(source).unwrap();
    read.store(0, Ordering::SeqCst);
    (ckpt, read)
}

fn make(
    ckpt: &Checkpoint,
    names: &[&str],
    operation: Arc<dyn Operation>,
    threads: usize,
) -> (Vec<usize>, HostBuffer) {
    let inputs = names.iter().map(|name| Input::of(&ckpt.tensor(name).unwrap())).collect();
    let entry = Entry::new("made", inputs, operation).unwrap();
    let session = Plan::new([entry]).session().threads(threads).start().unwrap();
    let (entry, values) = session.take("made", None).unwrap();
    (entry.shape().to_vec(), values)
}

/// The elements that a slice has, by their places in a tensor of that shape.
fn places(slice: &Slice, shape: &[usize]) -> Vec<usize> {
    let ranges = slice.of(Dtype::U8, shape).unwrap();
    ranges.byte_ranges().flatten().map(|place| place as usize).collect()
}

fn pick(bytes: &[u8], size: usize, places: impl IntoIterator<Item = usize>) -> Vec<u8> {
    places.into_iter().flat_map(|place| bytes[place * size..][..size].to_vec()).collect()
}

const DTYPES: [(St, usize); 4] = [(St::U8, 1), (St::I16, 2), (St::F32, 4), (St::I64, 8)];

/// Dimensions small and large, so that there are tensors of a few bytes and of several reads.
fn shape() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![4 => 0..6_usize, 2 => 6..40_usize, 1 => 100..400_usize], 1..4)
}

/// Start, end and step; none takes all.
type Indices = Option<(Option<i64>, Option<i64>, i64)>;

fn index() -> impl Strategy<Value = Indices> {
    let end = || prop::option::of(-300..400_i64);
    prop::option::weighted(
        0.7,
        (end(), end(), prop_oneof![3 => Just(1_i64), 2 => 2..90_i64, 1 => -5..-1_i64]),
    )
}

fn slice(indices: &[Indices]) -> Slice {
    indices.iter().fold(Slice::new(), |slice, index| match *index {
        None => slice.range(..),
        Some((None, None, step)) => slice.range_by(.., step),
        Some((Some(start), None, step)) => slice.range_by(start.., step),
        Some((None, Some(end), step)) => slice.range_by(..end, step),
        Some((Some(start), Some(end), step)) => slice.range_by(start..end, step),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn parts(
        shape in shape(),
        indices in prop::collection::vec(index(), 3),
        dtype in prop::sample::select(DTYPES.to_vec()),
        threads in 1..4_usize,
        chunk in prop::sample::select(vec![1_usize, 5000, 4 << 20]),
    ) {
        let data = Stored::filled(dtype.0, &shape, 1);
        let (ckpt, _) = counted(&[("x", data.clone())], chunk);
        let slice = slice(&indices[..shape.len()]);
        let (made, values) = make(&ckpt, &["x"], Arc::new(Part::of(slice.clone())), threads);
        prop_assert_eq!(made, slice.of(Dtype::U8, &shape).unwrap().shape().to_vec());
        let expected = pick(data.bytes(), dtype.1, places(&slice, &shape));
        prop_assert!(in_file_order(&values) == expected, "{} of {:?}", slice, shape);
        if dtype.0 == St::I16 {
            // And cast on the way.
            let cast = Cast::of(Arc::new(Part::of(slice.clone())), Dtype::I64);
            let (_, values) = make(&ckpt, &["x"], Arc::new(cast), threads);
            let wide: Vec<u8> = expected
                .chunks(2)
                .flat_map(|pair| i64::from(i16::from_le_bytes([pair[0], pair[1]])).to_le_bytes())
                .collect();
            prop_assert!(in_file_order(&values) == wide);
        }
    }

    #[test]
    fn transposes(
        shape in shape(),
        dim in 0..2_usize,
        dtype in prop::sample::select(DTYPES.to_vec()),
        threads in 1..4_usize,
        chunk in prop::sample::select(vec![1_usize, 5000, 4 << 20]),
    ) {
        prop_assume!(dim + 1 < shape.len());
        let data = Stored::filled(dtype.0, &shape, 2);
        let (ckpt, read) = counted(&[("x", data.clone())], chunk);
        let (made, values) = make(&ckpt, &["x"], Arc::new(Transpose::of(dim)), threads);
        let mut swapped = shape.clone();
        swapped.swap(dim, dim + 1);
        prop_assert_eq!(&made, &swapped);
        let (batch, rows, columns) = (shape[..dim].iter().product::<usize>(), shape[dim], shape[dim + 1]);
        let inner: usize = shape[dim + 2..].iter().product();
        let mut order = Vec::new();
        for b in 0..batch {
            for c in 0..columns {
                for r in 0..rows {
                    order.extend((0..inner).map(|i| ((b * rows + r) * columns + c) * inner + i));
                }
            }
        }
        prop_assert!(in_file_order(&values) == pick(data.bytes(), dtype.1, order), "{:?} {}", shape, dim);
        prop_assert!(read.load(Ordering::SeqCst) <= 2 * data.bytes().len() as u64 + 16);
    }

    #[test]
    fn joins(
        shape in shape(),
        sizes in prop::collection::vec(0..50_usize, 1..5),
        dim in 0..3_usize,
        dtype in prop::sample::select(DTYPES.to_vec()),
        threads in 1..4_usize,
        step in 1..3_i64,
    ) {
        prop_assume!(dim < shape.len());
        let names = ["a", "b", "c", "d"];
        let shapes: Vec<Vec<usize>> = sizes
            .iter()
            .map(|&size| shape.iter().enumerate().map(|(d, &old)| if d == dim { size } else { old }).collect())
            .collect();
        let tensors: Vec<_> = shapes
            .iter()
            .zip(names)
            .enumerate()
            .map(|(seed, (shape, name))| (name, Stored::filled(dtype.0, shape, seed)))
            .collect();
        let (ckpt, read) = counted(&tensors, 4 << 20);
        let slice = (0..dim).fold(Slice::new(), |slice, _| slice.range(..)).range_by(.., step);
        let join = Join::along(dim).parts(vec![slice.clone(); sizes.len()]);
        let (made, values) = make(&ckpt, &names[..sizes.len()], Arc::new(join), threads);
        let mut expected_shape = shape.clone();
        expected_shape[dim] = sizes.iter().map(|size| size.div_ceil(step as usize)).sum();
        prop_assert_eq!(&made, &expected_shape);
        let (outer, inner) = (shape[..dim].iter().product::<usize>(), shape[dim + 1..].iter().product::<usize>());
        let mut expected = Vec::new();
        for o in 0..outer {
            for ((_, data), &size) in tensors.iter().zip(&sizes) {
                let rows = (0..size).step_by(step as usize);
                let order = rows.flat_map(|row| (0..inner).map(move |i| (o * size + row) * inner + i));
                expected.extend(pick(data.bytes(), dtype.1, order));
            }
        }
        prop_assert!(in_file_order(&values) == expected);
        prop_assert_eq!(read.load(Ordering::SeqCst), expected.len() as u64);
    }
}

#[test]
fn a_rank_reads_what_it_needs() {
    let data = Stored::filled(St::I16, &[512, 4096], 5);
    let (ckpt, read) = counted(&[("w", data.clone())], 4 << 20);
    let needed = data.bytes().len() as u64 / 8;
    for (dim, most) in [(0, needed), (1, needed)] {
        let mut all = Vec::new();
        for rank in 0..8 {
            read.store(0, Ordering::SeqCst);
            let part = Part::of_rank(&[512, 4096], dim, rank, 8).unwrap();
            let (shape, values) = make(&ckpt, &["w"], Arc::new(part), 2);
            assert_eq!(shape, if dim == 0 { [64, 4096] } else { [512, 512] });
            assert!(read.load(Ordering::SeqCst) <= most, "dimension {dim}");
            all.push(in_file_order(&values));
        }
        let row = if dim == 0 { 64 * 4096 * 2 } else { 1024 };
        let rows = all[0].len() / row;
        let whole: Vec<u8> = (0..rows)
            .flat_map(|r| all.iter().flat_map(move |part| part[r * row..][..row].to_vec()))
            .collect();
        assert!(whole == data.bytes());
    }
    for (dim, rank, world) in [(2, 0, 8), (0, 8, 8), (0, 0, 3), (0, 0, 0)] {
        assert_eq!(Part::of_rank(&[512, 4096], dim, rank, world).unwrap_err().kind(), ErrorKind::Slice);
    }
}

/// Values of 4 bits share bytes, whatever tiles, chunks and parts cut.
#[test]
fn values_of_four_bits_are_cast_wherever_they_are_cut() {
    const VALUES: [f32; 16] =
        [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
    let tensor = Stored::filled(St::F4, &[371, 6002], 5);
    let two = |byte: &u8| [byte & 15, byte >> 4].map(|code| VALUES[usize::from(code)]);
    let values: Vec<f32> = tensor.bytes().iter().flat_map(two).collect();
    for (chunk, threads) in [(5000, 3), (1 << 20, 1)] {
        let (ckpt, _) = counted(&[("f", tensor.clone())], chunk);
        let (shape, made) = make(&ckpt, &["f"], Arc::new(Cast::to(Dtype::F32)), threads);
        assert_eq!(shape, [371, 6002]);
        assert!(matches!(made, HostBuffer::F32(made) if made == values));
        let (_, made) = make(&ckpt, &["f"], Arc::new(Cast::to(Dtype::F64)), threads);
        assert!(
            matches!(made, HostBuffer::F64(made) if made.iter().zip(&values).all(|(a, b)| *a == f64::from(*b)))
        );
        let slice: Slice = "1::2, 2:6000".parse().unwrap();
        let part = Cast::of(Arc::new(Part::of(slice)), Dtype::F32);
        let (shape, made) = make(&ckpt, &["f"], Arc::new(part), threads);
        assert_eq!(shape, [185, 5998]);
        let expected = values.chunks(6002).skip(1).step_by(2).flat_map(|row| &row[2..6000]);
        assert!(matches!(made, HostBuffer::F32(made) if made.iter().eq(expected)));
        let streamed = Plan::of(&ckpt).dtype(|_| Some(Dtype::F32)).build().unwrap();
        let (_, streamed) = streamed.tensors().next().unwrap();
        let mut written = Vec::new();
        weighbridge::write::TensorData::write_to(&streamed, &mut written).unwrap();
        assert!(written == values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    }
}

#[test]
fn what_does_not_fit_is_refused_by_the_plan() {
    let tensors = [
        ("a", Stored::filled(St::F32, &[2, 3], 0)),
        ("b", Stored::filled(St::F32, &[3, 3], 0)),
        ("c", Stored::filled(St::I64, &[2, 3], 0)),
        ("f", Stored::filled(St::F4, &[2, 4], 0)),
        ("s", Stored::filled(St::F32, &[], 0)),
        ("x", Stored::filled(St::F6_E2M3, &[2, 4], 0)),
    ];
    let (ckpt, _) = counted(&tensors, 1 << 20);
    let kind = |names: &[&str], operation: Arc<dyn Operation>| {
        let inputs = names.iter().map(|name| Input::of(&ckpt.tensor(name).unwrap())).collect();
        let error = Entry::new("made", inputs, operation).unwrap_err();
        assert_eq!(error.tensor(), Some("made"));
        error.kind()
    };
    assert_eq!(kind(&["a", "b"], Arc::new(Join::along(1))), ErrorKind::Shape);
    assert_eq!(kind(&["a", "c"], Arc::new(Join::along(0))), ErrorKind::Dtype);
    assert_eq!(kind(&["f", "f"], Arc::new(Join::along(0))), ErrorKind::Dtype);
    assert_eq!(kind(&["s"], Arc::new(Join::along(0))), ErrorKind::Shape);
    assert_eq!(kind(&[], Arc::new(Join::along(0))), ErrorKind::Shape);
    assert_eq!(kind(&["a", "b"], Arc::new(Join::along(0).parts([Slice::new()]))), ErrorKind::Slice);
    assert_eq!(kind(&["a"], Arc::new(Transpose::of(1))), ErrorKind::Shape);
    assert_eq!(kind(&["f"], Arc::new(Transpose::of(0))), ErrorKind::Dtype);
    assert_eq!(kind(&["a"], Arc::new(Part::of("5".parse().unwrap()))), ErrorKind::Slice);
    assert_eq!(kind(&["a", "b"], Arc::new(Read)), ErrorKind::Internal);
    assert_eq!(kind(&["x"], Arc::new(Cast::of(Arc::new(Read), Dtype::F32))), ErrorKind::Dtype);
    assert_eq!(kind(&["a"], Arc::new(Cast::of(Arc::new(Read), Dtype::F4))), ErrorKind::Dtype);
}

/// Bytes with a scale, as halves: what a quantised tensor is made of.
#[derive(Debug)]
struct Scaled;

impl Operation for Scaled {
    fn bind(&self, inputs: &[Input]) -> Result<Bound> {
        Ok(Bound::new(Dtype::F32, inputs[0].shape(), Self))
    }
}

impl Tiles for Scaled {
    fn gather(&self, tile: Range<u64>, pieces: &mut Vec<Piece>) {
        pieces.push(Piece { input: 0, bytes: tile.start / 4..tile.end / 4 });
    }

    fn compute<'t>(
        &self,
        _: Range<u64>,
        gathered: &[u8],
        out: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        let made: Vec<u8> = gathered.iter().flat_map(|&byte| (f32::from(byte) / 2.0).to_le_bytes()).collect();
        Ok(out.write_copy_of_slice(&made))
    }

    /// As a whole, however large.
    fn step(&self) -> u64 {
        u64::MAX
    }
}

#[test]
fn a_cast_takes_what_an_operation_makes_whatever_it_is_made_of() {
    let stored = Stored::filled(safetensors::Dtype::U8, &[1000], 3);
    let ckpt = Checkpoint::from_bytes(file(&[("w", stored.clone())])).unwrap();
    let input = || vec![Input::of(&ckpt.tensor("w").unwrap())];
    let twice = Cast::of(Arc::new(Cast::to(Dtype::I16)), Dtype::F32);
    let scaled = Entry::new("scaled", input(), Arc::new(Scaled)).unwrap();
    let plan = Plan::new([scaled, Entry::new("twice", input(), Arc::new(twice)).unwrap()]);
    let session = plan.session().start().unwrap();
    for (name, divisor) in [("scaled", 2.0), ("twice", 1.0)] {
        let expected = |byte: &u8| f64::from(*byte) / divisor;
        for dtype in [Dtype::F32, Dtype::F64] {
            let values: Vec<f64> = match session.take(name, Some(dtype)).unwrap().1 {
                HostBuffer::F32(values) => values.into_iter().map(f64::from).collect(),
                HostBuffer::F64(values) => values,
                other => panic!("{other:?}"),
            };
            assert!(values.iter().copied().eq(stored.bytes().iter().map(expected)), "{name} as {dtype}");
        }
    }
}

/// An operation that panics before it is carried out.
#[derive(Debug)]
struct Broken;

impl Operation for Broken {
    fn bind(&self, inputs: &[Input]) -> Result<Bound> {
        Ok(Bound::new(inputs[0].dtype(), inputs[0].shape(), Self))
    }
}

impl Tiles for Broken {
    fn gather(&self, _: Range<u64>, _: &mut Vec<Piece>) {
        panic!("a bug in an operation")
    }

    fn is_direct(&self) -> bool {
        true
    }
}

#[test]
fn an_operation_that_panics_harms_no_other() {
    let tensors: Vec<_> =
        (0..20).map(|i| (format!("{i}"), Stored::filled(safetensors::Dtype::U8, &[100], i))).collect();
    let views: Vec<_> = tensors.iter().map(|(name, stored)| (&**name, stored.clone())).collect();
    let ckpt = Checkpoint::from_bytes(file(&views)).unwrap();
    for threads in [1, 3] {
        let broken = vec![Input::of(&ckpt.tensor("3").unwrap())];
        let plan = Plan::of(&ckpt).build().unwrap();
        let plan = plan.with(Entry::new("broken", broken, Arc::new(Broken)).unwrap());
        let fill = plan.clone().session().threads(threads).start().unwrap();
        let lend = plan.session().threads(threads).start_lending().unwrap();
        for (name, stored) in &tensors {
            assert!(fill.take(name, None).unwrap().1.as_bytes() == stored.bytes());
            assert!(lend.take(name, None).unwrap().1.as_bytes() == stored.bytes());
        }
        assert_eq!(fill.take("broken", None).unwrap_err().kind(), ErrorKind::Internal);
        assert_eq!(lend.take("broken", None).unwrap_err().kind(), ErrorKind::Internal);
    }
}

#[test]
fn bits_are_kept_under_another_dtype() {
    let stored: Vec<u8> = [-1_i32, 7, i32::MIN, 5].into_iter().flat_map(i32::to_le_bytes).collect();
    let (ckpt, _) = counted(&[("a", Stored::new(St::I32, &[2, 2], stored))], 4 << 20);
    let column = Arc::new(Part::of(Slice::new().range(..).select(0)));
    let (shape, values) = make(&ckpt, &["a"], Arc::new(BitCast::of(column, Dtype::U32)), 1);
    assert_eq!((shape, values), (vec![2], HostBuffer::U32(vec![u32::MAX, 1 << 31])));

    let tensor = ckpt.tensor("a").unwrap();
    let refused = |dtype| {
        let entry = Entry::new("a", vec![Input::of(&tensor)], Arc::new(BitCast::to(dtype)));
        entry.unwrap_err().kind() == ErrorKind::Dtype
    };
    assert!(refused(Dtype::U64) && refused(Dtype::U16) && !BitCast::exists(Dtype::U64, Dtype::C64));

    // A rule of the entry, which holds for what a session is asked for, and in whichever order it was given.
    let entry = Entry::of(&tensor, Some(Dtype::U32)).unwrap();
    let entry = entry.bit_casts(|from, to| (from, to) == (Dtype::I32, Dtype::U32)).overflow(Overflow::Error);
    let take = |entry: &Entry, dtype| {
        Plan::new([entry.clone()]).session().start().unwrap().take("a", dtype).map(|(_, values)| values)
    };
    let bits = HostBuffer::U32(vec![u32::MAX, 7, 1 << 31, 5]);
    assert_eq!(take(&entry, None).unwrap(), bits);
    let floats = entry.recast(Dtype::F64).unwrap();
    assert_eq!(take(&floats, Some(Dtype::U32)).unwrap(), bits);
    // Casts are of the stored values, whatever the entry has become.
    assert_eq!(take(&entry, Some(Dtype::I64)).unwrap(), HostBuffer::I64(vec![-1, 7, i32::MIN.into(), 5]));
    assert_eq!(take(&entry, Some(Dtype::U64)).unwrap_err().kind(), ErrorKind::Value);
}

#[test]
fn deferred_entries_are_read_when_they_are_taken() {
    let tensors = ["a", "b", "c"].map(|name| (name, Stored::filled(St::U8, &[100_000], 1)));
    let (ckpt, read) = counted(&tensors, 4 << 20);
    let entries = ckpt.tensors().map(|tensor| Entry::of(&tensor, None).unwrap());
    let entries = entries.map(|entry| if entry.name() == "b" { entry } else { entry.deferred() });
    let session = Plan::new(entries).session().threads(2).start().unwrap();
    session.take("b", None).unwrap();
    session.take("a", None).unwrap();
    assert_eq!(read.load(Ordering::SeqCst), 200_000);
    assert_eq!(session.report().unused(), ["c"]);
    session.take("c", None).unwrap();
    assert_eq!(read.load(Ordering::SeqCst), 300_000);
}
