//! `weighbridge stat`: the table, JSON, and what cannot be had.

#![allow(clippy::unwrap_used)]

mod support;

use insta::assert_snapshot;
use proptest::prelude::*;
use support::{llama, raw_file, weighbridge};
use weighbridge::write::{Save, Values};

#[test]
fn a_table_in_natural_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    llama(&path, None);
    let path = path.to_str().unwrap();
    let ran = weighbridge(["stat", path, "--only", "*.q_proj.weight", "--except", "*.[3-9].*"]);
    assert_snapshot!(ran.stdout, @r"
tensor                                   dtype  elements       min      max      mean      std  zeros  nan  inf
model.layers.0.self_attn.q_proj.weight   F32          64  -1.94000  1.91600  -0.09250  1.08976      0    0    0
model.layers.1.self_attn.q_proj.weight   F32          64  -1.99600  1.86400   0.05250  1.21597      0    0    0
model.layers.2.self_attn.q_proj.weight   F32          64  -1.90000  1.95600  -0.05250  1.08976      0    0    0
model.layers.10.self_attn.q_proj.weight  F32          64  -1.88800  1.96800  -0.01750  1.08182      0    0    0
model.layers.11.self_attn.q_proj.weight  F32          64  -1.94400  1.91600   0.06500  1.23110      0    0    0
");
}

#[test]
fn what_is_not_finite_is_counted_and_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let values = [1.0, f32::NAN, f32::INFINITY, -3.0, f32::NEG_INFINITY, 0.0, f32::INFINITY];
    let nothing = [f32::NAN; 2];
    let tensors = [
        ("mixed", Values::new(&[7], &values).unwrap()),
        ("nothing", Values::new(&[2], &nothing).unwrap()),
        ("empty", Values::new(&[0], &[]).unwrap()),
    ];
    Save::new().file(&path, tensors).unwrap();
    assert_snapshot!(weighbridge(["stat", path.to_str().unwrap()]).clean(), @r"
tensor   dtype  elements       min      max      mean      std  zeros  nan   inf
empty    F32           0         -        -         -        -      0    0     0
mixed    F32           7  -3.00000  1.00000  -0.66667  1.69967      1    1  2 -1
nothing  F32           2         -        -         -        -      0    2     0
");
    let json = weighbridge(["stat", path.to_str().unwrap(), "--only", "nothing", "--format", "json"]);
    assert_snapshot!(json.without(dir.path()), @r#"
{
  "schema": "weighbridge.stat/1",
  "checkpoints": [
    {
      "path": "[dir]/m.safetensors",
      "tensors": [
        {
          "name": "nothing",
          "dtype": "F32",
          "shape": [
            2
          ],
          "elements": 2,
          "figures": {
            "values": 2,
            "min": null,
            "max": null,
            "mean": null,
            "std": null,
            "zeros": 0,
            "nans": 2,
            "positive_infinities": 0,
            "negative_infinities": 0,
            "histogram": null
          }
        }
      ]
    }
  ]
}
"#);
}

#[test]
fn values_of_six_bits_are_named_and_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    raw_file(&path, r#"{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}"#, &[1; 3]);
    let ran = weighbridge(["stat", path.to_str().unwrap()]);
    assert_eq!(ran.status, 0);
    assert_snapshot!(ran.without(dir.path()), @r"
tensor  dtype    elements  min  max  mean  std  zeros  nan  inf
a       F6_E2M3         4    -    -     -    -      -    -    -
warning: m.safetensors: 1 tensor not read: values of 6 bits have no agreed packing
");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the bits, the figures are those of the values one by one.
    #[test]
    fn figures_are_those_of_the_values(bits in prop::collection::vec(any::<u32>(), 1..600)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        let values: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
        Save::new().file(&path, [("t", Values::new(&[values.len()], &values).unwrap())]).unwrap();
        let json = weighbridge(["stat", path.to_str().unwrap(), "--format", "json"]).clean();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let figures = &json["checkpoints"][0]["tensors"][0]["figures"];
        let finite = || values.iter().copied().filter(|value| value.is_finite()).map(f64::from);
        // In F32, as serde_json may read the last bit of an F64 wrong.
        let single = |value: &serde_json::Value| value.as_f64().map(|value| value as f32);
        prop_assert_eq!(single(&figures["min"]), finite().reduce(f64::min).map(|least| least as f32));
        prop_assert_eq!(single(&figures["max"]), finite().reduce(f64::max).map(|most| most as f32));
        let nans = values.iter().filter(|value| value.is_nan()).count() as u64;
        prop_assert_eq!(figures["nans"].as_u64(), Some(nans));
        let counted = figures["histogram"]["counts"].as_array().map(|counts| counts.iter().filter_map(serde_json::Value::as_u64).sum());
        prop_assert_eq!(counted.unwrap_or(0), finite().count() as u64);
    }
}
