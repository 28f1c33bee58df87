# What a developer types.

# List the recipes.
default:
    @just --list

# Load the sample with Candle and let it answer.
demo *arguments:
    cargo run --release -p candle-lm -- {{arguments}}

# What CI runs.
ci:
    .ci/run

# The tests alone.
test:
    cargo test --workspace

# Everything that CI does not have the time for.
extended:
    .ci/extended

# Us beside every peer, in one run.
peers *arguments:
    cargo run --release -p benches --bin peers -- {{arguments}}

# Our own parts, to compare one change with the next.
bench *arguments:
    cargo bench -p benches {{arguments}}

# The book: target/book/index.html.
book *arguments:
    .ci/book {{arguments}}
