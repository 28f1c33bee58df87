"""AWQ: packed by AutoAWQ's own files, which are loaded alone, since the package needs long gone versions of others."""

import importlib.metadata
import importlib.util
import sys
import types

import torch

from quantisers.common import Case, llama, main, named, versions

LIBRARY = versions("autoawq")
ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"
UNPACKED = "the codes, scales and zeros that autoawq packed: (code - zero) * scale in float32, rounded once; it has no reader for the CPU"


def stub(name, **members):
    sys.modules[name] = types.ModuleType(name)
    for key, value in members.items():
        setattr(sys.modules[name], key, value)


def load(path):
    """One file of AutoAWQ, without its package."""
    name = "awq." + path.removesuffix(".py").replace("/", ".")
    place = next(file.locate() for file in importlib.metadata.files("autoawq") if str(file) == f"awq/{path}")
    spec = importlib.util.spec_from_file_location(name, place)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


for name in ["awq", "awq.utils", "awq.modules", "awq.modules.linear"]:
    stub(name)
stub("awq.utils.module", try_import=lambda name: (None, "not installed"))
stub("awq.utils.utils", get_best_device=lambda: "cpu")
dequantize_gemm = load("utils/packing_utils.py").dequantize_gemm
WQLinear_GEMM = load("modules/linear/gemm.py").WQLinear_GEMM
WQLinear_GEMV = load("modules/linear/gemv.py").WQLinear_GEMV
WQLinear_GEMVFast = load("modules/linear/gemv_fast.py").WQLinear_GEMVFast


def drawn(chance, rows, columns, group):
    """A linear layer that stands for random codes; its scales and zeros, with zeros at both ends of their range."""
    size = columns if group == -1 else group
    groups = columns // size
    scales = (chance.weight(rows, groups, spread=0.01).abs() + 1e-3).half()
    zeros = torch.from_numpy(chance.integers(0, 16, rows, groups)).float()
    zeros[0, 0], zeros[-1, -1] = 0, 15
    codes = torch.from_numpy(chance.integers(0, 16, rows, columns))
    of_column = torch.arange(columns) // size
    linear = torch.nn.Linear(columns, rows, bias=False)
    linear.weight.data = (codes - zeros[:, of_column]) * scales.float()[:, of_column]
    return linear, scales, zeros, size


def config_of(version, group, **more):
    section = {
        "bits": 4,
        "group_size": group,
        "quant_method": "awq",
        "version": version,
        "zero_point": True,
        "backend": "autoawq",
        "modules_to_not_convert": None,
    }
    return llama(quantization_config=section | more, dtype="float16")


def gemm_module(chance, rows, columns, group, bias=False):
    linear, scales, zeros, size = drawn(chance, rows, columns, group)
    if bias:
        linear.bias = torch.nn.Parameter(chance.weight(rows))
    module = WQLinear_GEMM.from_linear(
        linear, 4, size, scales=scales.float().t().contiguous(), zeros=zeros.t().contiguous()
    )
    state = {name: getattr(module, name) for name in ["qweight", "qzeros", "scales"]}
    dense = dequantize_gemm(state["qweight"], state["qzeros"], state["scales"], 4, size).t()
    single = dequantize_gemm(state["qweight"], state["qzeros"], state["scales"].float(), 4, size).t()
    assert dense.dtype == torch.float16 and dense.equal(linear.weight.half()), "not the codes that were packed"
    return state | ({"bias": module.bias} if bias else {}), dense, single


def gemm(chance):
    # AutoAWQ packs nothing but multiples of 32 rows.
    for name, group in [("g32", 32), ("g128", 128), ("channel", -1)]:
        made, dense, single = {}, {}, {}
        shapes = {f"{ATTENTION}.q_proj": (chance.size(32, 32), chance.size(max(64, group), max(64, group)))}
        if group == 32:
            shapes[f"{MLP}.up_proj"] = (chance.size(64, 32), chance.size(32, 32))
        for path, (rows, columns) in shapes.items():
            state, whole, wide = gemm_module(chance, rows, columns, group, bias="q_proj" in path)
            made |= named(path, state)
            plain = {f"{path}.bias": state["bias"]} if "bias" in state else {}
            dense |= {f"{path}.weight": whole} | plain
            single |= {f"{path}.weight": wide} | plain
        plain = {"lm_head.weight": chance.weight(4, 8).half()}
        case = Case(
            f"awq-gemm-{name}",
            LIBRARY,
            made | plain,
            dense | plain,
            config_of("gemm", group),
            dense_f32=single | plain if group == 32 else None,
        )
        if group == 32:
            case.second_shard = [f"{ATTENTION}.q_proj.scales", f"{MLP}.up_proj.qweight", f"{MLP}.up_proj.qzeros"]
        yield case


