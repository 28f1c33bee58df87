//! What tests share: archives and pickles that are put together byte by byte.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod code;
pub(crate) mod zip;
