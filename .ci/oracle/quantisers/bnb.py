"""bitsandbytes: 4 bits (nf4, fp4, nested) and 8 bits, on the CPU."""

import json
import os
import tempfile
from pathlib import Path

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import bitsandbytes.functional as bnb
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from safetensors.torch import load_file

from quantisers.common import Case, llama, main, named, tiny_llama, versions

LIBRARY = versions("bitsandbytes")
ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"


def dequantized(packed, state, dtype):
    """By bitsandbytes' backend in Python: its kernel for the CPU is wrong where a row is no whole number of blocks."""
    absmax = state.absmax
    if state.nested:
        absmax = bnb.dequantize_blockwise(absmax, state.state2) + state.offset
    packed = packed.view(torch.uint8).flatten()
    return _dequantize_4bit_compute(packed, absmax.float(), state.code, state.blocksize, state.shape, dtype)


def module(path, weight, kind, nested=False, storage=torch.uint8, blocksize=64):
    packed, state = bnb.quantize_4bit(
        weight, blocksize=blocksize, compress_statistics=nested, quant_type=kind, quant_storage=storage
    )
    dense = dequantized(packed, state, weight.dtype)
    if weight.shape[-1] % blocksize == 0:
        own = bnb.dequantize_4bit(packed, state)
        assert dense.view(torch.uint8).equal(own.view(torch.uint8)), "bitsandbytes differs from itself"
    return (
        {f"{path}.weight": packed} | named(f"{path}.weight", state.as_dict(packed=True)),
        dense,
        dequantized(packed, state, torch.float32),
    )


def config_of(bits, **more):
    section = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": bits == 4,
        "load_in_8bit": bits == 8,
        "llm_int8_skip_modules": None,
        "llm_int8_threshold": 6.0,
        "llm_int8_has_fp16_weight": False,
        "bnb_4bit_compute_dtype": "bfloat16",
    }
    return llama(quantization_config=section | more)


def four_bits(chance):
    for kind in ["nf4", "fp4"]:
        for nested in [False, True]:
            made, dense, single = {}, {}, {}
            modules = {
                f"{ATTENTION}.q_proj": (chance.size(24), chance.size(64), torch.bfloat16),
                # An odd number of elements, a last block that is a part of one, blocks that run over the ends of rows.
                f"{ATTENTION}.k_proj": (chance.size(9), chance.size(33), torch.float16),
                # A number of elements that is one short of a word of eight.
                f"{ATTENTION}.v_proj": (7, 8 * chance.size(4) + 1, torch.bfloat16),
                f"{MLP}.down_proj": (chance.size(7), chance.size(96), torch.float32),
            }
            if nested and kind == "nf4":
                # More than 256 blocks: a second block of absmax.
                modules[f"{MLP}.up_proj"] = (chance.size(130), chance.size(128), torch.bfloat16)
            for path, (rows, columns, dtype) in modules.items():
                stored, whole, wide = module(path, chance.weight(rows, columns).to(dtype), kind, nested)
                made |= stored
                dense[f"{path}.weight"], single[f"{path}.weight"] = whole, wide
            bias = {f"{ATTENTION}.q_proj.bias": chance.weight(dense[f"{ATTENTION}.q_proj.weight"].shape[0]).bfloat16()}
            config = config_of(
                4, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=nested, bnb_4bit_quant_storage="uint8"
            )
            name = f"bnb-{kind}{'-nested' if nested else ''}"
            yield Case(name, LIBRARY, made | bias, dense | bias, config, dense_f32=None if nested else single | bias)


def storage(chance):
    """The same bytes called another dtype, as for FSDP."""
    made, dense = {}, {}
    for name, dtype in [("gate_proj", torch.bfloat16), ("up_proj", torch.float16), ("down_proj", torch.float32)]:
        path = f"{MLP}.{name}"
        stored, whole, _ = module(path, chance.weight(chance.size(12, 4), 64).bfloat16(), "nf4", storage=dtype)
        made |= stored
        dense[f"{path}.weight"] = whole
    return Case(
        "bnb-nf4-storage",
        LIBRARY,
        made,
        dense,
        config_of(4, bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage="bfloat16"),
    )


