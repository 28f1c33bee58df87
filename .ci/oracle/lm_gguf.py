"""Writes a model of transformers as a GGUF file, for lm.py: weights in F32 or F16, and the metadata that Candle reads."""

import gguf
import torch

# The architecture of each model_type, and what of its tensors is stored in another way.
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "phi": gguf.MODEL_ARCH.PHI2,
    "phi3": gguf.MODEL_ARCH.PHI3,
}


def interleaved(weight, heads):
    """As llama.cpp has the rows of queries and keys of Llamas: the two halves of each head in turn."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(model, family, path, kind) -> None:
    config, architecture = model.config, ARCHITECTURES[family]
    heads, groups = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer = gguf.GGUFWriter(str(path), gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if family == "phi":
        writer.add_layer_norm_eps(config.layer_norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))

    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    weights = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    if family == "phi":
        for layer in range(config.num_hidden_layers):
            for part in "weight", "bias":
                name = f"model.layers.{layer}.self_attn.{{}}.{part}"
                parts = [torch.from_numpy(weights.pop(name.format(p))) for p in ("q_proj", "k_proj", "v_proj")]
                weights[name.format("qkv_proj")] = torch.cat(parts).numpy()
    for name, weight in weights.items():
        if architecture == gguf.MODEL_ARCH.LLAMA and name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = interleaved(weight, heads if "q_proj" in name else groups)
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored is None:
            raise ValueError(f"{name} has no name in GGUF")
        writer.add_tensor(stored, weight.astype(kind if weight.ndim > 1 else "float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
