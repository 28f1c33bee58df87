"""What the quantisers' scripts share: chance, and cases that are written as a checkpoint beside its dense tensors.

Each script here is one family of libraries and runs in its own virtual environment:

    python -m quantisers.FAMILY OUT SEED [whole]

It writes OUT/<case>/checkpoint and OUT/<case>/dense.safetensors. Seed 0 makes the cases that are committed; other seeds
draw other sizes as well. `whole` makes tiny Llama-like models with the library's own `save_pretrained` or its like.
"""

import importlib.metadata
import json
import sys
import tempfile
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


class Chance:
    """Random numbers, and sizes: those of the committed cases, or multiples of the same step."""

    def __init__(self, seed):
        self.fresh = seed != 0
        self.numbers = np.random.default_rng(seed)

    def size(self, committed, step=1):
        if not self.fresh:
            return committed
        return step * int(self.numbers.integers(1, 2 * committed // step + 2))

    def normal(self, *shape, spread=0.05):
        return (self.numbers.standard_normal(shape) * spread).astype(np.float32)

    def integers(self, low, high, *shape):
        return self.numbers.integers(low, high, shape)

    def permutation(self, count):
        return self.numbers.permutation(count)

    # The same as tensors of torch, for whom wants them.
    def weight(self, *shape, spread=0.05):
        import torch

        return torch.from_numpy(self.normal(*shape, spread=spread))

    def bytes(self, *shape):
        import torch

        return torch.from_numpy(self.integers(0, 256, *shape).astype(np.uint8))


def tiny_llama(chance, tied=False, **more):
    """A Llama of random weights: three layers at most; sizes that are not given are multiples of 32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(int(chance.integers(0, 2**31)))
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 32 * int(chance.integers(3, 20)),
        "num_hidden_layers": int(chance.integers(1, 4)),
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 48,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
    }
    return LlamaForCausalLM(LlamaConfig(**sizes | more)).bfloat16()


def read_back(tensors, config, **options):
    """What transformers makes of a checkpoint, under the names that it is stored with."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as place:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            Path(place) / "model.safetensors",
            {"format": "pt"},
        )
        write_json(Path(place) / "config.json", config)
        state = AutoModelForCausalLM.from_pretrained(place, dtype=torch.bfloat16, **options).state_dict()
    if config.get("tie_word_embeddings"):
        del state["lm_head.weight"]
    return state


def versions(*packages):
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def llama(**more):
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16"} | more


@dataclass
class Case:
    """`tensors` and `config` are the checkpoint, `dense` is what stands for it: every tensor, whole, under its name."""

    name: str
    library: str
    tensors: dict
    dense: dict
    config: dict = field(default_factory=llama)
    # The same in float32, where the library computes so.
    dense_f32: dict | None = None
    # How the dense tensors were made, where no function of the library returns them.
    how: str = ""
    # Files beside config.json: name -> what to write as JSON.
    sides: dict = field(default_factory=dict)
    # Which tensors go into the second shard; None for one file.
    second_shard: list | None = None
    metadata: dict = field(default_factory=lambda: {"format": "pt"})

    def write(self, out):
        place = Path(out) / self.name
        checkpoint = place / "checkpoint"
        checkpoint.mkdir(parents=True)
        if self.second_shard is None:
            self.save(self.tensors, checkpoint / "model.safetensors", self.metadata)
        else:
            self.write_shards(checkpoint)
        write_json(checkpoint / "config.json", self.config)
        for name, content in self.sides.items():
            write_json(checkpoint / name, content)
        # One entry: safetensors writes several in whatever order.
        about = {"library": ": ".join(filter(None, [self.library, self.how]))}
        self.save(self.dense, place / "dense.safetensors", about)
        if self.dense_f32 is not None:
            self.save(self.dense_f32, place / "dense_f32.safetensors", about)

    def save(self, tensors, path, metadata):
        from safetensors.torch import save_file

        save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path, metadata)

    def write_shards(self, checkpoint):
        files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        places = {name: files[name in self.second_shard] for name in self.tensors}
        for file in files:
            self.save(
                {name: tensor for name, tensor in self.tensors.items() if places[name] == file},
                checkpoint / file,
                self.metadata,
            )
        total = sum(tensor.nbytes for tensor in self.tensors.values())
        write_json(
            checkpoint / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places}
        )


def write_json(path, content):
    path.write_text(json.dumps(content, indent=1) + "\n")


def named(module, state):
    return {f"{module}.{name}": tensor for name, tensor in state.items()}


def main(cases, whole=()):
    """Writes what the functions give: each takes a Chance and yields cases, or returns one."""
    out, seed = sys.argv[1], int(sys.argv[2])
    functions = whole if "whole" in sys.argv[3:] else cases
    failed = 0
    for function in functions:
        try:
            # Each function has its own numbers, so that one that changes leaves the others' files as they are.
            made = function(Chance(seed and seed + 1000 * functions.index(function)))
            for case in [made] if isinstance(made, Case) else made:
                case.write(out)
                print(f"made {case.name} ({case.library})", flush=True)
        except Exception:
            failed += 1
            print(f"FAILED to make {function.__name__}\n{traceback.format_exc()}", flush=True)
    sys.exit(failed != 0)
