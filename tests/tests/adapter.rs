//! Merged adapters against the formula, written down plainly. `.ci/oracle/adapters.py` holds them against PEFT.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::collections::HashMap;

use half::bf16;
use weighbridge::write::Save;
use weighbridge::{
    Adapter, AdapterFormat, Checkpoint, Dtype, ErrorKind, HostBuffer, Plan, Slice, TensorView,
};

/// A matrix of numbers without a pattern, between -1 and 1.
#[derive(Clone)]
struct Matrix {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Matrix {
    fn new(shape: &[usize], seed: u32) -> Self {
        let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            // Few bits, so that products are exact in `BF16` factors.
            f32::from(((state >> 12) as u8).cast_signed()) / 128.0
        };
        Self { shape: shape.to_vec(), values: (0..shape.iter().product()).map(|_| next()).collect() }
    }

    fn bytes(&self, dtype: Dtype) -> Vec<u8> {
        match dtype {
            Dtype::BF16 => {
                self.values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()
            }
            Dtype::F16 => {
                self.values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect()
            }
            _ => self.values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }

    fn rows(&self) -> usize {
        self.shape[0]
    }

    fn columns(&self) -> usize {
        self.shape[1..].iter().product()
    }

    fn at(&self, row: usize, column: usize) -> f64 {
        f64::from(self.values[row * self.columns() + column])
    }
}

fn checkpoint(tensors: &[(&str, Dtype, &Matrix)]) -> Checkpoint {
    let bytes: Vec<_> = tensors.iter().map(|(_, dtype, matrix)| matrix.bytes(*dtype)).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, dtype, matrix), bytes)| {
        (*name, TensorView::new(*dtype, &matrix.shape, bytes).unwrap())
    });
    Checkpoint::from_bytes(Save::new().bytes(views).unwrap()).unwrap()
}

fn adapter(tensors: &[(&str, Dtype, &Matrix)]) -> weighbridge::Result<Adapter> {
    Adapter::of(&checkpoint(tensors))
}

/// `B A` at a place.
fn product(up: &Matrix, down: &Matrix, row: usize, column: usize) -> f64 {
    (0..down.rows()).map(|rank| up.at(row, rank) * down.at(rank, column)).sum()
}

fn floats(buffer: HostBuffer) -> Vec<f32> {
    match buffer {
        HostBuffer::F32(values) => values,
        _ => panic!("it is no F32"),
    }
}

/// The values of a tensor in `F32`.
fn values(ckpt: &Checkpoint, name: &str, chunk: usize) -> Vec<f32> {
    let plan =
        Plan::of(ckpt).filter(|tensor| tensor.name() == name).dtype(|_| Some(Dtype::F32)).build().unwrap();
    let session = plan.session().chunk(chunk).start().unwrap();
    let buffer = session.take(name, None).unwrap().1;
    floats(buffer)
}

#[track_caller]
fn close(what: &str, made: &[f32], wanted: impl Iterator<Item = f64>) {
    let wanted: Vec<_> = wanted.collect();
    assert_eq!(made.len(), wanted.len(), "{what}");
    for (place, (made, wanted)) in made.iter().zip(wanted).enumerate() {
        let room = wanted.abs() * 1e-6 + 2e-6;
        assert!((f64::from(*made) - wanted).abs() <= room, "{what}: {made} at {place}, not {wanted}");
    }
}

