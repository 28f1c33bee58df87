//! A Burn module on the CPU: loaded from a checkpoint, and saved. Built in with `--features burn`.

use crate::loads::LOAD;
use crate::saves::sequential;
use crate::work::{Column, Side, Way, Work};

pub(crate) const LOADED: Work = Work {
    name: "burn-load",
    title: "The Llama in bf16 into a Burn module on `flex`, page cache hot",
    python: false,
    ways: &[
        Way {
            name: "populate",
            title: "the file mapped and its pages brought in, nothing else",
            side: Side::Machine,
            run: burn::populate,
        },
        Way {
            name: "weighbridge-mapped",
            title: "**weighbridge** `load`, file mapped",
            side: Side::Ours,
            run: burn::mapped,
        },
        Way {
            name: "weighbridge",
            title: "**weighbridge** `load`, file read",
            side: Side::Ours,
            run: burn::read,
        },
        Way {
            name: "burn-store",
            title: "burn-store `SafetensorsStore`, `PyTorchToBurnAdapter`",
            side: Side::Peer,
            run: burn::store,
        },
        Way {
            name: "record",
            title: "Burn's own record, `ModuleRecord::load` of a `.bpk`",
            side: Side::Peer,
            run: burn::record,
        },
    ],
    columns: &[Column::Speed, Column::Cpu, Column::Peak, Column::Faults],
    ..LOAD
};

pub(crate) const SAVED: Work = Work {
    name: "burn-save",
    title: "The same Burn module into a file, fsync included",
    ways: &[
        Way {
            name: "sequential",
            title: "as many bytes in order, 1 MiB at a time, and `fsync`, as `dd` does",
            side: Side::Machine,
            run: sequential,
        },
        Way {
            name: "weighbridge",
            title: "**weighbridge** `save`, `fsync` and rename included",
            side: Side::Ours,
            run: burn::save,
        },
        Way {
            name: "burn-store",
            title: "burn-store `SafetensorsStore`, `BurnToPyTorchAdapter`, `fsync` included",
            side: Side::Peer,
            run: burn::save_store,
        },
        Way {
            name: "record",
            title: "Burn's own record, `ModuleRecord::save`, and `fsync`",
            side: Side::Peer,
            run: burn::save_record,
        },
    ],
    ..LOADED
};

#[cfg(not(feature = "burn"))]
mod burn {
    use anyhow::{Result, bail};

    use crate::measure::Measure;
    use crate::work::Job;

    macro_rules! without {
        ($($way:ident)*) => {$(
            pub(super) fn $way(_: &Job) -> Result<Measure> {
                bail!("built without `--features burn`")
            }
        )*};
    }

    without!(populate mapped read store record save save_store save_record);
}

#[cfg(feature = "burn")]
mod burn {
    use std::fs::File;
    use std::path::PathBuf;

