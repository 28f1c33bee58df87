//! The program on made-up weights: what it says, and what it refuses. Whether the true weights are right is the affair of
//! `.ci/oracle/classify.py`.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use examples_support::testing::{Directory, error_of, json_of, run, weights};
use image::RgbImage;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const PROGRAM: &str = env!("CARGO_BIN_EXE_candle-classify");

/// Every tensor of the model, and its shape.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut tensors = Vec::new();
    let norm = |tensors: &mut Vec<_>, name: String, channels: usize| {
        for part in ["weight", "bias", "running_mean", "running_var"] {
            tensors.push((format!("{name}.{part}"), vec![channels]));
        }
    };
    tensors.push(("_conv_stem.weight".to_owned(), vec![32, 3, 3, 3]));
    norm(&mut tensors, "_bn0".to_owned(), 32);
    let stages = [(1, 3, 1, 16), (2, 3, 6, 24), (2, 5, 6, 40), (3, 3, 6, 80), (3, 5, 6, 112), (4, 5, 6, 192)];
    let (mut from, mut number) = (32, 0);
    for (count, kernel, wider, to) in stages.into_iter().chain([(1, 3, 6, 320)]) {
        for _ in 0..count {
            let (block, inside) = (format!("_blocks.{number}"), from * wider);
            if wider > 1 {
                tensors.push((format!("{block}._expand_conv.weight"), vec![inside, from, 1, 1]));
                norm(&mut tensors, format!("{block}._bn0"), inside);
            }
            tensors.push((format!("{block}._depthwise_conv.weight"), vec![inside, 1, kernel, kernel]));
            norm(&mut tensors, format!("{block}._bn1"), inside);
            tensors.push((format!("{block}._project_conv.weight"), vec![to, inside, 1, 1]));
            norm(&mut tensors, format!("{block}._bn2"), to);
            (from, number) = (to, number + 1);
        }
    }
    tensors.push(("_conv_head.weight".to_owned(), vec![1280, 320, 1, 1]));
    norm(&mut tensors, "_bn1".to_owned(), 1280);
    tensors.push(("_fc.weight".to_owned(), vec![1000, 1280]));
    tensors.push(("_fc.bias".to_owned(), vec![1000]));
    tensors
}

/// A model for which everything is class 7.
fn model(directory: &Directory, name: &str, tensors: &[(String, Vec<usize>)]) -> String {
    let values: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            match name.rsplit('.').next().unwrap() {
                "running_var" => 1.0_f32.to_le_bytes().repeat(count),
                _ if name == "_fc.bias" => {
                    (0..1000).flat_map(|class| if class == 7 { 9.0_f32 } else { 0.0 }.to_le_bytes()).collect()
                }
                _ => weights(name, count, 0.01),
            }
        })
        .collect();
    let views = tensors
        .iter()
        .zip(&values)
        .map(|((name, shape), bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    directory.write(name, safetensors::serialize(views, None).unwrap());
    directory.path().join(name).display().to_string()
}

fn picture(directory: &Directory, width: u32, height: u32) -> String {
    let path = directory.path().join(format!("{width}x{height}.png"));
    RgbImage::from_fn(width, height, |x, y| [x as u8, y as u8, 99].into()).save(&path).unwrap();
    path.display().to_string()
}

#[test]
fn pictures_of_any_size_have_classes() {
    let directory = Directory::new();
    let model = model(&directory, "model.safetensors", &tensors());
    for (width, height) in [(224, 224), (31, 500), (1, 1), (640, 480)] {
        let answer =
            json_of(&run(PROGRAM, &["--model", &model, "--json", &picture(&directory, width, height)]));
        assert_eq!(answer["classes"][0], 7, "{width} x {height}");
        assert_eq!(answer["logits"].as_array().unwrap().len(), 1000);
    }
    directory.write("labels", (0..1000).map(|n| format!("thing {n}\n")).collect::<String>());
    let labels = directory.path().join("labels").display().to_string();
    let (one, two) = (picture(&directory, 224, 224), picture(&directory, 300, 200));
    let shown = run(PROGRAM, &["--model", &model, "--labels", &labels, "--top", "1", &one, &two]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert_eq!(shown.lines().count(), 4, "{shown}");
    assert!(shown.lines().nth(1).unwrap().ends_with("   7  thing 7"), "{shown}");
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let directory = Directory::new();
    let mut tensors = tensors();
    let good = model(&directory, "good.safetensors", &tensors);
    tensors.pop();
    let lacks = model(&directory, "lacks.safetensors", &tensors);
    let seen = picture(&directory, 224, 224);
    let failed = |args: &[&str]| error_of(&run(PROGRAM, args));
    assert!(failed(&["--model", &lacks, &seen]).contains("_fc.bias"));
    assert!(failed(&["--model", &good, &good]).contains("good.safetensors"), "no picture");
    assert!(failed(&["--model", &good, "--labels", &seen, &seen]).contains("224x224.png"), "no labels");
}
