//! Any bytes as a file: verdict and content are those of the official crate, and `Strict` accepts nothing that
//! `Compat` refuses. A first byte of 0 stands before a whole file; any other stands before a header's JSON and says
//! how many bytes of data follow it, so that a mutation of the JSON need not keep its length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use safetensors::SafeTensors;
use weighbridge::header::Decode;
use weighbridge::{Checkpoint, Profile};

fuzz_target!(|input: &[u8]| {
    match input.split_first() {
        Some((0, file)) => check(file),
        Some((more, text)) => {
            let data = vec![7; usize::from(*more - 1)];
            check(&[&(text.len() as u64).to_le_bytes(), text, &data].concat());
        }
        None => check(&[]),
    }
});

fn check(file: &[u8]) {
    let ours = Checkpoint::from_bytes(file.to_vec());
    let strict = Checkpoint::options().profile(Profile::Strict).from_bytes(file.to_vec());
    let theirs = SafeTensors::deserialize(file);
    assert_eq!(ours.is_ok(), theirs.is_ok(), "{ours:?} {:?}", theirs.err());
    assert!(strict.is_err() || ours.is_ok());

    // Bytes that come one by one make the same header.
    let mut decoder = Decode::new().decoder(Some(file.len() as u64));
    let pushed = file.chunks(1 + file.len() % 7).try_for_each(|chunk| decoder.push(chunk));
    assert_eq!(pushed.and_then(|()| decoder.finish()).is_ok(), ours.is_ok());

    let (Ok(ours), Ok(theirs)) = (ours, theirs) else { return };
    assert_eq!(ours.warnings().is_empty(), strict.is_ok());
    let header = ours.shards()[0].header();
    assert_eq!(header.len(), theirs.len());
    for (name, view) in theirs.iter() {
        let Some(tensor) = header.tensor(name) else { panic!("{name:?} is missing") };
        let range = tensor.file_range();
        assert_eq!(&file[range.start as usize..range.end as usize], view.data());
        assert_eq!(tensor.shape(), view.shape());
        assert_eq!(tensor.dtype().name(), serde_json::to_value(view.dtype()).unwrap().as_str().unwrap());
    }
    let (_, metadata) = SafeTensors::read_metadata(file).unwrap();
    match (header.metadata(), metadata.metadata()) {
        (Some(ours), Some(theirs)) => {
            assert_eq!(ours.len(), theirs.len());
            ours.for_each(|(key, value)| assert_eq!(theirs[key], value));
        }
        (ours, theirs) => assert_eq!(ours.is_some(), theirs.is_some()),
    }
}
