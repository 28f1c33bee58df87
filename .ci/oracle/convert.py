"""Checkpoints that torch.save wrote, of many kinds and shapes, converted by the command: every tensor has the bits that torch.load gives.

    convert.py WEIGHBRIDGE      (target/release/weighbridge)
"""

import collections
import pickle
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import torch
from safetensors import safe_open

command = sys.argv[1]
checks = 0
random.seed(3)
torch.manual_seed(3)

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int16, torch.int32,
    torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32,
    torch.uint64,
]  # fmt: skip
OLD = DTYPES[:10]


def check(what, good):
    global checks
    checks += 1
    if not good:
        sys.exit(f"FAILED: {what}")


def raw(tensor):
    tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def run(*args, status=0):
    done = subprocess.run([command, *map(str, args)], capture_output=True, text=True)
    check(f"{args}: status {done.returncode}: {done.stderr}", done.returncode == status)
    return done


def compare(source, expected, *options):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "out.safetensors"
        run("convert", source, "-o", path, *options)
        with safe_open(path, "pt") as file:
            aliases = file.metadata()
            names = set(file.keys())
            missing = {name for name in expected if name not in names}
            check(f"{source}: {missing} are aliases", all(aliases.get(name) in names for name in missing))
            check(f"{source}: {names - set(expected)}", names <= set(expected))
            for name, tensor in expected.items():
                found = file.get_tensor(name if name in names else aliases[name])
                check(f"{source}: {name}", (found.dtype, found.shape) == (tensor.dtype, tensor.shape))
                check(f"{source}: {name}", raw(found) == raw(tensor))


def any_tensor(dtypes):
    dtype = random.choice(dtypes)
    shape = [random.choice([0, 1, 2, 3, 5, 17, 64]) for _ in range(random.randrange(5))]
    if dtype == torch.bool:
        tensor = torch.rand(shape) > 0.5
    else:
        size = torch.tensor([], dtype=dtype).element_size()
        count = int(numpy.prod(shape, dtype=int))
        tensor = torch.randint(0, 256, (count * size,), dtype=torch.uint8).view(dtype).reshape(shape)
    for _ in range(random.randrange(4)):
        kind = random.randrange(4)
        if kind == 0 and tensor.dim() > 1:
            tensor = tensor.permute(random.sample(range(tensor.dim()), tensor.dim()))
        elif kind == 1 and tensor.dim() and tensor.shape[0] > 1:
            tensor = tensor[1 :: random.choice([1, 2])]
        elif kind == 2 and tensor.dim() and tensor.shape[-1] > 2:
            tensor = tensor[..., :: random.choice([2, 3])]
        elif kind == 3 and tensor.dim() < 5:
            tensor = tensor.unsqueeze(0).expand(random.choice([1, 3]), *tensor.shape)
    return tensor


def flatten(value, name=""):
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else []
    return {key: tensor for at, inner in items for key, tensor in flatten(inner, f"{name}.{at}" if name else str(at)).items()}


def nested(dtypes, depth=0):
    tensors = {f"t{number}": any_tensor(dtypes) for number in range(random.randrange(1, 5))}
    if depth < 3 and random.random() < 0.6:
        tensors["inner"] = nested(dtypes, depth + 1)
        tensors["list"] = [nested(dtypes, depth + 1), any_tensor(dtypes), 3, "x"]
    if random.random() < 0.3:
        tensors["tied"] = tensors["t0"]
        tensors["view"] = tensors["t0"][..., :1] if tensors["t0"].dim() else tensors["t0"]
    return collections.OrderedDict(tensors) if random.random() < 0.5 else tensors


with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "file.pt"
    for number in range(120):
        new, protocol = random.random() < 0.6, random.choice([2, 3, 4, 5])
        value = nested(DTYPES if new else OLD)
        torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
        expected = flatten(torch.load(path, weights_only=False))  # it is our own
        compare(path, expected, *random.choice([(), ("--aliases", "each")]))
    # Large ones that take several blocks to gather.
    large = {"t": torch.randn(3000, 5000).t(), "p": torch.randn(70, 300, 400).permute(2, 0, 1), "s": torch.randn(2_000_000, 8)[:, 3]}
    torch.save(large, path)
    compare(path, large)
    for protocol in (2, 3, 4, 5):
        arrays = {"a": numpy.random.rand(300, 7), "f": numpy.asfortranarray(numpy.random.rand(30, 7)), "n": [numpy.arange(5)]}
        path.write_bytes(pickle.dumps(arrays, protocol=protocol))
        compare(path, {"a": torch.from_numpy(arrays["a"]), "f": torch.from_numpy(arrays["f"]), "n.0": torch.from_numpy(arrays["n"][0])})

    class Evil:
        def __reduce__(self):
            import os

            return os.system, (f"touch {directory}/ran",)

    for protocol in (0, 1, 2, 3, 4, 5):
        for save in (True, False):
            if save and protocol >= 2:
                torch.save({"w": torch.ones(2), "x": Evil()}, path, pickle_protocol=protocol)
            else:
                path.write_bytes(pickle.dumps({"x": Evil()}, protocol=protocol))
            run("convert", path, "-o", Path(directory) / "out.safetensors", status=2)
            found = run("scan", path, "--format", "json", status=1)
            check("system is named", '"system"' in found.stdout and '"dangerous"' in found.stdout)
    check("nothing ran", not (Path(directory) / "ran").exists() and not (Path(directory) / "out.safetensors").exists())

print(f"convert: {checks} checks passed")
