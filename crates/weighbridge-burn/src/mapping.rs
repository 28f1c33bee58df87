//! How the parameters of a module lie in files.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use weighbridge::{Error, ErrorKind, Names, Result};

use crate::convention::{Convention, Fusing, Place};
use crate::walk::Site;

/// How the parameters of a module lie in files: by which [`Convention`], and what departs from it. The same mapping
/// serves to load and to save.
///
/// Names given here are those of the files, as the convention has them.
///
/// ```
/// use weighbridge_burn::Mapping;
///
/// // A Llama whose attention has q_proj, k_proj and v_proj, from files that have one qkv_proj, and whose output layer
/// // is the embedding where the files have none of its own.
/// let mapping = Mapping::pytorch()
///     .fused("qkv_proj", ["q_proj", "k_proj", "v_proj"])
///     .tied("lm_head.weight", "model.embed_tokens.weight");
/// ```
#[derive(Clone, Debug)]
pub struct Mapping {
    convention: Convention,
    variants: bool,
    attention_fused: bool,
    gates_fused: bool,
    fused: Vec<(String, Vec<String>)>,
    separate: Vec<(String, Vec<Separate>)>,
    tied: Vec<(String, String)>,
    as_in_burn: Vec<Names>,
}

impl Default for Mapping {
    fn default() -> Self {
        Self::new()
    }
}

/// A part of a layer, and its outputs if they are not as many as those of the others.
type Separate = (String, Option<usize>);

/// Where the values of a parameter come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The tensors, one behind the other along `axis`.
    pub(crate) names: Vec<String>,
    /// The part of the only tensor along `axis`.
    pub(crate) part: Option<Range<usize>>,
    pub(crate) axis: usize,
    pub(crate) exchanged: bool,
}

/// What goes into a tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) parts: Vec<Part>,
    /// The dimension along which the parts lie one behind the other.
    pub(crate) axis: usize,
}

/// A parameter, or a part of one, that goes into a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The parameter by its place.
    pub(crate) site: usize,
    /// The part of it along the target's axis.
    pub(crate) range: Option<Range<usize>>,
    pub(crate) exchanged: bool,
}

