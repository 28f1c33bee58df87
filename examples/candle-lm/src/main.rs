//! Any causal language model that Candle has, from a checkpoint as it is on disk. All is in the library, so that the
//! program's old name can be a program, too.

use std::process::ExitCode;

fn main() -> ExitCode {
    candle_lm::main()
}
