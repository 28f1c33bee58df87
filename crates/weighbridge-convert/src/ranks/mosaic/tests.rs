use proptest::prelude::*;
use weighbridge::source::{MemorySource, Window};

use super::*;

/// The bytes of a box of a tensor whose bytes count up.
fn cut_out(width: usize, shape: &[usize], offsets: &[usize], sizes: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    for number in 0..sizes.iter().product::<usize>() {
        let (mut rest, mut at, mut step) = (number, 0, 1);
        for dim in (0..shape.len()).rev() {
            at += (offsets[dim] + rest % sizes[dim]) * step;
            rest /= sizes[dim];
            step *= shape[dim];
        }
        out.extend((0..width).map(|byte| value(at * width + byte)));
    }
    out
}

fn value(at: usize) -> u8 {
    (at * 7 + at / 251) as u8
}

fn chunk(width: usize, shape: &[usize], offsets: &[usize], sizes: &[usize]) -> Chunk {
    let data = Arc::new(MemorySource(cut_out(width, shape, offsets, sizes)));
    Chunk { offsets: offsets.to_vec(), sizes: sizes.to_vec(), data }
}

/// Cuts a box in two again and again: the cuts of one part need not be those of another.
fn split(
    extent: Vec<(usize, usize)>,
    cuts: &mut impl Iterator<Item = (usize, usize)>,
    depth: u32,
) -> Vec<Vec<(usize, usize)>> {
    let (true, Some((dim, at))) = (depth > 0 && !extent.is_empty(), cuts.next()) else { return vec![extent] };
    let dim = dim % extent.len();
    let (mut one, mut other) = (extent.clone(), extent);
    let at = at % (one[dim].1 + 1);
    one[dim].1 = at;
    other[dim] = (other[dim].0 + at, other[dim].1 - at);
    [split(one, cuts, depth - 1), split(other, cuts, depth - 1)].concat()
}

proptest! {
    #[test]
    fn chunks_of_any_cuts_are_the_tensor(
        width in prop::sample::select(vec![1_usize, 2, 8]),
        shape in prop::collection::vec(1_usize..6, 0..5),
        cuts in prop::collection::vec((0_usize..5, 0_usize..6), 0..16),
        reads in prop::collection::vec((0_usize..6000, 0_usize..600), 1..6),
    ) {
        let whole = shape.iter().map(|&dim| (0, dim)).collect();
        let boxes = split(whole, &mut cuts.into_iter(), 4);
        let chunks = boxes.iter().rev().map(|extent| {
            let (offsets, sizes): (Vec<_>, Vec<_>) = extent.iter().copied().unzip();
            chunk(width, &shape, &offsets, &sizes)
        });
        let tensor = assemble(width, &shape, chunks.collect(), &mut Effort::default()).unwrap();
        let len = shape.iter().product::<usize>() * width;
        prop_assert_eq!(tensor.size(), len as u64);
        for (start, read) in reads.into_iter().chain([(0, len)]) {
            let start = start % (len + 1);
            let mut buf = vec![0; read.min(len - start)];
            tensor.read_at(start as u64, &mut buf).unwrap();
            let expected: Vec<u8> = (start..start + buf.len()).map(value).collect();
            prop_assert_eq!(buf, expected);
        }
        prop_assert!(tensor.read_at(len as u64, &mut [0]).is_err());
        prop_assert!(tensor.read_at(u64::MAX, &mut [0, 0]).is_err());
    }

    #[test]
    fn a_chunk_too_few_or_too_many_is_refused(
        shape in prop::collection::vec(1_usize..5, 1..4),
        cuts in prop::collection::vec((0_usize..5, 0_usize..6), 1..16),
        which in 0_usize..100,
        again in any::<bool>(),
    ) {
        let whole = shape.iter().map(|&dim| (0, dim)).collect();
        let mut boxes = split(whole, &mut cuts.into_iter(), 4);
        boxes.retain(|extent| extent.iter().all(|range| range.1 > 0));
        let which = which % boxes.len();
        if again {
            let twice = boxes[which].clone();
            boxes.push(twice);
        } else {
            boxes.remove(which);
        }
        let chunks = boxes.iter().map(|extent| {
            let (offsets, sizes): (Vec<_>, Vec<_>) = extent.iter().copied().unzip();
            chunk(1, &shape, &offsets, &sizes)
        });
        let error = assemble(1, &shape, chunks.collect(), &mut Effort::default()).err().unwrap();
        let wrong = if again { "overlap" } else { "no rank has its elements" };
        prop_assert!(error.to_string().contains(wrong), "{}", error);
    }
}

