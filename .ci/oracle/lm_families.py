"""The families of lm.py: which configurations BIN has to get right, and which it has to refuse by name."""

from dataclasses import dataclass, field


def size(hidden, layers, heads, kv_heads, intermediate, spread=0.3, **more) -> dict:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "initializer_range": spread,
        "max_position_embeddings": 256,
    } | more


def rope(theta: float, **scaling) -> dict:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta} | scaling}


def other_rope(name: str, **more) -> dict:
    return {"rope_parameters": {"rope_type": name, "rope_theta": 10000.0, "factor": 2.0} | more}


def longrope(factors: list[float]) -> dict:
    return {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": factors,
            "long_factor": [2.0] * len(factors),
        }
    }


YARN = (other_rope("yarn", original_max_position_embeddings=64), "yarn")
LINEAR = (other_rope("linear"), "linear")
LLAMA3 = (
    other_rope(
        "llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
    ),
    "llama3",
)
WIDE_HEADS = ({"head_dim": 32}, "head_dim")
ATTENTION = ("q_proj", "v_proj")


@dataclass
class Family:
    # Whose code it is.
    candle: str
    # What AutoConfig is given; each is a checkpoint.
    configs: list[dict]
    # Changes to the first config.json, and a word that the refusal must have.
    refused: list[tuple[dict, str]] = field(default_factory=list)
    # Modules that adapters are made for.
    adapted: tuple[str, ...] = ATTENTION
    # The weights of its norms are added to one.
    norms_add_one: bool = False
    # It computes in f32 only, say.
    note: str = ""


EXPERTS = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24)
GRANITE = dict(
    embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.4, logits_scaling=2.0
)
DENSE = dict(
    num_local_experts=0, num_experts_per_tok=0, position_embedding_type="rope", tie_word_embeddings=True
) | dict(mamba_n_heads=8, mamba_d_head="auto", mamba_expand=2)


def attention(layers: int) -> dict:
    return {"layer_types": ["attention"] * layers}


def sliding(*full: int, layers: int) -> dict:
    kinds = ["full_attention" if layer in full else "sliding_attention" for layer in range(layers)]
    return {"layer_types": kinds}


