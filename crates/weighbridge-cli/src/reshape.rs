//! One checkpoint out of others, streamed: what `cast`, `filter`, `rename`, `merge` and `split` have in
//! common.

use anyhow::Result;
use weighbridge::write::Save;
use weighbridge::{Checkpoint, Names, Plan, Renames};

use crate::casts::{self, Rules};
use crate::destination::Destination;
use crate::metadata;
use crate::outcome::Outcome;
use crate::term::Term;

/// What becomes of the tensors.
#[derive(Clone, Debug)]
pub(crate) struct Reshape {
    /// Those that go in, by their old names.
    pub(crate) names: Names,
    pub(crate) renames: Renames,
    pub(crate) casts: Rules,
}

impl Default for Reshape {
    /// They stay as they are.
    fn default() -> Self {
        Self { names: Names::all(), renames: Renames::new(), casts: Rules::default() }
    }
}

impl Reshape {
    /// What is to be made of a checkpoint, quantised modules being weights if they are cast; fails before anything is written.
    pub(crate) fn plan(&self, checkpoint: &Checkpoint) -> weighbridge::Result<Plan> {
        let weights = self.casts.weights(checkpoint, &self.names)?;
        let mut plan = Plan::of(&weights)
            .only(self.names.clone())
            .dtype(|tensor| self.casts.dtype(tensor))
            .overflow(self.casts.overflow());
        if !self.renames.is_empty() {
            plan = plan.rename(|name| self.renames.apply(name));
        }
        plan.build()
    }
}

/// Writes what the plans make into one checkpoint, with the metadata of them all.
pub(crate) fn write(plans: &[Plan], destination: &Destination, term: &Term) -> Result<Outcome> {
    let checkpoints: Vec<_> = plans.iter().flat_map(Plan::checkpoints).collect();
    let metadata = metadata::without_codes(metadata::union(&checkpoints, term), &checkpoints);
    let save = metadata::with(Save::new(), metadata);
    let tensors = plans.iter().flat_map(Plan::tensors).collect();
    destination.save(save, tensors, term).map_err(casts::in_options)
}
