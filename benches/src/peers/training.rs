//! The state of a training run in Burn: model and AdamW, saved. Built in with `--features burn`.

use crate::modules::LOADED;
use crate::work::{Side, Way, Work};

pub(crate) const TRAINED: Work = Work {
    name: "burn-train",
    title: "A model in f32 and the state of its AdamW, saved from `flex`, fsync included",
    ways: &[
        Way {
            name: "sequential",
            title: "as many bytes in order, 1 MiB at a time, and `fsync`, as `dd` does",
            side: Side::Machine,
            run: burn::sequential,
        },
        Way {
            name: "weighbridge",
            title: "**weighbridge** `save_training`: one commit, safetensors",
            side: Side::Ours,
            run: burn::save,
        },
        Way {
            name: "record",
            title: "Burn's own records, `save` of both, and `fsync`",
            side: Side::Peer,
            run: burn::record,
        },
    ],
    own_tensors: true,
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

    without!(sequential save record);
}

#[cfg(feature = "burn")]
mod burn {
    use std::fs::File;
    use std::io::Write;

    use anyhow::{Result, anyhow};
    use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
    use burn::module::Module;
    use burn::nn::{Linear, LinearConfig};
    use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
    use burn::tensor::Device;

    use crate::measure::{Measure, Size, measure};
    use crate::work::Job;

    /// A layer's inputs and outputs: 64 MiB.
    const WIDTH: usize = 4096;
    const LAYER: u64 = 4 * (WIDTH * WIDTH) as u64;
    /// The values, and two moments of each.
    const COPIES: u64 = 3;

    #[derive(Module, Debug)]
    struct Layers {
        layers: Vec<Linear>,
    }

    fn size(job: &Job) -> Result<Size> {
        let layers = (job.byte_len()? / (COPIES * LAYER)).max(1);
        let bytes = layers * COPIES * LAYER;
        Ok(Size { tensors: bytes, moved: bytes })
    }

    /// After one step, so that the optimizer has a state, of about as many bytes together as the checkpoint
    /// has.
    fn trained(job: &Job) -> Result<(Layers, ModuleOptimizer)> {
        let device = Device::flex().autodiff();
        let layer = |_| LinearConfig::new(WIDTH, WIDTH).with_bias(false).init(&device);
        let count = size(job)?.tensors / (COPIES * LAYER);
        let mut model = Layers { layers: (0..count).map(layer).collect() };
        let mut optimizer = AdamWConfig::new().init();
        for place in 0..model.layers.len() {
            // One after the other: the gradients of one layer are in memory at a time.
            let loss = model.layers[place].weight.val().sum();
            let gradients = GradientsParams::from_grads(loss.backward(), &model.layers[place]);
            model = optimizer.step(1e-3, model, gradients);
        }
        Ok((model, optimizer))
    }

    pub(super) fn sequential(job: &Job) -> Result<Measure> {
        let (bytes, block) = (size(job)?, vec![1; 1 << 20]);
        let path = job.directory.join("sequential.out");
        let write = || {
            let mut file = File::create(&path)?;
            for _ in 0..bytes.tensors >> 20 {
                file.write_all(&block)?;
            }
            Ok(file.sync_all()?)
        };
        let measure = measure(write, |()| Size { tensors: 0, moved: bytes.moved });
        let _ = std::fs::remove_file(&path);
        measure
    }

    pub(super) fn save(job: &Job) -> Result<Measure> {
        let (model, optimizer) = trained(job)?;
        let size = size(job)?;
        let directory = tempfile::tempdir_in(&job.directory)?;
        let scheduler = ModuleLrScheduler::from(1e-3);
        let save = || Ok(weighbridge_burn::save_training(directory.path(), &model, &optimizer, &scheduler)?);
        measure(save, |()| size)
    }

    pub(super) fn record(job: &Job) -> Result<Measure> {
        let (model, optimizer) = trained(job)?;
        let size = size(job)?;
        let directory = tempfile::tempdir_in(&job.directory)?;
        let save = || {
            let (values, state) =
                (directory.path().join("model.bpk"), directory.path().join("optimizer.bpk"));
            model.into_record().save(&values)?;
            optimizer.save(&state).map_err(|error| anyhow!("{error}"))?;
            File::open(values)?.sync_all()?;
            Ok(File::open(state)?.sync_all()?)
        };
        measure(save, |()| size)
    }
}