fn refused(width: usize, shape: &[usize], chunks: Vec<Chunk>) -> String {
    assemble(width, shape, chunks, &mut Effort::default()).err().unwrap().to_string()
}

#[test]
fn what_is_missing_or_twice_is_named() {
    let shape = [4, 6];
    let chunks = |boxes: &[([usize; 2], [usize; 2])]| -> Vec<Chunk> {
        boxes.iter().map(|(offsets, sizes)| chunk(1, &shape, offsets, sizes)).collect()
    };
    let gap = refused(1, &shape, chunks(&[([0, 0], [2, 6]), ([2, 0], [2, 3]), ([3, 3], [1, 3])]));
    assert_eq!(gap, "no rank has its elements [2..3, 3..6]");
    let overlap = refused(1, &shape, chunks(&[([0, 0], [3, 6]), ([2, 1], [2, 5]), ([3, 0], [1, 1])]));
    assert_eq!(overlap, "its chunks [0..3, 0..6] and [2..4, 1..6] overlap");
    assert_eq!(refused(1, &shape, Vec::new()), "no rank has its elements [0..4, 0..6]");
}

#[test]
fn chunks_outside_of_the_tensor_are_refused() {
    let data = |len: usize| -> Arc<dyn Source> { Arc::new(MemorySource(vec![0; len])) };
    for (offsets, sizes) in [
        (vec![0, 1], vec![4, 6]),
        (vec![usize::MAX, 0], vec![4, 6]),
        (vec![0], vec![24]),
        (vec![0, 0, 0], vec![4, 6, 1]),
    ] {
        let error = refused(1, &[4, 6], vec![Chunk { offsets, sizes, data: data(24) }]);
        assert!(error.contains("is not within its shape [4, 6]"), "{error}");
    }
    let error = refused(2, &[4, 6], vec![Chunk { offsets: vec![0, 0], sizes: vec![4, 6], data: data(24) }]);
    assert!(error.ends_with("has 24 bytes"), "{error}");
    assert!(refused(8, &[usize::MAX, 2], Vec::new()).contains("more bytes than a file can have"));
}

#[test]
fn chunks_that_take_too_long_to_compare_are_refused() {
    let mut effort = Effort::default();
    // Columns, each cut in another row than all others.
    let len = 6000;
    let column = |at: u64| [vec![0..at + 1, at..at + 1], vec![at + 1..len + 1, at..at + 1]];
    let chunks: Vec<Vec<Range<u64>>> = (0..len).flat_map(column).collect();
    let error = cover::check(&[len + 1, len], &chunks, &mut effort).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsafe, "{error}");
    let few: Vec<_> =
        (0..60).flat_map(|at| [vec![0..at + 1, at..at + 1], vec![at + 1..61, at..at + 1]]).collect();
    cover::check(&[61, 60], &few, &mut Effort::default()).unwrap();
}

#[test]
fn rows_in_order_are_read_where_they_lie() {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &(0..24).map(value).collect::<Vec<u8>>()).unwrap();
    let file = weighbridge::source::FileSource::new(Arc::new(file), 24);
    let rows = |range: Range<usize>| Chunk {
        offsets: vec![range.start, 0],
        sizes: vec![range.len(), 6],
        data: Arc::new(Window::new(file.clone(), 6 * range.start as u64..6 * range.end as u64).unwrap()),
    };
    let tensor = assemble(1, &[4, 6], vec![rows(3..4), rows(0..3)], &mut Effort::default()).unwrap();
    assert_eq!(tensor.in_file(0..18).map(|found| found.1), Some(0));
    assert_eq!(tensor.in_file(18..24).map(|found| found.1), Some(18));
}

#[test]
fn large_pieces_and_runs_are_whole() {
    // Two pieces and more, with runs that are read directly and such that are spread.
    for (shape, cut) in [([3, 3 << 20], 1_000_001), ([90_000, 100], 37)] {
        let parts = [0..cut, cut..shape[1]];
        let chunks = parts.iter().map(|part| chunk(1, &shape, &[0, part.start], &[shape[0], part.len()]));
        let tensor = assemble(1, &shape, chunks.collect(), &mut Effort::default()).unwrap();
        let mut buf = vec![0; tensor.size() as usize - 3];
        tensor.read_at(2, &mut buf).unwrap();
        assert!(buf.iter().enumerate().all(|(at, &byte)| byte == value(at + 2)));
    }
}
