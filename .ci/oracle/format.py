"""The official Python libraries read what we write, we read what they write, and shards are cut as they cut them.

    format.py EXCHANGE      (target/debug/exchange, of the package weighbridge-tests)
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from huggingface_hub import split_torch_state_dict_into_shards

exchange = sys.argv[1]
checks = 0


def ours(*args):
    return subprocess.run([exchange, *map(str, args)], check=True, capture_output=True, text=True).stdout


def check(what, good):
    global checks
    checks += 1
    if not good:
        sys.exit(f"FAILED: {what}")


def raw(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def read_by_them(path, expected):
    """Reads one file by the format's own reader, by torch, and by numpy where it has the dtype."""
    found = dict(safetensors.deserialize(path.read_bytes()))
    check(f"{path}: names", found.keys() == expected.keys())
    torch_read = numpy_read = 0
    with safetensors.safe_open(path, "pt") as file:
        for name, (dtype, shape, data) in expected.items():
            theirs = found[name]
            check(f"{path}: {name}", (theirs["dtype"], theirs["shape"], bytes(theirs["data"])) == (dtype, shape, data))
            try:
                tensor = file.get_tensor(name)
            except (safetensors.SafetensorError, AttributeError):
                continue  # a dtype that torch does not have
            check(f"{path}: {name} in torch", raw(tensor) == data)
            torch_read += 1
    with safetensors.safe_open(path, "np") as file:
        for name, (dtype, shape, data) in expected.items():
            try:
                tensor = file.get_tensor(name)
            except (safetensors.SafetensorError, TypeError, AttributeError, ImportError):
                continue
            check(f"{path}: {name} in numpy", tensor.tobytes() == data)
            numpy_read += 1
    return torch_read, numpy_read


def written_by_us(directory):
    ours("write", directory)
    first, second = directory / "first", directory / "second"
    for file in sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file()):
        check(f"{file} is the same twice", (first / file).read_bytes() == (second / file).read_bytes())
    described = json.loads(ours("read", first / "all.safetensors"))
    expected = {name: (t["dtype"], t["shape"], bytes.fromhex(t["data"])) for name, t in described["tensors"].items()}
    check("all dtypes", len(expected) == 22)
    in_torch, in_numpy = read_by_them(first / "all.safetensors", expected)
    read_by_them(first / "aligned.safetensors", expected)
    with safetensors.safe_open(first / "all.safetensors", "pt") as file:
        check("metadata", file.metadata() == {"format": "pt", "é": '\n"', "a": ""})
    index = json.loads((first / "sharded/model.safetensors.index.json").read_text())
    weight_map = index["weight_map"]
    check("index", weight_map.keys() == expected.keys() and list(weight_map) == sorted(weight_map))
    check("total_size", index["metadata"]["total_size"] == sum(len(t[2]) for t in expected.values()))
    for shard in set(weight_map.values()):
        part = {name: expected[name] for name in expected if weight_map[name] == shard}
        read_by_them(first / "sharded" / shard, part)
    return in_torch, in_numpy


def written_by_them(directory):
    generator = torch.Generator().manual_seed(7)
    names = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16",
             "float32", "float64", "complex64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
             "float8_e8m0fnu"]
    tensors = {}
    for name in names:
        dtype = getattr(torch, name)
        data = torch.randint(0, 2 if name == "bool" else 256, (5 * dtype.itemsize,), generator=generator)
        tensors[name] = data.to(torch.uint8).view(dtype).reshape(5, 1)
    tensors["scalar"], tensors["empty"] = torch.tensor(3.5), torch.zeros(2, 0, 3)
    path = directory / "torch.safetensors"
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt", "ü": "\\"})
    found = json.loads(ours("read", path))
    check("torch: names", found["tensors"].keys() == tensors.keys())
    check("torch: metadata", found["metadata"] == {"format": "pt", "ü": "\\"})
    for name, tensor in tensors.items():
        theirs = found["tensors"][name]
        check(f"torch: {name}", theirs["shape"] == list(tensor.shape) and bytes.fromhex(theirs["data"]) == raw(tensor))
    arrays = {name: numpy.arange(6).astype(name).reshape(2, 3) for name in ["u1", "i2", "u4", "f2", "f4", "f8", "i8"]}
    path = directory / "numpy.safetensors"
    safetensors.numpy.save_file(arrays, path)
    found = json.loads(ours("read", path))["tensors"]
    for name, array in arrays.items():
        check(f"numpy: {name}", bytes.fromhex(found[name]["data"]) == array.tobytes())


def cut_as_they_cut():
    chance = random.Random(3)
    for _ in range(200):
        sizes = [chance.choice([0, 1, 7, 40, 90, 100, 101, 300]) for _ in range(chance.randrange(1, 12))]
        shares = [chance.choice([None, None, None, place]) for place in range(len(sizes))]
        state, arguments = {}, []
        for place, size in enumerate(sizes):
            other = chance.randrange(place) if place and chance.random() < 0.2 else None
            if other is not None and sizes[other] > 0:
                state[f"t{place}"] = state[f"t{other}"]
                sizes[place], shares[place] = sizes[other], shares[other] if shares[other] is not None else other
                shares[other] = shares[place]
            else:
                state[f"t{place}"] = torch.zeros(size, dtype=torch.uint8)
        for size, share in zip(sizes, shares):
            # To huggingface_hub all tensors without data have one storage, at address 0.
            share = share if size else len(sizes)
            arguments.append(f"{size}" if share is None else f"{size}@{share}")
        limit = chance.choice([1, 50, 100, 250])
        theirs = split_torch_state_dict_into_shards(state, max_shard_size=limit)
        found = json.loads(ours("split", limit, *arguments))
        shards = [{f"t{place}" for place in shard} for shard in found["shards"]]
        expected = [set(names) for _, names in sorted(theirs.filename_to_tensors.items())]
        check(f"split {limit} {arguments}: {shards} and {expected}", shards == expected)
        check(f"total of {arguments}", found["total_size"] == theirs.metadata["total_size"])
    for text in ["5GB", "1KB", "0.5MB", "2TB"]:
        theirs = split_torch_state_dict_into_shards({"a": torch.zeros(1)}, max_shard_size=text)
        check(text, len(json.loads(ours("split", text, 4))["shards"]) == len(theirs.filename_to_tensors))


with tempfile.TemporaryDirectory() as directory:
    in_torch, in_numpy = written_by_us(Path(directory))
    written_by_them(Path(directory))
    cut_as_they_cut()
print(f"{checks} checks passed; of our 22 dtypes torch read {in_torch}, numpy {in_numpy}, the format's own reader all")
