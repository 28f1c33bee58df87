#!/usr/bin/env python3
"""The expected scores in ../cli.rs and ../minilm.rs, by transformers.

    pip install torch transformers
    python reference.py [DIRECTORY OF all-MiniLM-L6-v2]
"""

import sys

import torch
from transformers import AutoTokenizer, BertConfig, BertModel


def weights(name: str, shape) -> torch.Tensor:
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    values = []
    for _ in range(shape.numel()):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        values.append((state >> 40) / 2**24 - 0.5)
    return torch.tensor(values).reshape(shape) * (4 if len(shape) == 2 else 1)


def scores(model, inputs: list, pooling: str) -> list:
    """The cosine of the first text and each of the others."""
    with torch.no_grad():
        states = [model(**text).last_hidden_state[0] for text in inputs]
    vectors = torch.stack([state.mean(0) if pooling == "mean" else state[0] for state in states])
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    return [round(score, 6) for score in (vectors[1:] @ vectors[0]).tolist()]


TEXTS = [[5, 9, 31, 7], [5, 9, 31, 8], [20], [12, 12, 13, 14, 15, 16, 17, 18, 19, 20], []]
for activation, pooling in [("gelu", "mean"), ("gelu", "cls"), ("gelu_new", "mean"), ("relu", "mean")]:
    model = BertModel(
        BertConfig(
            vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            hidden_act=activation, max_position_embeddings=24, type_vocab_size=2, layer_norm_eps=1e-12,
        ),
        add_pooling_layer=False,
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights(name, parameter.shape))
    inputs = [{"input_ids": torch.tensor([[1, *text, 2]])} for text in TEXTS]
    print(activation, pooling, scores(model, inputs, pooling))

if len(sys.argv) > 1:
    model = BertModel.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    texts = [
        "How do I weigh a truck?",
        "The cat sleeps on the mat.",
        "A weighbridge weighs whole vehicles, Äxles und émigrés included.",
        "",
        "Lorries are heavy. " * 30,
    ]
    inputs = [tokenizer(text, truncation=True, max_length=256, return_tensors="pt") for text in texts]
    print("all-MiniLM-L6-v2", scores(model, inputs, "mean"))