impl Part {
    /// Its shape in the file.
    pub(crate) fn shape(&self, sites: &[Site], axis: usize) -> Vec<usize> {
        let mut shape = stored_shape_of(&sites[self.site], self.exchanged);
        if let (Some(size), Some(range)) = (shape.get_mut(axis), &self.range) {
            *size = range.len();
        }
        shape
    }
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
        let (fused, separate, tied, as_in_burn) = Default::default();
        let (attention_fused, gates_fused) = (true, true);
        Self { convention, variants, attention_fused, gates_fused, fused, separate, tied, as_in_burn }
    }

    /// Says whether the variants of enums are in the names, `activation.Gelu.weight`: by Burn's convention they are, by
    /// PyTorch's they are not.
    #[must_use]
    pub fn variants(mut self, are_named: bool) -> Self {
        self.variants = are_named;
        self
    }

    /// Says whether a `MultiHeadAttention` is saved as `torch.nn.MultiheadAttention` has it, query, key and value in one
    /// `in_proj_weight`, which is the rule of PyTorch's convention, or, with `false`, as four layers of their own names, as
    /// Hugging Face's models do. Either is loaded.
    #[must_use]
    pub fn attention_fused(mut self, is_fused: bool) -> Self {
        self.attention_fused = is_fused;
        self
    }

    /// Says whether the gates of `Lstm`, `Gru` and `Rnn` are saved as one tensor.
    #[cfg(feature = "store")]
    pub(crate) fn gates_fused(mut self, is_fused: bool) -> Self {
        self.gates_fused = is_fused;
        self
    }

    /// The convention.
    pub fn convention(&self) -> Convention {
        self.convention
    }

    /// Says that files may hold as one tensor, `one`, what are several layers in the module: query, key and value. The
    /// parts lie one behind the other along the dimension of the layers' outputs, in the order given, each as large as
    /// its layer. Names are parts of tensor names between dots: `qkv_proj` of `layers.0.qkv_proj.weight`.
    ///
    /// When loading, tensors of the layers' own names go first where there are such; saved is `one`.
    #[must_use]
    pub fn fused<P: Into<String>>(
        mut self,
        one: impl Into<String>,
        parts: impl IntoIterator<Item = P>,
    ) -> Self {
        self.fused.push((one.into(), parts.into_iter().map(Into::into).collect()));
        self
    }

    /// Says that files may hold as several tensors what is one layer, `one`, in the module: gate and up projections.
    /// They become one along the dimension of the layer's outputs, in the order given. Saved, they are of equal size;
    /// see [`separate_sized`](Self::separate_sized) for others.
    #[must_use]
    pub fn separate<P: Into<String>>(
        mut self,
        one: impl Into<String>,
        parts: impl IntoIterator<Item = P>,
    ) -> Self {
        self.separate.push((one.into(), parts.into_iter().map(|part| (part.into(), None)).collect()));
        self
    }

    /// The same for tensors of those sizes, in outputs of the layer.
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

    /// Says that where files have no tensor `name`, they mean `other`: tied weights. Where `other` is saved as a tensor of
    /// its own, `name` is not, after it was found to have the same values.
    #[must_use]
    pub fn tied(mut self, name: impl Into<String>, other: impl Into<String>) -> Self {
        self.tied.push((name.into(), other.into()));
        self
    }

    /// Says that the weights of these `Linear` layers are `[in, out]` in files, as in Burn, whatever the convention: such
    /// as those of GPT-2. Layers are known by the name of their type, so those of another type named `Linear` count, and
    /// those of Burn's type in a wrapper.
    #[must_use]
    pub fn as_in_burn(mut self, names: Names) -> Self {
        self.as_in_burn.push(names);
        self
    }

    /// Where a parameter may be, by the convention.
    fn places(&self, site: &Site) -> Vec<Place> {
        let fusing = Fusing { attention: self.attention_fused, gates: self.gates_fused };
        let mut places = self.convention.places(site, self.variants, fusing);
        if self.convention != Convention::Burn && site.is_linear_weight() {
            for place in &mut places {
                if self.as_in_burn.iter().any(|names| names.contains(&place.name)) {
                    place.exchanged = !place.exchanged;
                    place.axis = 1;
                }
            }
        }
        places
    }

    /// The usual names of all parameters, and the sizes of their outputs.
    pub(crate) fn usual<'s>(&self, sites: impl IntoIterator<Item = &'s Site>) -> Usual {
        let sizes = sites.into_iter().filter_map(|site| {
            let place = self.places(site).into_iter().next()?;
            let size = *stored_shape_of(site, place.exchanged).get(place.axis)?;
            Some((place.name, size))
        });
        Usual(sizes.collect())
    }

    /// The name that a parameter usually has in files.
    pub(crate) fn name(&self, site: &Site) -> String {
        self.places(site).into_iter().next().map(|place| place.name).unwrap_or_default()
    }

    /// Whether a parameter usually has its dimensions exchanged in files.
    pub(crate) fn is_exchanged(&self, site: &Site) -> bool {
        self.places(site).first().is_some_and(|place| place.exchanged)
    }

    /// Where the values of a parameter are; `size` gives the size of a stored tensor along a dimension. `None` if they
    /// are nowhere.
    pub(crate) fn origin(
        &self,
        site: &Site,
        usual: &Usual,
        size: impl Fn(&str, usize) -> Option<usize>,
    ) -> Result<Option<Origin>> {
        for place in self.places(site) {
            let Place { name, part, exchanged, axis } = place.clone();
            let origin = |names, part| Ok(Some(Origin { names, part, axis, exchanged }));
            if let Some(whole) = size(&name, axis) {
                let Some((number, of)) = part else { return origin(vec![name], None) };
                if !whole.is_multiple_of(of) {
                    let message = format!("{name:?} has {whole} rows, which are not {of} equal parts");
                    return Err(Error::new(ErrorKind::Shape, message));
                }
                return origin(vec![name], Some(number * (whole / of)..(number + 1) * (whole / of)));
            }
            if part.is_some() {
                continue;
            }
            for (one, parts) in &self.fused {
                let own =
                    parts.iter().enumerate().find_map(|(own, part)| Some((own, swapped(&name, part, one)?)));
                let Some((own, fused)) = own else { continue };
                let Some(whole) = size(&fused, axis) else { continue };
                let sizes = parts.iter().map(|part| {
                    let sibling = swapped(&name, &parts[own], part).unwrap_or_default();
                    usual.0.get(&sibling).copied().ok_or_else(|| {
                        let message =
                            format!("{fused:?} has a part for {sibling:?}, which the module does not have");
                        Error::new(ErrorKind::MissingTensor, message)
                    })
                });
                let sizes = sizes.collect::<Result<Vec<_>>>()?;
                let start: usize = sizes[..own].iter().sum();
                if sizes.iter().sum::<usize>() != whole {
                    let message =
                        format!("{fused:?} has {whole} outputs, the layers that it is for {sizes:?}");
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

    /// What a module's files have, in the order of its parameters; tied ones that have to be there come last.
    ///
    /// # Errors
    ///
    /// Fails when parts of a tensor are missing or are laid out differently, or a layer cannot be divided as it should be.
    pub(crate) fn targets(&self, sites: &[Site]) -> Result<Vec<Target>> {
        let mut targets: Vec<Target> = Vec::new();
        // The tensors that are put together: by name, the place of each, and its parts by their number.
        let mut together: HashMap<String, (usize, Vec<Option<Part>>)> = HashMap::new();
        let mut tied = Vec::new();
        for (number, site) in sites.iter().enumerate() {
            let Some(Place { name, part, exchanged, axis }) = self.places(site).into_iter().next() else {
                continue;
            };
            let whole = Part { site: number, range: None, exchanged };
            if self.is_tied(&name) {
                tied.push(Target { name, parts: vec![whole], axis });
                continue;
            }
            let fused = self.fused.iter().find_map(|(one, parts)| {
                let of =
                    |(own, part): (usize, &String)| Some((swapped(&name, part, one)?, (own, parts.len())));
                parts.iter().enumerate().find_map(of)
            });
            let (name, part) = match (part, fused) {
                (None, Some((name, part))) => (name, Some(part)),
                (part, _) => (name, part),
            };
            if let Some((own, of)) = part {
                let (place, parts) = together.entry(name.clone()).or_insert_with(|| {
                    targets.push(Target { name: name.clone(), parts: Vec::new(), axis });
                    (targets.len() - 1, vec![None; of])
                });
                if targets.get(*place).is_some_and(|target| target.axis != axis) {
                    let message =
                        "the layers that go into it are laid out differently: one `Row`, another `Col`";
                    return Err(Error::new(ErrorKind::Shape, message).in_tensor(&name));
                }
                if let Some(part) = parts.get_mut(own) {
                    *part = Some(whole);
                }
                continue;
            }
            let separate = self.separate.iter().find_map(|(one, parts)| {
                let names: Option<Vec<_>> =
                    parts.iter().map(|(part, size)| Some((swapped(&name, one, part)?, *size))).collect();
                names
            });
            let Some(parts) = separate else {
                targets.push(Target { name, parts: vec![whole], axis });
                continue;
            };
            let shape = stored_shape_of(site, exchanged);
            let outputs = shape.get(axis).copied().unwrap_or_default();
            let equal = outputs / parts.len().max(1);
            let sizes: Vec<_> = parts.iter().map(|(_, size)| size.unwrap_or(equal)).collect();
            if sizes.iter().sum::<usize>() != outputs {
                let message = format!("its {outputs} outputs cannot be divided into {sizes:?}");
                return Err(Error::new(ErrorKind::Shape, message).in_tensor(&name));
            }
            let mut start = 0;
            for ((name, _), size) in parts.into_iter().zip(sizes) {
                let part = Part { site: number, range: Some(start..start + size), exchanged };
                targets.push(Target { name, parts: vec![part], axis });
                start += size;
            }
        }
        for (name, (place, parts)) in together {
            let parts: Option<Vec<_>> = parts.into_iter().collect();
            let Some(parts) = parts else {
                let message = "the module does not have all the layers that go into it";
                return Err(Error::new(ErrorKind::MissingTensor, message).in_tensor(&name));
            };
            targets[place].parts = parts;
        }
        // One that nothing in the file would stand for is written.
        let names: HashSet<_> = targets.iter().map(|target| target.name.clone()).collect();
        let stands = |name: &str| self.tied.iter().any(|(tied, other)| tied == name && names.contains(other));
        targets.extend(tied.into_iter().filter(|target| !stands(&target.name)));
        Ok(targets)
    }

    fn is_tied(&self, name: &str) -> bool {
        self.tied.iter().any(|(tied, _)| tied == name)
    }

    /// Names that are left out of files where the other one is in them.
    pub(crate) fn ties(&self) -> &[(String, String)] {
        &self.tied
    }
}

/// The sizes of the outputs of all layers, by their usual names.
pub(crate) struct Usual(HashMap<String, usize>);

/// The shape that a parameter has in a file.
pub(crate) fn stored_shape_of(site: &Site, exchanged: bool) -> Vec<usize> {
    let mut shape = site.shape.clone();
    if exchanged && let [.., rows, columns] = &mut *shape {
        std::mem::swap(rows, columns);
    }
    shape
}

/// The name with one of its parts between dots, or several, exchanged for others; the last such parts, if there are more.
fn swapped(name: &str, from: &str, to: &str) -> Option<String> {
    let dotted = format!(".{name}.");
    let at = dotted.rfind(&format!(".{from}."))?;
    let swapped = format!("{}.{to}.{}", &dotted[..at], &dotted[at + from.len() + 2..]);
    Some(swapped.trim_matches('.').to_owned())
}

#[cfg(test)]
mod tests {
    use super::swapped;

    #[test]
    fn parts_of_names_are_exchanged() {
        let swap = |name, from, to| swapped(name, from, to);
        assert_eq!(swap("h.0.q.weight", "q", "qkv").as_deref(), Some("h.0.qkv.weight"));
        assert_eq!(swap("q.q.bias", "q", "k").as_deref(), Some("q.k.bias"));
        assert_eq!(swap("a.self.query.weight", "self.query", "qkv").as_deref(), Some("a.qkv.weight"));
        assert_eq!(swap("q", "q", "k").as_deref(), Some("k"));
        assert_eq!(swap("h.qq.weight", "q", "k"), None);
    }
}
