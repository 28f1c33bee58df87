//! burn-store, where it was built in.

use crate::work::{Side, Way};

pub(crate) const STORE: Way = Way {
    name: "burn-store",
    title: "burn-store: `get_all_tensors`, each to a tensor of the `flex` backend",
    side: Side::Peer,
    run: store::load,
};

pub(crate) const OPEN: Way = Way {
    name: "burn-store",
    title: "burn-store `get_all_tensors`, none of them read",
    side: Side::Peer,
    run: store::open,
};

pub(crate) const FIRST: Way = Way {
    name: "burn-store",
    title: "burn-store `get_tensor`, to a tensor of the `flex` backend",
    side: Side::Peer,
    run: store::first,
};

#[cfg(not(feature = "burn"))]
mod store {
    use anyhow::{Result, bail};

    use crate::measure::Measure;
    use crate::work::Job;

    const REASON: &str = "built without `--features burn`";

    pub(super) fn load(_: &Job) -> Result<Measure> {
        bail!(REASON)
    }

    pub(super) fn open(_: &Job) -> Result<Measure> {
        bail!(REASON)
    }

    pub(super) fn first(_: &Job) -> Result<Measure> {
        bail!(REASON)
    }
}

#[cfg(feature = "burn")]
mod store {
    use anyhow::{Context, Result, anyhow};
    use burn::tensor::{Device, Tensor, TensorData};
    use burn_store::burn_pack::Tensor as Stored;
    use burn_store::{ModuleStore, SafetensorsStore, bridge};

    use crate::measure::{Measure, Size, measure};
    use crate::opening::{TENSOR, opened};
    use crate::work::Job;

    pub(super) fn load(job: &Job) -> Result<Measure> {
        let device = Device::flex();
        let load = || {
            let mut store = SafetensorsStore::from_file(&job.files[0]);
            store
                .get_all_tensors()?
                .values()
                .map(|stored| tensor(stored, &device))
                .collect::<Result<Vec<_>>>()
        };
        measure(load, |tensors| size(tensors))
    }

    pub(super) fn open(job: &Job) -> Result<Measure> {
        let open = || {
            let mut store = SafetensorsStore::from_file(&job.files[0]);
            let found = store.get_all_tensors()?.len();
            Ok((store, found))
        };
        opened(job, open, |opened| opened.1)
    }

    pub(super) fn first(job: &Job) -> Result<Measure> {
        let device = Device::flex();
        let load = || {
            let mut store = SafetensorsStore::from_file(&job.files[0]);
            Ok(vec![tensor(store.get_tensor(TENSOR)?.context("no such tensor")?, &device)?])
        };
        measure(load, |tensors| size(tensors))
    }

    /// Flat, because a rank is part of Burn's types; the bytes are the same.
    fn tensor(stored: &Stored, device: &Device) -> Result<Tensor<1>> {
        let data = bridge::to_data(stored).map_err(|error| anyhow!("{error}"))?;
        let (bytes, shape, dtype) = data.into_parts();
        let data = TensorData::from_bytes(bytes, [shape.num_elements()], dtype);
        Ok(Tensor::from_data(data, (device, dtype)))
    }

    fn size(tensors: &[Tensor<1>]) -> Size {
        let bytes = tensors.iter().map(|tensor| (tensor.dims()[0] * tensor.dtype().size()) as u64).sum();
        Size { tensors: bytes, moved: bytes }
    }
}