    use anyhow::{Context, Result, anyhow};
    use burn::module::Module;
    use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig};
    use burn::store::ModuleRecord;
    use burn::tensor::Device;
    use burn_store::{BurnToPyTorchAdapter, ModuleSnapshot, PyTorchToBurnAdapter, SafetensorsStore};
    use weighbridge::{Checkpoint, Mapping};

    use crate::measure::{Measure, Size, measure};
    use crate::work::Job;

    #[derive(Module, Debug)]
    struct Attention {
        q_proj: Linear,
        k_proj: Linear,
        v_proj: Linear,
        o_proj: Linear,
    }

    #[derive(Module, Debug)]
    struct Mlp {
        gate_proj: Linear,
        up_proj: Linear,
        down_proj: Linear,
    }

    #[derive(Module, Debug)]
    struct Layer {
        input_layernorm: RmsNorm,
        self_attn: Attention,
        post_attention_layernorm: RmsNorm,
        mlp: Mlp,
    }

    #[derive(Module, Debug)]
    struct Decoder {
        embed_tokens: Embedding,
        layers: Vec<Layer>,
        norm: RmsNorm,
    }

    #[derive(Module, Debug)]
    struct Llama {
        model: Decoder,
        lm_head: Linear,
    }

    /// The module of the checkpoint's shapes, not initialised.
    fn llama(job: &Job) -> Result<Llama> {
        let device = Device::flex();
        let shape = |name: &str| {
            let found = job.tensors.iter().find(|(known, _)| known == name);
            found.map(|(_, shape)| shape.as_slice()).with_context(|| format!("there is no {name}"))
        };
        let linear = |name: &str| match shape(&format!("{name}.weight"))? {
            [outputs, inputs] => Ok(LinearConfig::new(*inputs, *outputs).with_bias(false).init(&device)),
            _ => Err(anyhow!("{name} is not a matrix")),
        };
        let width = shape("model.norm.weight")?[0];
        let norm = || RmsNormConfig::new(width).init(&device);
        let count =
            (0..).take_while(|n| shape(&format!("model.layers.{n}.mlp.up_proj.weight")).is_ok()).count();
        let layer = |n: usize| {
            let linear = |name: &str| linear(&format!("model.layers.{n}.{name}"));
            Ok(Layer {
                input_layernorm: norm(),
                self_attn: Attention {
                    q_proj: linear("self_attn.q_proj")?,
                    k_proj: linear("self_attn.k_proj")?,
                    v_proj: linear("self_attn.v_proj")?,
                    o_proj: linear("self_attn.o_proj")?,
                },
                post_attention_layernorm: norm(),
                mlp: Mlp {
                    gate_proj: linear("mlp.gate_proj")?,
                    up_proj: linear("mlp.up_proj")?,
                    down_proj: linear("mlp.down_proj")?,
                },
            })
        };
        let vocabulary = shape("model.embed_tokens.weight")?[0];
        let model = Decoder {
            embed_tokens: EmbeddingConfig::new(vocabulary, width).init(&device),
            layers: (0..count).map(layer).collect::<Result<_>>()?,
            norm: norm(),
        };
        Ok(Llama { model, lm_head: linear("lm_head")? })
    }

    fn size(job: &Job) -> Size {
        let bytes = job.tensors.iter().map(|(_, shape)| 2 * shape.iter().product::<usize>() as u64).sum();
        Size { tensors: bytes, moved: bytes }
    }

    pub(super) fn populate(job: &Job) -> Result<Measure> {
        #[allow(unsafe_code)]
        let map = || {
            let file = File::open(&job.files[0])?;
            // SAFETY: the file is ours, and nobody changes it while it is mapped.
            Ok(unsafe { memmap2::MmapOptions::new().populate().map(&file) }?)
        };
        measure(map, |_| size(job))
    }

    pub(super) fn mapped(job: &Job) -> Result<Measure> {
        #[allow(unsafe_code)]
        // SAFETY: the files are ours, and nobody changes them while they are mapped.
        let mapping = unsafe { Mapping::new() };
        let mut llama = llama(job)?;
        let load = || {
            let ckpt = Checkpoint::options().map(mapping).open(&job.directory)?;
            weighbridge_burn::load(&ckpt).pytorch().into(&mut llama)?;
            Ok(())
        };
        measure(load, |()| size(job))
    }

    pub(super) fn read(job: &Job) -> Result<Measure> {
        let mut llama = llama(job)?;
        measure(|| load(job, &mut llama), |()| size(job))
    }

    fn load(job: &Job, llama: &mut Llama) -> Result<()> {
        let ckpt = Checkpoint::open(&job.directory)?;
        weighbridge_burn::load(&ckpt).pytorch().into(llama)?;
        Ok(())
    }

    pub(super) fn store(job: &Job) -> Result<Measure> {
        let mut llama = llama(job)?;
        let load = || {
            let mut store =
                SafetensorsStore::from_file(&job.files[0]).with_from_adapter(PyTorchToBurnAdapter);
            llama.load_from(&mut store).map_err(|error| anyhow!("{error}"))
        };
        measure(load, |_| size(job))
    }

    /// The record is written by a process of its own, the first time.
    pub(super) fn record(job: &Job) -> Result<Measure> {
        const WRITE: &str = "PEERS_WRITE_RECORD";
        let file = job.directory.join("model.bpk");
        let mut llama = llama(job)?;
        if std::env::var_os(WRITE).is_some() {
            load(job, &mut llama)?;
            llama.into_record().save(&file)?;
            return measure(|| Ok(()), |()| size(job));
        }
        if !file.exists() {
            let mut child = std::process::Command::new(std::env::current_exe()?);
            child.args(["--measure", job.work.name, "record"]).arg(&job.directory).env(WRITE, "1");
            let bytes =
                job.tensors.iter().map(|(_, shape)| 2 * shape.iter().product::<usize>()).sum::<usize>();
            child.args(["--size", &bytes.to_string()]).output()?;
        }
        measure(|| Ok(llama.load_record(ModuleRecord::load(&file)?)), |_| size(job))
    }

    /// Saves what was loaded before, and removes it.
    fn saved(job: &Job, save: impl FnOnce(Llama, &PathBuf) -> Result<()>) -> Result<Measure> {
        let mut llama = llama(job)?;
        load(job, &mut llama)?;
        let file = job.directory.join("saved.out");
        let measure = measure(|| save(llama, &file), |()| size(job));
        let _ = std::fs::remove_file(&file);
        measure
    }

    pub(super) fn save(job: &Job) -> Result<Measure> {
        saved(job, |llama, file| Ok(weighbridge_burn::save(&llama).pytorch().file(file)?))
    }

    pub(super) fn save_store(job: &Job) -> Result<Measure> {
        saved(job, |llama, file| {
            let mut store =
                SafetensorsStore::from_file(file).with_to_adapter(BurnToPyTorchAdapter).overwrite(true);
            llama.save_into(&mut store).map_err(|error| anyhow!("{error}"))
        })
    }

    pub(super) fn save_record(job: &Job) -> Result<Measure> {
        saved(job, |llama, file| {
            llama.into_record().save(file.with_extension("bpk"))?;
            let saved = file.with_extension("bpk");
            File::open(&saved)?.sync_all()?;
            Ok(std::fs::rename(saved, file)?)
        })
    }
}
