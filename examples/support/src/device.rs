//! Devices and dtypes by their names on the command line.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use clap::ValueEnum;

/// The types that models compute in.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DTypeChoice {
    /// `f32`
    F32,
    /// `bf16`
    Bf16,
    /// `f16`
    F16,
}

impl From<DTypeChoice> for DType {
    fn from(choice: DTypeChoice) -> Self {
        match choice {
            DTypeChoice::F32 => Self::F32,
            DTypeChoice::Bf16 => Self::BF16,
            DTypeChoice::F16 => Self::F16,
        }
    }
}

/// A device by its name on the command line, not opened yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// `cpu`
    Cpu,
    /// `cuda`, or `cuda:N`
    Cuda(usize),
    /// `metal`
    Metal,
}

impl DeviceChoice {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// The program was built without it, or there is none.
    pub fn open(self) -> Result<Device> {
        let (feature, compiled) = match self {
            Self::Cpu => return Ok(Device::Cpu),
            Self::Cuda(_) => ("cuda", cfg!(feature = "cuda")),
            Self::Metal => ("metal", cfg!(feature = "metal")),
        };
        if !compiled {
            bail!(
                "--device {self}: this program was built without the feature `{feature}`; \
                 add `--features {feature}` to the cargo command"
            );
        }
        match self {
            Self::Cuda(ordinal) => Device::new_cuda(ordinal),
            _ => Device::new_metal(0),
        }
        .with_context(|| format!("--device {self}"))
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            _ => name
                .strip_prefix("cuda:")
                .and_then(|ordinal| ordinal.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| "expected cpu, cuda, cuda:N or metal".into()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_by_name() {
        assert_eq!("cpu".parse(), Ok(DeviceChoice::Cpu));
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        assert_eq!("metal".parse(), Ok(DeviceChoice::Metal));
        for name in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(name.parse::<DeviceChoice>().is_err(), "{name:?}");
        }
    }
}
