"""The families of embed.py: which configurations BIN has to get right, and which it has to refuse by name."""

from dataclasses import dataclass, field

# Ids of the tokenizer in embed.py.
TOKENS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}


def size(hidden=32, layers=2, heads=4, inner=48, positions=64, **more) -> dict:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "max_position_embeddings": positions,
        "initializer_range": 0.3,
    } | more


def rope(theta: float) -> dict:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


def both(full: float, sliding: float) -> dict:
    kinds = {"full_attention": full, "sliding_attention": sliding}
    return {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in kinds.items()
        }
    }


def to_transformers4(config: dict) -> None:
    """One number in the place of a dictionary."""
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["rope_scaling"] = None


def to_modernbert4(config: dict) -> None:
    parameters = config.pop("rope_parameters")
    config["global_rope_theta"] = parameters["full_attention"]["rope_theta"]
    config["local_rope_theta"] = parameters["sliding_attention"]["rope_theta"]
    layers = config.pop("layer_types")
    config["global_attn_every_n_layers"] = layers.index("full_attention", 1)
    config["position_embedding_type"] = "absolute"


def to_nomic(config: dict) -> None:
    """The configuration of its authors."""
    for old, new in {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
        "layer_norm_eps": "layer_norm_epsilon",
    }.items():
        config[new] = config.pop(old)
    config["rotary_emb_base"] = config.pop("rope_parameters")["rope_theta"]
    del config["hidden_act"], config["head_dim"]
    config |= {
        "activation_function": "swiglu",
        "causal": False,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "parallel_block": False,
        "prenorm": False,
        "qkv_proj_bias": False,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None,
        "use_rms_norm": False,
    }


def to_new(config: dict) -> None:
    """GTE as its authors call it."""
    config["model_type"] = "new"
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config |= {
        "layer_norm_type": "layer_norm",
        "logn_attention_scale": False,
        "pack_qkv": True,
        "position_embedding_type": "rope",
        "rope_scaling": None,
    }


YARN = (
    {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 2.0,
            "original_max_position_embeddings": 64,
        }
    },
    "yarn",
)
RELATIVE = ({"position_embedding_type": "relative_key"}, "relative_key")
DECODER = ({"is_decoder": True}, "is_decoder")
MISH = ({"hidden_act": "mish"}, "mish")
BERTS = [RELATIVE, DECODER, MISH]


@dataclass
class Family:
    # Whose code it is.
    candle: str
    # What AutoConfig is given; each is a checkpoint.
    configs: list[dict]
    # Changes to the first config.json, and a word that the refusal must have.
    refused: list[tuple[dict, str]] = field(default_factory=list)
    # What transformers calls it, if otherwise.
    model_type: str | None = None
    # Makes another config.json of the one that transformers wrote, for some of the checkpoints.
    rewrites: list = field(default_factory=list)
    # Modules that adapters are made for; none for no such checkpoint.
    adapted: tuple[str, ...] = ("query", "value")
    # Computed in 16 bits, too.
    sixteen_bits: bool = False
    # Whether a decoder sees what is before a token only.
    causal: bool = False


