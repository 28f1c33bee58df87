//! Saves one version of a checkpoint after another until it is killed: `saver file|set PATH`.
//!
//! Every tensor of version n is filled with the byte n, and has as many shards and sizes as n says, so that a reader
//! can tell mixed and half-written checkpoints.

use std::io::Write;
use std::path::Path;

use weighbridge::write::{Save, TensorData};
use weighbridge::{Dtype, Error};

struct Filled {
    shape: [usize; 1],
    value: u8,
}

impl TensorData for Filled {
    fn dtype(&self) -> Dtype {
        Dtype::U8
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn write_to(&self, out: &mut dyn Write) -> std::io::Result<()> {
        // In pieces, so that it may be killed in the middle of a tensor.
        let piece = vec![self.value; 4096];
        (0..self.shape[0]).step_by(4096).try_for_each(|at| {
            let len = (self.shape[0] - at).min(4096);
            out.write_all(&piece[..len])
        })
    }
}

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().collect();
    let [_, kind, path, start] = &*args else {
        panic!("saver file|set PATH FIRST_VERSION");
    };
    let start: u8 = start.parse().unwrap_or_default();
    for value in (0..=u8::MAX).cycle().skip(start.into()) {
        let count = 3 + usize::from(value % 4);
        let tensors = (0..count).map(|number| {
            let shape = [20_000 + 1_000 * usize::from(value % 3)];
            (format!("tensor.{number}"), Filled { shape, value })
        });
        match &**kind {
            "file" => Save::new().metadata("version", value.to_string()).file(path, tensors)?,
            _ => {
                // One to six shards, so that a set replaces sets of its own and of other sizes, and single files.
                let size = if value % 5 == 0 { 1 << 20 } else { 45_000 };
                let save = Save::new().metadata("version", value.to_string()).max_shard_size(size);
                drop(save.directory(Path::new(path), "model", tensors)?);
            }
        }
        println!("{value}");
    }
    Ok(())
}
