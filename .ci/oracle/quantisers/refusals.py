"""Checkpoints that cannot be read for certain, and what an error about each has to mention. Needs nothing but Python.

python -m quantisers.refusals OUT
"""

import json
import struct
import sys
from pathlib import Path

BITS = {"U8": 8, "I8": 8, "F8_E4M3": 8, "F16": 16, "BF16": 16, "I16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64}
Q = "model.layers.0.self_attn.q_proj"
MLP = "model.layers.0.mlp"


def zeros(dtype, *shape):
    size = BITS[dtype] // 8
    for dim in shape:
        size *= dim
    return dtype, list(shape), bytes(size)


def integers(*values):
    return "I32", [len(values)], struct.pack(f"<{len(values)}i", *values)


def shape(*dims):
    return "I64", [len(dims)], struct.pack(f"<{len(dims)}q", *dims)


def text(content):
    return "U8", [len(content)], content.encode()


def safetensors(tensors, metadata=None):
    header, body = {"__metadata__": metadata or {"format": "pt"}}, b""
    # The widest first, so that each is aligned.
    for name, (dtype, dims, data) in sorted(tensors.items(), key=lambda item: (-BITS[item[1][0]], item[0])):
        header[name] = {"dtype": dtype, "shape": dims, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + body


def named(module, **tensors):
    return {f"{module}.{name}": tensor for name, tensor in tensors.items()}


def changed(base, **tensors):
    """The same with tensors of `Q` replaced, or taken out where None is given."""
    made = base | named(Q, **tensors)
    return {name: tensor for name, tensor in made.items() if tensor is not None}


def section(method, **fields):
    return {"quantization_config": {"quant_method": method} | fields}


# 64 inputs, 8 outputs, 4 bits, groups of 32.
GPTQ = named(
    Q,
    qweight=zeros("I32", 8, 8),
    qzeros=zeros("I32", 2, 1),
    scales=zeros("F16", 2, 8),
    g_idx=integers(*[0] * 32, *[1] * 32),
)


def gptq():
    def config(**more):
        return section(
            "gptq",
            **({"bits": 4, "group_size": 32, "sym": False, "desc_act": False, "checkpoint_format": "gptq"} | more),
        )

    yield "gptq-bits", GPTQ, config(bits=8), [Q, "bits"]
    yield "gptq-group-size", GPTQ, config(group_size=64), [Q, "group_size"]
    yield "gptq-no-scales", changed(GPTQ, scales=None), config(), [Q, "scales"]
    yield "gptq-scales-shape", changed(GPTQ, scales=zeros("F16", 2, 9)), config(), [f"{Q}.scales"]
    yield "gptq-scales-dtype", changed(GPTQ, scales=zeros("I32", 2, 8)), config(), [f"{Q}.scales"]
    yield "gptq-qzeros-shape", changed(GPTQ, qzeros=zeros("I32", 2, 8)), config(), [Q, "zero"]
    yield "gptq-g-idx-high", changed(GPTQ, g_idx=integers(*[0] * 32, *[2] * 32)), config(), [f"{Q}.g_idx"]
    yield "gptq-g-idx-negative", changed(GPTQ, g_idx=integers(*[0] * 32, *[-1] * 32)), config(), [f"{Q}.g_idx"]
    yield "gptq-g-idx-length", changed(GPTQ, g_idx=integers(*[0] * 32)), config(), [Q]
    yield "gptq-marlin", GPTQ, config(checkpoint_format="marlin"), [Q, "marlin"]
    yield "gptq-is-marlin", GPTQ, config(checkpoint_format=None, is_marlin_format=True), [Q, "marlin"]
    yield "gptq-bitblas", GPTQ, config(checkpoint_format="bitblas"), [Q, "bitblas"]
    yield "gptq-pack-dtype", GPTQ, config(pack_dtype="int8"), [Q, "pack_dtype"]
    three = changed(GPTQ, qweight=zeros("I32", 6, 32), qzeros=zeros("I32", 2, 3), scales=zeros("F16", 2, 32))
    yield "gptq-planes", three, config(bits=3, checkpoint_format="gptq_p"), [Q, "gptq_p"]
    five = changed(GPTQ, qweight=zeros("I32", 10, 32), qzeros=zeros("I32", 2, 5), scales=zeros("F16", 2, 32))
    yield "gptq-5bit", five, config(bits=5), [Q, "5"]
    yield "gptq-unknown-format", GPTQ, config(checkpoint_format="gptq_v9"), [Q, "gptq_v9"]


def awq():
    # 32 inputs, 32 outputs, one group.
    base = named(Q, qweight=zeros("I32", 32, 4), qzeros=zeros("I32", 1, 4), scales=zeros("F16", 1, 32))

    def config(**more):
        return section("awq", **({"bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"} | more))

    yield "awq-bits", base, config(bits=8), [Q, "bits"]
    yield "awq-group-size", base, config(group_size=16), [Q, "group_size"]
    yield "awq-no-scales", changed(base, scales=None), config(), [Q, "scales"]
    yield "awq-no-qzeros", changed(base, qzeros=None), config(), [Q, "qzeros"]
    yield "awq-qzeros-shape", changed(base, qzeros=zeros("I32", 1, 32)), config(), [f"{Q}.qzeros"]
    yield "awq-marlin", changed(base, qweight=zeros("I32", 2, 64)), config(), [Q]
    falcon = base | {"transformer.h.0.mlp.act.scales": zeros("F16", 32)}
    yield "awq-act-scales", falcon, config(), ["transformer.h.0.mlp.act.scales"]


def compressed():
    # 64 inputs, 8 outputs, 4 bits, groups of 32.
    base = named(Q, weight_packed=zeros("I32", 8, 8), weight_scale=zeros("BF16", 8, 2), weight_shape=shape(8, 64))

    def config(format="pack-quantized", **weights):
        weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32} | weights
        group = {"targets": ["Linear"], "weights": weights}
        return section(
            "compressed-tensors",
            format=format,
            quantization_status="compressed",
            config_groups={"group_0": group},
            ignore=["lm_head"],
        )

    yield "ct-bits", base, config(num_bits=8), [Q, "num_bits"]
    yield "ct-group-size", base, config(group_size=64), [Q, "group_size"]
    yield "ct-no-scale", changed(base, weight_scale=None), config(), [Q, "weight_scale"]
    yield "ct-scale-shape", changed(base, weight_scale=zeros("BF16", 7, 2)), config(), [f"{Q}.weight_scale"]
    yield "ct-shape", changed(base, weight_shape=shape(9, 64)), config(), [f"{Q}.weight_shape"]
    yield "ct-no-zero-point", base, config(symmetric=False), [Q, "weight_zero_point"]
    yield (
        "ct-zero-point-shape",
        changed(base, weight_zero_point=zeros("I32", 8, 2)),
        config(symmetric=False),
        [f"{Q}.weight_zero_point"],
    )
    yield (
        "ct-g-idx",
        changed(base, weight_g_idx=integers(*[0] * 32, *[2] * 32)),
        config(actorder="group"),
        [f"{Q}.weight_g_idx"],
    )
    # 30 elements of 3 bits are 3 words in either packing.
    narrow = named(Q, weight_packed=zeros("I32", 8, 3), weight_scale=zeros("BF16", 8, 1), weight_shape=shape(8, 30))
    yield "ct-which-packing", narrow, config(num_bits=3, strategy="channel", group_size=None), [f"{Q}.weight_packed"]
    yield (
        "ct-marlin-24",
        named(Q, weight_packed=zeros("I32", 2, 16), scale_packed=zeros("F16", 2, 8), meta=zeros("I16", 4, 8)),
        config("marlin-24"),
        [Q, "marlin-24"],
    )
    sparse = named(
        Q, compressed=zeros("BF16", 8), bitmask=zeros("U8", 8, 8), row_offsets=zeros("I64", 8), shape=shape(8, 64)
    )
    yield "ct-sparse-bitmask", sparse, config("sparse-bitmask"), [Q, "sparse-bitmask"]
    yield "ct-int8-no-scale", named(Q, weight=zeros("I8", 8, 64)), config("int-quantized", num_bits=8), [f"{Q}.weight"]
    four = named(Q, weight_packed=zeros("U8", 8, 16), weight_scale=zeros("F8_E4M3", 8, 2))
    yield (
        "ct-nvfp4-no-global-scale",
        four,
        config("nvfp4-pack-quantized", type="float", strategy="tensor_group", group_size=16),
        [Q, "weight_global_scale"],
    )
    turned = config()
    turned["quantization_config"]["transform_config"] = {
        "config_groups": {"R1": {"type": "hadamard", "apply": [{"targets": ["Linear"], "location": "input"}]}}
    }
    yield "ct-transform-config", base, turned, ["transform_config"]
    six = named(Q, weight_packed=zeros("U8", 8, 24), weight_scale=zeros("U8", 8, 1))
    yield "ct-mxfp6", six, config("mxfp6-pack-quantized", num_bits=6, type="float"), [Q, "mxfp6"]


def fp8():
    # 130 rows of 20: two blocks, the second of which is a part of one.
    base = named(Q, weight=zeros("F8_E4M3", 130, 20), weight_scale_inv=zeros("F32", 2, 1))

    def config(block=(128, 128)):
        return section("fp8", weight_block_size=list(block), activation_scheme="dynamic", fmt="e4m3")

    yield "fp8-block-size", base, config((64, 64)), [Q, "weight_block_size"]
    yield "fp8-scale-shape", changed(base, weight_scale_inv=zeros("F32", 1, 2)), config(), [f"{Q}.weight_scale_inv"]
    yield "fp8-scale-dtype", changed(base, weight_scale_inv=zeros("I32", 2, 1)), config(), [f"{Q}.weight_scale_inv"]
    other = named(f"{MLP}.up_proj", weight=zeros("F8_E4M3", 8, 8))
    yield "fp8-no-scale", base | other, config(), [f"{MLP}.up_proj.weight"]


def bitsandbytes():
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4, 32]}
    key = "weight.quant_state.bitsandbytes__nf4"
    config = section("bitsandbytes", load_in_4bit=True, bnb_4bit_quant_type="nf4")

    def tensors(state, **more):
        described = text(state if isinstance(state, str) else json.dumps(state))
        return changed(
            named(Q, weight=zeros("U8", 64, 1))
            | {
                f"{Q}.weight.absmax": zeros("F32", 2),
                f"{Q}.weight.quant_map": zeros("F32", 16),
                f"{Q}.{key}": described,
            },
            **more,
        )

    yield "bnb-truncated-json", tensors(json.dumps(state)[:-9]), config, [f"{Q}.{key}"]
    yield "bnb-shape", tensors(state | {"shape": [4, 33]}), config, [f"{Q}.weight"]
    yield "bnb-huge-shape", tensors(state | {"shape": [2**40, 2**40]}), config, [Q]
    yield "bnb-blocksize", tensors(state | {"blocksize": 0}), config, [Q, "blocksize"]
    yield "bnb-no-absmax", tensors(state, **{"weight.absmax": None}), config, [Q, "absmax"]
    yield "bnb-absmax-short", tensors(state, **{"weight.absmax": zeros("F32", 1)}), config, [f"{Q}.weight.absmax"]
    yield "bnb-no-quant-map", tensors(state, **{"weight.quant_map": None}), config, [Q, "quant_map"]
    nested = state | {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}
    yield (
        "bnb-no-nested-absmax",
        tensors(nested, **{"weight.absmax": zeros("U8", 2), "weight.nested_quant_map": zeros("F32", 256)}),
        config,
        [Q, "nested_absmax"],
    )
    yield "bnb-no-state", named(Q, weight=zeros("U8", 64, 1)), config, [f"{Q}.weight"]
    eight = section("bitsandbytes", load_in_8bit=True)
    yield "bnb-int8-no-scb", named(Q, weight=zeros("I8", 4, 32)), eight, [f"{Q}.weight"]
    turned = named(Q, weight=zeros("I8", 4, 32), SCB=zeros("F32", 4), weight_format=("U8", [], b"\2"))
    yield "bnb-int8-format", turned, eight, [Q, "weight_format"]
    yield "bnb-int8-scb-shape", named(Q, weight=zeros("I8", 4, 32), SCB=zeros("F32", 5)), eight, [f"{Q}.SCB"]


