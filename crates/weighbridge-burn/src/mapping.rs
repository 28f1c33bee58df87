//! How files name and lay out the parameters of a module.

pub(crate) mod targets;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use weighbridge::plan::Operation;
use weighbridge::{Error, ErrorKind, Names, Result};

use crate::convention::{Candidate, Convention, Fusing, Portion};
use crate::walk::Site;

/// How files name and lay out the parameters of a module: a [`Convention`], and what departs from it. The
/// same mapping serves to load and to save.
///
/// Names given here are those in the files, as the convention has them, except where a method says that it
/// takes paths of parameters.
///
/// ```
/// use weighbridge_burn::Mapping;
///
/// // A Llama whose attention has q_proj, k_proj and v_proj, from files that have one qkv_proj, and whose output layer is
/// // the embedding if the files have none.
/// let mapping = Mapping::pytorch()
///     .fused("qkv_proj", ["q_proj", "k_proj", "v_proj"])
///     .tied("lm_head.weight", "model.embed_tokens.weight");
/// ```
#[derive(Clone)]
pub struct Mapping {
    convention: Convention,
    variants: bool,
    fusing: Fusing,
    fused: Vec<(String, Vec<String>)>,
    separate: Vec<(String, Vec<Separate>)>,
    tied: Vec<(String, String)>,
    as_in_burn: Vec<Names>,
    /// By the paths of parameters.
    operations: Vec<(Names, Arc<dyn Operation>)>,
}

impl Default for Mapping {
    fn default() -> Self {
        Self::new()
    }
}

/// A part of a layer, and the number of its outputs if the parts are not all of one size.
type Separate = (String, Option<usize>);

/// Where the values of a parameter come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The tensors, which are joined along `axis`.
    pub(crate) names: Vec<String>,
    /// The part of the only tensor along `axis`.
    pub(crate) part: Option<Range<usize>>,
    pub(crate) axis: usize,
    pub(crate) transposed: bool,
}

impl Mapping {
    /// Burn's own names and layouts.
    pub fn new() -> Self {
        Self::by(Convention::Burn, true)
    }

    /// Those of [PyTorch](Convention::PyTorch).
    pub fn pytorch() -> Self {
        Self::by(Convention::PyTorch, false)
    }

    fn by(convention: Convention, variants: bool) -> Self {
        let (fused, separate, tied, as_in_burn, operations) = Default::default();
        let fusing = Fusing { attention: true, gates: true };
        Self { convention, variants, fusing, fused, separate, tied, as_in_burn, operations }
    }

    /// Has the variants of enums in names, `activation.Gelu.weight`, as Burn's convention does.
    #[must_use]
    pub fn keep_variants(mut self) -> Self {
        self.variants = true;
        self
    }

    /// Leaves the variants of enums out of names, `activation.weight`, as PyTorch's convention does.
    #[must_use]
    pub fn skip_variants(mut self) -> Self {
        self.variants = false;
        self
    }

    /// Saves the query, key and value of a `MultiHeadAttention` as layers of their own names, as the models
    /// of Hugging Face have them. By default PyTorch's convention saves one `in_proj_weight`, as
    /// `torch.nn.MultiheadAttention` has it. Either form is loaded.
    #[must_use]
    pub fn attention_unfused(mut self) -> Self {
        self.fusing.attention = false;
        self
    }

    /// Saves the gates of `Lstm`, `Gru` and `Rnn` as tensors of their own names.
    #[cfg(feature = "store")]
    pub(crate) fn gates_unfused(mut self) -> Self {
        self.fusing.gates = false;
        self
    }

    /// The convention.
    pub fn convention(&self) -> Convention {
        self.convention
    }

    /// Says that files may hold several layers of the module as one tensor, `one`: query, key and value. The
    /// parts are joined along the dimension of the layers' outputs, in the order given, each as large as its
    /// layer. Names are parts of tensor names between dots: `qkv_proj` of `layers.0.qkv_proj.weight`.
    ///
    /// When loading, tensors with the layers' own names are preferred; when saving, `one` is written.
    #[must_use]
    pub fn fused<P: Into<String>>(
        mut self,
        one: impl Into<String>,
        parts: impl IntoIterator<Item = P>,
    ) -> Self {
        self.fused.push((one.into(), parts.into_iter().map(Into::into).collect()));
        self
    }

    /// Says that files may hold one layer of the module, `one`, as several tensors: gate and up projections.
    /// They are joined along the dimension of the layer's outputs, in the order given. When saved they are of
    /// equal size; for other sizes see [`separate_sized`](Self::separate_sized).
    #[must_use]
    pub fn separate<P: Into<String>>(
        mut self,
        one: impl Into<String>,
        parts: impl IntoIterator<Item = P>,
    ) -> Self {
        self.separate.push((one.into(), parts.into_iter().map(|part| (part.into(), None)).collect()));
        self
    }

