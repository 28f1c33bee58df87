//! Which tensors were cut, and how.

use weighbridge::{Error, ErrorKind, Names, Result};

/// What the ranks have of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Along {
    /// Parts that are concatenated along this dimension, counted from 0, in the order of the ranks.
    Dim(usize),
    /// The same tensor each.
    Replicated,
}

/// Rules by which the tensors of ranks are joined. The first one that a name matches counts.
///
/// ```
/// use weighbridge_convert::ranks::Rules;
///
/// # fn main() -> weighbridge::Result<()> {
/// let rules = Rules::parse(
///     "# What Megatron cuts.
///      *.{q,k,v}_proj.weight: 0
///      *.o_proj.weight: 1
///      *norm.weight: replicated",
/// )?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Rules {
    rules: Vec<(Names, Along)>,
}

impl Rules {
    /// No rule yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a rule behind the others.
    #[must_use]
    pub fn rule(mut self, names: Names, along: Along) -> Self {
        self.rules.push((names, along));
        self
    }

    /// Reads rules, one a line: a [glob](Names::glob), a colon, and the dimension, or `replicated`. Lines that are empty or
    /// start with `#` are passed over.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Pattern`] for a line that is none, and says which.
    pub fn parse(text: &str) -> Result<Self> {
        let mut rules = Self::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let fail = |why: String| {
                let message = format!("line {}, {line:?}: {why}", number + 1);
                Error::new(ErrorKind::Pattern, message)
            };
            let expected = || fail("a rule is `GLOB: DIMENSION` or `GLOB: replicated`".to_owned());
            let (glob, along) = line.rsplit_once(':').ok_or_else(expected)?;
            let along = match along.trim() {
                "replicated" => Along::Replicated,
                dim => Along::Dim(dim.parse().map_err(|_| expected())?),
            };
            let names = Names::glob(glob.trim()).map_err(|error| fail(error.to_string()))?;
            rules = rules.rule(names, along);
        }
        Ok(rules)
    }

    /// The rule of a name.
    pub fn of(&self, name: &str) -> Option<Along> {
        self.rules.iter().find(|(names, _)| names.contains(name)).map(|rule| rule.1)
    }
}
