//! Loads of others over a network, for `benches/remote/peers.py`: hf-hub's download and Candle's load, and object_store's own
//! requests.
//!
//! ```text
//! remote-peers hub      org/model of HF_ENDPOINT, into the cache of HF_HOME
//! remote-peers store    model/model.safetensors of the bucket that the environment says
//! ```

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Device;
use futures::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let mode = std::env::args().nth(1).unwrap_or_default();
    let started = Instant::now();
    match &*mode {
        "hub" => hub()?,
        "store" => tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(store())?,
        _ => return Err("remote-peers hub|store".into()),
    }
    println!("{}", serde_json::json!({ "seconds": started.elapsed().as_secs_f64(), "first": null }));
    Ok(())
}

/// A file into the cache, and from there into tensors.
fn hub() -> Result<(), Failure> {
    let client = hf_hub::HFClientSync::new()?;
    let file = client.model("org", "model").download_file().filename("model.safetensors").send()?;
    let tensors = candle_core::safetensors::load(file, &Device::Cpu)?;
    assert!(!tensors.is_empty());
    Ok(())
}

/// Ranges of 8 MiB, 16 at a time, into memory; no tensors are made.
async fn store() -> Result<(), Failure> {
    const CHUNK: u64 = 8 << 20;
    let store = AmazonS3Builder::from_env().with_bucket_name("bucket").with_allow_http(true).build()?;
    let (store, path): (Arc<dyn ObjectStore>, _) = (Arc::new(store), Path::from("model/model.safetensors"));
    let size = store.head(&path).await?.size;
    let ranges = (0..size.div_ceil(CHUNK)).map(|n| n * CHUNK..size.min((n + 1) * CHUNK));
    let reads = futures::stream::iter(ranges.map(|range| {
        let (store, path) = (Arc::clone(&store), path.clone());
        async move { store.get_range(&path, range).await }
    }));
    let pieces: Vec<_> = reads.buffered(16).try_collect().await?;
    assert_eq!(pieces.iter().map(|piece| piece.len() as u64).sum::<u64>(), size);
    Ok(())
}
