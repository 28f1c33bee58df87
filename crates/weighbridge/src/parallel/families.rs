//! Rules for the names of models that many have.

use super::config::Config;
use super::parse;
use super::plan::ParallelPlan;
use crate::error::Result;

/// What is no part of the language model: few bytes, whole in all ranks.
const TOWERS: &str = "
    *{vision,visual,audio}*: replicated, first
    *{multi_modal,mm_}*: replicated, first
";

/// Names that mean the same wherever they are.
const COMMON: &str = "
    *.shared_expert_gate.*: replicated
    *.experts.*: experts
    *.{mlp,block_sparse_moe,feed_forward,mixer}.{gate,router,router.classifier}.*: replicated
    *.e_score_correction_bias: replicated
    *.q_proj.{weight,bias}: column by heads
    *.{k,v}_proj.{weight,bias}: column by kv_heads
    *.{qkv_proj,Wqkv}.{weight,bias}: column by qkv
    *.o_proj.{weight,bias}: row by heads
    *{attn,attention}.out_proj.{weight,bias}: row by heads
    *.{eh_proj,project_in,project_out}.weight: replicated
    lm_head.dense.{weight,bias}: replicated
    *.{q_b_proj,kv_b_proj}.{weight,bias}: column by heads
    *.{q_a_proj,kv_a_proj_with_mqa}.{weight,bias}: replicated
    *.sinks: 0 by heads
    *.gate_up_proj.{weight,bias}: column packed 2
    *.{gate_proj,up_proj,fc1,fc_in,c_fc,w1,w3,wi,wi_0,wi_1}.{weight,bias}: column
    *.{down_proj,fc2,fc_out,w2,wo}.{weight,bias}: row
    *{norm,_ln,ln_1,ln_2,ln_f,ln_attn,ln_mlp,LayerNorm}.{weight,bias}: replicated
    *norm{?,_?}.{weight,bias}: replicated
    *.{inv_freq,masked_bias}: replicated
    *{embed_positions,wpe,position_embeddings,token_type_embeddings}.weight: replicated
    *{embed_tokens,wte,word_embeddings,embed_in,embed_out,lm_head,shared_head.head}.{weight,bias}: vocab
";

/// The weights of GPT-2 lie the other way round.
const GPT2: &str = "
    *.attn.c_attn.weight: 1 by qkv
    *.attn.c_attn.bias: 0 by qkv
    *.attn.c_proj.weight: 0 by heads
    *.mlp.c_fc.weight: 1
    *.mlp.c_fc.bias: 0
    *.mlp.c_proj.weight: 0
    *.c_proj.bias: replicated
    *.attn.{bias,masked_bias}: replicated
";

/// GPT-NeoX, BLOOM and Falcon, in groups.
const GROUPS: &str = "
    *.query_key_value.{weight,bias}: column by groups
    *.{attention,self_attention}.dense.{weight,bias}: row by heads
    *.dense_h_to_4h.{weight,bias}: column
    *.dense_4h_to_h.{weight,bias}: row
    *.attention.{bias,masked_bias}: replicated
";

/// The Falcons that have one head of keys.
const ONE_KEY: &str = "
    *.query_key_value.{weight,bias}: column by qkv
";

/// Where the norm of queries and keys has a scale for each element of each head.
const NORMS_OF_HEADS: &str = "
    *.q_norm.weight: 0 by heads
    *.k_norm.weight: 0 by kv_heads
";

const PHI: &str = "
    *.self_attn.dense.{weight,bias}: row by heads
";

const BERT: &str = "
    *.attention.self.{query,key,value}.{weight,bias}: column by heads
    *.attention.output.dense.{weight,bias}: row by heads
    *.intermediate.dense.{weight,bias}: column
    *.output.dense.{weight,bias}: row
    *{pooler,classifier,position_ids,cls.predictions.transform.dense,cls.seq_relationship}*: replicated
    *cls.predictions.{decoder.weight,decoder.bias,bias}: vocab
";

const T5: &str = "
    *Attention.{q,k,v}.weight: column by heads
    *Attention.o.weight: row by heads
    *.relative_attention_bias.weight: 1 by heads
    {shared,encoder.embed_tokens,decoder.embed_tokens}.weight: vocab
";

/// The plan of a model, by what its configuration says that it is.
pub(super) fn plan(config: &Config) -> Result<ParallelPlan> {
    let own: &[&str] = match config.model_type() {
        "gpt2" => &[GPT2],
        "gpt_neox" | "bloom" => &[GROUPS],
        "falcon" | "RefinedWeb" | "RefinedWebModel" => match config.has_groups() {
            true => &[GROUPS],
            false => &[ONE_KEY, GROUPS],
        },
        "cohere" | "cohere2" | "olmo2" | "olmo3" | "olmoe" | "flex_olmo" => &[NORMS_OF_HEADS],
        "phi" => &[PHI],
        "t5" | "mt5" | "umt5" => &[T5],
        "bert" | "roberta" | "xlm-roberta" | "camembert" | "electra" => &[BERT],
        _ => &[],
    };
    let texts = [TOWERS].iter().chain(own).chain(&[COMMON]).copied();
    texts.into_iter().try_fold(ParallelPlan::new(), |plan, text| parse::parse(text, plan))
}
