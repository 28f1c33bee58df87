//! The guide for programs that change over to weighbridge: each "after" is compiled and run here.

#[cfg(doctest)]
#[doc = include_str!("../../../docs/migrate.md")]
struct Guide;
