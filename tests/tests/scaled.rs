//! Codes and scales against the dense weights: each code times its scale, bit for bit, of every vector that can be had so.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use weighbridge::plan::cast_into;
use weighbridge::{
    Checkpoint, CodeType, Dtype, ErrorKind, HostBuffer, LoadOptions, Plan, ScaledCodes, TensorRef,
};

/// The numbers of codes, packed as they are in bytes.
fn numbers(code_type: CodeType, bytes: &[u8]) -> Vec<f32> {
    let integers = |bits: u32| {
        let codes =
            bytes.iter().flat_map(move |byte| (0..8).step_by(bits as usize).map(move |shift| byte >> shift));
        codes.map(|code| f32::from((code << (8 - bits)).cast_signed() >> (8 - bits))).collect()
    };
    let floats = |dtype: Dtype| {
        let mut values = vec![0.0; bytes.len() * 8 / dtype.bits() as usize];
        cast_into(dtype, bytes, &mut values).unwrap();
        values
    };
    match code_type {
        CodeType::E2M1 => floats(Dtype::F4),
        CodeType::E4M3 => floats(Dtype::F8_E4M3),
        CodeType::E5M2 => floats(Dtype::F8_E5M2),
        integer => integers(integer.bits()),
    }
}

fn bits(value: f32) -> u32 {
    if value.is_nan() { u32::MAX } else { value.to_bits() }
}

/// The blocks that fit groups: as large as they can be.
fn blocks(scaled: &ScaledCodes) -> Option<[usize; 2]> {
    let dims = dims(scaled.shape());
    let fit = |at: usize, group: usize| {
        (1..=group).rev().find(|size| {
            dims[at + 1].is_multiple_of(*size) && (group.is_multiple_of(*size) || group == dims[at + 1])
        })
    };
    scaled.group().map(|[down, across]| [fit(0, down).unwrap(), fit(1, across).unwrap()])
}

/// Matrices, rows and columns.
fn dims(shape: &[usize]) -> [usize; 3] {
    let (columns, outer) = shape.split_last().unwrap();
    let (rows, outer) = outer.split_last().map_or((1, outer), |(&rows, outer)| (rows, outer));
    [outer.iter().product(), rows, *columns]
}

/// The weight that codes and scales are.
fn product(scaled: &ScaledCodes) -> Option<Vec<u32>> {
    let [matrices, rows, columns] = dims(scaled.shape());
    let blocks = blocks(scaled);
    let entry = match scaled.entry("w", blocks) {
        Ok(entry) => entry,
        Err(error) => {
            assert!(error.message().contains("are not whole bytes"), "{error}");
            return None;
        }
    };
    let read = |options: LoadOptions| {
        let session = Plan::new([entry.clone()]).session().options(options.threads(2)).start()?;
        session.take("w", None).map(|(_, bytes)| bytes)
    };
    let bytes = match read(LoadOptions::new()) {
        Ok(bytes) => bytes,
        Err(error) => {
            // Of gpt-oss, twice the scale.
            assert!(error.message().contains("is too large for F32"), "{error}");
            return None;
        }
    };
    assert!(read(LoadOptions::new().chunk(1)).unwrap().as_bytes() == bytes.as_bytes());
    let (codes, scales) =
        bytes.as_bytes().split_at(matrices * rows * columns * scaled.code_type().bits() as usize / 8);
    let scales: Vec<_> = scales.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let [down, across] = blocks.unwrap_or([rows.max(1), columns.max(1)]);
    let grid = [rows / down, columns / across];
    let of_all = blocks.is_none();
    assert_eq!(scales.len(), if of_all { 1 } else { matrices * grid[0] * grid[1] });
    let product = numbers(scaled.code_type(), codes).into_iter().enumerate().map(|(at, number)| {
        let (matrix, row, column) = (at / columns / rows, at / columns % rows, at % columns);
        let scale = if of_all { 0 } else { (matrix * grid[0] + row / down) * grid[1] + column / across };
        bits(number * scales[scale])
    });
    Some(product.collect())
}

