//! Rotary position embeddings, as transformers 4 and 5 write them.

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

use crate::{Fields, mismatch};

/// How positions turn the heads.
#[derive(Clone, Debug)]
pub struct Rope {
    /// How fast the slowest elements turn: the larger, the slower.
    pub theta: f64,
    /// What becomes of the frequencies that theta gives.
    pub scaling: Scaling,
    /// The part of each head that is turned.
    pub partial: Option<f64>,
}

/// What becomes of the frequencies that theta gives.
#[derive(Clone, Debug)]
pub enum Scaling {
    /// They stay.
    None,
    /// Rope type `llama3`.
    Llama3(Llama3),
    /// Rope type `longrope`.
    LongRope(LongRope),
    /// Known by name only.
    Other(String),
}

/// Llama 3's: long waves become longer.
#[derive(Clone, Debug)]
pub struct Llama3 {
    /// What slow turns are divided by.
    pub factor: f64,
    /// Turns are slow that are fewer than this in a text of the original length,
    pub low_freq_factor: f64,
    /// and fast if they are more than this.
    pub high_freq_factor: f64,
    /// The tokens of the longest text in the first training.
    pub original_max_position_embeddings: usize,
}

/// Phi 3's, for texts that are not longer than what the model was first trained for.
#[derive(Clone, Debug)]
pub struct LongRope {
    /// What each wave is longer by.
    pub short_factor: Vec<f64>,
    /// What sines and cosines are multiplied with.
    pub magnitude: f64,
    /// The tokens of the longest text in the first training.
    pub original_max_position_embeddings: usize,
}

impl Rope {
    /// Transformers 5 writes one dictionary, `rope_parameters`; transformers 4 writes `rope_theta` beside a
    /// `rope_scaling` that is null or a dictionary, whose `rope_type` was once called `type`. Who wins where several
    /// are there is as in transformers 5 (`convert_rope_params_to_dict`).
    ///
    /// # Errors
    ///
    /// What is said is wrong, or is not the same for all layers.
    pub fn read(fields: Fields<'_>, default_theta: f64) -> Result<Self> {
        let nothing = Map::new();
        let (name, parameters) = match dictionary(fields, "rope_scaling")? {
            Some(found) => found,
            None => dictionary(fields, "rope_parameters")?.unwrap_or(("rope_parameters", &nothing)),
        };
        Self::parse(fields, name, parameters, default_theta)
    }

    fn parse(
        fields: Fields<'_>,
        name: &str,
        parameters: &Map<String, Value>,
        default_theta: f64,
    ) -> Result<Self> {
        if let Some((layers, _)) = parameters.iter().find(|(_, value)| value.is_object()) {
            bail!("{name} has parameters for \"{layers}\" alone, the model here has the same for all layers");
        }
        let parameters = Fields(parameters);
        let theta = match parameters.positive("rope_theta").context(name.to_owned())? {
            Some(theta) => theta,
            None => fields.positive("rope_theta")?.unwrap_or(default_theta),
        };
        let partial = match parameters.positive("partial_rotary_factor").context(name.to_owned())? {
            Some(partial) => Some(partial),
            None => fields.positive("partial_rotary_factor")?,
        };
        let kind = match parameters.text("rope_type").context(name.to_owned())? {
            Some(kind) => Some(kind),
            None => parameters.text("type").context(name.to_owned())?,
        };
        let scaling = match kind {
            None | Some("default") => Scaling::None,
            Some("llama3") => Scaling::Llama3(llama3(fields, parameters).context(name.to_owned())?),
            Some("longrope" | "su") => {
                Scaling::LongRope(longrope(fields, parameters).context(name.to_owned())?)
            }
            Some(other) => Scaling::Other(other.to_owned()),
        };
        Ok(Self { theta, scaling, partial })
    }