def mlx():
    # 128 inputs, 4 bits, groups of 64.
    base = named(Q, weight=zeros("U32", 4, 16), scales=zeros("F16", 4, 2), biases=zeros("F16", 4, 2))

    def config(**more):
        return {"quantization": {"group_size": 64, "bits": 4, "mode": "affine"} | more}

    yield "mlx-bits", base, config(bits=8), [Q, "bits"]
    yield "mlx-group-size", base, config(group_size=32), [Q, "quantization"]
    yield "mlx-odd-bits", base, config(bits=7), [Q, "bits"]
    yield "mlx-mode", base, config(mode="mxfp5"), [Q, "mxfp5"]
    yield "mlx-no-config", base, {}, [Q]
    yield "mlx-no-scales", changed(base, scales=None), config(), [Q]
    yield "mlx-no-biases", changed(base, biases=None), config(), [Q, "biases"]
    yield "mlx-biases-shape", changed(base, biases=zeros("F16", 4, 1)), config(), [f"{Q}.biases"]
    yield "mlx-override", base, config(**{Q: {"group_size": 64, "bits": 2}}), [Q, "bits"]


def others():
    mxfp4 = section("mxfp4")
    experts = f"{MLP}.experts.gate_up_proj"
    yield "mxfp4-no-scales", {f"{experts}_blocks": zeros("U8", 1, 2, 1, 16)}, mxfp4, [experts]
    yield (
        "mxfp4-scales-shape",
        {f"{experts}_blocks": zeros("U8", 1, 2, 1, 16), f"{experts}_scales": zeros("U8", 1, 3, 1)},
        mxfp4,
        [f"{experts}_scales"],
    )
    modelopt = section("modelopt", quant_algo="NVFP4", group_size=16)
    nvfp4 = named(Q, weight=zeros("U8", 8, 16), weight_scale=zeros("F8_E4M3", 8, 2), weight_scale_2=zeros("F32"))
    yield (
        "modelopt-nvfp4-swizzled",
        changed(nvfp4, weight_scale=zeros("F8_E4M3", 128, 4)),
        modelopt,
        [f"{Q}.weight_scale"],
    )
    yield "modelopt-nvfp4-no-scale-2", changed(nvfp4, weight_scale_2=None), modelopt, [Q, "weight_scale_2"]
    lora = nvfp4 | named(Q, svdquant_lora_a=zeros("BF16", 2, 32), svdquant_lora_b=zeros("BF16", 8, 2))
    yield "modelopt-svdquant", lora, section("modelopt", quant_algo="NVFP4_SVD", group_size=16), [Q, "svdquant_lora_a"]
    yield (
        "modelopt-pre-quant-scale-length",
        nvfp4 | named(Q, pre_quant_scale=zeros("BF16", 31)),
        section("modelopt", quant_algo="NVFP4_AWQ", group_size=16),
        [f"{Q}.pre_quant_scale"],
    )
    # The input is quantised after it is scaled: as it is, no weight stands for that.
    smooth = named(Q, weight=zeros("I8", 8, 32), weight_scale=zeros("F32", 8), pre_quant_scale=zeros("F32", 32))
    yield "modelopt-smoothquant", smooth, section("modelopt", quant_algo="W8A8_SQ_PER_CHANNEL"), [f"{Q}.pre_quant_scale"]
    hqq = named(
        Q,
        W_q=zeros("U8", 4, 32),
        scale=zeros("F16", 8, 1),
        zero=zeros("F16", 8, 1),
        nbits=("I32", [], struct.pack("<i", 4)),
        group_size=("I32", [], struct.pack("<i", 32)),
        axis=("I32", [], struct.pack("<i", 1)),
        shape=shape(8, 32),
        packing=text("4bit_u8"),
        view_as_float=("U8", [], b"\0"),
        quant_scale=("U8", [], b"\0"),
        quant_zero=("U8", [], b"\0"),
    )
    config = section("hqq", quant_config={"weight_quant_params": {"nbits": 4, "group_size": 32, "axis": 1}})
    yield "hqq-quant-scale", changed(hqq, quant_scale=("U8", [], b"\1")), config, [Q, "quant_scale"]
    yield "hqq-shape", changed(hqq, shape=shape(9, 32)), config, [Q]
    yield "hqq-packing", changed(hqq, packing=text("9bit_u8")), config, [Q, "9bit_u8"]
    int4 = {f"{Q}._weight_qdata": zeros("I32", 8, 4), f"{Q}._weight_scale_and_zero": zeros("BF16", 1, 8, 2)}
    described = {
        "_type": "Int4TilePackedTo4dTensor",
        "_data": {"block_size": [1, 32]},
        "_tensor_data_names": ["qdata", "scale_and_zero"],
    }
    metadata = {"format": "pt", "tensor_names": json.dumps([f"{Q}.weight"]), f"{Q}.weight": json.dumps(described)}
    yield "torchao-int4", int4, section("torchao"), [Q, "Int4TilePackedTo4dTensor"], metadata
    comfy = "model.diffusion_model.double_blocks.0.img_mlp.0"
    turned = named(
        comfy,
        weight=zeros("I8", 4, 8),
        weight_scale=zeros("F32", 4, 1),
        comfy_quant=text('{"format": "int8_tensorwise_convrot"}'),
    )
    yield "comfy-convrot", turned, {}, [comfy, "int8_tensorwise_convrot"]
    yield (
        "autoround-which-zeros",
        {name: tensor for name, tensor in GPTQ.items() if "g_idx" not in name},
        section("auto-round", bits=4, group_size=32, sym=False, packing_format="auto_round:exllamav2"),
        [Q, "packing_format"],
    )