#[test]
fn weights_of_all_shapes_get_their_products() {
    for (rows, columns, rank) in
        [(1, 1, 1), (3, 5, 2), (7, 16, 3), (33, 31, 4), (130, 67, 40), (5, 4099, 2), (2050, 3, 1)]
    {
        for (dtype, of_factors) in
            [(Dtype::F32, Dtype::F32), (Dtype::BF16, Dtype::F32), (Dtype::F16, Dtype::BF16)]
        {
            let (weight, down, up) = (
                Matrix::new(&[rows, columns], 1),
                Matrix::new(&[rank, columns], 2),
                Matrix::new(&[rows, rank], 3),
            );
            let base = checkpoint(&[("a.weight", dtype, &weight), ("b.weight", dtype, &weight)]);
            let alpha = Matrix { shape: vec![], values: vec![3.0] };
            let adapter = adapter(&[
                ("a.lora_down.weight", of_factors, &down),
                ("a.lora_up.weight", of_factors, &up),
                ("a.alpha", Dtype::F32, &alpha),
            ])
            .unwrap();
            assert_eq!(adapter.modules().count(), 1);
            let module = adapter.modules().next().unwrap();
            assert_eq!((module.name(), module.rank(), module.scale()), ("a", rank, 3.0 / rank as f32));
            let merged = base.adapted([(&adapter, -0.5)]).unwrap();
            let stored = merged.tensor("a.weight").unwrap();
            assert_eq!((stored.dtype(), stored.shape()), (dtype, &[rows, columns][..]));
            let scale = -0.5 * f64::from(3.0 / rank as f32);
            let wanted = |row, column| weight.at(row, column) + scale * product(&up, &down, row, column);
            for chunk in [4096, 64 << 10, 4 << 20] {
                let made = values(&merged, "a.weight", chunk);
                let all = (0..rows * columns).map(|at| wanted(at / columns, at % columns));
                close(&format!("{rows} by {columns} of {rank}, {dtype}"), &made, all);
            }
            // Rounded once, to its own dtype.
            let own = merged.read("a.weight").unwrap();
            let wide = values(&merged, "a.weight", 1 << 20);
            let wide = Matrix { shape: vec![rows, columns], values: wide };
            assert_eq!(own.as_bytes(), wide.bytes(dtype));
            // What no adapter is for stays as it is.
            assert_eq!(merged.read("b.weight").unwrap().as_bytes(), weight.bytes(dtype));
            // Columns of it.
            if columns > 4 {
                let part = weighbridge::plan::Part::of(Slice::along(1, 1..columns - 2));
                let plan = Plan::of(&merged)
                    .filter(|tensor| tensor.name() == "a.weight")
                    .part(|_| Ok(Some(part.clone())))
                    .dtype(|_| Some(Dtype::F32))
                    .build()
                    .unwrap();
                let buffer = plan.session().start().unwrap().take("a.weight", None).unwrap().1;
                let made = floats(buffer);
                let all = (0..rows).flat_map(|row| (1..columns - 2).map(move |column| (row, column)));
                close("columns", &made, all.map(|(row, column)| wanted(row, column)));
            }
        }
    }
}

#[test]
fn rows_with_a_magnitude_are_as_long_as_it_says() {
    for (rows, columns) in [(3, 5), (40, 33), (2, 9000), (3000, 2)] {
        let (weight, down, up) =
            (Matrix::new(&[rows, columns], 4), Matrix::new(&[2, columns], 5), Matrix::new(&[rows, 2], 6));
        let magnitude = Matrix::new(&[rows, 1], 7);
        let base = checkpoint(&[("a.weight", Dtype::F32, &weight)]);
        let adapter = adapter(&[
            ("a.lora_A.weight", Dtype::F32, &down),
            ("a.lora_B.weight", Dtype::F32, &up),
            ("a.lora_magnitude_vector", Dtype::F32, &Matrix { shape: vec![rows], ..magnitude.clone() }),
        ])
        .unwrap();
        assert!(adapter.modules().all(|module| module.has_magnitude()));
        let merged = base.adapted([(&adapter, 1.0)]).unwrap();
        let sum = |row, column| weight.at(row, column) + product(&up, &down, row, column);
        let wanted = (0..rows).flat_map(|row| {
            let length = (0..columns).map(|column| sum(row, column).powi(2)).sum::<f64>().sqrt();
            let factor = magnitude.at(row, 0) / length;
            (0..columns).map(move |column| factor * sum(row, column))
        });
        close("magnitude", &values(&merged, "a.weight", 4096), wanted);
        let twice = base.adapted([(&adapter, 1.0), (&adapter, 1.0)]).unwrap_err();
        assert!(twice.to_string().contains("DoRA"), "{twice}");
    }
}

