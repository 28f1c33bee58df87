#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod figures;
mod html;
pub mod inspect;
mod survey;
pub mod tree;

pub use figures::{BINS, Count, Figures, Histogram, Number};
pub use html::{Page, STYLE, packed};
pub use survey::{DtypeTotal, Layer, ShardTotal, Stack, Survey};
