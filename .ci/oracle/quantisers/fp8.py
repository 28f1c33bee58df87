"""FP8 as DeepSeek, Mistral, Meta and ComfyUI store it: by transformers, and compressed-tensors' reader of blocks."""

import json
import types

import torch
from compressed_tensors.entrypoints.convert.converters import FP8BlockDequantizer
from transformers import FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

from quantisers.common import Case, llama, main, read_back, tiny_llama, versions

TRANSFORMERS, BOTH = versions("transformers"), versions("transformers", "compressed-tensors")
TORCH = versions("torch")
ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"
FLOAT8 = torch.float8_e4m3fn


def quantized(weight, block, scale_fmt="float"):
    """The weight and its grid, by transformers, which takes whole blocks: the padding is cut off again."""
    config = FineGrainedFP8Config(weight_block_size=block, scale_fmt=scale_fmt)
    padding = (0, -weight.shape[-1] % block[1], 0, -weight.shape[-2] % block[0]) if block else (0, 0, 0, 0)
    operation = Fp8Quantize(types.SimpleNamespace(quantization_config=config))
    made = operation.convert({"x.weight": torch.nn.functional.pad(weight, padding)})
    return made["x.weight"][..., : weight.shape[-2], : weight.shape[-1]], made["x.weight_scale_inv"]


def by_blocks(weight, scale, block, dtype=torch.bfloat16):
    """Dense, by compressed-tensors; by transformers too where its grid divides the weight."""
    parts = [weight] if weight.ndim == 2 else weight
    scales = [scale] if weight.ndim == 2 else scale
    reader = FP8BlockDequantizer(weight_block_size=tuple(block), dtype=dtype)
    dense = [reader._create_dequantized_weight(part, grid) for part, grid in zip(parts, scales)]
    dense = dense[0] if weight.ndim == 2 else torch.stack(dense)
    if weight.shape[-2] % block[0] == 0 and weight.shape[-1] % block[1] == 0:
        other = by_transformers(weight, scale, dtype)
        assert dense.view(torch.uint8).equal(other.view(torch.uint8)), "the libraries differ"
    return dense


def by_transformers(weight, scale, dtype=torch.bfloat16):
    return Fp8Dequantize(None)._dequantize_one(weight, scale, dtype)


def fp8_config(block, **more):
    section = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": block}
    return llama(quantization_config=section | more)


def blocks(chance):
    """300 x 200 and 576 rows: the last block of rows and of columns is a part of one."""
    tensors, dense = {}, {}
    shapes = {"q_proj": (chance.size(300), chance.size(200)), "kv_a_proj_with_mqa": (chance.size(576), chance.size(8))}
    for name, shape in shapes.items():
        weight, scale = quantized(chance.weight(*shape), [128, 128])
        tensors |= {f"{ATTENTION}.{name}.weight": weight, f"{ATTENTION}.{name}.weight_scale_inv": scale}
        dense[f"{ATTENTION}.{name}.weight"] = by_blocks(weight, scale, [128, 128])
    plain = {
        "model.embed_tokens.weight": chance.weight(5, 8).bfloat16(),
        "model.norm.weight": chance.weight(8).bfloat16(),
        f"{ATTENTION}.q_proj.bias": chance.weight(shapes["q_proj"][0]).bfloat16(),
    }
    return Case(
        "fp8-block",
        BOTH,
        tensors | plain,
        dense | plain,
        fp8_config([128, 128]),
        second_shard=[f"{ATTENTION}.q_proj.weight_scale_inv", "model.norm.weight"],
    )


