//! The old name of candle-lm, for a release.

use std::process::ExitCode;

fn main() -> ExitCode {
    examples_support::note("candle-llama is called candle-lm now, and runs more than Llamas");
    candle_lm::main()
}