#[test]
fn fused_modules_and_single_ones_find_each_other() {
    let (hidden, rank) = (24, 2);
    let sizes =
        HashMap::from([("q_proj", 16), ("k_proj", 6), ("v_proj", 6), ("gate_proj", 10), ("up_proj", 10)]);
    let fused =
        [("qkv_proj", vec!["q_proj", "k_proj", "v_proj"]), ("gate_up_proj", vec!["gate_proj", "up_proj"])];
    for (whole, parts) in fused {
        let total: usize = parts.iter().map(|part| sizes[part]).sum();
        let weight = Matrix::new(&[total, hidden], 8);
        let base = checkpoint(&[(&format!("x.{whole}.weight"), Dtype::F32, &weight)]);
        let mut first = 0;
        for part in &parts {
            let (down, up) = (Matrix::new(&[rank, hidden], 9), Matrix::new(&[sizes[part], rank], 10));
            let names = ["A", "B"].map(|factor| format!("x.{part}.lora_{factor}.weight"));
            let adapter = adapter(&[(&names[0], Dtype::F32, &down), (&names[1], Dtype::F32, &up)]).unwrap();
            let merged = base.adapted([(&adapter, 1.0)]).unwrap();
            let rows = first..first + sizes[part];
            let wanted = (0..total).flat_map(|row| (0..hidden).map(move |column| (row, column)));
            let wanted = wanted.map(|(row, column)| {
                let added =
                    if rows.contains(&row) { product(&up, &down, row - rows.start, column) } else { 0.0 };
                weight.at(row, column) + added
            });
            close(part, &values(&merged, &format!("x.{whole}.weight"), 1 << 20), wanted);
            first += sizes[part];
        }
        // The other way round.
        let names: Vec<_> = parts.iter().map(|part| format!("x.{part}.weight")).collect();
        let weights: Vec<_> = parts.iter().map(|part| Matrix::new(&[sizes[part], hidden], 11)).collect();
        let tensors: Vec<_> =
            names.iter().zip(&weights).map(|(name, weight)| (&**name, Dtype::BF16, weight)).collect();
        let base = checkpoint(&tensors);
        let (down, up) = (Matrix::new(&[rank, hidden], 12), Matrix::new(&[total, rank], 13));
        let [a, b] = ["A", "B"].map(|factor| format!("x.{whole}.lora_{factor}.weight"));
        let adapter = adapter(&[(&a, Dtype::F32, &down), (&b, Dtype::F32, &up)]).unwrap();
        let merged = base.adapted([(&adapter, 1.0)]).unwrap();
        let mut first = 0;
        for (name, weight) in names.iter().zip(&weights) {
            let rows = weight.rows();
            let wanted = (0..rows).flat_map(|row| (0..hidden).map(move |column| (row, column)));
            let wanted =
                wanted.map(|(row, column)| weight.at(row, column) + product(&up, &down, first + row, column));
            close(name, &values(&merged, name, 1 << 20), wanted);
            first += rows;
        }
    }
}

#[test]
fn a_quantised_model_is_dequantised_and_rounded_once() {
    let (rows, columns) = (4, 6);
    let codes: Vec<u8> = (0..24_u8).map(|code| code.wrapping_mul(37)).collect();
    let scales = Matrix { shape: vec![rows, 1], values: vec![0.013, 0.5, 1.7, 0.09] };
    let scale_bytes = scales.bytes(Dtype::F32);
    let base = Save::new()
        .bytes([
            ("a.weight", TensorView::new(Dtype::I8, &[rows, columns], &codes).unwrap()),
            ("a.weight_scale", TensorView::new(Dtype::F32, &[rows, 1], &scale_bytes).unwrap()),
        ])
        .unwrap();
    let base = Checkpoint::from_bytes(base).unwrap();
    let (down, up) = (Matrix::new(&[1, columns], 14), Matrix::new(&[rows, 1], 15));
    let adapter =
        adapter(&[("a.lora_A.weight", Dtype::F32, &down), ("a.lora_B.weight", Dtype::F32, &up)]).unwrap();
    let merged = base.adapted([(&adapter, 1.0)]).unwrap();
    assert_eq!(merged.len(), 1);
    let wanted = (0..rows * columns).map(|at| {
        let (row, column) = (at / columns, at % columns);
        f64::from(codes[at].cast_signed()) * f64::from(scales.values[row]) + product(&up, &down, row, column)
    });
    close("quantised", &values(&merged, "a.weight", 1 << 20), wanted);
}

