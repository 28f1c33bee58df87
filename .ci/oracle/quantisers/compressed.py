"""compressed-tensors: its packed integers, integers, floats, and four-bit floats."""

import json
import tempfile
from pathlib import Path

import torch
from compressed_tensors.compressors import BaseCompressor, ModelCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file
from transformers import CompressedTensorsConfig

from quantisers.common import Case, llama, main, named, read_back, tiny_llama, versions

LIBRARY = versions("compressed-tensors")
ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"


def extremes(weight, args):
    """The least and greatest value of whatever part of the weight has one scale."""
    rows, columns = weight.shape
    if args.strategy == "tensor":
        return weight.min().reshape(1), weight.max().reshape(1)
    if args.strategy == "channel":
        return weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    if args.strategy == "block":
        height, width = args.block_structure
        padded = torch.nn.functional.pad(weight, (0, -columns % width, 0, -rows % height))
        blocks = padded.unflatten(0, (-1, height)).unflatten(2, (-1, width))
        return blocks.amin((1, 3)), blocks.amax((1, 3))
    groups = weight.unflatten(1, (-1, args.group_size))
    return groups.amin(2), groups.amax(2)


def scheme_of(**weights):
    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))


def qparams(weight, scheme, dtype):
    least, greatest = extremes(weight, scheme.weights)
    state = {"weight": weight}
    global_scale = None
    if scheme.weights.strategy == "tensor_group":
        global_scale = (448 * 6 / weight.abs().max()).reshape(1).float()
        state["weight_global_scale"] = global_scale
    scale, zero = calculate_qparams(least, greatest, scheme.weights, global_scale)
    state["weight_scale"] = scale if scheme.weights.strategy == "tensor_group" else scale.to(dtype)
    if not scheme.weights.symmetric:
        state["weight_zero_point"] = zero.to(torch.int8)
    return state


def compressed(format, weight, scheme, dtype=torch.bfloat16, change=None):
    """One module: its tensors as they are stored, and the dense weight; `change` edits what is quantised."""
    compressor = BaseCompressor.get_value_from_registry(format)
    state = qparams(weight, scheme, dtype)
    if change:
        change(state)
    state = compressor.compress(state, scheme)
    return state, compressor.decompress(state, scheme)["weight"]


