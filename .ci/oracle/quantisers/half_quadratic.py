"""HQQ: every number of bits, groups along either axis, words called floats."""

import json
import os
import tempfile
from pathlib import Path

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer
from hqq.models.hf.base import AutoHQQHFModel
from safetensors.torch import load_file

from quantisers.common import Case, llama, main, named, tiny_llama, versions

LIBRARY = versions("hqq")
ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"


def module(weight, bits, axis, dtype, group, bias=None, as_float=False):
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight.data = weight
    if bias is not None:
        linear.bias.data = bias
    config = BaseQuantizeConfig(nbits=bits, group_size=group, axis=axis, view_as_float=as_float)
    made = HQQLinear(linear, config, compute_dtype=dtype, device="cpu")
    wide = {
        **made.meta,
        "compute_dtype": torch.float32,
        "scale": made.meta["scale"].float(),
        "zero": made.meta["zero"].float(),
    }
    return made.state_dict(), made.dequantize(), Quantizer.dequantize(made.W_q, wide)


def case(name, dtype, modules, f32=False, **section):
    tensors, dense, single = {}, {}, {}
    for path, (state, whole, wide) in modules.items():
        tensors |= named(path, state)
        bias = {f"{path}.bias": state["bias"]} if "bias" in state else {}
        dense |= {f"{path}.weight": whole} | bias
        single |= {f"{path}.weight": wide} | bias
    weights = {
        "nbits": 4,
        "channel_wise": True,
        "group_size": 32,
        "optimize": True,
        "round_zero": True,
        "axis": 1,
        "view_as_float": False,
    } | section
    config = llama(
        dtype=str(dtype).removeprefix("torch."),
        quantization_config={
            "quant_method": "hqq",
            "skip_modules": ["lm_head"],
            "quant_config": {
                "weight_quant_params": weights,
                "scale_quant_params": None,
                "zero_quant_params": None,
                "offload_meta": False,
            },
        },
    )
    return Case(name, LIBRARY, tensors, dense, config, dense_f32=single if f32 else None)


def axes(chance):
    for axis, dtype in [(1, torch.float16), (0, torch.bfloat16)]:
        # Of 3 bits, 10 rows lie in a word, and the last word is not full.
        modules = {
            f"model.layers.{bits}.mlp.up_proj": module(
                chance.weight(chance.size(8, 8), chance.size(64, 64)), bits, axis, dtype, 32
            )
            for bits in [8, 4, 3, 2, 1]
        }
        if axis == 1:
            modules["model.layers.6.mlp.up_proj"] = module(chance.weight(8, 32), 6, axis, dtype, 32)
        weight = chance.weight(chance.size(8, 8), 64)
        modules[f"{ATTENTION}.q_proj"] = module(weight, 4, axis, dtype, 64, chance.weight(weight.shape[0]))
        yield case(f"hqq-axis{axis}", dtype, modules, f32=axis == 1, axis=axis)


def floats(chance):
    modules = {
        f"model.layers.{bits}.mlp.up_proj": module(chance.weight(8, 64), bits, 1, torch.float16, 32, as_float=True)
        for bits in [4, 3]
    }
    return case("hqq-view-as-float", torch.float16, modules, view_as_float=True)


def models(chance):
    """Whole models, as HQQ saves them: what they are only the tensors say."""
    for bits, axis, dtype in [
        (4, 1, torch.bfloat16),
        (8, 0, torch.float16),
        (3, 1, torch.float16),
        (2, 0, torch.bfloat16),
        (1, 1, torch.bfloat16),
    ]:
        model = tiny_llama(chance, intermediate_size=300)
        AutoHQQHFModel.quantize_model(
            model,
            quant_config=BaseQuantizeConfig(nbits=bits, group_size=32, axis=axis),
            compute_dtype=dtype,
            device="cpu",
        )
        with tempfile.TemporaryDirectory() as place:
            AutoHQQHFModel.save_to_safetensors(model, f"{place}/")
            tensors, config = (
                load_file(Path(place) / "model.safetensors"),
                json.loads((Path(place) / "config.json").read_text()),
            )
        dense = {
            f"{name}.weight": module.dequantize()
            for name, module in model.named_modules()
            if isinstance(module, HQQLinear)
        }
        dense |= {
            name: tensor
            for name, tensor in tensors.items()
            if name.endswith(("norm.weight", "embed_tokens.weight", "lm_head.weight"))
        }
        yield Case(f"hqq-model-{bits}bit-axis{axis}", LIBRARY, tensors, dense, config)


if __name__ == "__main__":
    main([axes, floats], [models])
