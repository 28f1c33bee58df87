"""AutoRound: its packings of integers, and what it hands on to compressed-tensors."""

import json
import os
import tempfile
from pathlib import Path
from unittest import mock

os.environ |= {"TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1"}

import torch
from auto_round import AutoRound
from auto_round.export.export_to_autoround.export import dynamic_import_quant_linear_for_packing
from auto_round.export.export_to_awq.utils import dequantize_gemm
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file

from quantisers.common import Case, llama, main, named, versions

LIBRARY = versions("auto-round")
ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"


def section(packing, bits, group, sym, **more):
    return {
        "autoround_version": versions("auto-round").split()[-1],
        "bits": bits,
        "block_name_to_quantize": "model.layers",
        "data_type": "int",
        "group_size": group,
        "packing_format": packing,
        "quant_method": "auto-round",
        "sym": sym,
    } | more


def layer_of(packing, bits, group, sym, rows, columns, bias=False):
    kind = dynamic_import_quant_linear_for_packing(packing, bits, group, sym)
    if "awq" in packing:
        return kind(bits, group, columns, rows, bias, "cpu")
    return kind(bits, group, columns, rows, bias=bias, weight_dtype=torch.float16)


def dense_of(layer, packing, bits, group):
    """The weight that AutoRound's own layer multiplies by."""
    if "awq" in packing:
        return dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, bits, group).t()
    if hasattr(layer, "g_idx"):
        # With it the layer is wrong where there are more rows than columns; it says no more than k // group.
        assert layer.g_idx.equal(torch.arange(layer.infeatures, dtype=torch.int32) // group)
        del layer.g_idx
    seen = []
    multiply = torch.matmul
    with mock.patch("torch.matmul", lambda x, weight: seen.append(weight) or multiply(x, weight)):
        layer(torch.zeros(1, layer.infeatures, dtype=torch.float16))
    return seen[0].t()


def packed(chance, packing, bits, group, sym, rows, columns):
    groups = -(-columns // group)
    scale = (chance.weight(rows, groups, spread=0.01).abs() + 1e-3).half().float()
    if sym:
        scale[:, ::2] *= -1
    zeros = (
        torch.full((rows, groups), 2 ** (bits - 1))
        if sym
        else torch.from_numpy(chance.integers(0, 2**bits, rows, groups))
    )
    if not sym:
        zeros[0, 0], zeros[-1, -1] = 1, 2**bits - 1
    of_column = torch.arange(columns) // group
    linear = torch.nn.Linear(columns, rows, bias=False)
    codes = torch.from_numpy(chance.integers(0, 2**bits, rows, columns))
    linear.weight.data = (codes - zeros[:, of_column]) * scale[:, of_column]
    if "awq" in packing:
        kind = dynamic_import_quant_linear_for_packing(packing, bits, group, sym)
        layer = kind.from_linear(
            linear, bits, group, scales=scale.t().contiguous(), zeros=zeros.float().t().contiguous(), device="cpu"
        )
    else:
        layer = layer_of(packing, bits, group, sym, rows, columns)
        layer.device = "cpu"
        layer.pack(linear, scale, zeros.float(), None, device="cpu")
    state = {
        name: tensor
        for name in ["qweight", "qzeros", "scales", "g_idx"]
        if (tensor := getattr(layer, name, None)) is not None
    }
    return state, dense_of(layer, packing, bits, group)


def packings(chance):
    kinds = [
        ("auto_round", 4, False),
        ("auto_round", 3, False),
        ("auto_round:gptqmodel", 4, False),
        ("auto_round:auto_gptq", 4, True),
        ("auto_round:auto_gptq", 2, False),
        ("auto_round:auto_awq", 4, False),
        ("auto_round", 5, False),
        ("auto_round", 6, False),
        ("auto_round", 7, True),
    ]
    for packing, bits, sym in kinds:
        path = f"{ATTENTION}.q_proj"
        state, dense = packed(chance, packing, bits, 32, sym, chance.size(32, 32), chance.size(64, 32))
        name = f"autoround-{packing.split(':')[-1].replace('_', '-')}-{bits}bit"
        yield Case(
            name,
            LIBRARY,
            named(path, state),
            {f"{path}.weight": dense},
            llama(quantization_config=section(packing, bits, 32, sym), dtype="float16"),
        )


def older(chance):
    """A symmetric file of the exporter's old default, whose zeros show that they are stored less one; bits by layer."""
    path = f"{ATTENTION}.q_proj"
    state, dense = packed(chance, "auto_round:auto_gptq", 4, 32, True, 32, 64)
    config = llama(
        quantization_config=section("auto_round:exllamav2", 4, 32, True) | {"quant_method": "intel/auto-round"},
        dtype="float16",
    )
    yield Case("autoround-exllamav2", LIBRARY, named(path, state), {f"{path}.weight": dense}, config)
    other = f"{MLP}.down_proj"
    eight, wide = packed(chance, "auto_round:auto_gptq", 8, 32, True, 32, 32)
    more = {"extra_config": {other: {"bits": 8, "group_size": 32, "sym": True}}}
    config = llama(quantization_config=section("auto_round:auto_gptq", 4, 32, True, **more), dtype="float16")
    yield Case(
        "autoround-extra-config",
        LIBRARY,
        named(path, state) | named(other, eight),
        {f"{path}.weight": dense, f"{other}.weight": wide},
        config,
    )


def tiny(chance):
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from tokenizers import Tokenizer, models

    torch.manual_seed(int(chance.integers(0, 2**31)))
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=48,
        max_position_embeddings=64,
    )
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    return LlamaForCausalLM(config).bfloat16(), PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<unk>"
    )


