//! `weighbridge version`: what this release is, and which frameworks its crates are for.

use std::io::Write;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::outcome::Outcome;
use crate::term::Term;

/// Says which versions of Candle, Burn and Rust the crates of this release are for
///
/// `--version` says only the command's own.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge version
  weighbridge version --format json | jq '.frameworks[].requirement'")]
pub(crate) struct Version {
    /// The form of the output
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Lines
    Text,
    /// JSON
    Json,
}

/// A crate that loads into a framework.
#[derive(Serialize)]
struct Framework {
    #[serde(rename = "crate")]
    name: &'static str,
    framework: &'static str,
    /// The framework's package whose version counts.
    package: &'static str,
    /// As Cargo.toml says it.
    requirement: &'static str,
    /// The oldest and the newest release that its tests are run with.
    tested: [&'static str; 2],
    /// The oldest Rust.
    rust: &'static str,
}

/// What JSON says: `docs/json.md` explains it.
#[derive(Serialize)]
struct Output {
    schema: &'static str,
    version: &'static str,
    features: &'static [&'static str],
    target: String,
    /// The oldest Rust for the crate `weighbridge`.
    rust: &'static str,
    frameworks: &'static [Framework],
}

const FEATURES: &[&str] = if cfg!(feature = "remote") { &["remote"] } else { &[] };

/// The oldest Rust for the crate `weighbridge`.
const RUST: &str = "1.85";

const FRAMEWORKS: &[Framework] = &[
    Framework {
        name: "weighbridge-candle",
        framework: "Candle",
        package: "candle-core",
        requirement: "0.11",
        tested: ["0.11.0", "0.11.1"],
        rust: "1.89",
    },
    Framework {
        name: "weighbridge-burn",
        framework: "Burn",
        package: "burn",
        requirement: "0.22",
        tested: ["0.22.0", "0.22.1"],
        rust: "1.95",
    },
];

impl Version {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let version = env!("CARGO_PKG_VERSION");
        let target = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
        match self.format {
            Format::Text => {
                let mut out = term.text();
                writeln!(out, "weighbridge {version} on {target}, features: {}", list(FEATURES))?;
                writeln!(out, "the crate weighbridge {version} has Rust {RUST} or newer")?;
                for Framework { name, framework, requirement, tested: [oldest, newest], rust, .. } in
                    FRAMEWORKS
                {
                    writeln!(
                        out,
                        "{name} {version} is for {framework} {requirement} (tested: {oldest} to {newest}), Rust {rust} or newer"
                    )?;
                }
                writeln!(
                    out,
                    "for another release, or a fork: docs/your-fork.md has an adapter of a hundred lines"
                )?;
            }
            Format::Json => {
                let output = Output {
                    schema: "weighbridge.version/1",
                    version,
                    features: FEATURES,
                    target,
                    rust: RUST,
                    frameworks: FRAMEWORKS,
                };
                let mut out = term.raw();
                serde_json::to_writer_pretty(&mut out, &output)?;
                writeln!(out)?;
                out.flush()?;
            }
        }
        Ok(Outcome::Clean)
    }
}

fn list(features: &[&str]) -> String {
    if features.is_empty() { "none".to_owned() } else { features.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of the repository; `None` in the package that is published.
    fn file(path: &str) -> Option<String> {
        std::fs::read_to_string(format!("{}/../../{path}", env!("CARGO_MANIFEST_DIR"))).ok()
    }

    fn locked(lock: &str, package: &str) -> String {
        let entry =
            lock.split("[[package]]").find(|entry| entry.contains(&format!("\nname = \"{package}\"\n")));
        let line = entry.and_then(|entry| entry.lines().find_map(|line| line.strip_prefix("version = ")));
        line.unwrap().trim_matches('"').to_owned()
    }

    #[test]
    fn it_says_what_the_manifests_and_the_lock_files_say() {
        let (Some(workspace), Some(newest), Some(oldest)) =
            (file("Cargo.toml"), file("Cargo.lock"), file(".ci/oldest/Cargo.lock"))
        else {
            return;
        };
        let rust = |name: &str| {
            let manifest = file(&format!("crates/{name}/Cargo.toml")).unwrap();
            let own = [manifest, workspace.clone()].into_iter().find_map(|manifest| {
                let line = manifest.lines().find_map(|line| line.strip_prefix("rust-version = "))?;
                Some(line.trim_matches('"').to_owned())
            });
            own.unwrap()
        };
        assert_eq!(RUST, rust("weighbridge"));
        for said in FRAMEWORKS {
            let line = format!("\n{} = {{ version = \"{}\"", said.package, said.requirement);
            assert!(workspace.contains(&line), "{line}");
            let tested = [locked(&oldest, said.package), locked(&newest, said.package)];
            assert_eq!(said.tested, tested, "{}", said.name);
            assert_eq!(said.rust, rust(said.name), "{}", said.name);
        }
    }
}