def older(chance):
    """The config in a file of its own with llm-awq's names; no zeros, which are then 8."""
    path = f"{MLP}.gate_proj"
    state, dense, _ = gemm_module(chance, 32, 64, 32)
    config = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    yield Case(
        "awq-quant-config",
        LIBRARY,
        named(path, state),
        {f"{path}.weight": dense},
        llama(dtype="float16"),
        sides={"quant_config.json": config},
    )
    state, _, _ = gemm_module(chance, 32, 64, 32)
    eight = torch.full_like(state["qzeros"], -0x77777778)
    dense = dequantize_gemm(state["qweight"], eight, state["scales"], 4, 32).t()
    del state["qzeros"]
    yield Case(
        "awq-no-qzeros",
        LIBRARY,
        named(path, state),
        {f"{path}.weight": dense},
        config_of("gemm", 32, zero_point=False),
        how="autoawq, with zeros of 8",
    )


def gemv(chance):
    """Rows are not transposed; the scales' columns are padded to a width that depends on the group."""
    for group in [32, 64, 128]:
        rows, columns = chance.size(16, 8), chance.size(2 * group, group)
        linear, scales, zeros, size = drawn(chance, rows, columns, group)
        module = WQLinear_GEMV.from_linear(linear, 4, size, scales=scales.float(), zeros=zeros)
        path = f"{MLP}.gate_proj"
        state = {name: getattr(module, name) for name in ["qweight", "qzeros", "scales"]}
        dense = {f"{path}.weight": linear.weight.half()}
        yield Case(f"awq-gemv-g{group}", LIBRARY, named(path, state), dense, config_of("gemv", group), how=UNPACKED)


def gemv_fast(chance):
    for group in [64, 128]:
        rows, columns = chance.size(16, 8), chance.size(2 * group, group)
        linear, scales, zeros, size = drawn(chance, rows, columns, group)
        module = WQLinear_GEMVFast.from_linear(linear, 4, size, scales=scales.float(), zeros=zeros)
        path = f"{MLP}.gate_proj"
        state = {name: getattr(module, name) for name in ["qweight", "qzeros", "scales"]}
        # The zeros of the file are -scale * zero, rounded to float16, so that a weight is code * scale + zero.
        of_column = torch.arange(columns) // size
        codes = torch.round(linear.weight / scales.float()[:, of_column] + zeros[:, of_column])
        dense = codes * state["scales"].float().t()[:, of_column] + state["qzeros"].float().t()[:, of_column]
        how = "the codes that autoawq packed, and its scales and zeros: code * scale + zero in float32, rounded once; it has no reader for the CPU"
        yield Case(
            f"awq-gemv-fast-g{group}",
            LIBRARY,
            named(path, state),
            {f"{path}.weight": dense.half()},
            config_of("gemv_fast", group),
            how=how,
        )


def models(chance):
    """Whole models, each layer packed by AutoAWQ."""
    for name, group, tied, intermediate in [("g32", 32, False, 576), ("g64", 64, True, 192)]:
        hidden, vocabulary, count = 64, 48, int(chance.integers(1, 4))
        tensors = {
            "model.embed_tokens.weight": chance.weight(vocabulary, hidden, spread=1).half(),
            "model.norm.weight": torch.ones(hidden).half(),
        }
        if not tied:
            tensors["lm_head.weight"] = chance.weight(vocabulary, hidden).half()
        dense = {}
        for number in range(count):
            layer = f"model.layers.{number}"
            for norm in ["input_layernorm", "post_attention_layernorm"]:
                tensors[f"{layer}.{norm}.weight"] = torch.ones(hidden).half()
            for path, rows, columns in [
                ("self_attn.q_proj", hidden, hidden),
                ("self_attn.k_proj", hidden // 2, hidden),
                ("self_attn.v_proj", hidden // 2, hidden),
                ("self_attn.o_proj", hidden, hidden),
                ("mlp.gate_proj", intermediate, hidden),
                ("mlp.up_proj", intermediate, hidden),
                ("mlp.down_proj", hidden, intermediate),
            ]:
                state, dense[f"{layer}.{path}.weight"], _ = gemm_module(chance, rows, columns, group)
                tensors |= named(f"{layer}.{path}", state)
        plain = {key: tensor for key, tensor in tensors.items() if key.endswith(".weight")}
        config = config_of("gemm", group) | {
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": count,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": vocabulary,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": tied,
        }
        yield Case(f"awq-model-{name}", LIBRARY, tensors, dense | plain, config)


if __name__ == "__main__":
    main([gemm, older, gemv, gemv_fast], [models])