    /// Gemma 3's two: of the layers that attend to everything, and of those that have a window.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn read_two(fields: Fields<'_>, global: f64, local: f64) -> Result<[Self; 2]> {
        let Some((name, layers)) = dictionary(fields, "rope_parameters")? else {
            let local = fields.positive("rope_local_base_freq")?.unwrap_or(local);
            let local = Self { theta: local, scaling: Scaling::None, partial: None };
            return Ok([Self::read(fields, global)?, local]);
        };
        let layers = Fields(layers);
        let one = |kind, theta| match dictionary(layers, kind).context(name)? {
            // What lies outside is for all layers alike, and not of their kind.
            Some((_, parameters)) => Self::parse(Fields(&Map::new()), kind, parameters, theta),
            None => bail!("{name} has no parameters for \"{kind}\""),
        };
        Ok([one("full_attention", global)?, one("sliding_attention", local)?])
    }

    /// Theta, for a model that knows nothing else.
    ///
    /// # Errors
    ///
    /// Anything else is said, with the name of the model, `who`.
    pub fn theta_only(&self, who: &str) -> Result<f64> {
        match &self.scaling {
            Scaling::None => {}
            Scaling::Llama3(_) => bail!("the rope type is \"llama3\", {who} computes \"default\""),
            Scaling::LongRope(_) => bail!("the rope type is \"longrope\", {who} computes \"default\""),
            Scaling::Other(kind) => bail!("the rope type is \"{kind}\", {who} computes \"default\""),
        }
        self.whole_heads(who)?;
        Ok(self.theta)
    }

    /// For a model that turns whole heads.
    ///
    /// # Errors
    ///
    /// A part of each head is not turned.
    pub fn whole_heads(&self, who: &str) -> Result<()> {
        let partial = self.partial.unwrap_or(1.0);
        ensure!(partial == 1.0, "partial_rotary_factor is {partial}, {who} rotates all of a head");
        Ok(())
    }

    /// The number of elements of a head that are turned, and theta, for a model that knows nothing else.
    ///
    /// # Errors
    ///
    /// Anything else is said, or an odd number of elements.
    pub fn part(&self, head_dim: usize, default: f64, who: &str) -> Result<(f64, f64)> {
        let factor = self.partial.unwrap_or(default);
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let turned = (factor * head_dim as f64) as usize;
        ensure!(
            factor <= 1.0 && turned > 0 && turned.is_multiple_of(2),
            "partial_rotary_factor is {factor}, which leaves {turned} of the {head_dim} elements of a head to rotate"
        );
        let theta = Self { partial: None, ..self.clone() }.theta_only(who)?;
        Ok((factor, theta))
    }
}

/// A dictionary that says something.
fn dictionary<'a>(
    fields: Fields<'a>,
    key: &'static str,
) -> Result<Option<(&'static str, &'a Map<String, Value>)>> {
    match fields.get(key) {
        None => Ok(None),
        Some(Value::Object(map)) => Ok(Some((key, map)).filter(|(_, map)| !map.is_empty())),
        Some(other) => Err(mismatch(key, "an object", other)),
    }
}

fn llama3(fields: Fields<'_>, parameters: Fields<'_>) -> Result<Llama3> {
    let required =
        |key| parameters.positive(key)?.ok_or_else(|| anyhow!("rope type \"llama3\" without {key}"));
    let (low, high) = (required("low_freq_factor")?, required("high_freq_factor")?);
    ensure!(low < high, "low_freq_factor ({low}) is not below high_freq_factor ({high})");
    let original = "original_max_position_embeddings";
    let original = match (fields.size(original)?, parameters.size(original)?) {
        (Some(length), _) | (None, Some(length)) => length,
        (None, None) => fields.size("max_position_embeddings")?.unwrap_or(2048),
    };
    Ok(Llama3 {
        factor: required("factor")?,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: original,
    })
}

#[expect(clippy::cast_precision_loss, reason = "numbers of positions")]
fn longrope(fields: Fields<'_>, parameters: Fields<'_>) -> Result<LongRope> {
    let key = "original_max_position_embeddings";
    let Some(original) = fields.size(key)?.or(parameters.size(key)?) else {
        bail!("rope type \"longrope\" without {key}");
    };
    let factor = match parameters.positive("factor")? {
        Some(factor) => factor,
        None => fields.required_size("max_position_embeddings")? as f64 / original as f64,
    };
    let magnitude = match parameters.positive("attention_factor")? {
        Some(magnitude) => magnitude,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
    };
    let factors = parameters.get("short_factor").and_then(Value::as_array);
    let factors = factors.and_then(|list| list.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
    let short_factor = factors.ok_or_else(|| anyhow!("short_factor: expected a list of numbers"))?;
    Ok(LongRope { short_factor, magnitude, original_max_position_embeddings: original })
}
