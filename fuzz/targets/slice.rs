//! Slices against the plain definition: every element counted by hand, by Python's rules.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use weighbridge::{Dtype, Slice};

#[derive(Arbitrary, Debug)]
enum Index {
    Select(i8),
    Range(Option<i8>, Option<i8>, i8),
    Ellipsis,
}

#[derive(Arbitrary, Debug)]
struct Input {
    dtype: u8,
    shape: Vec<u8>,
    indices: Vec<Index>,
    wild: Vec<usize>,
    text: String,
}

/// The places that Python's `range(*slice(start, end, step).indices(len))` gives.
fn places(len: i64, start: Option<i64>, end: Option<i64>, step: i64) -> Vec<i64> {
    let whole = |place: i64| if place < 0 { place + len } else { place };
    let mut places = Vec::new();
    let (first, last) = match step > 0 {
        true => (start.map_or(0, whole).max(0), end.map_or(len, whole).min(len)),
        false => (start.map_or(len - 1, whole).min(len - 1), end.map_or(-1, |end| whole(end).max(-1))),
    };
    let mut at = first;
    while (step > 0 && at < last) || (step < 0 && at > last) {
        places.push(at);
        at += step;
    }
    places
}

fuzz_target!(|input: Input| {
    // Text: whatever is read is written and read again; whatever it is applied to, nothing panics.
    if let Ok(slice) = input.text.parse::<Slice>() {
        assert_eq!(slice.to_string().parse::<Slice>().unwrap(), slice);
        if let Ok(region) = slice.of(Dtype::F32, &input.wild) {
            let _ = region.byte_ranges().take(100).count();
        }
    }

    let dtypes: Vec<_> = Dtype::all().collect();
    let dtype = dtypes[usize::from(input.dtype) % dtypes.len()];
    let shape: Vec<usize> = input.shape.iter().take(5).map(|dim| usize::from(dim % 6)).collect();
    let mut slice = Slice::new();
    for index in input.indices.iter().take(6) {
        slice = match *index {
            Index::Select(place) => slice.select(place.into()),
            Index::Range(start, end, step) => match (start.map(i64::from), end.map(i64::from)) {
                (None, None) => slice.range_by(.., step.into()),
                (Some(start), None) => slice.range_by(start.., step.into()),
                (None, Some(end)) => slice.range_by(..end, step.into()),
                (Some(start), Some(end)) => slice.range_by(start..end, step.into()),
            },
            Index::Ellipsis => slice.ellipsis(),
        };
    }
    assert_eq!(slice.to_string().parse::<Slice>().unwrap(), slice);
    let _ = slice.of(dtype, &input.wild).map(|region| region.byte_ranges().take(100).count());

    // What the indices mean, dimension by dimension.
    let indices: Vec<_> = input.indices.iter().take(6).collect();
    let named = indices.iter().filter(|index| !matches!(index, Index::Ellipsis)).count();
    let mut valid = indices.len() - named <= 1 && named <= shape.len();
    let mut wanted: Vec<Vec<i64>> = Vec::new();
    let mut made = Vec::new();
    if valid {
        let mut all = indices;
        let whole = shape.len() - named;
        let at = all.iter().position(|index| matches!(index, Index::Ellipsis)).unwrap_or(all.len());
        all.splice(at..(at + 1).min(all.len()), std::iter::repeat_n(&Index::Range(None, None, 1), whole));
        assert_eq!(all.len(), shape.len());
        for (index, &dim) in all.iter().zip(&shape) {
            let len = dim as i64;
            match **index {
                Index::Select(place) => {
                    let place = i64::from(place);
                    valid &= (-len..len).contains(&place);
                    wanted.push(vec![place.rem_euclid(len.max(1))]);
                }
                Index::Range(start, end, step) => {
                    valid &= step != 0;
                    if step != 0 {
                        wanted.push(places(len, start.map(i64::from), end.map(i64::from), step.into()));
                        made.push(wanted.last().unwrap().len());
                    }
                }
                Index::Ellipsis => unreachable!(),
            }
        }
    }
    let result = slice.of(dtype, &shape);
    if !valid {
        assert!(result.is_err());
        return;
    }
    let mut elements = vec![0_usize];
    for (places, dim) in wanted.iter().zip(&shape) {
        elements = elements
            .iter()
            .flat_map(|base| places.iter().map(move |place| base * dim + *place as usize))
            .collect();
    }
    let bits = dtype.bits() as usize;
    let whole_bits = shape.iter().product::<usize>() * bits;
    // Pieces of bits that adjoin.
    let mut pieces: Vec<(usize, usize)> = Vec::new();
    for element in elements {
        match pieces.last_mut() {
            Some(last) if last.1 == element * bits => last.1 += bits,
            _ => pieces.push((element * bits, (element + 1) * bits)),
        }
    }
    match result {
        Ok(region) => {
            assert_eq!(region.shape(), made);
            let expected: Vec<_> =
                pieces.iter().map(|piece| (piece.0 / 8) as u64..(piece.1 / 8) as u64).collect();
            let found: Vec<_> = region.byte_ranges().collect();
            assert_eq!(found, expected);
            assert_eq!(region.byte_len(), found.iter().map(|range| range.end - range.start).sum::<u64>());
        }
        Err(error) => {
            // Only bits that cannot be told apart as bytes are a reason.
            let apart = pieces.iter().any(|piece| piece.0 % 8 != 0 || piece.1 % 8 != 0);
            assert!(bits < 8 && (apart || whole_bits % 8 != 0), "{error}");
        }
    }
});
