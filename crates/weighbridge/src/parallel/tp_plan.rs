//! The plans of transformers: names of modules, with `*` for numbers, and styles.

use serde_json::{Map, Value};

use super::plan::{ParallelPlan, Rule};
use super::share::{Cut, Share, Unit};
use crate::error::{Error, ErrorKind, Result};
use crate::pattern::Names;
use crate::text::start_of;

/// Reads a plan, or the one in a configuration.
pub(super) fn parse_text(text: &str) -> Result<ParallelPlan> {
    let value: Value =
        serde_json::from_str(text).map_err(|error| wrong(format!("it is not valid JSON: {error}")))?;
    let own = ["text_config", "llm_config", "language_config"];
    let sections = [Some(&value)].into_iter().chain(own.iter().map(|name| value.get(name)));
    let mut found = sections.flatten().filter_map(|section| section.get("base_model_tp_plan"));
    let plan = match found.next() {
        Some(plan) => plan.as_object(),
        // By itself it has nothing but styles.
        None => value.as_object().filter(|plan| plan.values().all(Value::is_string)),
    };
    let missing = || wrong("it is neither a plan nor a configuration with a `base_model_tp_plan`".to_owned());
    parse(plan.filter(|plan| !plan.is_empty()).ok_or_else(missing)?)
}

/// The plan of these modules.
pub(super) fn parse(plan: &Map<String, Value>) -> Result<ParallelPlan> {
    let mut made = ParallelPlan::new().like_transformers();
    // The longest first: a tensor's own entry counts before that of its module.
    let mut entries: Vec<_> = plan.iter().collect();
    entries.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    for (name, style) in entries {
        let style = style.as_str().unwrap_or_default();
        let share = share_of(name, style).ok_or_else(|| {
            let message = format!("{:?}: the style {:?} is not known", start_of(name), start_of(style));
            Error::new(ErrorKind::Pattern, message)
        })?;
        let Some(share) = share else { continue };
        made = made.with_rule(Rule { names: names_of(name)?, share, ends: None });
        if let Some((names, share)) = of_experts(name, share)? {
            made = made.with_rule(Rule { names, share, ends: None });
        }
    }
    Ok(made)
}

/// What a style does to weights; `None` within if that is nothing.
fn share_of(name: &str, style: &str) -> Option<Option<Share>> {
    let projection = name.rsplit('.').next().unwrap_or_default();
    let by_heads = |cut: Cut| match projection {
        "q_proj" | "o_proj" => cut.by(Unit::Heads),
        "k_proj" | "v_proj" => cut.by(Unit::KvHeads),
        _ => cut,
    };
    let share = match style {
        "colwise" | "colwise_rep" | "colwise_gather_output" | "local_colwise" => {
            by_heads(Cut::column()).into()
        }
        "rowwise" | "rowwise_rep" | "rowwise_split_input" | "local_rowwise" => by_heads(Cut::row()).into(),
        "packed_colwise" | "local_packed_colwise" => Cut::column().packed(2).into(),
        "packed_rowwise" | "local_packed_rowwise" => Cut::row().packed(2).into(),
        "embedding_rowwise" => Cut::dim(0).into(),
        "embedding_colwise" => Cut::dim(1).into(),
        "grouped_gemm" => Share::Experts,
        "replicate"
        | "replicated_with_grad_allreduce"
        | "sequence_parallel"
        | "mla_kv_a_proj"
        | "local_params" => Share::Replicated,
        // About activations, or about a module whose tensors have entries of their own.
        "local"
        | "gather"
        | "all_reduce"
        | "moe_tp_experts"
        | "moe_identity_expert"
        | "ep_router"
        | "ep_dispatch_experts"
        | "isolated" => return Some(None),
        _ => return None,
    };
    Some(Some(share))
}

/// What an entry about all experts in one tensor means for those that files have one by one; transformers puts them together
/// before it cuts them.
fn of_experts(name: &str, share: Share) -> Result<Option<(Names, Share)>> {
    let Some((experts, projection)) =
        name.rsplit_once('.').filter(|(experts, _)| experts.ends_with("experts"))
    else {
        return Ok(None);
    };
    let projections = match projection {
        "gate_up_proj" => "gate_proj|up_proj|w1|w3",
        "down_proj" => "down_proj|w2",
        _ => return Ok(None),
    };
    let share = match share {
        Share::Cut(cut) => cut.packed(1).into(),
        share => share,
    };
    let digits = regex::escape(experts).replace(r"\*", r"\d+");
    let names = Names::regex(&format!(r"(^|\.){digits}\.\d+\.({projections})\.(weight|bias)$"))?;
    Ok(Some((names, share)))
}

/// The tensors of a module, and the tensor of that name, with whatever stands before them.
fn names_of(module: &str) -> Result<Names> {
    let digits = regex::escape(module).replace(r"\*", r"\d+");
    Names::regex(&format!(r"(^|\.){digits}(\.(weight|bias))?$"))
}

fn wrong(message: String) -> Error {
    Error::new(ErrorKind::Pattern, message)
}
