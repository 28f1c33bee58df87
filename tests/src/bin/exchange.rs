//! Our side of `.ci/oracle/format.py`, which compares us with the official Python libraries.
//!
//! - `exchange write DIR` writes one file with a tensor of every dtype and a sharded checkpoint, twice;
//! - `exchange read PATH` prints what is in a checkpoint, bytes in hexadecimal;
//! - `exchange split MAX SIZE[@STORAGE]...` prints how tensors t0, t1, ... are distributed.

use std::path::Path;

use serde_json::json;
use weighbridge::write::{Save, Split, TensorData, parse_size};
use weighbridge::{Checkpoint, Dtype, Error, TensorView};

/// Dtype, shape, and every byte that there is, so that floats are of all kinds.
fn tensors() -> Vec<Tensor> {
    let one = |dtype: Dtype| {
        let shape = vec![3, 2, 16];
        let bytes = 96 * dtype.bits() as usize / 8;
        let data =
            (0..bytes).map(|i| if dtype == Dtype::Bool { (i % 2) as u8 } else { (i * 37 % 256) as u8 });
        (format!("weight.{dtype}"), dtype, shape, data.collect())
    };
    Dtype::all().map(one).collect()
}

type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

fn views(tensors: &[Tensor]) -> Result<Vec<(&str, TensorView<'_>)>, Error> {
    let named = tensors.iter().map(|(name, dtype, shape, data)| {
        let view = TensorView::new(*dtype, shape, data)?;
        Ok((&**name, view))
    });
    named.collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write", directory] => {
            let tensors = tensors();
            let save = Save::new().metadata("format", "pt").metadata("é", "\n\"").metadata("a", "");
            for run in ["first", "second"] {
                let directory = Path::new(directory).join(run);
                std::fs::create_dir_all(&directory)?;
                save.file(directory.join("all.safetensors"), views(&tensors)?)?;
                save.clone().align(64).file(directory.join("aligned.safetensors"), views(&tensors)?)?;
                save.clone().max_shard_size(500).directory(
                    directory.join("sharded"),
                    "model",
                    views(&tensors)?,
                )?;
            }
        }
        ["read", path] => {
            let ckpt = Checkpoint::open(path)?;
            let entries = ckpt.tensors().map(|tensor| {
                let mut bytes = Vec::new();
                tensor.write_to(&mut bytes)?;
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                let entry = json!({"dtype": tensor.dtype().name(), "shape": tensor.shape(), "data": hex});
                Ok((tensor.name().to_owned(), entry))
            });
            let tensors = entries.collect::<std::io::Result<serde_json::Map<_, _>>>()?;
            let metadata = ckpt.shards()[0].header().metadata();
            let metadata: serde_json::Map<_, _> =
                metadata.into_iter().flatten().map(|(key, value)| (key.to_owned(), value.into())).collect();
            println!("{}", json!({"tensors": tensors, "metadata": metadata}));
        }
        ["split", max, ref sizes @ ..] => {
            let sizes = sizes.iter().map(|text| {
                let (size, storage) =
                    text.split_once('@').map_or((*text, None), |(size, id)| (size, Some(id)));
                Ok((size.parse()?, storage.map(str::parse).transpose()?))
            });
            let sizes = sizes.collect::<Result<Vec<_>, std::num::ParseIntError>>()?;
            let split = Split::new(sizes, parse_size(max)?);
            println!("{}", json!({"shards": split.shards(), "total_size": split.total_size()}));
        }
        _ => return Err("exchange write DIR | read PATH | split MAX SIZE[@STORAGE]...".into()),
    }
    Ok(())
}
