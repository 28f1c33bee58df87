//! Whether models mean the same tokens by the same numbers.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::models::Model;
use crate::show::{plural, safe};
use crate::term::Term;

/// A larger tokenizer is none.
const MOST: u64 = 256 << 20;

/// The parts of a tokenizer.json that say which tokens there are.
#[derive(Deserialize)]
struct Tokenizer {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    model: Vocabulary,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

#[derive(Default, Deserialize)]
struct Vocabulary {
    #[serde(default)]
    vocab: Tokens,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Tokens {
    Numbers(HashMap<String, u32>),
    /// In order, each with its score.
    Scores(Vec<(String, f64)>),
    Unknown(serde::de::IgnoredAny),
}

impl Default for Tokens {
    fn default() -> Self {
        Self::Unknown(serde::de::IgnoredAny)
    }
}

/// Fails where two models have different tokens of one number; says where one has tokens that another lacks.
pub(super) fn check<'m>(models: impl Iterator<Item = &'m Model>, term: &Term) -> Result<()> {
    let mut first: Option<(&Model, HashMap<u32, String>)> = None;
    for model in models {
        let Some(tokens) = of(model)? else { continue };
        let Some((other, known)) = &first else {
            first = Some((model, tokens));
            continue;
        };
        let differ = |(id, token): &(&u32, &String)| known.get(*id).is_some_and(|known| known != *token);
        if let Some((id, token)) = tokens.iter().filter(differ).min() {
            let before = known.get(id).map_or("", |token| token);
            bail!(
                "{}: its token {id} is {:?}, that of {} is {:?}: the embeddings of different tokens make no sense blended; \
                 --any-tokenizer blends them anyway",
                model.path.display(),
                safe(token),
                other.path.display(),
                safe(before)
            );
        }
        let lacks = |a: &HashMap<u32, String>, b: &HashMap<u32, String>| {
            a.keys().filter(|id| !b.contains_key(id)).count()
        };
        for (has, missing, count) in
            [(model, *other, lacks(&tokens, known)), (*other, model, lacks(known, &tokens))]
        {
            if count > 0 {
                let (has, missing) = (has.path.display(), missing.path.display());
                term.warn(format_args!("{has}: it has {} that {missing} lacks", plural(count, "token")));
            }
        }
    }
    Ok(())
}

/// The tokens of a model by number, if there is a file that says them.
fn of(model: &Model) -> Result<Option<HashMap<u32, String>>> {
    let Some(path) = model.stored.beside("tokenizer.json")? else { return Ok(None) };
    read(&path).with_context(|| path.display().to_string()).map(Some)
}

fn read(path: &Path) -> Result<HashMap<u32, String>> {
    let file = BufReader::new(File::open(path)?.take(MOST));
    let tokenizer: Tokenizer = serde_json::from_reader(file).context("it is no tokenizer")?;
    let mut tokens: HashMap<u32, String> = match tokenizer.model.vocab {
        Tokens::Numbers(numbers) => numbers.into_iter().map(|(token, id)| (id, token)).collect(),
        Tokens::Scores(scores) => (0..).zip(scores.into_iter().map(|(token, _)| token)).collect(),
        Tokens::Unknown(_) => HashMap::new(),
    };
    tokens.extend(tokenizer.added_tokens.into_iter().map(|added| (added.id, added.content)));
    Ok(tokens)
}
