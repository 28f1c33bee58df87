//! Conversations, by the template that a model was trained with.

use anyhow::{Context, Result, anyhow};
use examples_support::chat::{Template, template_of};

use crate::config::read_object;
use crate::model::Found;

/// Reads `chat_template.jinja`, or what `tokenizer_config.json` has of it.
///
/// # Errors
///
/// There is neither, or it is wrong.
pub(crate) fn template(found: &Found) -> Result<Template> {
    let at = || found.place.display().to_string();
    let config = read_object(&found.beside, "tokenizer_config.json")?.unwrap_or_default();
    let source = match found.beside.find("chat_template.jinja")? {
        Some(path) => std::fs::read_to_string(&path).with_context(|| path.display().to_string())?,
        None => template_of(&config).ok_or_else(|| {
            anyhow!(
                "{}: there is neither chat_template.jinja nor a chat_template in tokenizer_config.json; without \
                 --chat the model continues text",
                at()
            )
        })?,
    };
    Template::new(source, &config).with_context(at)
}