#[test]
fn names_of_kohya_find_their_modules() {
    let (weight, down, up) =
        (Matrix::new(&[4, 3, 2, 2], 16), Matrix::new(&[2, 3, 2, 2], 17), Matrix::new(&[4, 2, 1, 1], 18));
    let base = checkpoint(&[("model.diffusion_model.in_blocks.0.conv.weight", Dtype::F32, &weight)]);
    let adapter = adapter(&[
        ("lora_unet_in_blocks_0_conv.lora_down.weight", Dtype::F32, &down),
        ("lora_unet_in_blocks_0_conv.lora_up.weight", Dtype::F32, &up),
    ])
    .unwrap();
    assert_eq!(adapter.format(), AdapterFormat::Kohya);
    let merged = base.adapted([(&adapter, 1.0)]).unwrap();
    let wanted = (0..48).map(|at| weight.at(at / 12, at % 12) + product(&up, &down, at / 12, at % 12));
    close("Kohya", &values(&merged, "model.diffusion_model.in_blocks.0.conv.weight", 1 << 20), wanted);
    let norm = adapter.modules().next().unwrap().norm().unwrap();
    let all = (0..48).map(|at| product(&up, &down, at / 12, at % 12).powi(2)).sum::<f64>().sqrt();
    assert!((norm - all).abs() < 1e-5 * all, "{norm} is not {all}");
}

