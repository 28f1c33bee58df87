"""transformers' own formats: MXFP4 of gpt-oss, bitnet."""

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import torch
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.integrations.bitnet import pack_weights, unpack_weights
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from quantisers.common import Case, llama, main, read_back, versions

LIBRARY = versions("transformers")
ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"


def gpt_oss(**more):
    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "dtype": "bfloat16",
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": skipped},
    } | more


def mxfp4(chance):
    """Experts, whose dense parameter has its last two dimensions the other way round."""
    experts, hidden, intermediate = 2, chance.size(32, 32), chance.size(32, 32)
    tensors, dense, single = {}, {}, {}
    path = f"{MLP}.experts"
    for name, rows, columns in [
        ("gate_up_proj", 2 * intermediate // 4, hidden),
        ("down_proj", hidden // 2, intermediate),
    ]:
        blocks = chance.bytes(experts, rows, columns // 32, 16)
        scales = torch.from_numpy(chance.integers(110, 130, experts, rows, columns // 32).astype("u1"))
        tensors |= {f"{path}.{name}_blocks": blocks, f"{path}.{name}_scales": scales}
        dense[f"{path}.{name}"] = convert_moe_packed_tensors(blocks, scales)
        single[f"{path}.{name}"] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        bias = {f"{path}.{name}_bias": chance.weight(experts, rows).bfloat16()}
        tensors, dense, single = tensors | bias, dense | bias, single | bias
    plain = {
        f"{MLP}.router.weight": chance.weight(experts, 8).bfloat16(),
        f"{ATTENTION}.sinks": chance.weight(4).bfloat16(),
    }
    made = Case("mxfp4-gpt-oss", LIBRARY, tensors | plain, dense | plain, gpt_oss(), dense_f32=single | plain)
    made.second_shard = [name for name in made.tensors if name.endswith("_scales")]
    return made


def mxfp4_scales(chance):
    """Every scale, 0 (2^-127) to 254, with every code; 255 in a case of its own, since it is NaN to some."""
    path = f"{MLP}.experts.gate_up_proj"
    codes = torch.tensor([0x10 * (2 * i + 1) + 2 * i for i in range(8)] * 2, dtype=torch.uint8)
    every = torch.cat([torch.arange(255), torch.tensor([127])]).to(torch.uint8).reshape(1, 128, 2)
    for name, scales in [
        ("mxfp4-gpt-oss-scales", every),
        ("mxfp4-gpt-oss-scale-255", torch.full((1, 1, 2), 255, dtype=torch.uint8)),
    ]:
        blocks = codes.repeat(*scales.shape, 1)
        dense = {path: convert_moe_packed_tensors(blocks, scales)}
        yield Case(
            name,
            LIBRARY,
            {f"{path}_blocks": blocks, f"{path}_scales": scales},
            dense,
            gpt_oss(),
            dense_f32={path: convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)}
            if scales is not every
            else None,
        )


def original(chance):
    """The names of OpenAI's own files, whose weights are used as they are stored."""
    path = "block.0.mlp.mlp1_weight"
    blocks = chance.bytes(2, chance.size(6), 1, 16)
    scales = torch.from_numpy(chance.integers(110, 130, *blocks.shape[:3]).astype("u1"))
    dense = convert_moe_packed_tensors(blocks, scales).transpose(1, 2)
    config = {"num_hidden_layers": 1, "num_experts": 2, "experts_per_token": 1, "vocab_size": 8, "hidden_size": 32}
    return Case(
        "mxfp4-openai",
        LIBRARY,
        {f"{path}.blocks": blocks, f"{path}.scales": scales},
        {path: dense},
        config,
        how="transformers, transposed back: OpenAI's code multiplies by the stored orientation",
    )


def bitnet(chance):
    for kind in ["bitlinear", "autobitlinear"]:
        tensors, dense, single = {}, {}, {}
        for name, rows in [("q_proj", chance.size(16, 4)), ("o_proj", chance.size(24, 4))]:
            codes = torch.from_numpy(chance.integers(-1, 2, rows, chance.size(20)).astype("f4"))
            packed = pack_weights(codes.clone())
            scale = torch.tensor([1.7 if kind == "bitlinear" else 0.37]).bfloat16() * (2 if name == "o_proj" else 1)
            path = f"{ATTENTION}.{name}"
            tensors |= {f"{path}.weight": packed, f"{path}.weight_scale": scale}
            ternary = unpack_weights(packed, dtype=torch.float32)
            assert ternary.equal(codes)
            wide = ternary / scale.float() if kind == "bitlinear" else ternary * scale.float()
            dense[f"{path}.weight"], single[f"{path}.weight"] = wide.bfloat16(), wide
        norm = {f"{ATTENTION}.q_proj.rms_norm.weight": chance.weight(8).bfloat16()} if kind == "autobitlinear" else {}
        section = {
            "quant_method": "bitnet",
            "linear_class": kind,
            "quantization_mode": "offline",
            "modules_to_not_convert": None,
            "use_rms_norm": bool(norm),
        }
        yield Case(
            f"bitnet-{kind}",
            LIBRARY,
            tensors | norm,
            dense | norm,
            llama(quantization_config=section),
            dense_f32=single | norm,
            how="transformers' unpack_weights, and the scale as its layer applies it to what the weight gives, in float32, rounded once",
        )


def models(chance):
    """A whole gpt-oss, read by transformers' from_pretrained, which dequantises where there is no GPU."""
    torch.manual_seed(int(chance.integers(0, 2**31)))
    size = GptOssConfig(
        hidden_size=64,
        intermediate_size=32 * int(chance.integers(1, 4)),
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        vocab_size=48,
        num_local_experts=3,
        num_experts_per_tok=1,
        max_position_embeddings=64,
    )
    tensors = {}
    for name, tensor in GptOssForCausalLM(size).bfloat16().state_dict().items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name] = tensor
            continue
        experts, columns, rows = tensor.shape
        tensors[f"{name}_blocks"] = chance.bytes(experts, rows, columns // 32, 16)
        tensors[f"{name}_scales"] = torch.from_numpy(
            chance.integers(110, 130, experts, rows, columns // 32).astype("u1")
        )
    config = size.to_dict() | gpt_oss()
    return Case("mxfp4-model-gpt-oss", LIBRARY, tensors, read_back(tensors, config), config)


if __name__ == "__main__":
    main([mxfp4, mxfp4_scales, original, bitnet], [models])
