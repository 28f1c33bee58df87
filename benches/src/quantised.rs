//! `quantised`: loads of quantised checkpoints as the weights that they stand for, beside a cast of as many weights, as a
//! Markdown table.
//!
//! Codes and scales are random; the files are in the page cache. Ways take turns, each into memory of its own. With `--update
//! docs/benchmarks.md` the table goes into that page's section `quantised`, too; with `--keep` the checkpoints stay where
//! they are made, for `benches/quantised.py`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use benches::page;
use clap::Parser;
use weighbridge::write::Save;
use weighbridge::{Checkpoint, Dtype, Plan, TensorView};

/// Measures loads of quantised checkpoints.
#[derive(Debug, Parser)]
struct Arguments {
    /// Matrices of 4096 by 4096 in each checkpoint.
    #[arg(long, default_value_t = 16)]
    matrices: usize,
    /// How often each is measured; the table has medians.
    #[arg(long, default_value_t = 9)]
    repeat: usize,
    /// Threads; all cores otherwise.
    #[arg(long)]
    threads: Option<usize>,
    /// Where the checkpoints are made; a temporary directory otherwise.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Replaces the section `quantised` of a page.
    #[arg(long, value_name = "PAGE")]
    update: Option<PathBuf>,
}

/// Rows and columns of a matrix.
const SIDE: usize = 4096;