#[test]
fn names_that_fit_two_weights_are_refused() {
    let weight = Matrix::new(&[4, 6], 19);
    let (down, up) = (Matrix::new(&[2, 6], 20), Matrix::new(&[4, 2], 21));
    let f32 = Dtype::F32;
    let merge = |base: &[&'static str], modules: &[&str]| {
        let tensors: Vec<_> = base.iter().map(|name| (*name, f32, &weight)).collect();
        let names: Vec<_> = modules
            .iter()
            .flat_map(|module| [format!("{module}.lora_down.weight"), format!("{module}.lora_up.weight")])
            .collect();
        let factors = names.iter().zip([&down, &up].into_iter().cycle());
        let factors: Vec<_> = factors.map(|(name, factor)| (&**name, f32, factor)).collect();
        let adapter = adapter(&factors).unwrap();
        let merged = checkpoint(&tensors).adapted([(&adapter, 1.0)])?;
        let is_changed = |name: &&str| merged.read(name).unwrap().as_bytes() != weight.bytes(f32);
        Ok::<_, weighbridge::Error>(base.iter().copied().filter(is_changed).collect::<Vec<_>>())
    };
    let all = ["unet.p.weight", "text_encoder.p.weight", "text_encoder_2.p.weight"];
    for (module, weight) in ["lora_unet_p", "lora_te1_p", "lora_te2_p"].into_iter().zip(all) {
        assert_eq!(merge(&all, &[module]).unwrap(), [weight]);
    }
    let kind = |base: &[&'static str], modules: &[&str]| merge(base, modules).unwrap_err().kind();
    assert_eq!(kind(&["p.weight"], &["lora_te1_p", "lora_te2_p"]), ErrorKind::Ambiguous);
    assert_eq!(kind(&["a.b_c.weight", "a_b.c.weight"], &["lora_unet_a_b_c"]), ErrorKind::MissingTensor);
    // One component is not taken for another.
    assert_eq!(kind(&["text_encoder.p.weight"], &["text_encoder_2.p"]), ErrorKind::MissingTensor);
    assert_eq!(kind(&["unet.p.weight", "text_encoder.p.weight"], &["p"]), ErrorKind::Ambiguous);
    assert_eq!(merge(&["model.p.weight"], &["p"]).unwrap(), ["model.p.weight"]);
    // Only layers that are known for it are stored the other way round.
    let turned = Matrix::new(&[6, 4], 19);
    let factors = [("p.lora_down.weight", f32, &down), ("p.lora_up.weight", f32, &up)];
    let error =
        checkpoint(&[("p.weight", f32, &turned)]).adapted([(&adapter(&factors).unwrap(), 1.0)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Shape);
    let factors = [("c_fc.lora_down.weight", f32, &down), ("c_fc.lora_up.weight", f32, &up)];
    let merged =
        checkpoint(&[("c_fc.weight", f32, &turned)]).adapted([(&adapter(&factors).unwrap(), 1.0)]).unwrap();
    let wanted = (0..24).map(|at| turned.at(at / 4, at % 4) + product(&up, &down, at % 4, at / 4));
    close("c_fc", &values(&merged, "c_fc.weight", 1 << 20), wanted);
}

#[test]
fn factors_without_numbers_are_refused() {
    let none = Matrix { shape: vec![1 << 40, 0], values: vec![] };
    let other = Matrix { shape: vec![0, 1 << 40], values: vec![] };
    let error = adapter(&[("a.lora_A.weight", Dtype::F32, &none), ("a.lora_B.weight", Dtype::F32, &other)])
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Shape);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let weight = Matrix::new(&[4, 6], 19);
    let base =
        checkpoint(&[("model.a.weight", Dtype::F32, &weight), ("model.ids.weight", Dtype::F32, &weight)]);
    let (down, up) = (Matrix::new(&[2, 6], 20), Matrix::new(&[4, 2], 21));
    let of = |tensors: &[(&str, Dtype, &Matrix)], words: &[&str], kind| {
        let merged = adapter(tensors).and_then(|adapter| base.adapted([(&adapter, 1.0)]));
        let error = merged.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        words.iter().for_each(|word| assert!(error.to_string().contains(word), "{word:?} is not in {error}"));
    };
    let f32 = Dtype::F32;
    let (a, b) = ("a.lora_A.weight", "a.lora_B.weight");
    of(&[(a, f32, &down)], &[a, "its B, is missing"], ErrorKind::MissingTensor);
    of(
        &[("model.b.lora_A.weight", f32, &down), ("model.b.lora_B.weight", f32, &up)],
        &["\"model.b.weight\"", "nearest"],
        ErrorKind::MissingTensor,
    );
    let narrow = Matrix::new(&[2, 5], 22);
    of(&[(a, f32, &narrow), (b, f32, &up)], &["[4, 6]", "[2, 5]"], ErrorKind::Shape);
    let other = Matrix::new(&[4, 3], 23);
    of(&[(a, f32, &down), (b, f32, &other)], &["no factors"], ErrorKind::Shape);
    of(&[("a.hada_w1_a", f32, &down)], &["LoHa"], ErrorKind::Unsupported);
    of(&[("a.weight", f32, &down)], &["no part of an adapter"], ErrorKind::Unsupported);
    let flat = Matrix::new(&[4], 24);
    of(
        &[(a, f32, &down), (b, f32, &up), ("a.lora_B.bias", f32, &flat)],
        &["no bias"],
        ErrorKind::MissingTensor,
    );
    of(&[("a.lora_magnitude_vector", f32, &flat)], &["no factors"], ErrorKind::MissingTensor);
    let alpha = Matrix { shape: vec![], values: vec![f32::NAN] };
    of(&[(a, f32, &down), (b, f32, &up), ("a.alpha", f32, &alpha)], &["a.alpha", "finite"], ErrorKind::Value);
    let good = adapter(&[(a, f32, &down), (b, f32, &up)]).unwrap();
    let error = base.adapted([(&good, f32::INFINITY)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Value);
}
