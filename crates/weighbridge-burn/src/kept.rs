//! Weights that stay quantised: Burn's own quantised tensors, where its schemes say exactly what is stored.

use burn::tensor::quantization::{QuantScheme, QuantStore, QuantValue, ScaleDtype};
use burn::tensor::{DType, Device};
use weighbridge::plan::Entry;
use weighbridge::{CodeType, Error, ErrorKind, Result, ScaledCodes, TensorRef};

use crate::mapping::Origin;
use crate::walk::{Kind, Site};

/// A weight as Burn's quantised tensor.
pub(crate) struct Kept {
    /// Its codes and then its scales, as Burn has them in `TensorData`.
    pub(crate) entry: Entry,
    pub(crate) dtype: DType,
    /// As it is in the module.
    pub(crate) shape: Vec<usize>,
}

impl Kept {
    /// What the parameter at `path` becomes if it stays quantised; `None` if it is not.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Unsupported`] where Burn or the device does not hold exactly what is stored, and says
    /// which condition it breaks.
    pub(crate) fn of(
        site: &Site,
        path: &str,
        origin: &Origin,
        tensors: &[TensorRef<'_>],
        is_computed: bool,
    ) -> Result<Option<Self>> {
        let fail = |why: &str| Err(unsupported(why.to_owned()));
        let [tensor] = tensors else {
            let is_quantised = |tensor: &TensorRef<'_>| !matches!(ScaledCodes::of(tensor), Ok(None));
            return match tensors.iter().any(is_quantised) {
                true => fail("it is joined from several tensors"),
                false => Ok(None),
            };
        };
        let Some(scaled) = ScaledCodes::of(tensor)? else { return Ok(None) };
        if tensor.elements() == 0 {
            return Ok(None);
        }
        if is_computed {
            return fail("an operation makes it");
        }
        if origin.part.is_some() {
            return fail("it is a part of a tensor");
        }
        if site.kind != Kind::Float {
            return fail("the parameter is not one of floats");
        }
        if site.is_column {
            return fail(
                "its layer transposes what is loaded (`LinearLayout::Col`), for which Burn may quantise it anew",
            );
        }
        let Layout { scaled, scheme, blocks, shape } = Layout::of(scaled, origin.transposed, &site.device)?;
        let entry = scaled.entry(path, blocks)?;
        Ok(Some(Self { entry, dtype: DType::QFloat(scheme), shape }))
    }
}

/// How Burn has a weight on a device.
struct Layout {
    /// In the order of its bytes.
    scaled: ScaledCodes,
    scheme: QuantScheme,
    /// Rows and columns of blocks, in the same order.
    blocks: Option<[usize; 2]>,
    shape: Vec<usize>,
}

impl Layout {
    /// The layout of a weight that is `transposed` in the file.
    ///
    /// Cubecl's backends have codes in words, packed along the columns of the file whichever way these lie in the
    /// module: a transposed weight has the bytes of the file and is said to be packed along another dimension. The
    /// others have one code to a byte, in the order of the module: their transposition would quantise anew.
    fn of(scaled: ScaledCodes, transposed: bool, device: &Device) -> Result<Self> {
        let code_type = scaled.code_type();
        let value = value(code_type)?;
        let scheme = QuantScheme::default().with_value(value);
        let packed = scheme.with_store(QuantStore::PackedU32(0));
        let is_packed = device.supports_dtype(DType::QFloat(packed));
        if !is_packed && code_type != CodeType::I8 {
            return Err(unsupported(format!(
                "it is {code_type}, and {device:?} holds int8 only; Burn's backends for CUDA, ROCm, Vulkan, Metal and \
                 WebGPU hold it"
            )));
        }
        if cfg!(target_endian = "big") {
            return Err(unsupported("codes and scales are little-endian, this machine is not".to_owned()));
        }
        let is_swapped = transposed && is_packed;
        let scaled = if transposed && !is_packed { scaled.transposed() } else { scaled };
        let each = if is_packed { (32 / code_type.bits()) as usize } else { 1 };
        let blocks = blocks(&scaled, each)?;
        let mut shape = scaled.shape().to_vec();
        if is_swapped && let [.., rows, columns] = &mut *shape {
            std::mem::swap(rows, columns);
        }
        let scheme = match is_packed {
            true => scheme.with_store(QuantStore::PackedU32(usize::from(is_swapped))),
            false => scheme.with_store(QuantStore::Native),
        };
        let scheme = match blocks {
            None => scheme.per_tensor(ScaleDtype::F32),
            Some([rows, columns]) => {
                let mut block = [rows as u8, columns as u8];
                if is_swapped {
                    block.reverse();
                }
                scheme.per_block(block, ScaleDtype::F32)
            }
        };
        Ok(Self { scaled, scheme, blocks, shape })
    }
}

/// What Burn calls codes.
fn value(code_type: CodeType) -> Result<QuantValue> {
    Ok(match code_type {
        CodeType::I2 => QuantValue::Q2F,
        CodeType::I4 => QuantValue::Q4F,
        CodeType::I8 => QuantValue::Q8F,
        CodeType::E2M1 => QuantValue::E2M1,
        CodeType::E4M3 => QuantValue::E4M3,
        CodeType::E5M2 => QuantValue::E5M2,
        other => return Err(unsupported(format!("Burn has no {other}"))),
    })
}

/// The blocks that groups are cut into, each of which has the scale of its group: as large as Burn has them, and rows of
/// whole words of `each` codes. `None` if there is one scale.
fn blocks(scaled: &ScaledCodes, each: usize) -> Result<Option<[usize; 2]>> {
    /// Of fewer weights to a scale, the scales would be more than codes of a byte can save.
    const LEAST: usize = 8;
    let (rows, columns) = match *scaled.shape() {
        [.., rows, columns] => (rows, columns),
        [columns] => (1, columns),
        [] => (1, 1),
    };
    if !columns.is_multiple_of(each) {
        return Err(unsupported(format!(
            "rows of {columns} codes are not whole words of {each}, as {} is packed",
            scaled.code_type()
        )));
    }
    let Some([down, across]) = scaled.group() else { return Ok(None) };
    let size = |group: usize, all: usize, each: usize| {
        (1..=usize::from(u8::MAX)).rev().find(|size| {
            let fits_group = group.is_multiple_of(*size) || group >= all;
            size.is_multiple_of(each) && all.is_multiple_of(*size) && fits_group
        })
    };
    match (size(down, rows, 1), size(across, columns, each)) {
        (Some(rows), Some(columns)) if rows * columns >= LEAST => Ok(Some([rows, columns])),
        _ => Err(unsupported(format!(
            "its groups of {down} x {across} in {rows} x {columns} weights are no blocks of Burn's, which divide both, \
             have 1 to 255 rows and columns, {LEAST} weights at the least, and whole words of {each} codes"
        ))),
    }
}

fn unsupported(why: String) -> Error {
    Error::new(ErrorKind::Unsupported, format!("Burn's quantised tensors do not hold it exactly: {why}"))
}
