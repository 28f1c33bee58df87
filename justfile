# What a developer types.

# List the recipes.
default:
    @just --list

# Load the sample with Candle and let it answer.
demo *arguments:
    cargo run --release -p candle-lm -- {{arguments}}

# Format, lints and unit tests of one crate: what to run after each change.
quick package="weighbridge":
    cargo fmt --all
    cargo clippy -p {{package}} --all-targets -- --deny warnings
    cargo test -p {{package}} --lib --bins

# What CI runs.
ci:
    .ci/run

# The tests alone.
test:
    cargo test --workspace

# Everything that CI does not have the time for.
extended:
    .ci/extended

# Archives, wheels and checksums, as they are released.
release *targets:
    scripts/release {{targets}}

# Us beside every peer, in one run.
peers *arguments:
    cargo run --release -p benches --bin peers -- {{arguments}}

# Our own parts, to compare one change with the next.
bench *arguments:
    cargo bench -p benches {{arguments}}

# The book: target/book/index.html.
book *arguments:
    .ci/book {{arguments}}
