//! The options of both programs.

use std::path::PathBuf;

use crate::checkpoint::Float;

/// What to check, and where.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Bytes of the checkpoint, such as 8GB or 50MB
    #[arg(long, default_value = "8GB", value_parser = size)]
    pub size: u64,
    /// Its dtype
    #[arg(long, value_enum, default_value_t = Float::Bf16)]
    pub dtype: Float,
    /// Directories to make it in, one after the other
    #[arg(long, default_values = ["/dev/shm", "."])]
    pub place: Vec<PathBuf>,
    /// How often each loader loads
    #[arg(long, default_value_t = 3)]
    pub repeat: usize,
    /// How often at random small checkpoints are loaded and looked at
    #[arg(long, default_value_t = 1000)]
    pub races: u64,
    /// Seconds that this may take
    #[arg(long, default_value_t = 90)]
    pub races_seconds: u64,
    /// Seconds after which no more loaders are tried
    #[arg(long, default_value_t = 270)]
    pub seconds: u64,
    /// Seconds after which a loader is given up
    #[arg(long, default_value_t = 90)]
    pub limit: u64,
    /// A Python with torch, safetensors and fastsafetensors, to be measured beside
    #[arg(long)]
    pub python: Option<PathBuf>,
    /// Writes the results there as JSON, too
    #[arg(long)]
    pub json: Option<PathBuf>,
}

fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.to_uppercase() {
        text if text.ends_with("GB") => (text[..text.len() - 2].to_owned(), 1e9),
        text if text.ends_with("MB") => (text[..text.len() - 2].to_owned(), 1e6),
        text => (text, 1.0),
    };
    let number: f64 = number.trim().parse().map_err(|_| "it is not a size".to_owned())?;
    if number > 0.0 { Ok((number * unit) as u64) } else { Err("it is not a size".to_owned()) }
}
