//! How Burn names and lays out what Candle has.

use candle_core::Tensor;
use weighbridge::{Names, Renames};

/// How a model of Candle is called and laid out in Burn, for runs that go from one to the other.
///
/// Candle has parameters as PyTorch has them, and without this the files of a run have, too. Burn has the
/// weight of a `Linear` transposed, and calls the weight and bias of a norm `gamma` and `beta`. The sets go
/// by the names of variables.
///
/// ```
/// use weighbridge_candle::BurnLayout;
/// use weighbridge_candle::weighbridge::{Names, Renames};
///
/// # fn main() -> weighbridge_candle::weighbridge::Result<()> {
/// let layout = BurnLayout::new()
///     .linear(Names::glob("*_proj.weight")?)
///     .norm(Names::glob("*norm.*")?)
///     .rename(Renames::new().exact("prelu.weight", "prelu.alpha"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct BurnLayout {
    linear: Vec<Names>,
    norm: Vec<Names>,
    renames: Vec<Renames>,
}

impl BurnLayout {
    /// Nothing differs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names weights of linear layers; only those of two dimensions are transposed.
    #[must_use]
    pub fn linear(mut self, weights: Names) -> Self {
        self.linear.push(weights);
        self
    }

    /// Names weights and biases of norms.
    #[must_use]
    pub fn norm(mut self, parameters: Names) -> Self {
        self.norm.push(parameters);
        self
    }

    /// Renames others from their names in Candle to those in Burn; it comes last.
    #[must_use]
    pub fn rename(mut self, renames: Renames) -> Self {
        self.renames.push(renames);
        self
    }

    /// The name in a file.
    pub(super) fn name(&self, variable: &str) -> String {
        let mut name = variable.to_owned();
        if self.norm.iter().any(|names| names.contains(variable)) {
            let (module, leaf) =
                variable.rsplit_once('.').map_or(("", variable), |(module, leaf)| (module, leaf));
            let leaf = match leaf {
                "weight" => "gamma",
                "bias" => "beta",
                other => other,
            };
            name = if module.is_empty() { leaf.to_owned() } else { format!("{module}.{leaf}") };
        }
        self.renames.iter().fold(name, |name, renames| renames.apply(&name))
    }

    /// A tensor as it is on the other side, in either direction.
    pub(super) fn turned(&self, variable: &str, tensor: &Tensor) -> candle_core::Result<Tensor> {
        match tensor.rank() == 2 && self.linear.iter().any(|names| names.contains(variable)) {
            true => tensor.t(),
            false => Ok(tensor.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_burn() {
        let layout = BurnLayout::new()
            .norm(Names::glob("*norm.*").unwrap())
            .norm(Names::exact("weight"))
            .rename(Renames::new().prefix("model.", ""));
        for (variable, name) in [
            ("model.norm.weight", "norm.gamma"),
            ("model.norm.bias", "norm.beta"),
            ("model.norm.running_mean", "norm.running_mean"),
            ("up.weight", "up.weight"),
            ("weight", "gamma"),
        ] {
            assert_eq!(layout.name(variable), name);
        }
    }
}