def codes(chance):
    """All 256 codes, NaN among them; the grid in bfloat16, of other blocks than 128 x 128, larger than it need be."""
    every = torch.arange(256, dtype=torch.uint8).view(FLOAT8)
    rows = 9 + chance.size(9)
    weight = torch.cat([every, chance.bytes(256 * (rows - 1)).view(FLOAT8)]).reshape(rows, 256)
    scale = chance.weight(-(-rows // 16) + 1, 9).bfloat16()
    dense = by_blocks(weight, scale[: -(-rows // 16), :8], [16, 32])
    single = by_blocks(weight, scale[: -(-rows // 16), :8], [16, 32], torch.float32)
    name = f"{MLP}.gate_proj.weight"
    tensors = {name: weight, f"{name}_scale_inv": scale}
    return Case(
        "fp8-block-codes",
        BOTH,
        tensors,
        {name: dense},
        fp8_config([16, 32]),
        dense_f32={name: single},
        how="the grid in the file has a row and a column more than the weight needs, which are not used",
    )


def powers(chance):
    """Scales that are powers of two: as F8_E8M0, and as bytes."""
    for kind in ["e8m0", "u8"]:
        weight, scale = quantized(chance.weight(chance.size(40, 8), chance.size(96, 32)), [8, 32], "ue8m0")
        scale.view(torch.uint8)[0, 0] = 0
        scale.view(torch.uint8)[0, -1] = 254
        dense = by_transformers(weight, scale)
        if kind == "u8":
            scale = scale.view(torch.uint8)
            assert dense.equal(by_transformers(weight, scale))
        name = f"{ATTENTION}.o_proj.weight"
        yield Case(
            f"fp8-block-scale-{kind}",
            TRANSFORMERS,
            {name: weight, f"{name}_scale_inv": scale},
            {name: dense},
            fp8_config([8, 32], scale_fmt="ue8m0"),
        )
        # 255 is NaN as F8_E8M0, and 2^128, which float32 does not have, as a byte.
        weight, scale = chance.bytes(8, 32).view(FLOAT8), torch.tensor([[255]], dtype=torch.uint8)
        scale = scale.view(torch.float8_e8m0fnu) if kind == "e8m0" else scale
        dense = by_transformers(weight, scale)
        yield Case(
            f"fp8-block-scale-255-{kind}",
            TRANSFORMERS,
            {name: weight, f"{name}_scale_inv": scale},
            {name: dense},
            fp8_config([8, 32], scale_fmt="ue8m0"),
        )


def mxfp8(chance):
    weight, scale = quantized(chance.weight(chance.size(13), chance.size(96, 32)), [1, 32], "ue8m0")
    scale = scale.view(torch.uint8)
    name = f"{MLP}.up_proj.weight"
    config = fp8_config([1, 32], quant_method="mxfp8", scale_fmt="ue8m0")
    return Case(
        "mxfp8",
        TRANSFORMERS,
        {name: weight, f"{name}_scale_inv": scale},
        {name: by_transformers(weight, scale)},
        config,
    )


def experts(chance):
    """Experts in one tensor of three dimensions, with partial blocks."""
    name = f"{MLP}.experts.gate_up_proj"
    weight, scale = quantized(chance.weight(3, chance.size(20), chance.size(40)), [16, 32])
    return Case(
        "fp8-block-experts",
        BOTH,
        {name: weight, f"{name}_scale_inv": scale},
        {name: by_blocks(weight, scale, [16, 32])},
        fp8_config([16, 32]),
    )


def tensors(chance):
    """One scale for all: a scalar, or of shape [1]; what activations are scaled by goes away."""
    made, dense = {}, {}
    for name, shape in [("q_proj", ()), ("k_proj", (1,))]:
        weight, scale = quantized(chance.weight(chance.size(12), chance.size(20)), None)
        path = f"{ATTENTION}.{name}"
        made |= {
            f"{path}.weight": weight,
            f"{path}.weight_scale_inv": scale.reshape(shape),
            f"{path}.activation_scale": torch.tensor(0.5),
        }
        dense[f"{path}.weight"] = by_transformers(weight, scale)
    return Case("fp8-tensor", TRANSFORMERS, made, dense, fp8_config(None, activation_scheme="static"))


def mistral(chance):
    weight, scale = quantized(chance.weight(chance.size(12), chance.size(20)), None)
    path = "layers.0.attention.wq"
    made = {
        f"{path}.weight": weight,
        f"{path}.qscale_weight": scale.reshape(()),
        f"{path}.qscale_act": torch.tensor(0.5),
    }
    return Case(
        "fp8-mistral",
        TRANSFORMERS,
        made,
        {f"{path}.weight": by_transformers(weight, scale)},
        {},
        sides={
            "params.json": {
                "dim": 20,
                "n_layers": 1,
                "quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"},
            }
        },
    )


def deepseek_v4(chance):
    """Scales named `scale`, and experts of two E2M1 a byte."""
    made, dense = {}, {}
    weight, scale = quantized(chance.weight(chance.size(130), chance.size(20)), [128, 128], "ue8m0")
    path = "layers.0.attn.wq_a"
    made |= {f"{path}.weight": weight, f"{path}.scale": scale}
    dense[f"{path}.weight"] = by_blocks(weight, scale, [128, 128])
    for expert in range(2):
        path = f"layers.0.ffn.experts.{expert}.w1"
        # The same bytes called I8, or F4, whose shape in a file is that of the elements.
        packed = chance.bytes(chance.size(10), chance.size(32, 16)).view([torch.int8, torch.float4_e2m1fn_x2][expert])
        scale = torch.from_numpy(chance.integers(110, 135, packed.shape[0], packed.shape[1] // 16).astype("u1")).view(
            torch.float8_e8m0fnu
        )
        made |= {f"{path}.weight": packed, f"{path}.scale": scale}
        dense[f"{path}.weight"] = by_transformers(packed, scale)
    # Not every `scale` belongs to a quantised weight.
    plain = {"layers.0.attn.q_norm.scale": chance.weight(8)}
    config = fp8_config([128, 128], scale_fmt="ue8m0", expert_dtype="fp4") | {"model_type": "deepseek_v4"}
    return Case("fp8-deepseek-v4", BOTH, made | plain, dense | plain, config)


def fbgemm(chance):
    """One scale a row, and Llama 4's experts, which are stored with the output last."""
    rows = chance.size(14)
    made, dense = {}, {}
    for name, columns in [("gate_proj", (rows, 1)), ("up_proj", (rows,))]:
        weight = chance.weight(rows, 32)
        scale = weight.abs().amax(1, keepdim=True) / 448
        stored = (weight / scale).to(FLOAT8)
        path = f"{MLP}.{name}"
        made |= {f"{path}.weight": stored, f"{path}.weight_scale": scale.reshape(columns)}
        dense[f"{path}.weight"] = (stored.float() * scale).bfloat16()
    path = "model.layers.0.feed_forward.experts"
    weight = chance.weight(2, 16, 24)
    scale = weight.abs().amax(1, keepdim=True) / 448
    made |= {f"{path}.gate_up_proj": (weight / scale).to(FLOAT8), f"{path}.gate_up_proj_scale": scale}
    dense[f"{path}.gate_up_proj"] = (made[f"{path}.gate_up_proj"].float() * scale).bfloat16()
    weight = chance.weight(2, 12, 16)
    scale = weight.abs().amax(1, keepdim=True) / 448
    made |= {f"{path}.down_proj": (weight / scale).to(FLOAT8), f"{path}.down_proj_scale": scale.transpose(1, 2)}
    dense[f"{path}.down_proj"] = (made[f"{path}.down_proj"].float() * scale).bfloat16()
    config = llama(
        quantization_config={
            "quant_method": "fbgemm_fp8",
            "activation_scale_ub": 1200.0,
            "modules_to_not_convert": ["lm_head"],
        }
    )
    return Case(
        "fp8-fbgemm",
        TORCH,
        made,
        dense,
        config,
        how="torch: codes times scales in float32; fbgemm has no reader for the CPU",
    )


def comfy(chance):
    """Single files of ComfyUI: bare casts, the old marker, and the new one."""
    name = "model.diffusion_model.double_blocks.0.img_attn.qkv"
    weight = chance.weight(chance.size(12), chance.size(16))
    how = "torch: codes times the scale in float32, as ComfyUI's QUANTIZATION.md says"

    def scaled(dtype):
        scale = weight.abs().max() / torch.finfo(dtype).max
        stored = (weight / scale).to(dtype)
        return stored, scale, (stored.float() * scale).bfloat16()

    for kind, dtype in [("e4m3", FLOAT8), ("e5m2", torch.float8_e5m2)]:
        stored, scale, dense = scaled(dtype)
        bias = {f"{name}.bias": chance.weight(weight.shape[0]).bfloat16()}
        legacy = {
            f"{name}.weight": stored,
            f"{name}.scale_weight": scale.reshape(1 if kind == "e5m2" else ()),
            f"{name}.scale_input": torch.tensor(1.0),
            "scaled_fp8": torch.zeros(2 if kind == "e4m3" else 0, dtype=dtype),
        }
        yield Case(f"comfy-legacy-{kind}", TORCH, legacy | bias, {f"{name}.weight": dense} | bias, {}, how=how)
    stored, scale, dense = scaled(FLOAT8)
    marker = json.dumps({"format": "float8_e4m3fn"}).encode()
    layer = {f"{name}.weight": stored, f"{name}.weight_scale": scale, f"{name}.input_scale": torch.tensor(1.0)}
    current = layer | {f"{name}.comfy_quant": torch.frombuffer(bytearray(marker), dtype=torch.uint8)}
    yield Case("comfy-marker", TORCH, current, {f"{name}.weight": dense}, {}, how=how)
    metadata = {
        "_quantization_metadata": json.dumps({"format_version": "1.0", "layers": {name: {"format": "float8_e4m3fn"}}})
    }
    yield Case("comfy-metadata", TORCH, layer, {f"{name}.weight": dense}, {}, how=how, metadata=metadata)
    cast = {f"{name}.weight": weight.to(FLOAT8)}
    yield Case(
        "fp8-bare",
        TORCH,
        cast,
        {f"{name}.weight": cast[f"{name}.weight"].bfloat16()},
        {},
        how="torch: a cast, there is no scale",
    )


def models(chance):
    """Whole models, read by transformers' from_pretrained, which dequantises where there is no GPU."""
    for name, block, tied in [("blocks", [32, 32], False), ("tied", [16, 32], True), ("powers", [32, 32], False)]:
        model = tiny_llama(chance, tied)
        scale_fmt = "ue8m0" if name == "powers" else "float"
        tensors = {}
        for key, tensor in model.state_dict().items():
            tensors[key] = tensor
            if key.endswith("proj.weight"):
                tensors[key], tensors[f"{key}_scale_inv"] = quantized(tensor, block, scale_fmt)
        if tied:
            del tensors["lm_head.weight"]
        section = fp8_config(block, scale_fmt=scale_fmt)["quantization_config"]
        config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "quantization_config": section}
        yield Case(f"fp8-model-{name}", TRANSFORMERS, tensors, read_back(tensors, config), config)
    yield rows(chance)


def rows(chance):
    """A whole model of 576 and 300 rows, which transformers would read with blocks of other sizes than they have."""
    model = tiny_llama(chance, hidden_size=576, intermediate_size=300)
    tensors, dense = {}, {}
    for name, tensor in model.state_dict().items():
        tensors[name] = dense[name] = tensor
        if name.endswith("proj.weight"):
            tensors[name], tensors[f"{name}_scale_inv"] = quantized(tensor, [128, 128])
            dense[name] = by_blocks(tensors[name], tensors[f"{name}_scale_inv"], [128, 128])
    section = fp8_config([128, 128])["quantization_config"]
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "quantization_config": section}
    return Case("fp8-model-rows", BOTH, tensors, dense, config)


def nested(chance):
    """The section inside that of the text model, as in checkpoints that see as well."""
    weight, scale = quantized(chance.weight(chance.size(20), chance.size(40)), [16, 32])
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    inner = fp8_config([16, 32])
    config = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "text_config": inner}
    return Case(
        "fp8-text-config",
        BOTH,
        {name: weight, f"{name}_scale_inv": scale},
        {name: by_blocks(weight, scale, [16, 32])},
        config,
    )


if __name__ == "__main__":
    main([blocks, codes, powers, mxfp8, experts, tensors, mistral, deepseek_v4, fbgemm, comfy, nested], [models])