    /// [`separate`](Self::separate) for tensors of the given sizes, in outputs of the layer.
    #[must_use]
    pub fn separate_sized<P: Into<String>>(
        mut self,
        one: impl Into<String>,
        parts: impl IntoIterator<Item = (P, usize)>,
    ) -> Self {
        let parts = parts.into_iter().map(|(part, size)| (part.into(), Some(size))).collect();
        self.separate.push((one.into(), parts));
        self
    }

    /// Says that files without a tensor `name` mean `other`: tied weights. When saving, `name` is left out if
    /// `other` is written, once both were found to have the same values.
    #[must_use]
    pub fn tied(mut self, name: impl Into<String>, other: impl Into<String>) -> Self {
        self.tied.push((name.into(), other.into()));
        self
    }

    /// Says that files hold the weights of these `Linear` layers as `[in, out]`, as Burn does, whatever the
    /// convention: such as those of GPT-2. Layers are recognised by the name of their type, so a type of your
    /// own that is named `Linear` counts, and so does Burn's in a wrapper.
    #[must_use]
    pub fn as_in_burn(mut self, names: Names) -> Self {
        self.as_in_burn.push(names);
        self
    }

    /// Loads one parameter through an operation, such as a slice, a
    /// [`Transpose`](weighbridge::plan::Transpose) or one of your own. `path` is the parameter's path in the
    /// module.
    ///
    /// The operation is given the stored tensors that hold the parameter, whole: usually one, and several
    /// where [`separate`](Self::separate) says so. Its result counts as what the file holds: it must have the
    /// shape that the convention has in files, is cast if another dtype was asked for, and the weight of a
    /// `Linear` is transposed afterwards if the convention says so.
    ///
    /// A path that no parameter has is an error, so that a misspelt one is not overlooked. If several
    /// operations are set for a path, the first one counts. An operation has no inverse: a parameter that has
    /// one cannot be saved by this mapping. Save with a mapping without the operation, which writes the
    /// values as they are in the module.
    ///
    /// ```
    /// use weighbridge_burn::Mapping;
    /// use weighbridge_burn::weighbridge::plan::Transpose;
    /// # use weighbridge_burn::burn::module::{Module, Param};
    /// # use weighbridge_burn::burn::tensor::{Device, Tensor};
    /// # use weighbridge_burn::weighbridge::{Checkpoint, write::{Save, Values}};
    ///
    /// #[derive(Module, Debug)]
    /// struct Projection {
    ///     matrix: Param<Tensor<2>>, // [3, 2]; the file has [2, 3]
    /// }
    ///
    /// # fn main() -> weighbridge_burn::weighbridge::Result<()> {
    /// # let device = Device::default();
    /// # let matrix = Values::new(&[2, 3], &[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0])?;
    /// # let ckpt = Checkpoint::from_bytes(Save::new().bytes([("matrix", matrix)])?)?;
    /// # let mut module = Projection { matrix: Param::from_tensor(Tensor::zeros([3, 2], &device)) };
    /// let mapping = Mapping::new().operation("matrix", Transpose::of(0));
    /// weighbridge_burn::load(&ckpt).mapping(mapping).into(&mut module)?;
    /// # assert_eq!(module.matrix.val().into_data().try_to_vec::<f32>().unwrap(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn operation(self, path: impl Into<String>, operation: impl Operation + 'static) -> Self {
        self.operation_for(Names::exact(path), operation)
    }

    /// [`operation`](Self::operation) for every parameter whose path is in the set.
    #[must_use]
    pub fn operation_for(mut self, paths: Names, operation: impl Operation + 'static) -> Self {
        self.operations.push((paths, Arc::new(operation)));
        self
    }

    /// The operation that a parameter is loaded through.
    pub(crate) fn operation_for_path(&self, path: &str) -> Option<&Arc<dyn Operation>> {
        self.operations.iter().find(|(paths, _)| paths.contains(path)).map(|(_, operation)| operation)
    }

    /// The paths given for operations that no parameter has.
    pub(crate) fn unused_operations<'m>(&'m self, sites: &[Site]) -> impl Iterator<Item = &'m Names> {
        let is_empty = self.operations.is_empty();
        let paths: Vec<_> = sites.iter().filter(|_| !is_empty).map(Site::path).collect();
        let names = self.operations.iter().map(|(names, _)| names);
        names.filter(move |names| !paths.iter().any(|path| names.contains(path)))
    }

    /// Where a parameter may be in a file by the convention, the usual tensor first.
    fn candidates(&self, site: &Site) -> Vec<Candidate> {
        let mut candidates = self.convention.candidates(site, self.variants, self.fusing);
        if self.convention != Convention::Burn && site.is_linear_weight() {
            for candidate in &mut candidates {
                if self.as_in_burn.iter().any(|names| names.contains(&candidate.name)) {
                    candidate.transposed = !candidate.transposed;
                    candidate.axis = 1;
                }
            }
        }
        candidates
    }

    /// The numbers of outputs of all parameters.
    pub(crate) fn outputs<'s>(&self, sites: impl IntoIterator<Item = &'s Site>) -> Outputs {
        let sizes = sites.into_iter().filter_map(|site| {
            let usual = self.candidates(site).into_iter().next()?;
            let size = *stored_shape_of(site, usual.transposed).get(usual.axis)?;
            Some((usual.name, size))
        });
        Outputs(sizes.collect())
    }

    /// The name that a parameter usually has in files.
    pub(crate) fn name(&self, site: &Site) -> String {
        self.candidates(site).into_iter().next().map(|usual| usual.name).unwrap_or_default()
    }

    /// Whether a parameter is usually transposed in files.
    pub(crate) fn is_transposed(&self, site: &Site) -> bool {
        self.candidates(site).first().is_some_and(|usual| usual.transposed)
    }

    /// Where the values of a parameter are, `None` if they are nowhere. `size` gives the size of a stored
    /// tensor along a dimension.
    pub(crate) fn origin(
        &self,
        site: &Site,
        outputs: &Outputs,
        size: impl Fn(&str, usize) -> Option<usize>,
    ) -> Result<Option<Origin>> {
        for Candidate { name, portion, transposed, axis } in self.candidates(site) {
            let origin = |names, part| Ok(Some(Origin { names, part, axis, transposed }));
            if let Some(whole) = size(&name, axis) {
                let Some(Portion { index, of }) = portion else { return origin(vec![name], None) };
                if !whole.is_multiple_of(of) {
                    let message = format!("{name:?} has {whole} rows, which are not {of} equal parts");
                    return Err(Error::new(ErrorKind::Shape, message));
                }
                return origin(vec![name], Some(index * (whole / of)..(index + 1) * (whole / of)));
            }
            if portion.is_some() {
                continue;
            }
            for (one, parts) in &self.fused {
                let own =
                    parts.iter().enumerate().find_map(|(own, part)| Some((own, swapped(&name, part, one)?)));
                let Some((own, fused)) = own else { continue };
                let Some(whole) = size(&fused, axis) else { continue };
                let sizes = parts.iter().map(|part| {
                    let sibling = swapped(&name, &parts[own], part).unwrap_or_default();
                    outputs.0.get(&sibling).copied().ok_or_else(|| {
                        let message =
                            format!("{fused:?} has a part for {sibling:?}, which the module does not have");
                        Error::new(ErrorKind::MissingTensor, message)
                    })
                });
                let sizes = sizes.collect::<Result<Vec<_>>>()?;
                let start: usize = sizes[..own].iter().sum();
                if sizes.iter().sum::<usize>() != whole {
                    let message = format!(
                        "{fused:?} has {whole} outputs, but the layers that it is for have {sizes:?}"
                    );
                    return Err(Error::new(ErrorKind::Shape, message));
                }
                return origin(vec![fused], Some(start..start + sizes[own]));
            }
            for (one, parts) in &self.separate {
                let names: Option<Vec<_>> = parts.iter().map(|(part, _)| swapped(&name, one, part)).collect();
                if let Some(names) = names.filter(|names| names.iter().all(|name| size(name, axis).is_some()))
                {
                    return origin(names, None);
                }
            }
            for (tied, other) in &self.tied {
                if *tied == name && size(other, axis).is_some() {
                    return origin(vec![other.clone()], None);
                }
            }
        }
        Ok(None)
    }

    /// Names that are left out of files which have the other one.
    pub(crate) fn ties(&self) -> &[(String, String)] {
        &self.tied
    }
}

