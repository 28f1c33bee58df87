//! Uninitialised host memory: filled without being zeroed first, by several threads, and handed out as a
//! `Vec`.
//!
//! - [`fill`] initialises a slice step by step, with each step's initialised part as the proof;
//! - [`Allocation`] is memory for one tensor, handed out as disjoint [`Chunk`]s that several threads fill,
//!   and turned into a [`HostBuffer`] once every byte is there;
//! - [`transpose`] fills a slice with the transpose of a matrix;
//! - `pages` asks the kernel for huge pages behind large allocations.
//!
//! One argument carries the module. *A function that is handed `&'a mut [MaybeUninit<u8>]` and returns
//! `&'a mut [u8]` of the same address and length has initialised it*: the argument is the only path to that
//! memory for `'a`, so the result was derived from it, and a `&mut [u8]` may only refer to initialised bytes.
//! So closures which cannot contain `unsafe` themselves may do the filling.

mod allocation;
mod fill;
mod host;
mod pages;
mod transpose;

pub(crate) use allocation::{Allocation, Chunk, Filling, huge_pages};
pub use fill::copied;
pub(crate) use fill::{Fault, Filler, fill, initialised, zeroed};
pub use host::HostBuffer;
pub(crate) use pages::HugePage;
pub(crate) use transpose::transpose;