def exported(chance, format, scheme, sym=None):
    """What AutoRound saves of a tiny Llama, rounding to nearest: tensors, config.json."""
    model, tokenizer = tiny(chance)
    options = {"group_size": 32, "sym": sym} if sym is not None else {}
    with tempfile.TemporaryDirectory() as place:
        AutoRound(
            model,
            tokenizer,
            scheme=scheme,
            iters=0,
            nsamples=1,
            seqlen=8,
            device_map="cpu",
            disable_opt_rtn=True,
            **options,
        ).quantize_and_save(place, format=format)
        file = next(Path(place).rglob("config.json"))
        return load_file(file.parent / "model.safetensors"), json.loads(file.read_text())


def float_scheme(bits):
    return QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(
            num_bits=bits, type="float", symmetric=True, strategy="group", group_size=32, scale_dtype=torch.uint8
        ),
    )


def powers_of_two(chance):
    """MXFP4 and MXFP8, laid out as compressed-tensors', under AutoRound's own config."""
    for bits, weight, format in [(4, "weight_packed", "mxfp4-pack-quantized"), (8, "weight", "mxfp8-quantized")]:
        tensors, config = exported(chance, "auto_round", f"MXFP{bits}")
        if not chance.fresh:
            tensors = {name: tensor for name, tensor in tensors.items() if "k_proj" in name or "layers.1.input" in name}
        dense = {
            name: tensor
            for name, tensor in tensors.items()
            if not (
                name.endswith((".weight_packed", ".weight_scale"))
                or f"{name.removesuffix('.weight')}.weight_scale" in tensors
            )
        }
        for name in [name for name in tensors if name.endswith("weight_scale")]:
            path = name.removesuffix(".weight_scale")
            state = {"weight_scale": tensors[name], weight: tensors[f"{path}.{weight}"]}
            dense[f"{path}.weight"] = BaseCompressor.get_value_from_registry(format).decompress(
                state, float_scheme(bits)
            )["weight"]
        yield Case(f"autoround-mxfp{bits}", versions("auto-round", "compressed-tensors"), tensors, dense, config)


def models(chance):
    """Whole models, as AutoRound exports them, read by the layers that it runs them with."""
    for format, bits, sym in [
        ("auto_round", 4, True),
        ("auto_round", 4, False),
        ("auto_round", 3, False),
        ("auto_round", 2, True),
        ("auto_round", 8, True),
        ("auto_round:gptqmodel", 4, False),
        ("auto_gptq", 4, False),
        ("auto_awq", 4, False),
    ]:
        tensors, config = exported(chance, format, f"W{bits}A16", sym)
        packing = (
            config["quantization_config"].get("packing_format")
            or {"auto_gptq": "auto_round:auto_gptq", "auto_awq": "auto_round:auto_awq"}[format]
        )
        dense = {
            name: tensor
            for name, tensor in tensors.items()
            if not name.endswith((".qweight", ".qzeros", ".scales", ".g_idx"))
        }
        for name in [name for name in tensors if name.endswith(".qweight")]:
            path = name.removesuffix(".qweight")
            rows, columns = tensors[f"{path}.scales"].shape[1], tensors[f"{path}.scales"].shape[0] * 32
            layer = layer_of(packing, bits, 32, sym, rows, columns)
            for part in ["qweight", "qzeros", "scales"]:
                setattr(layer, part, tensors[f"{path}.{part}"])
            dense[f"{path}.weight"] = dense_of(layer, packing, bits, 32)
        yield Case(
            f"autoround-model-{format.replace(':', '-')}-{bits}bit-{'sym' if sym else 'asym'}",
            LIBRARY,
            tensors,
            dense,
            config,
        )


if __name__ == "__main__":
    main([packings, older, powers_of_two], [models])
