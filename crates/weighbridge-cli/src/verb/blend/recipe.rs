//! Which tensors are blended how: options, and a file of rules by name.

use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use weighbridge::Names;
use weighbridge::plan::Blend;

use super::settings::Settings;
use crate::show::safe;

/// A longer file is no recipe.
const MOST: u64 = 16 << 20;

/// What the command line and the file say.
#[derive(Debug)]
pub(super) struct Recipe {
    settings: Settings,
    rules: Vec<Rule>,
    seed: u64,
}

#[derive(Debug)]
struct Rule {
    /// As they were given.
    globs: Vec<String>,
    names: Names,
    settings: Settings,
    take: Option<Take>,
    was_used: Cell<bool>,
}

/// Where a tensor is copied from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Take {
    /// The base, or the first model if there is no base.
    Main,
    Base,
    /// Counted from 0.
    Model(usize),
}

/// What becomes of a tensor.
#[derive(Clone, Debug)]
pub(super) enum Fate {
    Taken(Take),
    Blended(Blend),
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Text {
    #[serde(flatten)]
    settings: Settings,
    seed: Option<u64>,
    rules: Vec<TextOfRule>,
}

#[derive(Debug, Deserialize)]
struct TextOfRule {
    names: OneOrMore,
    take: Option<TextOfTake>,
    #[serde(flatten)]
    settings: Settings,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "names are a glob or a list of globs")]
enum OneOrMore {
    One(String),
    Each(Vec<String>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "\"take\" is \"base\" or the number of a model, counted from 0")]
enum TextOfTake {
    Model(usize),
    Base(Base),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Base {
    Base,
}

const SETTINGS: [&str; 7] = ["method", "weight", "t", "density", "lambda", "normalize", "rescale"];

impl Recipe {
    pub(super) fn new(
        options: &Settings,
        seed: Option<u64>,
        file: Option<&Path>,
        take: &[String],
    ) -> Result<Self> {
        let text = file.map(|file| read(file).with_context(|| file.display().to_string())).transpose()?;
        let text = text.unwrap_or_default();
        let settings = text.settings.overlaid(options);
        let mut rules = Vec::new();
        for TextOfRule { names, take, settings } in text.rules {
            let globs = match names {
                OneOrMore::One(glob) => vec![glob],
                OneOrMore::Each(globs) => globs,
            };
            let take = take.map(|take| match take {
                TextOfTake::Model(number) => Take::Model(number),
                TextOfTake::Base(Base::Base) => Take::Base,
            });
            rules.push(Rule::new(globs, settings, take)?);
        }
        if !take.is_empty() {
            rules.push(Rule::new(take.to_vec(), Settings::default(), Some(Take::Main))?);
        }
        if rules.is_empty() {
            settings.check_used()?;
            if seed.is_some() && settings.method.is_some_and(|method| !method.is_random()) {
                bail!("--seed is of dare_linear and dare_ties: nothing else is random");
            }
        }
        Ok(Self { settings, rules, seed: seed.or(text.seed).unwrap_or(0) })
    }

    /// What becomes of a tensor that so many models have.
    pub(super) fn fate(&self, name: &str, models: usize) -> Result<Fate> {
        let (mut settings, mut take) = (self.settings.clone(), None);
        for rule in self.rules.iter().filter(|rule| rule.names.contains(name)) {
            rule.was_used.set(true);
            settings = settings.overlaid(&rule.settings);
            // A later rule that says how to blend wants it blended.
            take = rule.take;
        }
        if let Some(take) = take {
            return Ok(Fate::Taken(take));
        }
        Ok(Fate::Blended(settings.blend(models)?.seed(self.seed, name)))
    }

    /// Fails where something was given that matched nothing.
    pub(super) fn check_used(&self, base_is_used: bool) -> Result<()> {
        if let Some(rule) = self.rules.iter().find(|rule| !rule.was_used.get()) {
            bail!("no tensor that is blended has a name that matches {:?}", safe(&rule.globs.join(", ")));
        }
        if !base_is_used {
            bail!("--base: no method that is used has a base; give the model as one of those to blend");
        }
        Ok(())
    }
}

impl Rule {
    fn new(globs: Vec<String>, settings: Settings, take: Option<Take>) -> Result<Self> {
        let mut names = Names::list(Vec::<String>::new());
        for glob in &globs {
            names = names.or(Names::glob(glob)?);
        }
        Ok(Self { globs, names, settings, take, was_used: Cell::new(false) })
    }
}

fn read(file: &Path) -> Result<Text> {
    let mut text = String::new();
    File::open(file)?.take(MOST).read_to_string(&mut text)?;
    let value: serde_json::Value = serde_json::from_str(&text).context("it is not valid JSON")?;
    check_keys(&value, &["rules", "seed"])?;
    for rule in value.get("rules").and_then(serde_json::Value::as_array).into_iter().flatten() {
        check_keys(rule, &["names", "take"])?;
    }
    // From the text, so that errors say where they are.
    Ok(serde_json::from_str(&text)?)
}

/// Fails at a key that nothing is known of: a setting that is misspelt is none.
fn check_keys(value: &serde_json::Value, more: &[&str]) -> Result<()> {
    let Some(object) = value.as_object() else { bail!("it is not a JSON object of settings") };
    let is_known = |key: &&String| SETTINGS.contains(&key.as_str()) || more.contains(&key.as_str());
    if let Some(key) = object.keys().find(|key| !is_known(key)) {
        let known = [&SETTINGS[..], more].concat().join(", ");
        bail!("there is no setting {:?}; known are {known}", safe(key));
    }
    Ok(())
}
