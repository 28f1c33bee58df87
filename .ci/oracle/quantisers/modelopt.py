"""NVIDIA's modelopt: NVFP4, FP8, MXFP8, MXFP4, int8 and int4, quantised and read by its own tensors."""

import json
import os
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1"}

import torch
from modelopt.torch import quantization
from modelopt.torch.export import export_hf_checkpoint
from modelopt.torch.export.quant_utils import from_quantized_weight, get_scaling_factor_from_weight, to_quantized_weight
from modelopt.torch.quantization.qtensor import FP8QTensor, MXFP4QTensor, MXFP8QTensor, NVFP4QTensor
from safetensors.torch import load_file

from quantisers.common import Case, llama, main, named, tiny_llama, versions

LIBRARY = versions("nvidia-modelopt")
ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"
ONCE = "modelopt's own reader in float32, rounded once: asked for 16 bits, modelopt rounds the scale first"


def sections(algorithm, **more):
    """config.json's section, and hf_quant_config.json beside it, as export_hf_checkpoint writes both."""
    producer = {"name": "modelopt", "version": versions("nvidia-modelopt").split()[-1]}
    inner = {"quant_algo": algorithm, "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]} | more
    outer = {"quant_method": "modelopt", "quant_algo": algorithm, "ignore": ["lm_head"], "producer": producer} | more
    return llama(quantization_config=outer), {"hf_quant_config.json": {"producer": producer, "quantization": inner}}


def case(name, algorithm, modules, how="", f32=False, section=True, **more):
    """`modules`: path -> stored tensors, dense in bfloat16, dense in float32."""
    tensors, dense, single = {}, {}, {}
    for path, (state, whole, wide) in modules.items():
        tensors |= named(path, state)
        dense[f"{path}.weight"], single[f"{path}.weight"] = whole, wide
    config, sides = sections(algorithm, **more)
    return Case(name, LIBRARY, tensors, dense, config if section else llama(), single if f32 else None, how, sides)


def nvfp4_module(weight):
    made, scale, scale_2 = NVFP4QTensor.quantize(weight, 16)
    dense = [
        made.dequantize(dtype, scale=scale, double_scale=scale_2, block_sizes={-1: 16})
        for dtype in [torch.bfloat16, torch.float32]
    ]
    return {"weight": made._quantized_data, "weight_scale": scale, "weight_scale_2": scale_2}, *dense


def nvfp4(chance):
    modules = {
        f"{MLP}.{name}_proj": nvfp4_module(chance.weight(chance.size(13), chance.size(48, 16)))
        for name in ["gate", "up"]
    }
    made = case("modelopt-nvfp4", "NVFP4", modules, f32=True, group_size=16)
    # What is no part of a weight, and a dense module.
    made.tensors |= {
        f"{MLP}.gate_proj.input_scale": torch.tensor(0.5),
        f"{ATTENTION}.k_proj.k_scale": torch.tensor(1.0),
    }
    plain = {"lm_head.weight": chance.weight(3, 16).bfloat16()}
    made.tensors |= plain
    made.dense |= plain
    made.dense_f32 |= plain
    made.second_shard = [f"{MLP}.gate_proj.weight_scale", f"{MLP}.up_proj.weight_scale_2"]
    yield made
    # Codes of the dtype that torch has for them, whose shape in a file is that of the elements.
    state, *dense = nvfp4_module(chance.weight(6, chance.size(32, 16)))
    state["weight"] = state["weight"].view(torch.float4_e2m1fn_x2)
    yield case("modelopt-nvfp4-f4", "NVFP4", {f"{MLP}.gate_proj": (state, *dense)}, group_size=16)
    # Only hf_quant_config.json says what it is; experts one by one.
    modules = {f"{MLP}.experts.{i}.down_proj": nvfp4_module(chance.weight(6, chance.size(32, 16))) for i in range(2)}
    yield case("modelopt-nvfp4-side-file", "NVFP4", modules, section=False, group_size=16)


def nvfp4_codes(chance):
    """All 256 bytes, scales of E4M3 at their ends: 0, subnormal, 448."""
    packed = torch.arange(256, dtype=torch.uint8).reshape(8, 32)
    scale = chance.bytes(8, 4).bitwise_and(0x7F)
    scale[0] = torch.tensor([0, 1, 7, 0x7E])
    scale[scale == 0x7F] = 0x08
    scale, scale_2 = scale.view(torch.float8_e4m3fn), torch.tensor(0.0123456789)
    made = NVFP4QTensor(torch.Size([8, 64]), torch.bfloat16, packed)
    dense = [
        made.dequantize(dtype, scale=scale, double_scale=scale_2, block_sizes={-1: 16})
        for dtype in [torch.bfloat16, torch.float32]
    ]
    modules = {f"{MLP}.up_proj": ({"weight": packed, "weight_scale": scale, "weight_scale_2": scale_2}, *dense)}
    return case("modelopt-nvfp4-codes", "NVFP4", modules, f32=True, group_size=16)


def nvfp4_experts(chance):
    """Experts in one tensor, with a second scale for each."""
    weight = chance.weight(3, 6, chance.size(32, 16))
    scale_2 = weight.abs().amax((1, 2)) / (6 * 448)
    made, scale, _ = NVFP4QTensor.quantize(weight, 16, None, scale_2.view(-1, 1, 1))
    dense = [
        made.dequantize(dtype, scale=scale, double_scale=scale_2.view(-1, 1, 1), block_sizes={-1: 16})
        for dtype in [torch.bfloat16, torch.float32]
    ]
    path = f"{MLP}.experts.gate_up_proj"
    tensors = {path: made._quantized_data, f"{path}_weight_scale": scale, f"{path}_weight_scale_2": scale_2}
    config, sides = sections("NVFP4", group_size=16)
    yield Case("modelopt-nvfp4-experts", LIBRARY, tensors, {path: dense[0]}, config, sides=sides)
    # Of Llama 4 and gpt-oss, whose parameters have the input first, the export transposes what it has packed.
    path = "model.layers.0.feed_forward.experts.gate_up_proj"
    tensors = {
        path: made._quantized_data.transpose(1, 2),
        f"{path}_weight_scale": scale.transpose(1, 2),
        f"{path}_weight_scale_2": scale_2,
    }
    yield Case(
        "modelopt-nvfp4-experts-transposed",
        LIBRARY,
        tensors,
        {path: dense[0].transpose(1, 2)},
        config | {"model_type": "llama4_text"},
        sides=sides,
    )


def float8(chance):
    weight = chance.weight(chance.size(9), chance.size(20))
    made, scale = FP8QTensor.quantize(weight, weight.abs().max() / 448)
    wide = made.dequantize(torch.float32, scale=scale)
    state = {"weight": made._quantized_data, "weight_scale": scale, "input_scale": torch.tensor(0.5)}
    yield case("modelopt-fp8", "FP8", {f"{ATTENTION}.q_proj": (state, wide.bfloat16(), wide)}, ONCE, f32=True)
    weight = chance.weight(chance.size(9), chance.size(20))
    scale = weight.abs().amax(1) / 448
    codes = to_quantized_weight(weight, scale, "fp8_pc_pt")
    wide = FP8QTensor(weight.shape, weight.dtype, codes).dequantize(torch.float32, scale=scale[:, None])
    yield case(
        "modelopt-fp8-rows",
        "FP8_PER_CHANNEL_PER_TOKEN",
        {f"{ATTENTION}.k_proj": ({"weight": codes, "weight_scale": scale}, wide.bfloat16(), wide)},
        ONCE,
    )
    # Blocks, with the grid of four dimensions that modelopt leaves in the file. Whole blocks, which is all that it takes.
    weight = chance.weight(chance.size(32, 16), chance.size(48, 16))
    made, scale = FP8QTensor.quantize(weight, block_sizes={-1: 16, -2: 16})
    wide = made.dequantize(torch.float32, scale=scale, block_sizes={-1: 16, -2: 16})
    state = {"weight": made._quantized_data, "weight_scale": scale[:, None, :, None]}
    yield case(
        "modelopt-fp8-blocks", "FP8_PB_WO", {f"{ATTENTION}.v_proj": (state, wide.bfloat16(), wide)}, ONCE, group_size=16
    )


def powers_of_two(chance):
    weight = chance.weight(chance.size(9), chance.size(64, 32))
    made, scale = MXFP8QTensor.quantize(weight)
    dense = [made.dequantize(dtype, scale=scale) for dtype in [torch.bfloat16, torch.float32]]
    yield case(
        "modelopt-mxfp8",
        "MXFP8",
        {f"{MLP}.gate_proj": ({"weight": made._quantized_data, "weight_scale": scale}, *dense)},
        group_size=32,
    )
    made, scale = MXFP4QTensor.quantize(weight, 32)
    dense = [made.dequantize(dtype, scale=scale, block_sizes={-1: 32}) for dtype in [torch.bfloat16, torch.float32]]
    # As export_hf_checkpoint shapes the scales, and flat, as the tensor itself gives them.
    modules = {
        f"{MLP}.gate_proj": (
            {"weight": made._quantized_data, "weight_scale": scale.reshape(weight.shape[0], -1)},
            *dense,
        ),
        f"{MLP}.up_proj": ({"weight": made._quantized_data, "weight_scale": scale}, *dense),
    }
    yield case("modelopt-mxfp4", "W4A8_MXFP4_FP8", modules, group_size=32)


def integers(chance):
    weight = chance.weight(chance.size(9), chance.size(20))
    scale = get_scaling_factor_from_weight(weight, 0)
    codes = to_quantized_weight(weight, scale, "int8_wo")
    wide = from_quantized_weight(codes, scale, "int8_wo", torch.float32)
    yield case(
        "modelopt-int8",
        "W8A16",
        {f"{ATTENTION}.q_proj": ({"weight": codes, "weight_scale": scale}, wide.bfloat16(), wide)},
        ONCE,
    )
    for folded in [False, True]:
        weight = chance.weight(chance.size(10, 2), chance.size(64, 32))
        scale = get_scaling_factor_from_weight(weight, 32)
        packed = to_quantized_weight(weight, scale, "int4_awq", block_size=32)
        by_column = scale.repeat_interleave(32, 1)
        wide = (weight / by_column).round().clamp(-8, 7).to(torch.int8) * by_column
        state = {"weight": packed, "weight_scale": scale}
        how = "the codes that modelopt packed, times their scales in float32; it has no reader of its export"
        if folded:
            # The layer sees its input times this, so that its weight is that much greater.
            state["pre_quant_scale"] = (chance.weight(weight.shape[1], spread=0.3).abs() + 0.5).bfloat16()
            wide = wide * state["pre_quant_scale"].float()
            how += "; then times pre_quant_scale"
        name = f"modelopt-int4-awq{'-pre-quant-scale' if folded else ''}"
        yield case(
            name,
            "W4A16_AWQ",
            {f"{ATTENTION}.o_proj": (state, wide.bfloat16(), wide)},
            how,
            group_size=32,
            has_zero_point=False,
            pre_quant_scale=folded,
        )


def mixed(chance):
    weight = chance.weight(chance.size(9), chance.size(32, 16))
    made, scale = FP8QTensor.quantize(weight, weight.abs().max() / 448)
    wide = made.dequantize(torch.float32, scale=scale)
    modules = {
        f"{ATTENTION}.q_proj": ({"weight": made._quantized_data, "weight_scale": scale}, wide.bfloat16(), wide),
        f"{MLP}.up_proj": nvfp4_module(weight),
    }
    layers = {f"{ATTENTION}.q_proj": {"quant_algo": "FP8"}, f"{MLP}.up_proj": {"quant_algo": "NVFP4", "group_size": 16}}
    return case("modelopt-mixed", "MIXED_PRECISION", modules, ONCE, quantized_layers=layers)


def unpacked(packed):
    """Codes of four bits, which lie in pairs of rows."""
    codes = torch.stack([packed & 15, packed >> 4], 1).flatten(0, 1).to(torch.int8)
    return torch.where(codes > 7, codes - 16, codes).float()


def dense_of(kind, state):
    """What stands for one exported layer, in bfloat16."""
    weight, scale = state["weight"], state["weight_scale"]
    shape = torch.Size([weight.shape[0], 2 * weight.shape[1]])
    if kind == "NVFP4_DEFAULT_CFG":
        return NVFP4QTensor(shape, torch.bfloat16, weight).dequantize(
            torch.bfloat16, scale=scale, double_scale=state["weight_scale_2"], block_sizes={-1: 16}
        )
    if kind == "W4A8_MXFP4_FP8_CFG":
        return MXFP4QTensor(shape, torch.bfloat16, weight).dequantize(torch.bfloat16, scale=scale, block_sizes={-1: 32})
    if kind == "MXFP8_DEFAULT_CFG":
        return MXFP8QTensor(weight.shape, torch.bfloat16, weight).dequantize(torch.bfloat16, scale=scale)
    if kind == "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG":
        grid = scale.reshape([-(-size // 128) for size in weight.shape])
        wide = FP8QTensor(weight.shape, torch.float32, weight).dequantize(
            torch.float32, scale=grid, block_sizes={-1: 128, -2: 128}
        )
    elif kind in ["FP8_DEFAULT_CFG", "FP8_PER_CHANNEL_PER_TOKEN_CFG"]:
        wide = FP8QTensor(weight.shape, torch.float32, weight).dequantize(
            torch.float32, scale=scale if scale.ndim == 0 else scale[:, None]
        )
    else:
        codes = unpacked(weight)
        wide = codes * scale.repeat_interleave(codes.shape[1] // scale.shape[1], 1)
    if "pre_quant_scale" in state:
        wide = wide * state["pre_quant_scale"].float()
    return wide.bfloat16()


def models(chance):
    """Whole models, calibrated with random text and exported."""
    for kind in [
        "NVFP4_DEFAULT_CFG",
        "FP8_DEFAULT_CFG",
        "FP8_PER_CHANNEL_PER_TOKEN_CFG",
        "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
        "MXFP8_DEFAULT_CFG",
        "W4A8_MXFP4_FP8_CFG",
        "INT4_AWQ_CFG",
    ]:
        model = tiny_llama(chance, hidden_size=128, intermediate_size=256, architectures=["LlamaForCausalLM"])
        text = torch.from_numpy(chance.integers(0, 48, 4, 16))
        model = quantization.quantize(
            model, getattr(quantization, kind), lambda model: [model(line[None]) for line in text]
        )
        with tempfile.TemporaryDirectory() as place:
            export_hf_checkpoint(model, export_dir=place)
            tensors = load_file(Path(place) / "model.safetensors")
            config, side = (
                json.loads((Path(place) / name).read_text()) for name in ["config.json", "hf_quant_config.json"]
            )
        layers = {name.removesuffix("weight_scale") for name in tensors if name.endswith(".weight_scale")}
        dense = {
            name: tensor for name, tensor in tensors.items() if not any(name.startswith(layer) for layer in layers)
        }
        for layer in layers:
            dense[f"{layer}weight"] = dense_of(
                kind, {name.removeprefix(layer): tensor for name, tensor in tensors.items() if name.startswith(layer)}
            )
        yield Case(
            f"modelopt-model-{kind.removesuffix('_CFG').lower().replace('_', '-')}",
            LIBRARY,
            tensors,
            dense,
            config,
            sides={"hf_quant_config.json": side},
        )


if __name__ == "__main__":
    main([nvfp4, nvfp4_codes, nvfp4_experts, float8, powers_of_two, integers, mixed], [models])