/// The number of outputs of each layer, by the usual name of its parameter.
pub(crate) struct Outputs(HashMap<String, usize>);

/// The shape that a parameter has in a file.
pub(crate) fn stored_shape_of(site: &Site, transposed: bool) -> Vec<usize> {
    let mut shape = site.shape.clone();
    if transposed && let [.., rows, columns] = &mut *shape {
        std::mem::swap(rows, columns);
    }
    shape
}

/// The name with one of its parts between dots, or several in a row, replaced; the last ones, if they occur
/// more than once.
fn swapped(name: &str, from: &str, to: &str) -> Option<String> {
    let dotted = format!(".{name}.");
    let at = dotted.rfind(&format!(".{from}."))?;
    let swapped = format!("{}.{to}.{}", &dotted[..at], &dotted[at + from.len() + 2..]);
    Some(swapped.trim_matches('.').to_owned())
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("convention", &self.convention)
            .field("fused", &self.fused)
            .field("separate", &self.separate)
            .field("tied", &self.tied)
            .field("as_in_burn", &self.as_in_burn)
            .field("operations", &self.operations)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::swapped;

    #[test]
    fn parts_of_names_are_replaced() {
        let swap = |name, from, to| swapped(name, from, to);
        assert_eq!(swap("h.0.q.weight", "q", "qkv").as_deref(), Some("h.0.qkv.weight"));
        assert_eq!(swap("q.q.bias", "q", "k").as_deref(), Some("q.k.bias"));
        assert_eq!(swap("a.self.query.weight", "self.query", "qkv").as_deref(), Some("a.qkv.weight"));
        assert_eq!(swap("q", "q", "k").as_deref(), Some("k"));
        assert_eq!(swap("h.qq.weight", "q", "k"), None);
    }
}
