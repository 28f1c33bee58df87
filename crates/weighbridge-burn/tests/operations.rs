//! Operations for single parameters: what a file holds, changed on its way into the module.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::ops::Range;

use burn::module::{Module, Param};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use weighbridge_burn::weighbridge::plan::{Bound, Input, Join, Operation, Part, Piece, Tiles, Transpose};
use weighbridge_burn::weighbridge::write::{Save, Values};
use weighbridge_burn::weighbridge::{Checkpoint, Error, ErrorKind, Names, Result, Slice};
use weighbridge_burn::{Mapping, load, save};

/// Brings the rows of a query or key projection from the order that Hugging Face's Llama has, the first half
/// of each head and then the second, to the interleaved one of Meta's, which rotates neighbours:
/// `permute_rotary_weights` of Burn's models.
#[derive(Debug)]
struct Interleave {
    heads: usize,
}

/// The same for a matrix of this height.
#[derive(Debug)]
struct Interleaved {
    /// Rows of a head.
    head: u64,
    /// Bytes of a row.
    row: u64,
}

impl Operation for Interleave {
    fn bind(&self, inputs: &[Input]) -> Result<Bound> {
        let [input] = inputs else { return Err(Error::new(ErrorKind::Shape, "there is one matrix")) };
        let rows = input.shape().first().copied().unwrap_or(0);
        if rows == 0 || !rows.is_multiple_of(2 * self.heads) {
            let message = format!("its rows cannot be divided among {} heads", self.heads);
            return Err(Error::new(ErrorKind::Shape, message));
        }
        let row = (input.range().end - input.range().start) / rows as u64;
        let head = (rows / self.heads) as u64;
        Ok(Bound::new(input.dtype(), input.shape(), Interleaved { head, row }))
    }
}

impl Interleaved {
    /// The stored row that becomes row `row`.
    fn stored(&self, row: u64) -> u64 {
        let (start, within) = (row / self.head * self.head, row % self.head);
        start + within % 2 * (self.head / 2) + within / 2
    }
}

impl Tiles for Interleaved {
    fn gather(&self, tile: Range<u64>, pieces: &mut Vec<Piece>) {
        let mut start = tile.start;
        while start < tile.end {
            let end = tile.end.min((start / self.row + 1) * self.row);
            let stored = self.stored(start / self.row) * self.row + start % self.row;
            pieces.push(Piece { input: 0, bytes: stored..stored + (end - start) });
            start = end;
        }
    }

    fn is_direct(&self) -> bool {
        true
    }

    fn step(&self) -> u64 {
        1024 * self.row
    }
}

#[derive(Module, Debug)]
struct Attention {
    q_proj: Linear,
    v_proj: Linear,
}

#[derive(Module, Debug)]
struct Llama {
    embed: Embedding,
    layers: Vec<Attention>,
}

fn device() -> Device {
    Device::flex()
}

fn llama(vocabulary: usize) -> Llama {
    let linear = || LinearConfig::new(6, 8).init(&device());
    Llama {
        embed: EmbeddingConfig::new(vocabulary, 6).init(&device()),
        layers: (0..2).map(|_| Attention { q_proj: linear(), v_proj: linear() }).collect(),
    }
}

fn saved(llama: &Llama) -> Checkpoint {
    Checkpoint::from_bytes(save(llama).pytorch().bytes().unwrap()).unwrap()
}

/// What Burn's models do after a load: to a weight `[in, out]`.
fn permuted(weight: Tensor<2>, heads: usize) -> TensorData {
    let [inputs, outputs] = weight.dims();
    let split = weight.reshape([inputs, heads, 2, outputs / heads / 2]).swap_dims(2, 3);
    split.reshape([inputs, outputs]).into_data()
}

#[test]
fn rotary_weights_are_permuted_while_they_are_read() {
    let first = llama(5);
    let mut second = llama(5);
    let mapping =
        Mapping::pytorch().operation_for(Names::glob("layers.*.q_proj.*").unwrap(), Interleave { heads: 2 });
    let report = load(&saved(&first)).mapping(mapping).all_used().into(&mut second).unwrap();
    assert!(report.cast.is_empty());
    for (first, second) in first.layers.iter().zip(&second.layers) {
        assert_eq!(second.q_proj.weight.val().into_data(), permuted(first.q_proj.weight.val(), 2));
        let (from, to) = (first.q_proj.bias.as_ref().unwrap(), second.q_proj.bias.as_ref().unwrap());
        assert_eq!(to.val().unsqueeze::<2>().into_data(), permuted(from.val().unsqueeze(), 2));
        assert_eq!(second.v_proj.weight.val().into_data(), first.v_proj.weight.val().into_data());
    }
}