def by_name():
    """Formats that are refused whatever is in them."""
    yield (
        "exl2",
        named(
            Q,
            q_weight=zeros("I32", 8, 8),
            q_perm=zeros("I16", 64),
            q_scale=zeros("I32", 2, 1),
            q_scale_max=zeros("F16", 2),
            q_groups=zeros("I16", 4),
        ),
        section("exl2", bits=4.0),
        [Q, "exl2"],
    )
    yield (
        "exl3",
        named(Q, trellis=zeros("I16", 4, 1, 64), suh=zeros("F16", 64), svh=zeros("F16", 16)),
        section("exl3", bits=4.0),
        [Q, "exl3"],
    )
    yield (
        "vptq",
        named(Q, centroids=zeros("F16", 1, 16, 8), indices=zeros("I32", 1, 8, 1), perm=zeros("I16", 64)),
        section("vptq"),
        [Q, "vptq"],
    )
    yield (
        "spqr",
        named(
            Q,
            dense_weights=zeros("I64", 8),
            row_offsets=zeros("I32", 9),
            in_perm=zeros("I64", 64),
            col_vals=zeros("I32", 4),
        ),
        section("spqr", bits=3),
        [Q, "spqr"],
    )
    yield (
        "higgs",
        named(Q, weight=zeros("I16", 8, 8), scales=zeros("F16", 8, 1), tables=zeros("F16", 16, 2)),
        section("higgs", bits=4),
        [Q, "higgs"],
    )
    yield (
        "svdquant",
        named(
            Q,
            qweight=zeros("I8", 8, 32),
            wscales=zeros("BF16", 1, 8),
            smooth_factor=zeros("BF16", 64),
            proj_down=zeros("BF16", 64, 4),
            proj_up=zeros("BF16", 8, 4),
        ),
        section("svdquant"),
        [Q, "svdquant"],
    )
    yield (
        "eetq",
        named(Q, weight=zeros("I8", 64, 8), weight_scales=zeros("F16", 8)),
        section("eetq", weights="int8"),
        [Q, "eetq"],
    )
    yield (
        "unknown-method",
        named(Q, weird_codes=zeros("U8", 8, 8), weight_scale=zeros("F32", 8)),
        section("unheard-of"),
        [Q, "unheard-of"],
    )
    yield "unknown-tensors", named(Q, qweight=zeros("I32", 8, 8), wobble=zeros("F16", 8)), {}, [Q]


def write(out):
    count = 0
    for family in [gptq, awq, compressed, fp8, bitsandbytes, mlx, others, by_name]:
        for name, tensors, config, expected, *metadata in family():
            checkpoint = Path(out) / name / "checkpoint"
            checkpoint.mkdir(parents=True)
            (checkpoint / "model.safetensors").write_bytes(safetensors(tensors, *metadata))
            base = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16"}
            (checkpoint / "config.json").write_text(json.dumps(base | config, indent=1) + "\n")
            (checkpoint.parent / "expect.txt").write_text("".join(line + "\n" for line in expected))
            count += 1
    return count


if __name__ == "__main__":
    print(f"made {write(sys.argv[1])} refusals")
