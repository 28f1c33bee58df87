//! The book's programs: `cargo test -p book` compiles them all, and runs those that need nothing from outside.
//! What its commands print is compared by `.ci/book.py`.

macro_rules! pages {
    ($($name:ident: $path:literal,)*) => {
        $(#[cfg(doctest)] #[doc = include_str!(concat!("src/", $path))] struct $name;)*
    };
}

pages! {
    Index: "index.md",
    StartCandle: "start/candle.md",
    StartBurn: "start/burn.md",
    StartFiles: "start/files.md",
    Open: "recipes/open.md",
    Choose: "recipes/choose.md",
    Quantised: "recipes/quantised.md",
    Adapters: "recipes/adapters.md",
    Lora: "recipes/lora.md",
    Ranks: "recipes/ranks.md",
    Remote: "recipes/remote.md",
    Training: "recipes/training.md",
    Live: "recipes/live.md",
    Save: "recipes/save.md",
    Pickle: "recipes/pickle.md",
    Migrate: "migrate.md",
    How: "how.md",
    Security: "security.md",
    SlowLoad: "slow-load.md",
    Errors: "errors.md",
}
