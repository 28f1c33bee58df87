//! The guides of `docs/` whose programs are compiled, and run where they can be.

#[cfg(doctest)]
#[doc = include_str!("../../../docs/migrate.md")]
struct Migrate;

#[cfg(doctest)]
#[doc = include_str!("../../../docs/slow-load.md")]
struct SlowLoad;
