"""torchao: int8 and float8, with the tensors described in the file's metadata."""

import json
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

from quantisers.common import Case, llama, main, tiny_llama, versions

LIBRARY = versions("torchao")


class Model(torch.nn.Module):
    def __init__(self, chance, dtype):
        super().__init__()
        for name, bias in [("q_proj", True), ("k_proj", False)]:
            rows, columns = chance.size(9), chance.size(32, 16)
            linear = torch.nn.Linear(columns, rows, bias=bias, dtype=dtype)
            linear.weight.data = chance.weight(rows, columns).to(dtype)
            if bias:
                linear.bias.data = chance.weight(rows).to(dtype)
            setattr(self, name, linear)
        self.norm = torch.nn.RMSNorm(8, dtype=dtype)


def kinds(chance):
    for kind, config in [("int8", Int8WeightOnlyConfig(version=2)), ("float8", Float8WeightOnlyConfig())]:
        for dtype in [torch.bfloat16, torch.float32]:
            model = Model(chance, dtype)
            quantize_(model, config, filter_fn=lambda module, _: isinstance(module, torch.nn.Linear))
            tensors, metadata = flatten_tensor_state_dict(model.state_dict())
            dense = {
                name: tensor.dequantize() if hasattr(tensor, "dequantize") and name.endswith("proj.weight") else tensor
                for name, tensor in model.state_dict().items()
            }
            section = {
                "quant_method": "torchao",
                "quant_type": {"default": {"_type": type(config).__name__, "_version": 2, "_data": {}}},
                "modules_to_not_convert": None,
            }
            name = f"torchao-{kind}-{str(dtype).removeprefix('torch.')}"
            yield Case(
                name, LIBRARY, tensors, dense, llama(quantization_config=section), metadata={"format": "pt"} | metadata
            )


def models(chance):
    """Whole models, quantised and saved by transformers."""
    from transformers import AutoModelForCausalLM, TorchAoConfig

    for kind, config in [("int8", Int8WeightOnlyConfig(version=2)), ("float8", Float8WeightOnlyConfig())]:
        with tempfile.TemporaryDirectory() as plain, tempfile.TemporaryDirectory() as place:
            tiny_llama(chance, tied=kind == "int8", intermediate_size=300).save_pretrained(plain)
            model = AutoModelForCausalLM.from_pretrained(
                plain, quantization_config=TorchAoConfig(config), device_map="cpu", dtype=torch.bfloat16
            )
            model.save_pretrained(place)
            with safe_open(Path(place) / "model.safetensors", "pt") as file:
                tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
            written = json.loads((Path(place) / "config.json").read_text())
        dense = {
            name: tensor.dequantize() if name.endswith("proj.weight") else tensor
            for name, tensor in model.named_parameters()
        }
        yield Case(
            f"torchao-model-{kind}", versions("torchao", "transformers"), tensors, dense, written, metadata=metadata
        )


if __name__ == "__main__":
    main([kinds], [models])
