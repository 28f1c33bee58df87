//! The program on made-up weights: what it says, and what it refuses. Whether the true weights find speech is the affair
//! of `.ci/oracle/vad.py`.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use examples_support::testing::{Directory, error_of, json_of, run, weights};
use hound::{SampleFormat, WavSpec, WavWriter};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const PROGRAM: &str = env!("CARGO_BIN_EXE_candle-vad");

const TENSORS: [(&str, &[usize]); 15] = [
    ("conv1.bias", &[128]),
    ("conv1.weight", &[128, 129, 3]),
    ("conv2.bias", &[64]),
    ("conv2.weight", &[64, 128, 3]),
    ("conv3.bias", &[64]),
    ("conv3.weight", &[64, 64, 3]),
    ("conv4.bias", &[128]),
    ("conv4.weight", &[128, 64, 3]),
    ("final_conv.bias", &[1]),
    ("final_conv.weight", &[1, 128, 1]),
    ("lstm_cell.bias_hh", &[512]),
    ("lstm_cell.bias_ih", &[512]),
    ("lstm_cell.weight_hh", &[512, 128]),
    ("lstm_cell.weight_ih", &[512, 128]),
    ("stft_conv.weight", &[258, 1, 256]),
];

/// A model in which everything is so likely speech as its last bias says.
fn model(directory: &Directory, name: &str, bias: f32, tensors: &[(&str, &[usize])]) -> String {
    let values: Vec<_> = tensors
        .iter()
        .map(|(name, shape)| match *name {
            "final_conv.bias" => bias.to_le_bytes().to_vec(),
            _ => weights(name, shape.iter().product(), 0.02),
        })
        .collect();
    let views = tensors
        .iter()
        .zip(&values)
        .map(|((name, shape), bytes)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()));
    directory.write(name, safetensors::serialize(views, None).unwrap());
    directory.path().join(name).display().to_string()
}

fn recording(directory: &Directory, rate: u32, channels: u16, frames: usize) -> String {
    let path = directory.path().join(format!("{rate}-{channels}-{frames}.wav"));
    let spec = WavSpec { channels, sample_rate: rate, bits_per_sample: 16, sample_format: SampleFormat::Int };
    let mut writer = WavWriter::create(&path, spec).unwrap();
    for value in (-1000..1000_i16).step_by(79).cycle().take(frames * usize::from(channels)) {
        writer.write_sample(value).unwrap();
    }
    writer.finalize().unwrap();
    path.display().to_string()
}

#[test]
fn all_of_it_is_speech_or_nothing() {
    let directory = Directory::new();
    let (always, never) =
        (model(&directory, "always", 9.0, &TENSORS), model(&directory, "never", -9.0, &TENSORS));
    let sound = recording(&directory, 48_000, 2, 48_000);
    let answer = json_of(&run(PROGRAM, &["--model", &always, "--json", &sound]));
    assert_eq!(answer["segments"][0]["start"], 0);
    assert_eq!(answer["segments"][0]["end"], 48_000);
    // 16,000 samples are 31.25 frames.
    assert_eq!(answer["probabilities"].as_array().unwrap().len(), 32);
    let answer = json_of(&run(PROGRAM, &["--model", &never, "--json", &sound]));
    assert_eq!(answer["segments"].as_array().unwrap().len(), 0);
    let shown = run(PROGRAM, &["--model", &always, &sound]);
    assert_eq!(String::from_utf8_lossy(&shown.stdout), "    0.00 s  to     1.00 s\n");
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let directory = Directory::new();
    let good = model(&directory, "good", 0.0, &TENSORS);
    let lacks = model(&directory, "lacks", 0.0, &TENSORS[1..]);
    let mut other = TENSORS;
    other[1].1 = &[128, 65, 3];
    let other = model(&directory, "other", 0.0, &other);
    let (sound, fast) = (recording(&directory, 16_000, 1, 10), recording(&directory, 44_100, 1, 10));
    let failed = |model: &str, sound: &str| error_of(&run(PROGRAM, &["--model", model, sound]));
    assert!(failed(&lacks, &sound).contains("14 tensors, and the model for 16 kHz has 15"));
    assert!(failed(&other, &sound).contains("conv1.weight"));
    assert!(failed(&good, &fast).contains("44100 samples a second"));
    assert!(failed(&good, &good).contains("good"), "no wav file");
    assert!(failed("nowhere", &sound).contains("nowhere"));
}
