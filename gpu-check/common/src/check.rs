//! The whole check: in each place each loader, in a process of its own, and then loads at random.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::checkpoint::Model;
use crate::options::Options;
use crate::table::Results;
use crate::{python, run};

/// Makes the checkpoint in each place and has it loaded there; the program's own subcommands `one` and `races` do that.
///
/// # Errors
///
/// Fails when a loader of ours did, or loaded something else than what was stored.
pub fn check(
    program: &str,
    loaders: &[&str],
    options: &Options,
    model: &Model,
    mut results: Results,
    start: Instant,
) -> Result<()> {
    println!("{}; {} tensors, {:.2} GB\n", results.machine, model.tensors.len(), model.bytes() as f64 / 1e9);
    let sizes = [options.size.to_string(), options.repeat.to_string()];
    let dtype = if options.dtype.size() == 2 { "bf16" } else { "f32" };
    let common = ["--size", &sizes[0], "--repeat", &sizes[1], "--dtype", dtype];
    let is_late = || start.elapsed().as_secs() > options.seconds;
    let mut for_races = None;
    for place in &options.place {
        if is_late() {
            println!("{}: no time is left for it", place.display());
            continue;
        }
        let directory = place.join(format!("{program}-{}", std::process::id()));
        let file = model.write(&directory);
        match file {
            Ok(file) => {
                for_races = for_races.or(Some(place));
                let path = file.display().to_string();
                let ours = loaders.iter().map(|loader| (*loader, None));
                let pythons = options
                    .python
                    .iter()
                    .flat_map(|python| python::LOADERS.map(|loader| (loader, Some(python))));
                for (loader, python) in ours.chain(pythons) {
                    if is_late() {
                        println!("{}: no time is left for {loader}", place.display());
                        continue;
                    }
                    let measured = match python {
                        None => run::child(&[&common[..], &["one", loader, &path]].concat(), options.limit),
                        Some(python) => python::measure(python, loader, &file, options),
                    };
                    results.row(loader, place, measured);
                    results.write(options)?;
                }
                results.compare(place);
            }
            Err(error) => println!("{}: {error:#}", place.display()),
        }
        let _ = std::fs::remove_dir_all(&directory);
    }

    let (number, seconds) = (options.races.to_string(), options.races_seconds.to_string());
    let place = for_races.map_or(Path::new("."), |place| place).display().to_string();
    let races = ["--races", &number, "--races-seconds", &seconds, "races", &place];
    results.races(run::child(&races, options.races_seconds + 60));
    println!("{:.0} s in all", start.elapsed().as_secs_f64());
    results.write(options)?;
    ensure!(!results.failed, "something was wrong");
    Ok(())
}
