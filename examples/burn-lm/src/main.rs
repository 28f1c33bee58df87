//! See the library of this name.

use std::process::ExitCode;

fn main() -> ExitCode {
    burn_lm::main()
}