#[test]
fn a_slice_is_read_cast_and_transposed_afterwards() {
    let (first, mut second) = (llama(9), llama(5));
    let rows = || Part::of(Slice::new().range(2..7));
    let mapping = Mapping::pytorch().operation("embed.weight", rows());
    let load = load(&saved(&first)).mapping(mapping).dtype(FloatDType::F16);
    let report = load.into(&mut second).unwrap();
    assert_eq!(report.cast.len(), report.loaded.len());
    let expected = first.embed.weight.val().slice(2..7).cast(DType::F16);
    assert_eq!(second.embed.weight.val().into_data(), expected.into_data());
    let expected = first.layers[1].v_proj.weight.val().cast(DType::F16);
    assert_eq!(second.layers[1].v_proj.weight.val().into_data(), expected.into_data());
}

#[derive(Module, Debug)]
struct Matrix {
    matrix: Param<Tensor<2>>,
}

fn matrix(rows: usize, columns: usize) -> Matrix {
    Matrix { matrix: Param::from_tensor(Tensor::zeros([rows, columns], &device())) }
}

fn values(matrix: &Matrix) -> Vec<f32> {
    matrix.matrix.val().into_data().try_to_vec().unwrap()
}

/// `[2, 2]` tensors of these names, with values that count on from one to the next.
fn squares(names: &[&str]) -> Checkpoint {
    let all: Vec<f32> = (1_u8..=4 * names.len() as u8).map(f32::from).collect();
    let tensors = names.iter().zip(all.chunks(4));
    let tensors = tensors.map(|(name, values)| (*name, Values::new(&[2, 2], values).unwrap()));
    Checkpoint::from_bytes(Save::new().bytes(tensors).unwrap()).unwrap()
}

#[test]
fn an_operation_gets_all_tensors_of_a_parameter_whole() {
    // Side by side, which `separate` does not say.
    let mapping = Mapping::new().separate("matrix", ["left", "right"]).operation("matrix", Join::along(1));
    let mut module = matrix(2, 4);
    load(&squares(&["left", "right"])).mapping(mapping).into(&mut module).unwrap();
    assert_eq!(values(&module), [1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 7.0, 8.0]);
}

#[test]
fn the_first_operation_that_is_set_for_a_path_counts() {
    let mapping = Mapping::new()
        .operation("matrix", Transpose::of(0))
        .operation_for(Names::all(), Part::of(Slice::new().range(..1)));
    let mut module = matrix(2, 2);
    load(&squares(&["matrix"])).mapping(mapping).into(&mut module).unwrap();
    assert_eq!(values(&module), [1.0, 3.0, 2.0, 4.0]);
}

#[derive(Debug)]
struct Panics;

impl Operation for Panics {
    fn bind(&self, _: &[Input]) -> Result<Bound> {
        panic!("no such luck")
    }
}

#[test]
fn what_is_wrong_with_an_operation_is_told_by_its_parameter() {
    let rows = Part::of(Slice::new().range(..1));
    let cases = [
        (Mapping::new().operation("matrix", rows), "the module has [2, 2] there, its operation gives [1, 2]"),
        (Mapping::new().operation("matrix", Interleave { heads: 3 }), "cannot be divided among 3 heads"),
        (Mapping::new().operation("matrix", Panics), "no such luck"),
        (
            Mapping::new().operation("matrx", Transpose::of(0)),
            "an operation is set for \"matrx\", but no parameter has such a path; they are like \"matrix\"",
        ),
    ];
    for (mapping, message) in cases {
        let mut module = matrix(2, 2);
        let error = load(&squares(&["matrix"])).mapping(mapping).into(&mut module).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(values(&module), [0.0; 4]);
    }
}

#[test]
fn what_was_loaded_through_an_operation_is_saved_by_another_mapping() {
    let mapping = Mapping::new().operation("matrix", Transpose::of(0));
    let mut module = matrix(2, 2);
    load(&squares(&["matrix"])).mapping(mapping.clone()).into(&mut module).unwrap();
    let error = save(&module).mapping(mapping).bytes().unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Unsupported, Some("matrix")));
    let again = Checkpoint::from_bytes(save(&module).bytes().unwrap()).unwrap();
    let mut second = matrix(2, 2);
    load(&again).into(&mut second).unwrap();
    assert_eq!(values(&second), [1.0, 3.0, 2.0, 4.0]);
    // Parameters without one are saved.
    let llama = llama(5);
    let mapping = Mapping::pytorch().operation("embed.weight", Transpose::of(0));
    let some = save(&llama).mapping(mapping).only(Names::prefix("layers.")).bytes().unwrap();
    assert_eq!(Checkpoint::from_bytes(some).unwrap().len(), 8);
}
