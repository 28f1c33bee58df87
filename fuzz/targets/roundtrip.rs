//! Whatever is written is read back the same, by us under `Strict` and by the official crate; sharded too, in
//! the shards that `Split` says.
#![no_main]

use std::collections::{BTreeMap, HashSet};

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use safetensors::SafeTensors as Official;
use weighbridge::write::{Order, Save, Split};
use weighbridge::{Dtype, ErrorKind, Profile, SafeTensors, TensorView, header::Decode};

#[derive(Arbitrary, Debug)]
struct Input {
    tensors: Vec<(String, u8, Vec<u8>)>,
    metadata: BTreeMap<String, String>,
    given: bool,
    align: Option<u16>,
    max_shard_size: u16,
}

fuzz_target!(|input: Input| {
    let dtypes: Vec<_> = Dtype::all().collect();
    let mut seed = 0_u8;
    let tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = input
        .tensors
        .into_iter()
        .take(40)
        .filter_map(|(name, dtype, shape)| {
            let dtype = dtypes[usize::from(dtype) % dtypes.len()];
            let shape: Vec<usize> = shape.iter().take(4).map(|dim| usize::from(dim % 9)).collect();
            let len = dtype.size_of(&shape).ok()?;
            seed = seed.wrapping_add(1);
            Some((name, dtype, shape, vec![seed; len as usize]))
        })
        .collect();
    let views = || {
        tensors.iter().map(|(name, dtype, shape, bytes)| {
            (name.as_str(), TensorView::new(*dtype, shape, bytes).unwrap())
        })
    };
    let mut save = Save::new();
    for (key, value) in &input.metadata {
        save = save.metadata(key, value);
    }
    if input.given {
        save = save.order(Order::Given);
    }
    if let Some(align) = input.align {
        save = save.align(align.into());
    }

    let names: HashSet<_> = tensors.iter().map(|tensor| &tensor.0).collect();
    let file = match save.bytes(views()) {
        Ok(file) => file,
        Err(error) => {
            match error.kind() {
                ErrorKind::DuplicateTensor => assert!(names.len() < tensors.len()),
                ErrorKind::TensorName => {
                    assert!(names.iter().any(|name| *name == "__metadata__" || name.contains('\0')));
                }
                _ => panic!("{error}"),
            }
            return;
        }
    };
    assert_eq!(file, save.bytes(views()).unwrap());
    let ours = SafeTensors::parse_with(Decode::new().profile(Profile::Strict), &file).unwrap();
    let theirs = Official::deserialize(&file).unwrap();
    assert_eq!((ours.len(), theirs.len()), (tensors.len(), tensors.len()));
    let start = ours.header().data_start();
    assert_eq!(start % input.align.map_or(8, |align| u64::from(align).clamp(8, 1 << 20).next_power_of_two()), 0);
    for (name, view) in views() {
        assert_eq!(ours.tensor(name), Some(view));
        let other = theirs.tensor(name).unwrap();
        assert_eq!((other.shape(), other.data()), (view.shape(), view.bytes()));
        if !input.given {
            let range = ours.header().tensor(name).unwrap().data_offsets();
            assert_eq!(range.start * 8 % u64::from(view.dtype().bits().max(8)), 0, "aligned to its elements");
        }
    }
    let metadata: BTreeMap<_, _> = ours.header().metadata().into_iter().flatten().collect();
    assert_eq!(metadata.len(), input.metadata.len());
    assert!(input.metadata.iter().all(|(key, value)| metadata.get(&**key) == Some(&&**value)));

    let max = u64::from(input.max_shard_size);
    let split = Split::new(views().map(|(_, view)| (view.bytes().len() as u64, None)), max);
    let mut placed: Vec<_> = split.shards().concat();
    placed.sort_unstable();
    assert!(placed.into_iter().eq(0..tensors.len()));
    for shard in split.shards() {
        let size: usize = shard.iter().map(|&place| tensors[place].3.len()).sum();
        assert!(size as u64 <= max || shard.len() == 1);
    }
});
