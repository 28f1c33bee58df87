#!/usr/bin/env python3
"""The expected tokens in ../cli.rs: the same tiny models, run by transformers.

    pip install torch transformers
    python reference.py
"""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

COMMON = dict(
    vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    rms_norm_eps=1e-5, max_position_embeddings=64, bos_token_id=None, eos_token_id=None,
)
MODELS = {
    "version_4": dict(
        model_type="llama",
        num_key_value_heads=2,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        },
    ),
    "version_5": dict(
        model_type="llama",
        num_key_value_heads=1, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 250.0},
    ),
    "qwen2": dict(model_type="qwen2", num_key_value_heads=2, tie_word_embeddings=True),
    "granite": dict(
        model_type="granite", num_key_value_heads=2, embedding_multiplier=3.0, attention_multiplier=0.5,
        residual_multiplier=0.25, logits_scaling=4.0,
    ),
    "falcon": dict(model_type="falcon", ffn_hidden_size=48, layer_norm_epsilon=1e-5),
}
PROMPT = [5, 9, 31, 7]


def weights(name: str, shape) -> torch.Tensor:
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    values = []
    for _ in range(shape.numel()):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        values.append((state >> 40) / 2**24 - 0.5)
    return torch.tensor(values).reshape(shape)


for label, options in MODELS.items():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**COMMON, **options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights(name, parameter.shape))
    prompt = torch.tensor([PROMPT])
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False)
    print(label, output[0, len(PROMPT):].tolist())
