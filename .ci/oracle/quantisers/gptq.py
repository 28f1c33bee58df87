"""GPTQ, packed and read by GPTQModel; AutoGPTQ's and AutoRound's spellings of the same words."""

import json
import os
import tempfile
from pathlib import Path

# GPTQModel does not start with the single worker that it gives itself on two cores.
os.environ |= {"GPTQMODEL_CPU_WORKERS": "2", "HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1"}

import torch
from gptqmodel import GPTQModel, QuantizeConfig
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.utils.model_dequant import _revert_gptq_v1_qzeros_correction, convert_gptq_file
from safetensors.torch import load_file, save_file

from quantisers.common import Case, llama, main, named, tiny_llama, versions

LIBRARY = versions("gptqmodel")
ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"


def packed(chance, rows, columns, bits, group, sym, act_order, version, bias=False):
    """One module as GPTQModel packs it: a weight that stands for random codes, zeros at both ends of their range."""
    size = columns if group == -1 else group
    groups = -(-columns // size)
    g_idx = torch.arange(columns, dtype=torch.int32) // size
    if act_order:
        g_idx = g_idx[torch.from_numpy(chance.permutation(columns))]
    scales = (chance.weight(rows, groups, spread=0.01).abs() + 1e-3).half().float()
    zeros = (
        torch.full((rows, groups), 2 ** (bits - 1))
        if sym
        else torch.from_numpy(chance.integers(0, 2**bits, rows, groups))
    )
    if not sym:
        zeros[0, 0], zeros[-1, -1] = 0, 2**bits - 1
    codes = torch.from_numpy(chance.integers(0, 2**bits, rows, columns))
    weight = (codes - zeros[:, g_idx]) * scales[:, g_idx]
    linear = torch.nn.Linear(columns, rows, bias=bias)
    linear.weight.data = weight.float()
    if bias:
        linear.bias.data = chance.weight(rows)
    module = TorchLinear(
        bits=bits, group_size=group, sym=sym, desc_act=act_order, in_features=columns, out_features=rows, bias=bias
    )
    module.pack_original(linear, scales, zeros.float(), g_idx)
    state = {
        name: getattr(module, name) for name in ["qweight", "qzeros", "scales", "g_idx"] + (["bias"] if bias else [])
    }
    if version == 1:
        state["qzeros"] = _revert_gptq_v1_qzeros_correction(state["qzeros"], bits)
    return state


def config_of(bits, group, sym, act_order, version, **more):
    return {
        "bits": bits,
        "group_size": group,
        "sym": sym,
        "desc_act": act_order,
        "lm_head": False,
        "quant_method": "gptq",
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
        "pack_dtype": "int32",
    } | more


def dense_of(tensors, config, dtype=torch.float16):
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        return convert_gptq_file(path, dtype, config, "cpu")


def case(name, chance, modules, bits, group, sym, act_order, version, f32=False, change=None, how="", **more):
    """`change` edits the tensors: before they are read, or after that, where `how` says so."""
    tensors = {}
    for path, (rows, columns) in modules.items():
        tensors |= named(
            path, packed(chance, rows, columns, bits, group, sym, act_order, version, bias=path.endswith("q_proj"))
        )
    config = config_of(bits, group, sym, act_order, version)
    if change and not how:
        change(tensors)
    dense = dense_of(tensors, config)
    # Of the rest, which is not quantised, the file's own dtype.
    single = (
        dense_of(tensors, config, torch.float32)
        | {name: tensor for name, tensor in dense.items() if name.endswith(".bias")}
        if f32
        else None
    )
    if change and how:
        change(tensors)
    return Case(
        name,
        LIBRARY,
        tensors,
        dense,
        llama(quantization_config=config, dtype="float16"),
        dense_f32=single,
        how=how,
        **more,
    )


def kinds(chance):
    for bits in [2, 3, 4, 8]:
        for version in [1, 2]:
            for sym in [True, False]:
                for act_order in [False, True]:
                    if (
                        not chance.fresh
                        and bits != 4
                        and (version, sym, act_order) not in [(1, True, False), (1, False, True), (2, False, False)]
                    ):
                        continue
                    modules = {
                        f"{ATTENTION}.q_proj": (
                            chance.size(32 if bits == 3 else 16, 32 if bits == 3 else 16),
                            chance.size(64, 32),
                        )
                    }
                    name = f"gptq-{bits}bit-v{version}-{'sym' if sym else 'asym'}{'-act' if act_order else ''}"
                    yield case(
                        name,
                        chance,
                        modules,
                        bits,
                        32,
                        sym,
                        act_order,
                        version,
                        f32=(bits, version, act_order) == (4, 1, True),
                    )


def groups(chance):
    """A last group that is short, one group for all, rows that fill no whole number of 32, a dense lm_head, shards."""
    modules = {
        f"{MLP}.down_proj": (chance.size(24, 8), chance.size(200, 8)),
        f"{MLP}.up_proj": (chance.size(8, 8), chance.size(72, 8)),
    }
    yield case("gptq-4bit-short-group", chance, modules, 4, 64, False, False, 1)
    yield case("gptq-4bit-short-group-act", chance, modules, 4, 64, False, True, 2)
    made = case("gptq-4bit-channel", chance, modules, 4, -1, False, False, 1)
    plain = {"lm_head.weight": chance.weight(6, 8).half(), "model.norm.weight": chance.weight(8).half()}
    made.tensors |= plain
    made.dense |= plain
    made.second_shard = [
        name for name in made.tensors if name.endswith(("down_proj.scales", "up_proj.qweight", "qzeros"))
    ]
    yield made
    yield case(
        "gptq-8bit-channel",
        chance,
        {f"{MLP}.gate_proj": (chance.size(12, 4), chance.size(36, 4))},
        8,
        -1,
        True,
        False,
        2,
    )


def scales(chance):
    """Scales that are subnormal in float16, and scales of other dtypes."""
    modules = {f"{MLP}.gate_proj": (chance.size(16, 8), 64)}

    def subnormal(tensors):
        tensors[f"{MLP}.gate_proj.scales"][0, :8] = 3 * 2.0**-24
        tensors[f"{MLP}.gate_proj.scales"][1, :4] = 65504 / 16

    yield case("gptq-4bit-subnormal", chance, modules, 4, 32, False, False, 1, change=subnormal, f32=True)

    for name, dtype in [("bf16", torch.bfloat16), ("f32", torch.float32)]:
        state = named(f"{MLP}.gate_proj", packed(chance, 16, 64, 4, 32, False, True, 1))
        state[f"{MLP}.gate_proj.scales"] = state[f"{MLP}.gate_proj.scales"].to(dtype)
        config = config_of(4, 32, False, True, 1)
        yield Case(
            f"gptq-4bit-scales-{name}",
            LIBRARY,
            state,
            dense_of(state, config, torch.bfloat16),
            llama(quantization_config=config),
            dense_f32=dense_of(state, config, torch.float32),
        )


def older(chance):
    """Files as other writers leave them: tensors missing, the config in another place or short of a field."""
    modules = {f"{MLP}.gate_proj": (chance.size(16, 8), chance.size(64, 32))}

    def without(*names):
        return lambda tensors: [tensors.pop(f"{MLP}.gate_proj.{name}") for name in names]

    def zeroed(tensors):
        tensors[f"{MLP}.gate_proj.g_idx"].zero_()

    def emptied(tensors):
        tensors[f"{MLP}.gate_proj.qzeros"] = torch.zeros(0, dtype=torch.int32)

    yield case(
        "gptq-no-g-idx",
        chance,
        modules,
        4,
        32,
        False,
        False,
        1,
        change=without("g_idx"),
        how="gptqmodel, with the g_idx that was then taken out",
    )
    yield case(
        "gptq-zero-g-idx",
        chance,
        modules,
        4,
        32,
        False,
        False,
        1,
        change=zeroed,
        how="gptqmodel, with the g_idx that was then set to zeros",
    )
    yield case(
        "gptq-no-qzeros",
        chance,
        modules,
        4,
        32,
        True,
        False,
        1,
        change=without("qzeros", "g_idx"),
        how="gptqmodel, with the zeros of 8 that were then taken out",
    )
    yield case(
        "gptq-empty-qzeros",
        chance,
        modules,
        4,
        32,
        True,
        False,
        1,
        change=emptied,
        how="gptqmodel, with the zeros of 8 that were then taken out",
    )
    old = {
        "bits": 4,
        "group_size": 32,
        "damp_percent": 0.01,
        "desc_act": False,
        "static_groups": False,
        "sym": False,
        "true_sequential": True,
        "model_name_or_path": None,
        "model_file_base_name": None,
    }
    made = case("gptq-quantize-config", chance, modules, 4, 32, False, False, 1, sides={"quantize_config.json": old})
    del made.config["quantization_config"]
    yield made
    made = case("gptq-sym-no-format", chance, modules, 4, 32, True, False, 2)
    for field in ["checkpoint_format", "pack_dtype"]:
        del made.config["quantization_config"][field]
    made.how = "gptqmodel with checkpoint_format gptq_v2, which was then taken out: the zeros are 8 only so, and the config says sym"
    yield made


def dynamic(chance):
    """Bits that differ by module, and a module that is left dense."""
    tensors = named(f"{MLP}.gate_proj", packed(chance, 32, 64, 4, 32, True, False, 1)) | named(
        f"{MLP}.down_proj", packed(chance, 32, 64, 8, 64, True, False, 1)
    )
    config = config_of(4, 32, True, False, 1)
    dense = dense_of({name: tensor for name, tensor in tensors.items() if "gate" in name}, config)
    dense |= dense_of(
        {name: tensor for name, tensor in tensors.items() if "down" in name}, config | {"bits": 8, "group_size": 64}
    )
    plain = {f"{MLP}.up_proj.weight": chance.weight(6, 8).half()}
    config["dynamic"] = {"+:.*down_proj.*": {"bits": 8, "group_size": 64}, "-:.*up_proj.*": {}}
    return Case(
        "gptq-dynamic", LIBRARY, tensors | plain, dense | plain, llama(quantization_config=config, dtype="float16")
    )


def models(chance):
    """Whole models, quantised by GPTQ itself with random text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    for bits, version, sym, act_order, sizes in [
        (4, "gptq", False, True, {}),
        (4, "gptq", True, False, {}),
        (4, "gptq_v2", False, False, {"tied": True}),
        (8, "gptq", True, False, {}),
        (3, "gptq", True, True, {}),
        (2, "gptq_v2", False, True, {}),
        # The last group of 64 is half of one.
        (4, "gptq", True, True, {"intermediate_size": 288}),
        (4, "gptq_v2", True, False, {"intermediate_size": 288}),
    ]:
        group = 64 if "intermediate_size" in sizes else 32
        with tempfile.TemporaryDirectory() as plain, tempfile.TemporaryDirectory() as place:
            tiny_llama(chance, **sizes).save_pretrained(plain)
            PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<unk>").save_pretrained(plain)
            model = GPTQModel.load(
                plain,
                QuantizeConfig(bits=bits, group_size=group, desc_act=act_order, sym=sym, format=version),
                device="cpu",
            )
            model.quantize(
                [{"input_ids": chance.integers(0, 48, 64).tolist(), "attention_mask": [1] * 64} for _ in range(16)],
                batch_size=1,
            )
            model.save(place)
            tensors, config = (
                load_file(Path(place) / "model.safetensors"),
                json.loads((Path(place) / "config.json").read_text()),
            )
            side = json.loads((Path(place) / "quantize_config.json").read_text())
        quantised = {
            name: tensor
            for name, tensor in tensors.items()
            if name.endswith((".qweight", ".qzeros", ".scales", ".g_idx"))
        }
        dense = {name: tensor for name, tensor in tensors.items() if name not in quantised} | dense_of(
            quantised, config["quantization_config"]
        )
        name = f"gptq-model-{bits}bit-g{group}-{version}-{'sym' if sym else 'asym'}{'-act' if act_order else ''}"
        yield Case(name, LIBRARY, tensors, dense, config, sides={"quantize_config.json": side})


if __name__ == "__main__":
    main([kinds, groups, scales, older, dynamic], [models])
