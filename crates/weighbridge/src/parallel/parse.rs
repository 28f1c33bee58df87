//! Reads files of rules.

use super::plan::{ParallelPlan, Rule};
use super::share::Share;
use super::stages::Ends;
use crate::error::{Error, ErrorKind, Result};
use crate::pattern::Names;
use crate::text::start_of;

/// Adds the lines of `text` to a plan, behind what it has.
pub(super) fn parse(text: &str, mut plan: ParallelPlan) -> Result<ParallelPlan> {
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let fail = |error: Error| {
            let message = format!("line {}, {:?}: {error}", number + 1, start_of(line));
            Error::new(ErrorKind::Pattern, message)
        };
        plan = match line.strip_prefix('@') {
            Some(setting) => set(plan, setting).map_err(fail)?,
            None => plan.with_rule(rule(line).map_err(fail)?),
        };
    }
    Ok(plan)
}

/// Reads `GLOB: SHARE[, first][, last]`.
pub(super) fn rule(line: &str) -> Result<Rule> {
    let wrong = |why: &str| Error::new(ErrorKind::Pattern, why);
    let (glob, behind) = line
        .rsplit_once(':')
        .ok_or_else(|| wrong("a rule is `GLOB: SHARE`, such as `*.up_proj.weight: column`"))?;
    let mut words = behind.split(',').map(str::trim);
    let share: Share = words.next().unwrap_or_default().parse()?;
    let mut ends = Ends::default();
    for word in words {
        match word {
            "first" => ends.first = true,
            "last" => ends.last = true,
            _ => return Err(wrong("behind a comma stands the pipeline stage: `first` or `last`")),
        }
    }
    let names = Names::glob(glob.trim())?;
    Ok(Rule { names, share, ends: Some(ends).filter(|ends| *ends != Ends::default()) })
}

fn set(plan: ParallelPlan, line: &str) -> Result<ParallelPlan> {
    let wrong = |why: String| Error::new(ErrorKind::Pattern, why);
    let (name, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let numbers: Option<Vec<usize>> = value.split_whitespace().map(|word| word.parse().ok()).collect();
    match (name, numbers.as_deref()) {
        ("layers", _) if !value.trim().is_empty() => Ok(plan.layers(value.trim())),
        ("heads", Some(&[heads])) => plan.heads(heads, heads),
        ("heads", Some(&[heads, kv_heads])) => plan.heads(heads, kv_heads),
        ("stages", Some(counts)) if !counts.is_empty() => Ok(plan.stages(counts)),
        ("tensor_parallel", Some(&[ranks])) if ranks > 0 => Ok(plan.tensor_parallel(ranks)),
        ("pipeline_parallel", Some(&[stages])) if stages > 0 => Ok(plan.pipeline_parallel(stages)),
        ("layers", _) => {
            Err(wrong("write what stands before the numbers of layers: `@layers model.layers`".to_owned()))
        }
        ("heads", _) => {
            Err(wrong("write the attention heads and those of keys and values: `@heads 32 8`".to_owned()))
        }
        ("stages", _) => Err(wrong("write how many layers each stage has: `@stages 10 12 10`".to_owned())),
        ("tensor_parallel" | "pipeline_parallel", _) => Err(wrong(format!("write a number: `@{name} 2`"))),
        _ => Err(wrong(
            "there are @heads, @layers, @stages, @tensor_parallel and @pipeline_parallel".to_owned(),
        )),
    }
}
