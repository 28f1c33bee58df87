"""compressed-tensors before mid-2026: whole fields in every word, and groups in the order of activations."""

import torch
from compressed_tensors.compressors.quantized_compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams

from quantisers.common import Case, llama, main, named, versions

LIBRARY = versions("compressed-tensors")
ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"


def packed(weight, args, g_idx=None):
    if args.strategy == "channel":
        groups = weight[:, None, :]
    else:
        order = torch.arange(weight.shape[1]) if g_idx is None else torch.argsort(g_idx, stable=True)
        groups = weight[:, order].unflatten(1, (-1, args.group_size))
    scale, zero = calculate_qparams(groups.amin(2), groups.amax(2), args)
    scale, zero = scale.bfloat16(), zero.to(torch.int8)
    compressor = PackedQuantizationCompressor()
    state = compressor.compress_weight(weight, scale, args, zero, g_idx) | {"weight_scale": scale}
    if g_idx is not None:
        state["weight_g_idx"] = g_idx
    return state, compressor.decompress_weight(state, args)


def case(name, modules, args, orders=None):
    tensors, dense = {}, {}
    for path, weight in modules.items():
        state, whole = packed(weight, args, (orders or {}).get(path))
        tensors |= named(path, state)
        dense[f"{path}.weight"] = whole
    group = QuantizationScheme(targets=["Linear"], weights=args).model_dump(mode="json")
    section = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }
    return Case(name, LIBRARY, tensors, dense, llama(quantization_config=section))


def words(chance):
    for bits, symmetric in [(3, True), (3, False), (5, False), (6, False), (7, False)]:
        args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=32)
        # So wide that the number of words is another one in the newer packing.
        modules = {f"{ATTENTION}.q_proj": chance.weight(chance.size(11), 32 + chance.size(64, 32))}
        yield case(f"ct-old-{bits}bit-{'sym' if symmetric else 'asym'}", modules, args)
    args = QuantizationArgs(num_bits=3, symmetric=False, strategy="channel")
    yield case(
        "ct-old-3bit-channel", {f"{ATTENTION}.k_proj": chance.weight(chance.size(9), 160 + chance.size(7))}, args
    )


def orders(chance):
    for symmetric in [True, False]:
        args = QuantizationArgs(num_bits=4, symmetric=symmetric, strategy="group", group_size=32, actorder="group")
        columns = chance.size(96, 32)
        path = f"{MLP}.down_proj"
        g_idx = (torch.arange(columns, dtype=torch.int32) // 32)[torch.from_numpy(chance.permutation(columns))]
        yield case(
            f"ct-old-act-{'sym' if symmetric else 'asym'}",
            {path: chance.weight(chance.size(11), columns)},
            args,
            {path: g_idx},
        )
    unset = torch.full((64,), -1, dtype=torch.int32)
    args = QuantizationArgs(num_bits=4, symmetric=True, strategy="group", group_size=32, actorder="group")
    yield case("ct-old-act-unset", {f"{MLP}.up_proj": chance.weight(9, 64)}, args, {f"{MLP}.up_proj": unset})


if __name__ == "__main__":
    main([words, orders])