DECODERS = ("q_proj", "v_proj")
CODE = ({"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}}, "auto_map")
ROBERTA = [
    size(positions=66),
    size(48, 3, 6, 64, positions=66, type_vocab_size=1, layer_norm_eps=1e-5, hidden_act="gelu_new"),
]

FAMILIES = {
    "bert": Family(
        "BERT",
        [size(), size(48, 3, 6, 64, hidden_act="gelu_new"), size(hidden_act="relu", layer_norm_eps=1e-5)],
        [*BERTS, ({"hidden_act": "silu"}, "silu"), ({"num_attention_heads": 5}, "num_attention_heads")],
    ),
    "camembert": Family("XLM-RoBERTa", ROBERTA, BERTS),
    "distilbert": Family(
        "BERT (Candle's DistilBERT approximates GELU)",
        [
            {"dim": 32, "hidden_dim": 48, "n_heads": 4, "n_layers": layers, "max_position_embeddings": 64}
            | {"initializer_range": 0.3, "activation": activation}
            for layers, activation in [(2, "gelu"), (3, "relu")]
        ],
        [({"activation": "silu"}, "silu"), ({"sinusoidal_pos_embds": True}, "sinusoidal_pos_embds")],
        adapted=("q_lin", "v_lin"),
    ),
    "electra": Family("BERT", [size(embedding_size=32)], [*BERTS, ({"embedding_size": 16}, "embedding_size")]),
    "eurobert": Family(
        "Qwen2",
        [size(num_key_value_heads=2) | rope(250000.0), size(48, 3, 6, 64, num_key_value_heads=1) | rope(1e4)],
        [YARN, ({"head_dim": 16}, "head_dim"), ({"mlp_bias": True}, "mlp_bias")],
        adapted=DECODERS,
    ),
    "gte": Family(
        "Stella (the small one)",
        [size(type_vocab_size=1) | rope(160000.0), size(48, 3, 6, 64, type_vocab_size=0) | rope(20000.0)],
        [YARN, MISH],
        adapted=(),
    ),
    "jina": Family("JinaBERT", [], model_type="jina"),
    "llama": Family(
        "Qwen2",
        [size(num_key_value_heads=2) | rope(10000.0), size(positions=32, is_causal=False) | rope(500000.0)],
        [YARN, ({"attention_bias": True}, "attention_bias"), ({"head_dim": 16}, "head_dim")],
        rewrites=[to_transformers4],
        adapted=DECODERS,
        causal=True,
    ),
    "mistral": Family(
        "Qwen2",
        [
            size(num_key_value_heads=2, sliding_window=None) | rope(10000.0),
            size(num_key_value_heads=4, sliding_window=4096) | rope(1e6),
        ],
        [YARN, ({"head_dim": 16}, "head_dim")],
        rewrites=[to_transformers4],
        adapted=DECODERS,
        causal=True,
    ),
    "modernbert": Family(
        "ModernBERT",
        [
            size(layers=4, local_attention=8) | both(160000.0, 10000.0),
            size(48, 7, 6, 64, local_attention=6) | both(20000.0, 20000.0),
        ],
        [
            ({"norm_bias": True}, "norm_bias"),
            ({"attention_bias": True}, "attention_bias"),
            ({"mlp_bias": True}, "mlp_bias"),
            ({"hidden_activation": "silu"}, "silu"),
            ({"layer_types": ["full_attention", "full_attention", "sliding_attention", "full_attention"]}, "layer_types"),
        ],
        rewrites=[to_modernbert4],
        adapted=(),
    ),
    "new": Family(
        "Stella (the small one)",
        [size(type_vocab_size=1) | rope(160000.0), size(48, 3, 6, 64, type_vocab_size=0) | rope(20000.0)],
        [
            ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
            ({"layer_norm_type": "rms_norm"}, "rms_norm"),
            ({"logn_attention_scale": True}, "logn_attention_scale"),
            ({"position_embedding_type": "absolute"}, "absolute"),
        ],
        model_type="gte",
        rewrites=[to_new],
        adapted=(),
    ),
    "nomic_bert": Family(
        "NomicBERT",
        [size() | rope(1000.0), size(48, 3, 6, 64, type_vocab_size=1) | rope(10000.0)],
        [YARN, ({"hidden_act": "gelu"}, "hidden_act"), ({"head_dim": 16}, "head_dim")],
        rewrites=[to_nomic],
        adapted=(),
        sixteen_bits=True,
    ),
    "qwen2": Family(
        "Qwen2",
        [size(num_key_value_heads=2) | rope(10000.0), size(num_key_value_heads=4, is_causal=False) | rope(1e6)],
        [YARN, ({"head_dim": 16}, "head_dim"), CODE],
        rewrites=[to_transformers4],
        adapted=DECODERS,
        causal=True,
    ),
    "qwen3": Family(
        "Qwen3",
        [
            size(num_key_value_heads=2, head_dim=16) | rope(1e6),
            size(48, 3, 6, 64, num_key_value_heads=6, head_dim=8, attention_bias=True) | rope(10000.0),
        ],
        [YARN, ({"is_causal": False}, "is_causal")],
        rewrites=[to_transformers4],
        adapted=DECODERS,
        sixteen_bits=True,
        causal=True,
    ),
    "roberta": Family("XLM-RoBERTa", ROBERTA, BERTS),
    "t5": Family(
        "T5",
        [
            {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "feed_forward_proj": act}
            | {"initializer_factor": 1.0, "relative_attention_max_distance": far}
            for act, far in [("relu", 128), ("gated-gelu", 20)]
        ],
        [
            ({"feed_forward_proj": "gated-relu"}, "feed_forward_proj"),
            ({"is_decoder": True}, "is_decoder"),
            ({"is_gated_act": True}, "is_gated_act"),
        ],
        adapted=("q", "v"),
        sixteen_bits=True,
    ),
    "xlm-roberta": Family("XLM-RoBERTa", ROBERTA, BERTS),
}
