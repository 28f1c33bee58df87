//! Pictures as the model wants them.

use std::path::Path;

use anyhow::Result;
use candle_core::{Device, Tensor};
use image::ImageReader;
use image::imageops::FilterType;

/// Pixels of a side.
const SIDE: u32 = 224;
/// What the shorter side of a picture becomes of which the middle is taken.
const SHORTER: u32 = 256;

/// Reads a picture as `[1, 3, 224, 224]`, from about -1 to 1. One that is not as large as that is made so: its shorter side
/// 256 pixels long, and of that the middle.
pub(crate) fn read(path: &Path, device: &Device) -> Result<Tensor> {
    let mut picture = ImageReader::open(path)?.with_guessed_format()?.decode()?;
    if (picture.width(), picture.height()) != (SIDE, SIDE) {
        let (width, height) = (u64::from(picture.width().max(1)), u64::from(picture.height().max(1)));
        let scaled = |side: u64| (side * u64::from(SHORTER)).div_ceil(width.min(height)).min(1 << 14) as u32;
        let (width, height) = (scaled(width), scaled(height));
        picture = picture.resize_exact(width, height, FilterType::CatmullRom);
        picture = picture.crop_imm((width - SIDE) / 2, (height - SIDE) / 2, SIDE, SIDE);
    }
    // As the model was trained: (x - 127) / 128.
    let pixels = picture.to_rgb8().into_raw();
    let pixels: Vec<f32> = pixels.into_iter().map(|value| (f32::from(value) - 127.0) / 128.0).collect();
    let side = SIDE as usize;
    Ok(Tensor::from_vec(pixels, (1, side, side, 3), device)?.permute((0, 3, 1, 2))?.contiguous()?)
}
