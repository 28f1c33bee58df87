//! `weighbridge filter`.

use anyhow::Result;
use clap::Args;

use crate::Outcome;
use crate::term::Term;

#[derive(Debug, Args)]
pub(crate) struct Filter {}

impl Filter {
    pub(crate) fn run(&self, _: &Term) -> Result<Outcome> {
        todo!()
    }
}