def config_of(format, *schemes, **more):
    groups = {}
    for number, scheme in enumerate(schemes):
        group = scheme.model_dump(mode="json")
        groups[f"group_{number}"] = group | {"format": group.get("format") or format}
    section = {
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
    return llama(quantization_config=section | more)


def case(name, format, modules, scheme, dtype=torch.bfloat16, f32=False, **more):
    """`modules`: path -> weight, or a pair of it and a function that edits what is quantised."""
    stored, dense, single = {}, {}, {}
    for path, weight in modules.items():
        weight, change = weight if isinstance(weight, tuple) else (weight, None)
        state, whole = compressed(format, weight, scheme, dtype, change)
        stored |= named(path, state)
        if whole.dtype == torch.float32:
            # What CompressedTensorsDequantizer makes of it.
            f32, whole = True, whole.bfloat16()
        dense[f"{path}.weight"] = whole
        if f32:
            wide = state | {"weight_scale": state["weight_scale"].float()}
            single[f"{path}.weight"] = BaseCompressor.get_value_from_registry(format).decompress(wide, scheme)["weight"]
    more.setdefault("config", config_of(format, scheme))
    return Case(name, LIBRARY, stored, dense, dense_f32=single if f32 else None, **more)


def pack_quantized(chance):
    # Of 4 bits and up to 8 rows, compressed-tensors 0.20 cannot read back the zeros that it packs.
    for bits in range(2, 9):
        for symmetric in [True, False]:
            scheme = scheme_of(num_bits=bits, symmetric=symmetric, strategy="group", group_size=32)
            modules = {
                f"{ATTENTION}.q_proj": chance.weight(9 + chance.size(2), chance.size(64, 32)),
                f"{MLP}.down_proj": chance.weight(9 + chance.size(7), chance.size(32, 32)),
            }
            kind = "sym" if symmetric else "asym"
            yield case(f"ct-pack-{bits}bit-{kind}", "pack-quantized", modules, scheme, f32=bits == 4)


def pack_quantized_channel(chance):
    # Columns that fill no whole word: the rest of the last one is padding.
    for bits, symmetric, dtype in [
        (4, True, torch.float16),
        (4, False, torch.float16),
        (5, False, torch.float32),
        (8, True, torch.bfloat16),
    ]:
        scheme = scheme_of(num_bits=bits, symmetric=symmetric, strategy="channel")
        # Of 5 bits, 100 columns and more: the older packing has another number of words only there.
        least = 100 if bits == 5 else 0
        modules = {
            f"{ATTENTION}.k_proj": chance.weight(8 + chance.size(5), least + chance.size(4 if least else 77)),
            f"{ATTENTION}.o_proj": chance.weight(8 + chance.size(10), least + chance.size(9 if least else 100)),
        }
        kind = "sym" if symmetric else "asym"
        yield case(f"ct-pack-{bits}bit-channel-{kind}", "pack-quantized", modules, scheme, dtype)


def pack_quantized_extremes(chance):
    """Zeros at both ends of their range, scales that are subnormal in float16, a dense lm_head, a bias."""
    scheme = scheme_of(num_bits=4, symmetric=False, strategy="group", group_size=32)

    def edges(state):
        zero, scale = state["weight_zero_point"], state["weight_scale"]
        zero[:, 0], zero[:, 1] = -8, 7
        scale[:2] = 3 * 2.0**-24
        scale[2] = 65504 / 16

    weight = chance.weight(8 + chance.size(4), 64)
    made = case("ct-pack-4bit-edges", "pack-quantized", {f"{MLP}.gate_proj": (weight, edges)}, scheme, torch.float16)
    plain = {
        f"{MLP}.gate_proj.bias": chance.weight(weight.shape[0]).half(),
        "lm_head.weight": chance.weight(6, 64).half(),
    }
    made.tensors |= plain
    made.dense |= plain
    return made


def pack_quantized_shards(chance):
    scheme = scheme_of(num_bits=4, symmetric=False, strategy="group", group_size=32)
    modules = {f"{MLP}.{name}_proj": chance.weight(8 + chance.size(8, 8), 64) for name in ["gate", "up"]}
    made = case("ct-pack-4bit-shards", "pack-quantized", modules, scheme)
    made.second_shard = [
        name
        for name in made.tensors
        if name.endswith(("gate_proj.weight_scale", "up_proj.weight_packed", "weight_shape"))
    ]
    return made


def pack_quantized_experts(chance):
    """Experts one by one, as Kimi-K2 has them, and experts in one tensor of three dimensions."""
    scheme = scheme_of(num_bits=4, symmetric=True, strategy="group", group_size=32)
    modules = {f"{MLP}.experts.{i}.gate_proj": chance.weight(12, 64) for i in range(2)}
    made = case("ct-pack-4bit-experts", "pack-quantized", modules, scheme)
    path, weight = f"{MLP}.experts.gate_up_proj", chance.weight(2, 10, 64)
    scale = weight.unflatten(2, (-1, 32)).abs().amax(3).div(7.5).bfloat16()
    codes = quantize(weight, scale, None, scheme.weights, torch.int8)
    state = {
        "weight_packed": pack_to_int32(codes, 4),
        "weight_scale": scale,
        "weight_shape": torch.tensor(weight.shape),
    }
    made.tensors |= named(path, state)
    made.dense[f"{path}.weight"] = BaseCompressor.get_value_from_registry("pack-quantized").decompress(state, scheme)[
        "weight"
    ]
    return made


def int_quantized(chance):
    for strategy, symmetric in [("tensor", True), ("channel", True), ("channel", False), ("group", False)]:
        size = {"group_size": 32} if strategy == "group" else {}
        scheme = scheme_of(num_bits=8, symmetric=symmetric, strategy=strategy, **size)
        modules = {f"{ATTENTION}.v_proj": chance.weight(chance.size(11), chance.size(64, 32))}
        name = f"ct-int8-{strategy}-{'sym' if symmetric else 'asym'}"
        dtype = torch.float16 if strategy == "channel" else torch.bfloat16
        yield case(name, "int-quantized", modules, scheme, dtype, f32=strategy == "group")


def naive_quantized(chance):
    """Four bits in whole bytes, as the fallback of compressed-tensors keeps them."""
    scheme = scheme_of(num_bits=4, symmetric=True, strategy="group", group_size=32)
    return case(
        "ct-naive-int4",
        "naive-quantized",
        {f"{MLP}.up_proj": chance.weight(chance.size(10), chance.size(64, 32))},
        scheme,
    )


def float_quantized(chance):
    for strategy, dtype in [
        ("tensor", torch.bfloat16),
        ("channel", torch.float32),
        ("block", torch.bfloat16),
        ("group", torch.float16),
    ]:
        size = {"group": {"group_size": 32}, "block": {"block_structure": [128, 128]}}.get(strategy, {})
        scheme = scheme_of(num_bits=8, type="float", symmetric=True, strategy=strategy, **size)
        rows, columns = (
            (chance.size(140), chance.size(20)) if strategy == "block" else (chance.size(14), chance.size(96, 32))
        )
        modules = {f"{ATTENTION}.q_proj": chance.weight(rows, columns)}
        made = case(f"ct-float8-{strategy}", "float-quantized", modules, scheme, dtype, f32=strategy == "group")
        if strategy == "tensor":
            # What activations and the cache are scaled by is no part of a weight.
            made.tensors |= {
                f"{ATTENTION}.q_proj.input_scale": torch.ones(1),
                f"{ATTENTION}.k_scale": torch.ones(1),
                f"{ATTENTION}.v_scale": torch.ones(1),
            }
        yield made


def four_bit_floats(chance):
    group = dict(num_bits=4, type="float", symmetric=True)
    scheme = scheme_of(
        **group,
        strategy="tensor_group",
        group_size=16,
        scale_dtype="torch.float8_e4m3fn",
        zp_dtype="torch.float8_e4m3fn",
    )
    modules = {f"{MLP}.{name}_proj": chance.weight(chance.size(17), chance.size(48, 16)) for name in ["gate", "up"]}
    yield case("ct-nvfp4", "nvfp4-pack-quantized", modules, scheme)
    scheme = scheme_of(**group, strategy="group", group_size=32, scale_dtype="torch.uint8", zp_dtype="torch.uint8")
    modules = {f"{MLP}.{name}_proj": chance.weight(chance.size(17), chance.size(96, 32)) for name in ["gate", "up"]}
    yield case("ct-mxfp4", "mxfp4-pack-quantized", modules, scheme)
    scheme = scheme_of(
        num_bits=8,
        type="float",
        symmetric=True,
        strategy="group",
        group_size=32,
        scale_dtype="torch.uint8",
        zp_dtype="torch.uint8",
    )
    modules = {f"{MLP}.{name}_proj": chance.weight(chance.size(17), chance.size(96, 32)) for name in ["gate", "up"]}
    yield case("ct-mxfp8", "mxfp8-quantized", modules, scheme)


def powers(chance):
    """E8M0 scales at their ends: 0 is 2^-127, 254 is 2^127; 255, which is NaN to some, is infinite here."""
    scheme = scheme_of(
        num_bits=4,
        type="float",
        symmetric=True,
        strategy="group",
        group_size=32,
        scale_dtype="torch.uint8",
        zp_dtype="torch.uint8",
    )
    for name, scale in [
        ("ct-mxfp4-scales", [[0, 1], [2, 126], [127, 128], [252, 253], [254, 120], [5, 130]]),
        ("ct-mxfp4-scale-255", [[255, 127]]),
    ]:
        state = {"weight_packed": chance.bytes(len(scale), 32), "weight_scale": torch.tensor(scale, dtype=torch.uint8)}
        path = f"{MLP}.down_proj"
        dense = BaseCompressor.get_value_from_registry("mxfp4-pack-quantized").decompress(state, scheme)["weight"]
        yield Case(
            name, LIBRARY, named(path, state), {f"{path}.weight": dense}, config_of("mxfp4-pack-quantized", scheme)
        )


def mixed(chance):
    """Formats that differ by module; which is which only the tensors and the groups say."""
    packed = scheme_of(num_bits=4, symmetric=True, strategy="group", group_size=32)
    float8 = scheme_of(num_bits=8, type="float", symmetric=True, strategy="channel")
    packed.targets, float8.targets = ["re:.*mlp.*"], ["re:.*self_attn.*"]
    one = case("ct-mixed", "pack-quantized", {f"{MLP}.up_proj": chance.weight(chance.size(10), 64)}, packed)
    other = case("ct-mixed", "float-quantized", {f"{ATTENTION}.q_proj": chance.weight(chance.size(10), 24)}, float8)
    one.config = config_of("mixed-precision", packed, float8)
    for group, format in zip(
        one.config["quantization_config"]["config_groups"].values(), ["pack-quantized", "float-quantized"]
    ):
        group["format"] = format
    one.tensors |= other.tensors
    one.dense |= other.dense
    return one


def saved(model, schemes, ignore):
    """What compressed-tensors and transformers save of a model: the tensors, and config.json."""
    apply_quantization_config(
        model, QuantizationConfig(config_groups=schemes, ignore=ignore, quantization_status="initialized")
    )
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            for name, tensor in qparams(module.weight.data.float(), module.quantization_scheme, torch.bfloat16).items():
                if name != "weight":
                    setattr(module, name, torch.nn.Parameter(tensor, requires_grad=False))
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place)
        compressor.update_config(place)
        return load_file(Path(place) / "model.safetensors"), json.loads((Path(place) / "config.json").read_text())