/// Name, dtype and shape of a tensor, and what each of its bytes may be: scales must not be absurd.
type Part = (&'static str, Dtype, Vec<usize>, Fill);

#[derive(Clone, Copy)]
enum Fill {
    Noise,
    /// Noise without what is no number as `F8_E4M3`: weights have none.
    Numbers,
    /// All bytes of each element.
    Same(&'static [u8]),
}

/// One, as `BF16`, `F16`, `F32` and `F8_E4M3`.
const BF16: Fill = Fill::Same(&[0x80, 0x3F]);
const F16: Fill = Fill::Same(&[0x00, 0x3C]);
const F32: Fill = Fill::Same(&[0, 0, 0x80, 0x3F]);
const E4M3: Fill = Fill::Same(&[0x38]);

/// A method: its name, the tensors of a module, and the configuration.
struct Method {
    name: &'static str,
    parts: Vec<Part>,
    config: &'static str,
}

fn methods() -> Vec<Method> {
    use Fill::Noise;
    let (n, k) = (SIDE, SIDE);
    let gptq = |index: bool| {
        let mut parts = vec![
            ("qweight", Dtype::I32, vec![k / 8, n], Noise),
            ("qzeros", Dtype::I32, vec![k / 128, n / 8], Noise),
            ("scales", Dtype::F16, vec![k / 128, n], F16),
        ];
        if index {
            parts.push(("g_idx", Dtype::I32, vec![k], Noise));
        }
        parts
    };
    let method = |name, config, parts| Method { name, parts, config };
    vec![
        method("`BF16`, cast", "{}", vec![("weight", Dtype::BF16, vec![n, k], Noise)]),
        method(
            "FP8, blocks of 128",
            r#"{"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}"#,
            vec![
                ("weight", Dtype::F8_E4M3, vec![n, k], Fill::Numbers),
                ("weight_scale_inv", Dtype::F32, vec![n / 128, k / 128], F32),
            ],
        ),
        method(
            "int8, rows",
            "{}",
            vec![("weight", Dtype::I8, vec![n, k], Noise), ("weight_scale", Dtype::BF16, vec![n, 1], BF16)],
        ),
        method(
            "GPTQ, 4 bits",
            r#"{"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}"#,
            gptq(false),
        ),
        method(
            "GPTQ, 4 bits, act-order",
            r#"{"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true}}"#,
            gptq(true),
        ),
        method(
            "AWQ, GEMM",
            r#"{"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}}"#,
            vec![
                ("qweight", Dtype::I32, vec![k, n / 8], Noise),
                ("qzeros", Dtype::I32, vec![k / 128, n / 8], Noise),
                ("scales", Dtype::F16, vec![k / 128, n], F16),
            ],
        ),
        method(
            "compressed-tensors, 4 bits",
            "{}",
            vec![
                ("weight_packed", Dtype::I32, vec![n, k / 8], Noise),
                ("weight_scale", Dtype::BF16, vec![n, k / 128], BF16),
                ("weight_shape", Dtype::I64, vec![2], Fill::Same(&[0, 16, 0, 0, 0, 0, 0, 0])),
            ],
        ),
        method(
            "MLX, 4 bits",
            r#"{"quantization": {"bits": 4, "group_size": 64}}"#,
            vec![
                ("weight", Dtype::U32, vec![n, k / 8], Noise),
                ("scales", Dtype::F16, vec![n, k / 64], F16),
                ("biases", Dtype::F16, vec![n, k / 64], F16),
            ],
        ),
        method(
            "bitsandbytes, NF4",
            "{}",
            vec![
                ("weight", Dtype::U8, vec![n * k / 2, 1], Noise),
                ("weight.absmax", Dtype::F32, vec![n * k / 64], F32),
                ("weight.quant_map", Dtype::F32, vec![16], F32),
                ("weight.quant_state.bitsandbytes__nf4", Dtype::U8, vec![STATE.len()], Fill::Same(STATE)),
            ],
        ),
        method(
            "NVFP4",
            "{}",
            vec![
                ("weight", Dtype::U8, vec![n, k / 2], Noise),
                ("weight_scale", Dtype::F8_E4M3, vec![n, k / 16], E4M3),
                ("weight_scale_2", Dtype::F32, vec![], F32),
            ],
        ),
        method(
            "MXFP4, gpt-oss",
            r#"{"quantization_config": {"quant_method": "mxfp4"}}"#,
            vec![
                ("weight_blocks", Dtype::U8, vec![1, n, k / 32, 16], Noise),
                ("weight_scales", Dtype::U8, vec![1, n, k / 32], Fill::Same(&[127])),
            ],
        ),
    ]
}

const STATE: &[u8] = br#"{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4096, 4096]}"#;

impl Method {
    /// Writes a checkpoint; matrices share their bytes, since what they are does not matter.
    fn write(&self, directory: &Path, matrices: usize) -> Result<()> {
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join("config.json"), self.config)?;
        let mut state = 0x2545_F491_u32;
        let bytes = self.parts.iter().map(|(name, dtype, shape, fill)| {
            let len = dtype.size_of(shape)? as usize;
            let mut noise = || {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                (state >> 9) as u8
            };
            let bytes: Vec<u8> = match fill {
                // Any order of groups will do.
                Fill::Noise if *name == "g_idx" => {
                    (0..shape[0] as u32).flat_map(|column| (column * 37 % 32).to_le_bytes()).collect()
                }
                Fill::Noise => (0..len).map(|_| noise()).collect(),
                Fill::Numbers => {
                    (0..len).map(|_| noise()).map(|code| if code & 0x7F == 0x7F { 0 } else { code }).collect()
                }
                Fill::Same(element) => element.iter().copied().cycle().take(len).collect(),
            };
            Ok(bytes)
        });
        let bytes: Vec<_> = bytes.collect::<Result<_>>()?;
        let views = (0..matrices).flat_map(|matrix| {
            self.parts.iter().zip(&bytes).map(move |((name, dtype, shape, _), bytes)| {
                Ok((format!("model.layers.{matrix}.{name}"), TensorView::new(*dtype, shape, bytes)?))
            })
        });
        let views: Vec<_> = views.collect::<weighbridge::Result<_>>()?;
        Ok(Save::new().file(directory.join("model.safetensors"), views)?)
    }
}

/// Seconds that a load takes, and the bytes that it makes.
fn load(directory: &Path, dtype: Dtype, threads: usize) -> Result<(f64, u64)> {
    let start = Instant::now();
    let checkpoint = Checkpoint::open(directory)?.dequantized()?;
    let plan = Plan::of(&checkpoint).dtype(|_| Some(dtype)).build()?;
    let names: Vec<_> = plan.entries().iter().map(|entry| entry.name().to_owned()).collect();
    let bytes = plan.byte_len();
    let session = plan.session().threads(threads).start()?;
    let loaded = names.iter().map(|name| Ok(session.take(name, None)?.1)).collect::<Result<Vec<_>>>()?;
    let seconds = start.elapsed().as_secs_f64();
    drop(loaded);
    Ok((seconds, bytes))
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let temporary = tempfile::tempdir()?;
    let root = arguments.keep.clone().unwrap_or_else(|| temporary.path().to_owned());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let threads = arguments.threads.unwrap_or(cores);
    let methods = methods();
    let place = |method: &Method| {
        let name: String = method.name.chars().filter(char::is_ascii_alphanumeric).collect();
        root.join(name.to_lowercase())
    };
    for method in &methods {
        method.write(&place(method), arguments.matrices).with_context(|| method.name.to_owned())?;
    }
    let targets = [Dtype::BF16, Dtype::F32];
    let mut times: BTreeMap<(usize, usize), (Vec<f64>, u64)> = BTreeMap::new();
    for _ in 0..arguments.repeat {
        for (number, method) in methods.iter().enumerate() {
            for (target, &dtype) in targets.iter().enumerate() {
                // A load of `BF16` as it is, is no cast.
                if number == 0 && dtype == Dtype::BF16 {
                    continue;
                }
                let (seconds, bytes) = load(&place(method), dtype, threads)?;
                let entry = times.entry((number, target)).or_default();
                entry.0.push(seconds);
                entry.1 = bytes;
            }
        }
    }
    let rate = |number, target| {
        let (seconds, bytes) = times.get(&(number, target))?;
        Some(*bytes as f64 / median(seconds.clone()) / 1e9)
    };
    let cast = rate(0, 1).unwrap_or(f64::NAN);
    let mut table = String::from(
        "| | `BF16` out | of a cast | `F32` out | of a cast | weights |\n|---|---|---|---|---|---|\n",
    );
    for (number, method) in methods.iter().enumerate() {
        let cell = |target| match rate(number, target) {
            Some(rate) => format!("{rate:.2} GB/s | {:.2}", rate / cast),
            None => "|".to_owned(),
        };
        let weights = rate(number, 1).unwrap_or(f64::NAN) / 4.0;
        writeln!(table, "| {} | {} | {} | {weights:.2} G/s |", method.name, cell(0), cell(1))?;
    }
    println!("{table}");
    if let Some(path) = &arguments.update {
        let text = std::fs::read_to_string(path)?;
        let text =
            page::replace(&text, "quantised", &table)?.context("the page has no section `quantised`")?;
        std::fs::write(path, text)?;
    }
    Ok(())
}
