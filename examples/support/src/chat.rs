//! Conversations, by the template that a model was trained with.

use anyhow::{Context, Result, bail};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value as Variable};
use serde_json::{Map, Value};

/// What somebody said.
#[derive(Clone, Debug)]
pub struct Message {
    role: &'static str,
    content: String,
}

impl Message {
    /// A role (`system`, `user`, `assistant`) and its words.
    pub fn new(role: &'static str, content: &str) -> Self {
        Self { role, content: content.to_owned() }
    }
}

/// A Jinja template that writes a conversation as one text.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    /// Special tokens that templates name: `bos_token`, `eos_token`.
    tokens: Vec<(&'static str, String)>,
}

const NAME: &str = "chat template";

impl Template {
    /// A template, and the special tokens that `tokenizer_config.json` names.
    ///
    /// # Errors
    ///
    /// One line that says what is wrong with the template.
    pub fn new(source: String, tokenizer_config: &Map<String, Value>) -> Result<Self> {
        let tokens = ["bos_token", "eos_token", "unk_token", "pad_token"]
            .into_iter()
            .filter_map(|name| Some((name, token(tokenizer_config.get(name)?)?)))
            .collect();
        let mut environment = Environment::new();
        // As transformers sets Jinja up.
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| strftime_now(&format));
        environment.add_template_owned(NAME, source).context(NAME)?;
        Ok(Self { environment, tokens })
    }

    /// The conversation, up to where the model is to answer.
    ///
    /// # Errors
    ///
    /// What the template does not take: a role, say.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        let messages = messages
            .iter()
            .map(|said| Variable::from_pairs([("role", said.role), ("content", said.content.as_str())]));
        let mut variables = vec![
            ("messages", messages.collect::<Vec<_>>().into()),
            ("add_generation_prompt", Variable::from(true)),
        ];
        variables.extend(self.tokens.iter().map(|(name, token)| (*name, token.as_str().into())));
        let variables = Variable::from_pairs(variables);
        let text = self.environment.get_template(NAME).and_then(|template| template.render(variables));
        match text {
            Ok(text) => Ok(text),
            Err(error) => bail!("{NAME}: {error}"),
        }
    }
}

/// The template in `tokenizer_config.json`: one, or of several with names the default.
pub fn template_of(config: &Map<String, Value>) -> Option<String> {
    match config.get("chat_template")? {
        Value::String(template) => Some(template.clone()),
        Value::Array(named) => {
            let default = named.iter().find(|one| one["name"] == "default")?;
            default["template"].as_str().map(str::to_owned)
        }
        _ => None,
    }
}

/// A token is a text, or an object that has one.
fn token(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// The date of today, in the forms that templates ask for; the year, month and day follow from the days since 1970.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let (year, month, day) = civil(since.as_secs() / 86_400);
    let name = MONTHS[month - 1];
    let text = format
        .replace("%Y", &year.to_string())
        .replace("%m", &format!("{month:02}"))
        .replace("%d", &format!("{day:02}"))
        .replace("%B", name)
        .replace("%b", &name[..3]);
    if text.contains('%') {
        let message = format!("strftime_now(\"{format}\"): only %Y, %m, %d, %B and %b are known");
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, message));
    }
    Ok(text)
}

/// Year, month and day of a number of days since 1970.
fn civil(days: u64) -> (u64, usize, u64) {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut left) = (1970, days);
    while left >= 365 + u64::from(is_leap(year)) {
        left -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_methods_and_options_of_transformers() {
        let source = "{%- for message in messages %}\n    {%- if message['role'] == 'system' %}\n        \
                      {{- raise_exception('no system') }}\n    {%- endif %}\n    \
                      {{- bos_token + message['role'].upper() + ': ' + message['content'].strip() }}\n{%- endfor %}\n\
                      {%- if add_generation_prompt %}{{ '|' }}{%- endif %}";
        let config = serde_json::json!({"bos_token": {"content": "<s>"}});
        let template = Template::new(source.to_owned(), config.as_object().unwrap()).unwrap();
        assert_eq!(template.render(&[Message::new("user", " hi ")]).unwrap(), "<s>USER: hi|");
        let error = template.render(&[Message::new("system", "x")]).unwrap_err();
        assert!(error.to_string().contains("no system"), "{error}");
    }

    #[test]
    fn days_are_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(59), (1970, 3, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_453), (2025, 12, 31));
    }
}
