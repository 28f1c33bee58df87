//! Settings of stores by name, as their environment variables have them.

use std::collections::BTreeMap;

use crate::{Error, ErrorKind, Result};

/// Names in lower case, and values. Nothing of it is ever shown.
#[derive(Clone, Default)]
pub(crate) struct StoreOptions {
    values: BTreeMap<String, String>,
    /// Whether files in the user's home directory may be read too.
    pub(super) environment: bool,
}

const PREFIXES: [&str; 3] = ["aws_", "google_", "azure_"];

impl StoreOptions {
    /// What the environment has.
    pub(crate) fn from_environment(variables: impl Iterator<Item = (String, String)>) -> Self {
        let of_stores = |(name, value): (String, String)| {
            let name = match name.as_str() {
                // Azure's own name for it has no prefix.
                "IDENTITY_ENDPOINT" => "azure_msi_endpoint".to_owned(),
                name => name.to_ascii_lowercase(),
            };
            (PREFIXES.iter().any(|prefix| name.starts_with(prefix)) && !value.is_empty())
                .then_some((name, value))
        };
        Self { values: variables.filter_map(of_stores).collect(), environment: true }
    }

    pub(crate) fn set(&mut self, name: &str, value: String) {
        self.values.insert(name.to_ascii_lowercase(), value);
    }

    /// The first of these that is set.
    pub(super) fn get(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.values.get(*name).map(String::as_str))
    }

    pub(super) fn is(&self, names: &[&str]) -> bool {
        let yes = ["1", "true", "on", "yes", "y"];
        self.get(names).is_some_and(|value| yes.contains(&value.to_ascii_lowercase().as_str()))
    }

    /// Those of one kind of store.
    pub(super) fn of(&self, prefix: &'static str) -> impl Iterator<Item = (&str, &str)> {
        self.values
            .iter()
            .filter(move |(name, _)| name.starts_with(prefix))
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Refuses names that no store has. The environment has others, which are nobody's mistake.
    pub(crate) fn check(&self) -> Result<()> {
        match self.values.keys().find(|name| !PREFIXES.iter().any(|prefix| name.starts_with(prefix))) {
            Some(name) => Err(Error::new(
                ErrorKind::Address,
                format!("{name:?} is no option of a store: their names begin with AWS_, GOOGLE_ or AZURE_"),
            )),
            None => Ok(()),
        }
    }
}
