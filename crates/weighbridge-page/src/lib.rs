#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod diff;
mod figures;
mod forms;
mod html;
pub mod inspect;
pub mod run;
mod shown;
mod survey;
pub mod tree;

pub use figures::{BINS, Count, Figures, Histogram, Number};
pub use html::{Page, STYLE, packed};
pub use shown::Shown;
pub use survey::{DtypeTotal, Layer, ShardTotal, Stack, Survey};
