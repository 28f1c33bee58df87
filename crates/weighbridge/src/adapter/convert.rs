//! The same adapter in the names of another format.

mod kohya;

use std::collections::BTreeMap;

use super::targets::kohya_modules;
use super::{Adapter, AdapterFormat, NewAdapter};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::text::start_of;

/// A model of a pipeline, as diffusers calls it, and the name of a module in it.
type Place = (Option<&'static str>, String);

/// The models of pipelines, and what Kohya's names begin with for their modules.
const COMPONENTS: &[(&str, &str)] = &[
    ("unet", "lora_unet_"),
    ("transformer", "lora_unet_"),
    ("prior", "lora_prior_unet_"),
    ("text_encoder", "lora_te_"),
    ("text_encoder", "lora_te1_"),
    ("text_encoder_2", "lora_te2_"),
    ("text_encoder_3", "lora_te3_"),
];

/// What the names of modules begin with that say themselves which model they belong to.
const BEGINNINGS: &[(&str, &str)] = &[
    ("down_blocks.", "unet"),
    ("up_blocks.", "unet"),
    ("mid_block.", "unet"),
    ("conv_in", "unet"),
    ("conv_out", "unet"),
    ("time_embedding.", "unet"),
    ("add_embedding.", "unet"),
    ("transformer_blocks.", "transformer"),
    ("single_transformer_blocks.", "transformer"),
    ("x_embedder", "transformer"),
    ("context_embedder", "transformer"),
    ("time_text_embed.", "transformer"),
    ("norm_out.", "transformer"),
    ("proj_out", "transformer"),
    ("text_model.", "text_encoder"),
    ("text_projection", "text_encoder"),
];

impl Adapter {
    /// The same adapter in the names of another format; factors stay as they are, bit for bit.
    ///
    /// Kohya's names have underscores in the place of dots. Those of Stable Diffusion, SDXL and their text encoders are known; of others the
    /// modules of `base`, the model, tell where the dots were. diffusers' names begin with the model of the pipeline (`unet.`,
    /// `text_encoder.`), which those of PEFT lack: it is known by what the name goes on with, and all must be for one of them.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Unsupported`] for what the other format has no name for: factors of embeddings outside of PEFT, full
    /// differences and changed biases outside of Kohya's, tensors that are saved whole, modules that have no name there. Fails with
    /// [`ErrorKind::Ambiguous`] when a name could mean several modules.
    pub fn converted(&self, format: AdapterFormat, base: Option<&Checkpoint>) -> Result<NewAdapter<'_>> {
        if let Some((own, _)) = self.whole.first().filter(|_| format != AdapterFormat::Peft) {
            let message = format!("it replaces a tensor of the model, which {} cannot say", format.name());
            return Err(self.blame(Error::new(ErrorKind::Unsupported, message), own));
        }
        let mut made = NewAdapter::new(format);
        if self.is_transposed {
            made = made.transposed();
        }
        let places = self.places(base)?;
        let names = self.names(format, &places)?;
        for (index, name) in names.into_iter().enumerate() {
            made.copy(self, index, name)?;
        }
        self.keep_whole(&mut made);
        Ok(made)
    }

    /// Takes over what replaces tensors of the model.
    pub fn keep_whole<'a>(&'a self, made: &mut NewAdapter<'a>) {
        for (name, tensor) in self.whole() {
            let module = name.rsplit_once('.').map_or("", |(module, _)| module);
            if self.modules.iter().any(|own| own.name == module) {
                made.bias(name, tensor);
            } else {
                made.whole(name, tensor);
            }
        }
    }

    /// Where each module is.
    fn places(&self, base: Option<&Checkpoint>) -> Result<Vec<Place>> {
        let known = base.filter(|_| self.format == AdapterFormat::Kohya).map(kohya_modules);
        let place = |name: &str| -> Result<Place> {
            if self.format != AdapterFormat::Kohya {
                return Ok(apart(name));
            }
            let fail = |kind, message: &str| {
                let tensor = self.modules.iter().find(|module| module.name == name);
                let tensor = tensor.and_then(|module| module.parts.values().next());
                self.blame(Error::new(kind, message), tensor.map_or("", |name| name))
            };
            let component =
                COMPONENTS.iter().find_map(|(name_of, prefix)| Some((*name_of, name.strip_prefix(prefix)?)));
            let Some((component, flat)) = component else {
                return Err(fail(
                    ErrorKind::Unsupported,
                    "it says no model of a pipeline that is known here",
                ));
            };
            let path = match &known {
                Some(known) => match known.get(name) {
                    Some(Some(module)) => apart(module).1,
                    Some(None) => {
                        return Err(fail(
                            ErrorKind::Ambiguous,
                            "two modules of the model have this name without dots",
                        ));
                    }
                    None => {
                        return Err(fail(ErrorKind::MissingTensor, "the model has no module of this name"));
                    }
                },
                None => kohya::with_dots(flat).ok_or_else(|| {
                    let message = "it is not known where its name has dots; --base MODEL tells";
                    fail(ErrorKind::Ambiguous, message)
                })?,
            };
            // Both have one prefix.
            let component = match (component, apart(&path).0) {
                ("unet", Some("transformer")) => "transformer",
                _ => component,
            };
            Ok((Some(component), path))
        };
        self.modules.iter().map(|module| place(&module.name)).collect()
    }

    /// What the modules in these places are called.
    fn names(&self, format: AdapterFormat, places: &[Place]) -> Result<Vec<String>> {
        let refuse = |index: usize, kind, message: String| {
            let tensor = self.modules.get(index).and_then(|module| module.parts.values().next());
            Err(self.blame(Error::new(kind, message), tensor.map_or("", |name| name)))
        };
        let has_second = places.iter().any(|(component, _)| *component == Some("text_encoder_2"));
        let is_sdxl = has_second || places.iter().any(|(_, path)| kohya::is_sdxl(path));
        let mut names = Vec::with_capacity(places.len());
        let mut taken = BTreeMap::new();
        let first = places.first().and_then(|(component, _)| *component);
        for (index, (component, path)) in places.iter().enumerate() {
            let name = match (format, component) {
                (AdapterFormat::Peft, component) => {
                    if *component != first {
                        let name = |component: Option<&str>| component.unwrap_or("no pipeline").to_owned();
                        let message = format!(
                            "it is of {}, and others are of {}: PEFT has an adapter for each model; split the file first",
                            name(*component),
                            name(first)
                        );
                        return refuse(index, ErrorKind::Unsupported, message);
                    }
                    path.clone()
                }
                (_, None) => {
                    let (name, format) = (start_of(path), format.name());
                    let message = format!(
                        "{name:?} is of no model of a pipeline, and {format} has names for these only"
                    );
                    return refuse(index, ErrorKind::Unsupported, message);
                }
                (AdapterFormat::Diffusers, Some(component)) => format!("{component}.{path}"),
                (AdapterFormat::Kohya, Some(component)) => {
                    let is_of = |(name, prefix): &&(&str, &str)| {
                        name == component && (*prefix != "lora_te_" || !is_sdxl)
                    };
                    let prefix = COMPONENTS.iter().find(is_of).map_or("lora_unet_", |(_, prefix)| prefix);
                    let path = kohya::of_sdxl(path).filter(|_| is_sdxl && *component == "unet");
                    let path = path.as_deref().unwrap_or(&places[index].1);
                    format!("{prefix}{}", path.replace('.', "_"))
                }
            };
            if let Some(other) = taken.insert(name.clone(), index) {
                let other = self.modules.get(other).map_or("", |module| &module.name);
                let message = format!("it and {:?} would both be called {name:?}", start_of(other));
                return refuse(index, ErrorKind::Ambiguous, message);
            }
            names.push(name);
        }
        Ok(names)
    }
}

/// A name with the model of a pipeline that it begins with, or that what it begins with belongs to.
fn apart(name: &str) -> Place {
    for (component, _) in COMPONENTS {
        if let Some(rest) = name.strip_prefix(component).and_then(|rest| rest.strip_prefix('.')) {
            return (Some(component), rest.to_owned());
        }
    }
    for prefix in ["model.diffusion_model.", "diffusion_model."] {
        if let Some(rest) = name.strip_prefix(prefix) {
            let (component, path) = apart(&kohya::of_diffusers(rest).unwrap_or_else(|| rest.to_owned()));
            return (component.or(Some("unet")), path);
        }
    }
    let component = BEGINNINGS.iter().find(|(start, _)| name.starts_with(start));
    (component.map(|(_, component)| *component), name.to_owned())
}