FAMILIES = {
    "mistral": Family(
        "Mistral",
        [
            size(64, 2, 4, 2, 96) | rope(10000.0),
            size(64, 3, 4, 4, 112, head_dim=24, sliding_window=None) | rope(1e6),
            size(48, 2, 6, 1, 100, tie_word_embeddings=True) | rope(5000.0),
        ],
        [YARN, LLAMA3, ({"sliding_window": 20}, "sliding_window")],
    ),
    "mixtral": Family(
        "Mixtral",
        [
            size(64, 2, 4, 2, 48, num_local_experts=4) | rope(1e6),
            size(48, 3, 4, 1, 40, num_local_experts=5, num_experts_per_tok=3) | rope(10000.0),
            size(64, 2, 8, 4, 48, num_local_experts=2, tie_word_embeddings=True) | rope(1e6),
        ],
        [YARN, WIDE_HEADS, ({"sliding_window": 20}, "sliding_window")],
    ),
    "qwen2": Family(
        "Qwen2",
        [
            size(64, 2, 4, 2, 96) | rope(1e6),
            size(48, 3, 6, 6, 100, tie_word_embeddings=True) | rope(10000.0),
            size(80, 2, 5, 1, 112, use_sliding_window=True, max_window_layers=1, sliding_window=128)
            | rope(10000.0),
        ],
        [
            YARN,
            WIDE_HEADS,
            (
                {"use_sliding_window": True, "sliding_window": 20, "layer_types": ["sliding_attention"] * 2},
                "sliding_window",
            ),
        ],
    ),
    "qwen2_moe": Family(
        "Qwen2-MoE",
        [
            size(64, 2, 4, 2, 96, shared_expert_intermediate_size=40, **EXPERTS) | rope(10000.0),
            size(48, 4, 4, 4, 56, shared_expert_intermediate_size=32, decoder_sparse_step=2, norm_topk_prob=True)
            | EXPERTS
            | rope(10000.0),
            size(64, 2, 4, 1, 96, shared_expert_intermediate_size=40, tie_word_embeddings=True, **EXPERTS)
            | rope(1e5),
        ],
        [YARN, ({"mlp_only_layers": [0]}, "mlp_only_layers"), ({"qkv_bias": False}, "qkv_bias")],
    ),
    "qwen3": Family(
        "Qwen3",
        [
            size(64, 2, 4, 2, 96, head_dim=16) | rope(1e6),
            size(48, 3, 4, 4, 100, head_dim=32, tie_word_embeddings=True) | rope(10000.0),
            size(64, 2, 8, 1, 112, head_dim=8, attention_bias=True) | rope(1e5),
        ],
        [
            YARN,
            (
                {"use_sliding_window": True, "sliding_window": 20, "layer_types": ["sliding_attention"] * 2},
                "sliding_window",
            ),
        ],
    ),
    "qwen3_moe": Family(
        "Qwen3-MoE",
        [
            size(64, 2, 4, 2, 96, head_dim=16, norm_topk_prob=True, **EXPERTS) | rope(1e6),
            size(48, 4, 4, 4, 56, head_dim=24, decoder_sparse_step=2, **EXPERTS) | rope(10000.0),
            size(64, 2, 4, 1, 96, head_dim=16, tie_word_embeddings=True, attention_bias=True, **EXPERTS)
            | rope(10000.0),
        ],
        [YARN, ({"mlp_only_layers": [0]}, "mlp_only_layers")],
    ),
    "gemma": Family(
        "Gemma",
        [
            size(64, 2, 4, 1, 96, head_dim=16) | rope(10000.0),
            size(48, 3, 4, 4, 100, head_dim=24, attention_bias=True) | rope(5000.0),
            size(64, 2, 8, 2, 96, head_dim=16, hidden_act="gelu") | rope(10000.0),
        ],
        [LINEAR, ({"tie_word_embeddings": False}, "tie_word_embeddings"), ({"use_bidirectional_attention": True}, "bidirectional")],
        norms_add_one=True,
    ),
    "gemma2": Family(
        "Gemma2",
        [
            size(64, 2, 4, 2, 96, head_dim=16, query_pre_attn_scalar=16) | rope(10000.0),
            size(48, 4, 4, 1, 100, head_dim=24, query_pre_attn_scalar=12, sliding_window=96) | rope(10000.0),
            size(64, 3, 4, 4, 96, head_dim=16, attn_logit_softcapping=2.0, final_logit_softcapping=5.0)
            | rope(5000.0),
            size(64, 2, 4, 2, 96, head_dim=16, attn_logit_softcapping=None, final_logit_softcapping=None)
            | rope(5000.0),
        ],
        [YARN, ({"sliding_window": 20}, "sliding_window"), ({"tie_word_embeddings": False}, "tie_word_embeddings")],
        norms_add_one=True,
    ),
    "gemma3_text": Family(
        "Gemma3",
        [
            size(64, 6, 4, 2, 96, head_dim=16, query_pre_attn_scalar=16, sliding_window=24),
            size(48, 4, 4, 1, 100, head_dim=24, query_pre_attn_scalar=12, sliding_window=8) | sliding(1, 3, layers=4),
            size(48, 5, 4, 4, 100, head_dim=24, query_pre_attn_scalar=8, final_logit_softcapping=20.0)
            | sliding(2, layers=5),
        ],
        [
            ({"use_bidirectional_attention": True}, "bidirectional"),
            (sliding(0, 3, 4, layers=6), "layer_types"),
            ({"attn_logit_softcapping": 10.0}, "attn_logit_softcapping"),
            (
                {
                    "rope_parameters": {
                        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                    }
                },
                "linear",
            ),
        ],
        norms_add_one=True,
    ),
    "phi": Family(
        "Phi",
        [
            size(64, 2, 4, 4, 96) | rope(10000.0, partial_rotary_factor=0.5),
            size(96, 3, 4, 2, 100, hidden_act="gelu") | rope(5000.0, partial_rotary_factor=0.25),
            size(64, 2, 4, 1, 96, tie_word_embeddings=True) | rope(10000.0, partial_rotary_factor=1.0),
        ],
        [YARN, ({"qk_layernorm": True}, "qk_layernorm")],
    ),
    "phi3": Family(
        "Phi3",
        [
            size(64, 2, 4, 4, 96, pad_token_id=None) | rope(10000.0),
            size(96, 3, 4, 2, 100, pad_token_id=None) | rope(10000.0, partial_rotary_factor=0.5),
            size(64, 2, 4, 1, 96, pad_token_id=None, tie_word_embeddings=True, sliding_window=128) | rope(5000.0),
            size(64, 2, 4, 2, 96, pad_token_id=None, original_max_position_embeddings=64)
            | longrope([1.0 + wave / 4 for wave in range(8)]),
        ],
        [
            ({"sliding_window": 20}, "sliding_window"),
            (longrope([1.0] * 8) | {"original_max_position_embeddings": 20}, "longrope"),
        ],
        adapted=("qkv_proj", "down_proj"),
    ),
    "olmo": Family(
        "OLMo",
        [
            size(64, 2, 4, 2, 96) | rope(10000.0),
            size(48, 3, 4, 4, 100, clip_qkv=0.5, tie_word_embeddings=True) | rope(10000.0),
            size(64, 2, 8, 1, 96, attention_bias=True) | rope(5000.0),
        ],
        [YARN],
    ),
    "olmo2": Family(
        "OLMo2",
        [
            size(64, 2, 4, 4, 96) | rope(500000.0),
            size(48, 3, 6, 2, 100, tie_word_embeddings=True) | rope(10000.0),
            size(64, 2, 8, 1, 96, attention_bias=True, rms_norm_eps=1e-3) | rope(5000.0),
        ],
        [YARN, WIDE_HEADS],
    ),
    "starcoder2": Family(
        "StarCoder2",
        [
            size(64, 2, 4, 2, 96) | rope(10000.0),
            size(48, 3, 4, 4, 100, use_bias=False) | rope(1e5),
            size(64, 2, 8, 1, 96, norm_epsilon=1e-3, sliding_window=128) | rope(10000.0),
        ],
        [YARN, ({"sliding_window": 20}, "sliding_window"), ({"tie_word_embeddings": False}, "tie_word_embeddings")],
    ),
    "granite": Family(
        "Llama",
        [
            size(64, 2, 4, 2, 96, **GRANITE) | rope(10000.0),
            size(48, 3, 4, 4, 100, tie_word_embeddings=True, **GRANITE) | rope(5000.0),
            size(64, 2, 8, 1, 96) | rope(10000.0),
        ],
        [YARN, ({"attention_bias": True}, "attention_bias"), ({"mlp_bias": True}, "mlp_bias")],
    ),
    "granitemoehybrid": Family(
        "Granite-MoE-hybrid",
        [
            size(64, 2, 4, 2, 96, shared_intermediate_size=80, **GRANITE, **DENSE) | attention(2) | rope(10000.0),
            size(48, 3, 4, 4, 100, shared_intermediate_size=64, **DENSE) | attention(3) | rope(5000.0),
        ],
        [
            ({"position_embedding_type": None}, "position_embedding_type"),
            ({"num_local_experts": 4}, "num_local_experts"),
            ({"layer_types": ["mamba", "attention"]}, "mamba"),
        ],
        note="layers of attention without experts",
    ),
    "falcon": Family(
        "Phi",
        [
            size(64, 2, 4, 4, 96) | rope(10000.0),
            size(96, 3, 6, 6, 96, bias=True, tie_word_embeddings=False) | rope(5000.0),
            size(64, 2, 2, 2, 96, ffn_hidden_size=100, activation="gelu_pytorch_tanh") | rope(10000.0),
        ],
        [
            ({"alibi": True}, "alibi"),
            ({"new_decoder_architecture": True}, "new_decoder_architecture"),
            ({"multi_query": False}, "multi_query"),
            ({"parallel_attn": False}, "parallel_attn"),
        ],
        adapted=("query_key_value", "dense"),
    ),
    "mamba": Family(
        "Mamba",
        [
            dict(hidden_size=64, num_hidden_layers=2, initializer_range=0.3),
            dict(hidden_size=40, num_hidden_layers=4, initializer_range=0.3),
        ],
        [
            ({"state_size": 8}, "state_size"),
            ({"use_bias": True}, "use_bias"),
            ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ],
        adapted=("in_proj", "x_proj"),
    ),
    "stablelm": Family(
        "StableLM",
        [
            size(64, 2, 4, 4, 96) | rope(10000.0, partial_rotary_factor=0.25),
            size(64, 3, 4, 2, 100, use_qkv_bias=True) | rope(5000.0, partial_rotary_factor=0.5),
            size(64, 2, 4, 1, 96, tie_word_embeddings=True) | rope(10000.0, partial_rotary_factor=1.0),
        ],
        [
            ({"use_parallel_residual": True}, "use_parallel_residual"),
            ({"qk_layernorm": True}, "qk_layernorm"),
        ],
    ),
    "glm4": Family(
        "GLM4",
        [
            size(64, 2, 4, 2, 96, head_dim=16, pad_token_id=None) | rope(10000.0, partial_rotary_factor=0.5),
            size(48, 3, 4, 4, 100, head_dim=24, pad_token_id=None, attention_bias=False)
            | rope(5000.0, partial_rotary_factor=0.5),
            size(64, 2, 4, 1, 96, head_dim=16, pad_token_id=None, tie_word_embeddings=True)
            | rope(10000.0, partial_rotary_factor=1.0),
        ],
        [YARN],
    ),
    "helium": Family(
        "Helium",
        [
            size(64, 2, 4, 2, 96, head_dim=16) | rope(100000.0),
            size(48, 3, 6, 6, 100, head_dim=8, mlp_bias=True) | rope(10000.0),
            size(64, 2, 4, 1, 96, head_dim=16, tie_word_embeddings=True) | rope(10000.0),
        ],
        [YARN, ({"attention_bias": True}, "attention_bias")],
    ),
    "smollm3": Family(
        "SmolLM3",
        [
            size(64, 4, 4, 2, 96, pad_token_id=None) | rope(2e6),
            size(48, 2, 4, 4, 100, pad_token_id=None, no_rope_layers=[0, 1], tie_word_embeddings=False) | rope(1e4),
            size(64, 3, 4, 1, 96, pad_token_id=None, attention_bias=True, mlp_bias=True) | rope(1e4),
        ],
        [YARN],
    ),
    "gpt_bigcode": Family(
        "GPT-BigCode",
        [
            dict(n_embd=64, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3),
            dict(n_embd=48, n_layer=3, n_head=2, n_positions=96, n_inner=100, initializer_range=0.3),
        ],
        [
            ({"multi_query": False}, "multi_query"),
            ({"activation_function": "relu"}, "activation_function"),
            ({"scale_attn_weights": False}, "scale_attn_weights"),
        ],
        adapted=("c_attn", "c_fc"),
        note="F32 only",
    ),
}