def models(chance):
    """Whole models, as compressed-tensors compresses them, read by transformers' from_pretrained."""
    four = dict(num_bits=4, type="float", symmetric=True)
    float8, uint8 = torch.float8_e4m3fn, torch.uint8
    kinds = {
        "int4-sym": scheme_of(num_bits=4, symmetric=True, strategy="group", group_size=32),
        "int4-asym": scheme_of(num_bits=4, symmetric=False, strategy="group", group_size=32),
        "int3-asym": scheme_of(num_bits=3, symmetric=False, strategy="group", group_size=32),
        "int6-channel": scheme_of(num_bits=6, symmetric=False, strategy="channel"),
        "int8-channel": scheme_of(num_bits=8, symmetric=True, strategy="channel"),
        "float8-tensor": scheme_of(num_bits=8, type="float", symmetric=True, strategy="tensor"),
        "float8-block": scheme_of(
            num_bits=8, type="float", symmetric=True, strategy="block", block_structure=[128, 128]
        ),
        "nvfp4": scheme_of(**four, strategy="tensor_group", group_size=16, scale_dtype=float8, zp_dtype=float8),
        "mxfp4": scheme_of(**four, strategy="group", group_size=32, scale_dtype=uint8, zp_dtype=uint8),
    }
    for name, scheme in kinds.items():
        if name in ("int8-channel", "float8-tensor", "float8-block"):
            scheme.input_activations = QuantizationArgs(
                num_bits=8, type=scheme.weights.type, symmetric=True, strategy="token", dynamic=True
            )
        # Groups have to divide a row.
        sizes = {} if scheme.weights.group_size else {"intermediate_size": 300}
        tensors, config = saved(tiny_llama(chance, **sizes), {"group_0": scheme}, ["lm_head"])
        dense = read_back(tensors, config, quantization_config=CompressedTensorsConfig(dequantize=True))
        yield Case(f"ct-model-{name}", versions("compressed-tensors", "transformers"), tensors, dense, config)


if __name__ == "__main__":
    main(
        [
            pack_quantized,
            pack_quantized_channel,
            pack_quantized_extremes,
            pack_quantized_shards,
            pack_quantized_experts,
            int_quantized,
            naive_quantized,
            float_quantized,
            four_bit_floats,
            powers,
            mixed,
        ],
        [models],
    )