/// What it is in the shape of the tensor, and transposed; compared with the dense one.
fn check(tensor: &TensorRef<'_>, dense: &[f32], scaled: ScaledCodes) -> bool {
    let [_, rows, columns] = dims(tensor.shape());
    let own = product(&scaled);
    if let Some(own) = &own {
        assert!(own.iter().copied().eq(dense.iter().map(|&value| bits(value))), "{}", tensor.name());
    }
    if tensor.shape().len() < 2 {
        return own.is_some();
    }
    let transposed = scaled.transposed();
    let shape = transposed.shape();
    assert_eq!(shape[shape.len() - 2..], [columns, rows]);
    let other = product(&transposed);
    if let Some(other) = &other {
        for (at, value) in other.iter().enumerate() {
            let (matrix, row, column) = (at / (rows * columns), at / rows % columns, at % rows);
            let expected = bits(dense[matrix * rows * columns + column * columns + row]);
            assert_eq!(*value, expected, "{} transposed, {row}, {column}", tensor.name());
        }
    }
    own.is_some() || other.is_some()
}

/// Of some vectors: the codes of the weights that can be had so, and why others cannot.
const EXPECTED: &[(&str, &[CodeType], &str)] = &[
    ("awq-gemm-g128", &[], "it has zero points"),
    ("bnb-int8", &[], "multiplied by something else"),
    ("bnb-nf4", &[], "of a table of their own"),
    ("ct-float8-block", &[CodeType::E4M3], ""),
    ("ct-int8-channel-asym", &[], "it has zero points"),
    ("ct-int8-channel-sym", &[CodeType::I8], ""),
    ("ct-int8-tensor-sym", &[CodeType::I8], ""),
    ("ct-mxfp4", &[CodeType::E2M1], ""),
    ("ct-nvfp4", &[CodeType::E2M1], ""),
    ("ct-pack-3bit-sym", &[], "its codes have 3 bits"),
    ("ct-pack-4bit-sym", &[CodeType::I4], ""),
    ("ct-pack-8bit-sym", &[CodeType::I8], ""),
    ("comfy-legacy-e5m2", &[CodeType::E5M2], ""),
    ("gptq-2bit-v1-sym", &[CodeType::I2], ""),
    ("gptq-4bit-v1-sym", &[CodeType::I4], ""),
    ("gptq-4bit-v1-sym-act", &[], "act-order"),
    ("gptq-8bit-v1-sym", &[CodeType::I8], ""),
    ("hqq-axis1", &[], "zero points are floating-point numbers"),
    ("mlx-affine-8bit-g32", &[], "its groups have biases"),
    ("modelopt-int4-awq-pre-quant-scale", &[], "each of its columns has a factor"),
    ("modelopt-nvfp4", &[CodeType::E2M1], ""),
    ("modelopt-nvfp4-experts-transposed", &[CodeType::E2M1], ""),
    ("mxfp4-gpt-oss", &[CodeType::E2M1], ""),
    ("quanto-int8", &[CodeType::I8], ""),
    ("torchao-int8-bfloat16", &[CodeType::I8], ""),
];

#[test]
fn codes_times_scales_are_the_weights_of_every_method() {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("quantized/vectors");
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(vectors).unwrap() {
        let case = entry.unwrap().path();
        let name = case.file_name().unwrap().to_str().unwrap().to_owned();
        let dense = Checkpoint::open(case.join("checkpoint")).unwrap().dequantized().unwrap();
        let session = Plan::of(&dense).build().unwrap().session().threads(2).start().unwrap();
        let (mut types, mut reasons) = (Vec::new(), Vec::new());
        for tensor in dense.tensors() {
            match ScaledCodes::of(&tensor) {
                Ok(None) => {}
                Ok(Some(scaled)) => {
                    assert_eq!(scaled.shape(), tensor.shape());
                    let code_type = scaled.code_type();
                    let (_, values) = session.take(tensor.name(), Some(Dtype::F32)).unwrap();
                    let HostBuffer::F32(values) = values else { panic!("not F32") };
                    if check(&tensor, &values, scaled) {
                        types.push(code_type);
                    }
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unsupported);
                    assert_eq!(error.tensor(), Some(tensor.name()));
                    reasons.push(error.message().to_owned());
                }
            }
        }
        types.sort_by_key(|code_type| format!("{code_type:?}"));
        types.dedup();
        found.insert(name, (types, reasons));
    }
    for (name, types, reason) in EXPECTED {
        let (own, reasons) = &found[*name];
        assert_eq!(own, types, "{name}: {reasons:?}");
        let is_said = match reason.is_empty() {
            true => reasons.is_empty(),
            false => reasons.iter().any(|own| own.contains(reason)),
        };
        assert!(is_said, "{name}: {reasons:?}, not {reason:?}");
    }
}