def blocksizes(chance):
    made, dense = {}, {}
    for blocksize in [128, 256]:
        path = f"{MLP}.experts.{blocksize}.w1"
        stored, whole, _ = module(path, chance.weight(chance.size(5), 160).bfloat16(), "nf4", blocksize=blocksize)
        made |= stored
        dense[f"{path}.weight"] = whole
    # Experts in one tensor keep their three dimensions.
    path = f"{MLP}.experts.all"
    stored, whole, _ = module(path, chance.weight(2, 6, 64).bfloat16(), "nf4")
    made |= stored
    dense[f"{path}.weight"] = whole
    apart = [name for name in made if name.endswith((".absmax", ".quant_map"))]
    config = config_of(4, bnb_4bit_quant_type="nf4")
    del config["quantization_config"]["quant_method"]  # as the first files have it
    return Case("bnb-nf4-blocksizes", LIBRARY, made, dense, config, second_shard=apart)


def eight_bits(chance):
    made, dense, single = {}, {}, {}
    for name, dtype in [("q_proj", torch.float16), ("k_proj", torch.float16)]:
        path = f"{ATTENTION}.{name}"
        weight = chance.weight(chance.size(13), chance.size(40)).to(dtype)
        codes, scales, _ = bnb.int8_vectorwise_quant(weight)
        made |= {
            f"{path}.weight": codes,
            f"{path}.SCB": scales,
            f"{path}.weight_format": torch.tensor(0, dtype=torch.uint8),
        }
        single[f"{path}.weight"] = bnb.int8_vectorwise_dequant(codes, scales)
        dense[f"{path}.weight"] = single[f"{path}.weight"].half()
    return Case("bnb-int8", LIBRARY, made, dense, config_of(8) | {"dtype": "float16"}, dense_f32=single)


def models(chance):
    """Whole models, quantised and saved by transformers."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16}
    kinds = {
        "nf4": four | {"bnb_4bit_quant_type": "nf4"},
        "nf4-nested": four | {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        "fp4": four | {"bnb_4bit_quant_type": "fp4"},
        "int8": {"load_in_8bit": True},
    }
    for name, options in kinds.items():
        with tempfile.TemporaryDirectory() as plain, tempfile.TemporaryDirectory() as place:
            tiny_llama(chance, tied=name == "fp4", intermediate_size=300).save_pretrained(plain)
            AutoModelForCausalLM.from_pretrained(
                plain, quantization_config=BitsAndBytesConfig(**options), device_map="cpu", dtype=torch.bfloat16
            ).save_pretrained(place)
            tensors, config = (
                load_file(Path(place) / "model.safetensors"),
                json.loads((Path(place) / "config.json").read_text()),
            )
        dense = {
            key: tensor
            for key, tensor in tensors.items()
            if key.endswith(("norm.weight", "embed_tokens.weight", "lm_head.weight"))
        }
        for key, tensor in tensors.items():
            if name == "int8" and tensor.dtype == torch.int8:
                dense[key] = bnb.int8_vectorwise_dequant(tensor, tensors[f"{key.removesuffix('weight')}SCB"]).bfloat16()
            elif name != "int8" and tensor.dtype == torch.uint8 and key.endswith(".weight"):
                parts = {
                    part.removeprefix(f"{key}."): value for part, value in tensors.items() if part.startswith(f"{key}.")
                }
                dense[key] = dequantized(tensor, bnb.QuantState.from_dict(parts, device="cpu"), torch.bfloat16)
        yield Case(f"bnb-model-{name}", versions("bitsandbytes", "transformers"), tensors, dense, config)


if __name__ == "__main__":
    main([four_bits, storage, blocksizes, eight_bits], [models])
