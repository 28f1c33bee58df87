//! What can be set for all tensors, and for those of a rule.

use anyhow::{Result, bail};
use clap::Args;
use serde::{Deserialize, Deserializer};
use weighbridge::plan::{Blend, BlendMethod};

/// Settings that were given; those that were not are `None`.
#[derive(Clone, Debug, Default, Deserialize, Args)]
#[serde(default)]
#[command(next_help_heading = "Blending")]
pub(super) struct Settings {
    /// How: linear, slerp, task_arithmetic, ties, dare_linear or dare_ties
    #[arg(long, value_name = "METHOD", value_parser = method)]
    #[serde(deserialize_with = "method_of")]
    pub(super) method: Option<BlendMethod>,

    /// The weight of each model, in their order, or one for all
    #[arg(long, value_name = "WEIGHT,...", value_delimiter = ',', allow_negative_numbers = true)]
    #[serde(deserialize_with = "one_or_more")]
    pub(super) weight: Option<Vec<f64>>,

    /// Of slerp, how far from the first model to the second: 0 is the first, 1 the second
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub(super) t: Option<f64>,

    /// Of ties, dare_linear and dare_ties, which share of the differences from the base is kept, above 0 and
    /// at most 1: for each model, or one for all; 1 otherwise
    #[arg(long, value_name = "SHARE,...", value_delimiter = ',')]
    #[serde(deserialize_with = "one_or_more")]
    pub(super) density: Option<Vec<f64>>,

    /// What the blended differences are multiplied by before they are added to the base; 1 otherwise
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    pub(super) lambda: Option<f64>,

    /// Whether sums are divided by the sum of their weights; linear and ties do so otherwise
    #[arg(long, value_name = "BOOL")]
    pub(super) normalize: Option<bool>,

    /// Whether dare_linear and dare_ties divide what they keep by the density, which they do otherwise
    #[arg(long, value_name = "BOOL")]
    pub(super) rescale: Option<bool>,
}

fn method(text: &str) -> Result<BlendMethod, String> {
    text.parse().map_err(|error: weighbridge::Error| error.message().to_owned())
}

fn method_of<'de, D: Deserializer<'de>>(from: D) -> Result<Option<BlendMethod>, D::Error> {
    let text = String::deserialize(from)?;
    method(&text).map(Some).map_err(serde::de::Error::custom)
}

fn one_or_more<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<f64>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a number or a list of numbers")]
    enum Numbers {
        One(f64),
        Each(Vec<f64>),
    }
    Ok(Some(match Numbers::deserialize(from)? {
        Numbers::One(number) => vec![number],
        Numbers::Each(numbers) => numbers,
    }))
}

impl Settings {
    /// What `other` sets counts instead.
    pub(super) fn overlaid(&self, other: &Self) -> Self {
        // Of slerp `t` and weights say the same: what comes last counts.
        let t = if other.weight.is_some() { other.t } else { other.t.or(self.t) };
        Self {
            method: other.method.or(self.method),
            weight: other.weight.clone().or_else(|| self.weight.clone()),
            t,
            density: other.density.clone().or_else(|| self.density.clone()),
            lambda: other.lambda.or(self.lambda),
            normalize: other.normalize.or(self.normalize),
            rescale: other.rescale.or(self.rescale),
        }
    }

    /// Fails where something is set that the method has no use for.
    pub(super) fn check_used(&self) -> Result<()> {
        let Some(method) = self.method else { return Ok(()) };
        let is_slerp = method == BlendMethod::Slerp;
        for (is_set, is_used, what, of) in [
            (self.t.is_some(), is_slerp, "t", "slerp"),
            (self.density.is_some(), method.has_density(), "density", "ties and dare"),
            (self.lambda.is_some(), method.has_base(), "lambda", "methods with a base"),
            (self.normalize.is_some(), !is_slerp, "normalize", "the others"),
            (self.rescale.is_some(), method.is_random(), "rescale", "dare_linear and dare_ties"),
        ] {
            if is_set && !is_used {
                bail!("{method} has no {what}, which is a setting of {of}");
            }
        }
        Ok(())
    }

    /// The blend of so many models.
    pub(super) fn blend(&self, models: usize) -> Result<Blend> {
        let Some(method) = self.method else {
            let known = BlendMethod::ALL.map(BlendMethod::name).join(", ");
            bail!("no method is given: --method names one of {known}");
        };
        let weights = match (&self.weight, self.t) {
            (_, Some(t)) if method == BlendMethod::Slerp => vec![1.0 - t, t],
            (Some(weights), _) if weights.len() == 1 => weights.repeat(models),
            (Some(weights), _) => weights.clone(),
            (None, _) if method == BlendMethod::Slerp => {
                bail!("slerp needs --t: 0 is the first model, 1 the second")
            }
            (None, _) => bail!("no weights are given: --weight 0.5,0.5 has one for each model"),
        };
        if method == BlendMethod::Slerp && models != 2 {
            bail!("slerp blends two models, not {models}");
        }
        if weights.len() != models {
            bail!("there are {} weights of {models} models", weights.len());
        }
        let mut blend = Blend::new(method, weights).lambda(self.lambda.unwrap_or(1.0));
        if let Some(densities) = self.density.as_ref().filter(|_| method.has_density()) {
            blend = blend.densities(densities.clone());
        }
        if let Some(normalize) = self.normalize {
            blend = blend.normalize(normalize);
        }
        blend = blend.rescale(self.rescale.unwrap_or(true));
        blend.check()?;
        Ok(blend)
    }
}
