"""Jina's BERT (version 2), which transformers does not have: its layers written down once more."""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import embedding, gelu, layer_norm, linear

from embed_models import MAX_LENGTH, tokenizer


def config(hidden=32, layers=2, heads=4, inner=48, types=2) -> dict:
    return {
        "architectures": ["JinaBertModel"],
        "model_type": "bert",
        "position_embedding_type": "alibi",
        "feed_forward_type": "geglu",
        "hidden_act": "gelu",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "type_vocab_size": types,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 8192,
        "pad_token_id": 1,
    }


CONFIGS = [config(), config(48, 3, 6, 64, 1)]

REFUSED = [
    ({"feed_forward_type": "original"}, "feed_forward_type"),
    ({"auto_map": {"AutoModel": "jinaai/jina-bert-v2-qk-post-norm--modeling_bert.JinaBertModel"}}, "auto_map"),
]


class Jina:
    def __init__(self, config: dict):
        self.words = tokenizer(decoder=False)
        self.config = config | {"vocab_size": len(self.words)}
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        self.weights = {}

        def add(name: str, *shape: int) -> None:
            scale, offset = (0.3, 0.0) if len(shape) == 2 else (0.1, float(name.endswith("orm.weight")))
            self.weights[name] = torch.randn(*shape) * scale + offset

        def add_linear(name: str, outputs: int, inputs: int, bias: bool = True) -> None:
            add(f"{name}.weight", outputs, inputs)
            if bias:
                add(f"{name}.bias", outputs)

        def add_norm(name: str) -> None:
            add(f"{name}.weight", hidden)
            add(f"{name}.bias", hidden)

        torch.manual_seed(hidden)
        add("embeddings.word_embeddings.weight", len(self.words), hidden)
        add("embeddings.token_type_embeddings.weight", config["type_vocab_size"], hidden)
        add_norm("embeddings.LayerNorm")
        for layer in range(config["num_hidden_layers"]):
            at = f"encoder.layer.{layer}"
            for part in ["self.query", "self.key", "self.value", "output.dense"]:
                add_linear(f"{at}.attention.{part}", hidden, hidden)
            add_norm(f"{at}.attention.output.LayerNorm")
            add_linear(f"{at}.mlp.gated_layers", 2 * inner, hidden, bias=False)
            add_linear(f"{at}.mlp.wo", hidden, inner)
            add_norm(f"{at}.mlp.layernorm")

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        save_file(self.weights, directory / "model.safetensors", {"format": "pt"})
        self.words.save_pretrained(directory)
        files = {
            "config.json": self.config,
            "sentence_bert_config.json": {"max_seq_length": MAX_LENGTH, "do_lower_case": False},
            "modules.json": [
                {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            ],
            "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True},
        }
        for name, content in files.items():
            path = directory / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content))

    def encode(self, texts: list[str]) -> torch.Tensor:
        ids = [self.words(text, truncation=True, max_length=MAX_LENGTH)["input_ids"] for text in texts]
        return torch.stack([self.states(torch.tensor(text)).mean(0) for text in ids])

    def states(self, ids: torch.Tensor) -> torch.Tensor:
        hidden, heads = self.config["hidden_size"], self.config["num_attention_heads"]
        bias = -slopes(heads)[:, None, None] * (torch.arange(len(ids))[:, None] - torch.arange(len(ids))).abs()
        x = embedding(ids, self.weights["embeddings.word_embeddings.weight"])
        x = self.norm(x + self.weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(self.config["num_hidden_layers"]):
            at = f"encoder.layer.{layer}"
            split = lambda part: self.linear(x, f"{at}.attention.self.{part}").view(len(ids), heads, -1).transpose(0, 1)
            query, key, value = map(split, ["query", "key", "value"])
            scores = query @ key.transpose(1, 2) / math.sqrt(hidden // heads) + bias
            seen = (scores.softmax(-1) @ value).transpose(0, 1).reshape(len(ids), hidden)
            seen = self.linear(seen, f"{at}.attention.output.dense")
            x = self.norm(seen + x, f"{at}.attention.output.LayerNorm")
            gate, up = linear(x, self.weights[f"{at}.mlp.gated_layers.weight"]).chunk(2, -1)
            x = self.norm(self.linear(gelu(gate) * up, f"{at}.mlp.wo") + x, f"{at}.mlp.layernorm")
        return x

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return layer_norm(x, weight.shape, weight, bias, 1e-12)


def slopes(heads: int) -> torch.Tensor:
    """As ALiBi's authors choose them where the number of heads is no power of two, too."""

    def of_power(count: int) -> list[float]:
        return [2 ** (-8 * number / count) for number in range(1, count + 1)]

    power = 2 ** math.floor(math.log2(heads))
    more = of_power(2 * power)[0::2][: heads - power]
    return torch.tensor(of_power(power) + more)
