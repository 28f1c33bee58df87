//! What programs around a language model share, whichever framework computes it: tokens, their choice, what is printed.

mod report;
pub mod request;
mod sampling;
mod text;

pub use report::{Loaded, Progress, Summary, show, speed};
pub use sampling::{Sampler, Sampling};
pub use text::{Answer, Text};
