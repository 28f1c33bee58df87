//! What the GPU checks have in common: a checkpoint whose every byte can be computed again, runs in processes of their own,
//! and the table.

pub mod check;
pub mod checkpoint;
pub mod complaint;
pub mod dice;
pub mod memory;
pub mod options;
pub mod python;
pub mod run;
pub mod table;
