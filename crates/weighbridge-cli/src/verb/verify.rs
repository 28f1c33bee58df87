//! `weighbridge verify`.

use anyhow::Result;
use clap::Args;

use crate::Outcome;
use crate::term::Term;

#[derive(Debug, Args)]
pub(crate) struct Verify {}

impl Verify {
    pub(crate) fn run(&self, _: &Term) -> Result<Outcome> {
        todo!()
    }
}
