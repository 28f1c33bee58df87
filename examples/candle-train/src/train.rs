//! The training loop.

use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::D;
use candle_nn::{Optimizer, ParamsAdamW, VarMap, loss::cross_entropy};
use examples_support::note;
use weighbridge_candle::weighbridge::epochs::{Milestone, Scalars};
use weighbridge_candle::{AdamW, Checkpoints, Cosine, Ema, Loader, Schedule, open};

use crate::Cli;
use crate::data::{Batch, Tokens};
use crate::export::{check, describe, export};
use crate::model::{Config, Llama, initialise};

/// How the model is made where no checkpoint is given.
const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder");

/// What a run was begun with.
struct Settings {
    steps: u64,
    batch: u64,
    seed: u64,
}

pub(crate) fn run(cli: &Cli) -> Result<()> {
    let mut checkpoints = Checkpoints::new(&cli.run).keep_last(cli.keep).every(cli.every);
    let latest = checkpoints.latest()?;
    let settings = match (cli.resume, latest) {
        (true, Some(latest)) => Settings::resumed(cli, &checkpoints.scalars(latest)?)?,
        (true, None) => bail!("{}: there is no checkpoint to resume from", cli.run.display()),
        (false, Some(_)) => bail!("{}: there is a run already; --resume goes on with it", cli.run.display()),
        (false, None) => Settings::new(cli),
    };
    if let Some(directory) = &cli.export {
        check(directory, &cli.run, cli.from.as_deref())?;
    }
    // A run that goes on is of the model that it was begun with, which is described in its directory.
    let source = match cli.resume {
        true => cli.run.as_path(),
        false => cli.from.as_deref().unwrap_or(Path::new(SAMPLE)),
    };
    let config = Config::read(source)?;
    let tokens = Tokens::read(source)?;
    let map = VarMap::new();
    let model = Llama::new(&config, &map)?;
    describe(source, &cli.run)?;

    let Settings { steps, batch, seed } = settings;
    checkpoints = checkpoints.note("steps", steps).note("batch", batch).note("seed", seed);

    match &cli.from {
        Some(from) => drop(Loader::new(&open(from)?).fill(&map)?),
        None => initialise(&map, seed)?,
    }
    let mut optimizer =
        AdamW::of(&map, ParamsAdamW { beta2: 0.98, weight_decay: 0.05, ..Default::default() })?;
    let mut schedule = Cosine::new(2e-3, 2e-5, steps).warmup(steps / 20);
    let mut ema = Ema::new(&map, 0.98)?;
    let mut step = 0;
    if let Some(latest) = latest {
        let resumed = checkpoints.load(latest, &map, &mut optimizer, &mut schedule)?;
        resumed.load_ema(&mut ema)?;
        step = resumed.step();
        note(&format!("{}: going on after {latest}", cli.run.display()));
    }

    let end = cli.until.map_or(steps, |until| until.min(steps));
    while step < end {
        optimizer.set_learning_rate(schedule.step());
        let batch = Batch::of_step(&tokens, seed, step, batch)?;
        let logits = model.forward(&batch.tokens)?.index_select(&batch.places, 0)?;
        let loss = cross_entropy(&logits, &batch.targets)?;
        optimizer.backward_step(&loss)?;
        ema.update()?;
        step += 1;
        if checkpoints.is_due(step) || step == end {
            let loss = loss.to_scalar::<f32>()?;
            let checkpoint = checkpoints.at(Milestone::at_step(step)).ema(&ema);
            let checkpoint = checkpoint.note("loss", f64::from(loss)).note("rate", optimizer.learning_rate());
            checkpoint.save(&map, &optimizer, &schedule)?;
            note(&format!("step {step} of {steps}: loss {loss:.4}"));
        }
    }

    let right = {
        let _average = ema.apply()?;
        right(&model, &Batch::held_out(&tokens, 256)?)?
    };
    note(&format!("{:.1}% of the sums that it has not seen are right", 100.0 * right));
    if let Some(directory) = &cli.export {
        export(&ema, &cli.run, directory)?;
    }
    Ok(())
}

impl Settings {
    fn new(cli: &Cli) -> Self {
        Self {
            steps: cli.steps.unwrap_or(2000),
            batch: cli.batch.unwrap_or(128),
            seed: cli.seed.unwrap_or(0),
        }
    }

    /// Those that are in a checkpoint, which the command line may repeat.
    fn resumed(cli: &Cli, scalars: &Scalars) -> Result<Self> {
        let of = |name: &str, asked: Option<u64>| {
            let begun = scalars.get(name).and_then(|scalar| scalar.as_u64());
            let begun = begun.with_context(|| format!("{}: the run has no {name:?}", cli.run.display()))?;
            match asked.filter(|&asked| asked != begun) {
                Some(asked) => {
                    bail!("{}: it was begun with --{name} {begun}, not {asked}", cli.run.display())
                }
                None => Ok(begun),
            }
        };
        Ok(Self {
            steps: of("steps", cli.steps)?,
            batch: of("batch", cli.batch)?,
            seed: of("seed", cli.seed)?,
        })
    }
}

/// The share of sums of which every token is the likeliest.
fn right(model: &Llama, batch: &Batch) -> Result<f64> {
    let logits = model.forward(&batch.tokens)?.index_select(&batch.places, 0)?;
    let likeliest = logits.argmax(D::Minus1)?.eq(&batch.targets)?.to_vec1::<u8>()?;
    let rows = batch.tokens.dim(0)?;
    let mut is_right = vec![true; rows];
    for (&row, hit) in batch.rows.iter().zip(likeliest) {
        is_right[row] &= hit == 1;
    }
    Ok(is_right.iter().filter(|&&right| right).count() as f64 / rows as f64)
}
