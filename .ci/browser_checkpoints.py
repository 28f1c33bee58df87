#!/usr/bin/env python3
"""Checkpoints for .ci/browser.mjs, written with Python's standard library: a Llama, 20,000 tensors in 100 shards, 229,200 in
163, one with hostile names, the Llama after some training, and a run of 8 epochs."""
import json
import math
import random
import struct
import sys
from pathlib import Path

SIZES = {"BF16": 2, "F16": 2, "F32": 4, "U8": 1, "I64": 8, "BOOL": 1, "F8_E4M3": 1}
HOSTILE = "</script><img src=x onerror=alert(1)><script>alert(2)//\u2028\u2029<!--"


def file_of(path, tensors, metadata, data=None):
    header, end = {"__metadata__": metadata}, 0
    for name, dtype, shape in tensors:
        count = SIZES[dtype]
        for dim in shape:
            count *= dim
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + count]}
        end += count
    text = json.dumps(header, ensure_ascii=False).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if data is None:
            file.truncate(8 + len(text) + end)  # A file of holes: as large, and nothing to write.
        else:
            for tensor in tensors:
                file.write(data(*tensor))


def normal(_, dtype, shape):
    count = 1
    for dim in shape:
        count *= dim
    if dtype != "BF16":
        return bytes(count * SIZES[dtype])
    base = struct.pack("<1024f", *(random.gauss(0, 0.02) for _ in range(1024)))
    halves = b"".join(base[4 * i + 2 : 4 * i + 4] for i in range(1024))
    return (halves * (count // 1024 + 1))[: 2 * count]


def llama(layers, width):
    yield "model.embed_tokens.weight", "BF16", [8 * width, width]
    for layer in range(layers):
        for name, shape in [("input_layernorm", [width]), ("self_attn.q_proj", [width, width]),
                            ("self_attn.k_proj", [width // 4, width]), ("self_attn.v_proj", [width // 4, width]),
                            ("self_attn.o_proj", [width, width]), ("post_attention_layernorm", [width]),
                            ("mlp.gate_proj", [4 * width, width]), ("mlp.up_proj", [4 * width, width]),
                            ("mlp.down_proj", [width, 4 * width])]:
            yield f"model.layers.{layer}.{name}.weight", "F32" if "norm" in name else "BF16", shape
    yield "model.norm.weight", "F32", [width]
    yield "lm_head.weight", "BF16", [8 * width, width]


def sharded(directory, tensors, shards):
    directory.mkdir(exist_ok=True)
    tensors, names = list(tensors), {}
    each = -(-len(tensors) // shards)
    for number in range(shards):
        part = tensors[number * each : (number + 1) * each]
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        file_of(directory / name, part, {"format": "pt"})
        names.update({tensor[0]: name for tensor in part})
    index = {"metadata": {}, "weight_map": names}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def experts():
    for layer in range(48):
        for expert in range(138):
            for part in ("gate_proj", "up_proj", "down_proj"):
                yield f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight", "F8_E4M3", [64, 128]
        yield f"model.layers.{layer}.self_attn.q_proj.weight", "BF16", [256, 256]
        yield f"model.layers.{layer}.input_layernorm.weight", "F32", [256]
    for number in range(32):
        yield f"model.heads.{number}.weight", "BF16", [512, 256]


def vast():
    """The experts of a very large model, each tensor for itself."""
    for layer in range(100):
        for expert in range(760):
            for part, shape in (("gate_proj", [2048, 7168]), ("up_proj", [2048, 7168]), ("down_proj", [7168, 2048])):
                yield f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight", "BF16", shape
        yield f"model.layers.{layer}.mlp.gate.weight", "F32", [760, 7168]
        yield f"model.layers.{layer}.mlp.gate.e_score_correction_bias", "F32", [760]
        for part, shape in (("q_a_proj", [1536, 7168]), ("q_b_proj", [24576, 1536]), ("kv_a_proj_with_mqa", [576, 7168]),
                            ("kv_b_proj", [32768, 512]), ("o_proj", [7168, 16384])):
            yield f"model.layers.{layer}.self_attn.{part}.weight", "BF16", shape
        for part, size in (("self_attn.q_a_layernorm", 1536), ("self_attn.kv_a_layernorm", 512), ("input_layernorm", 7168),
                           ("post_attention_layernorm", 7168)):
            yield f"model.layers.{layer}.{part}.weight", "F32", [size]
        yield f"model.layers.{layer}.self_attn.rotary_emb.inv_freq", "F32", [32]


def tuned(before, path):
    """The Llama, with weights that moved: the later the layer the more, and queries most."""
    tensors = [(name, dtype, shape) for name, dtype, shape in llama(16, 256) if name != "lm_head.weight"]
    tensors = [(name, "BF16" if name == "model.norm.weight" else dtype, [2080, 256] if "embed" in name else shape)
               for name, dtype, shape in tensors]
    tensors.append(("model.extra.weight", "F32", [16]))
    file_of(path, tensors, {"format": "pt", "modelspec.title": "A tuned Llama"}, lambda *of: moved(before, *of))


def moved(before, name, dtype, shape):
    values = before.get(name)
    if values is None or dtype != "BF16" or "embed" in name or name == "model.norm.weight":
        return bytes(SIZES[dtype] * math.prod(shape))
    layer = int(name.split(".")[2])
    by = 0.003 * (1 + layer) * (3 if "q_proj" in name else 0.4 if "mlp" in name else 1)
    period = []
    for (value,) in struct.iter_unpack("<f", b"".join(b"\0\0" + values[2 * i : 2 * i + 2] for i in range(1024))):
        period.append(struct.pack("<f", value + random.gauss(0, 0.02 * by))[2:])
    return (b"".join(period) * (len(values) // 2048 + 1))[: len(values)]


def run(directory):
    """Epochs as in docs/training.md, with norms that grow and numbers that a program gave."""
    shapes = [(name, "F32", shape) for name, _, shape in llama(4, 64)]
    start = {name: [random.gauss(0, 1) for _ in range(256)] for name, _, _ in shapes}
    checkpoints = []
    for epoch in range(1, 9):
        folder = directory / f"epoch-{epoch:05d}"
        folder.mkdir(parents=True, exist_ok=True)

        def values(name, _, shape):
            grown = 0.02 * (1 + (0.4 if "q_proj" in name else 0.1) * (1 - 0.7**epoch))
            data = struct.pack("<256f", *(value * grown for value in start[name]))
            return (data * (math.prod(shape) // 256 + 1))[: 4 * math.prod(shape)]

        file_of(folder / "model.safetensors", shapes, {"format": "pt"}, values)
        numbers = {"seed": "uint 7", "loss": f"float {2.2 * 0.6**epoch + 0.1}", "held-out loss": f"float {2.2 * 0.65**epoch + 0.2}",
                   "rate": f"float {2e-3 * (1 - epoch / 9)}"}
        checkpoints.append({"epoch": epoch, "directory": folder.name, "scalars": numbers,
                            "bytes": {"model.safetensors": (folder / "model.safetensors").stat().st_size}})
    (directory / "checkpoints.json").write_text(json.dumps({"version": 2, "checkpoints": checkpoints}))


def main():
    random.seed(7)
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    before = {name: normal(name, dtype, shape) for name, dtype, shape in llama(16, 256)}
    file_of(out / "llama.safetensors", list(llama(16, 256)),
            {"format": "pt", "modelspec.title": "A small Llama",
             "training": json.dumps({"lr": 3e-4, "batch": 64, "steps": 20000})}, lambda name, *_: before[name])
    tuned(before, out / "tuned.safetensors")
    run(out / "run")
    assert len(list(experts())) == 20000
    sharded(out / "large", experts(), 100)
    assert len(list(vast())) == 229_200
    sharded(out / "vast", vast(), 163)
    hostile = [(HOSTILE, "F32", [4]), ("", "U8", [3]), ("a", "I64", [2]), ("a.b", "BOOL", [6]), ("__proto__.constructor", "F16", [8]),
               ("..", "U8", [0]), ("x\u202egnp.exe\u0007\n", "F32", []), ("." * 3000, "U8", [1]), ("n" * 60000, "U8", [1])]
    file_of(out / "hostile.safetensors", hostile, {HOSTILE: HOSTILE, "json": '{"</script>": "\u2028"}', "__proto__": "x"},
            lambda _, dtype, shape: b"\x00\x00\xc0\x7f" * 4 if shape == [4] else
            bytes(SIZES[dtype] * (shape[0] if shape else 1)))
    file_of(out / "empty.safetensors", [], {"format": "pt"})


main()
