"""Holds the command `weighbridge` against NumPy, PyTorch and huggingface_hub.

    command.py PATH_OF_WEIGHBRIDGE
"""

import hashlib
import io
import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file

COMMAND = sys.argv[1]
checks = 0


def check(what, holds):
    global checks
    checks += 1
    if not holds:
        sys.exit(f"FAILED: {what}")


def run(*arguments, status=0):
    ran = subprocess.run([COMMAND, *map(str, arguments)], capture_output=True)
    check(f"{arguments}: status {ran.returncode}, {ran.stderr.decode()}", ran.returncode == status)
    return ran.stdout


def report(*arguments, status=0):
    return json.loads(run(*arguments, "--format", "json", status=status))


NUMPY = ["bool", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "c8", "f8", "u8", "i8"]


def arrays():
    chance = np.random.default_rng(7)
    made = {}
    for dtype in NUMPY:
        bits = chance.integers(0, 256, 7 * 6 * 5 * np.dtype(dtype).itemsize, dtype=np.uint8)
        made[dtype] = (bits & 1).astype(bool) if dtype == "bool" else bits.view(dtype)
        made[dtype] = made[dtype].reshape(7, 6, 5)
    made["scalar"] = np.array(1.5, dtype="f4")
    made["empty"] = np.zeros((3, 0, 2), dtype="f4")
    return made


def cat_as_numpy(directory):
    path, made = directory / "numpy.safetensors", arrays()
    save_numpy(made, path)
    slices = ["", "[2]", "[1:6:2, ::-1]", "[..., -1]", "[0:0]", "[-3:, 2, ::3]"]
    for name, array in made.items():
        for text in slices:
            if text and array.shape != (7, 6, 5):
                continue
            expected = eval(f"array{text}")
            npy = np.load(io.BytesIO(run("cat", path, name + text, "--format", "npy")))
            same = npy.dtype == expected.dtype and npy.shape == expected.shape
            check(f"npy of {name}{text}", same and npy.tobytes() == expected.tobytes())
            raw = run("cat", path, name + text, "--format", "raw")
            check(f"raw of {name}{text}", raw == expected.tobytes())
    run("cat", path, "f4", "--format", "npy", "-o", directory / "f4.npy")
    check("a file of NumPy", np.load(directory / "f4.npy").tobytes() == made["f4"].tobytes())
    run("cat", path, "f4", "--format", "npy", "-o", directory / "f4.npy", status=2)


def printed_as_numpy(directory):
    chance = np.random.default_rng(5)
    path = directory / "print.safetensors"
    made = {}
    for dtype in ["f2", "f4", "f8"]:
        made[f"{dtype}.unit"] = chance.uniform(0.1, 1, (4, 9)).astype(dtype)
        made[f"{dtype}.normal"] = (chance.standard_normal((3, 4, 5)) * 0.02).astype(dtype)
        made[f"{dtype}.large"] = chance.uniform(1, 900, (30, 50)).round(1).astype(dtype)
        made[f"{dtype}.few"] = np.array([1, 2.5, -3.25, 0], dtype=dtype)
        made[f"{dtype}.special"] = np.array([[1, math.nan], [math.inf, -math.inf]], dtype=dtype)
        made[f"{dtype}.wide"] = np.array([1e-5, 1, 3e4], dtype=dtype)
        made[f"{dtype}.scalar"] = np.array(2, dtype=dtype)
    made["ints"] = chance.integers(-1000, 1000, (40, 60)).astype("i4")
    made["deep"] = chance.integers(0, 9, (9, 8, 7, 8)).astype("u1")
    made["bools"] = chance.integers(0, 2, (5, 40)).astype(bool)
    made["complex"] = np.array([1 - 2.5j, 0.5 + 1j], dtype="c8")
    save_numpy(made, path)
    for name, array in made.items():
        text = run("cat", path, name).decode()
        check(f"{name} as text:\n{text}\n{array}", text == f"{array}\n")
        with np.printoptions(threshold=sys.maxsize):
            check(f"{name} in full", run("cat", path, name, "--full").decode() == f"{array}\n")


def cast_as_torch(directory):
    path = directory / "cast.safetensors"
    values = torch.randn(100, 33)
    save_file({"w": values, "b": values.bfloat16()}, path)
    for to, dtype in [("bf16", torch.bfloat16), ("f16", torch.float16), ("f8_e4m3", torch.float8_e4m3fn), ("f64", torch.float64)]:
        raw = run("cat", path, "w[::2]", "--to", to, "--format", "raw")
        expected = values[::2].to(dtype).contiguous().view(torch.uint8).numpy().tobytes()
        check(f"cast to {to}", raw == expected)
    run("cat", path, "b", "--format", "npy", status=2)
    npy = np.load(io.BytesIO(run("cat", path, "b", "--to", "f32", "--format", "npy")))
    check("bf16 as f32", npy.tobytes() == values.bfloat16().float().numpy().tobytes())


def figures_as_numpy(directory):
    path = directory / "figures.safetensors"
    made = {}
    for dtype in [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]:
        made[str(dtype)] = (torch.randn(300, 1001) * 3).to(dtype)
    made["special"] = torch.tensor([1, 2, math.nan, math.inf, math.inf, -math.inf, 0, -0.0])
    made["special16"] = made["special"].bfloat16()
    for dtype in [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]:
        made[str(dtype)] = torch.randint(-100 if dtype.is_signed else 0, 100, (1_000_003,)).to(dtype)
    made["constant"] = torch.full((5,), 3.0)
    made["none"] = torch.zeros(0)
    save_file(made, path)
    found = {tensor["name"]: tensor["figures"] for tensor in report("stat", path)["checkpoints"][0]["tensors"]}
    for name, tensor in made.items():
        values, figures = tensor.double().numpy().ravel(), found[name]
        finite = values[np.isfinite(values)]
        check(f"{name}: nan", figures["nans"] == np.isnan(values).sum())
        check(f"{name}: inf", figures["positive_infinities"] == np.isposinf(values).sum())
        check(f"{name}: -inf", figures["negative_infinities"] == np.isneginf(values).sum())
        check(f"{name}: zeros", figures["zeros"] == (values == 0).sum())
        if not len(finite):
            check(f"{name}: none", figures["min"] is None and figures["histogram"] is None)
            continue
        check(f"{name}: extremes", (figures["min"], figures["max"]) == (finite.min(), finite.max()))
        check(f"{name}: mean", math.isclose(figures["mean"], finite.mean(), rel_tol=1e-9, abs_tol=1e-12))
        check(f"{name}: std", math.isclose(figures["std"], finite.std(), rel_tol=1e-9, abs_tol=1e-12))
        counts = np.array(figures["histogram"]["counts"])
        check(f"{name}: histogram", counts.sum() == len(finite))
        if finite.min() < finite.max():
            expected, _ = np.histogram(finite, bins=64)
            # Wide values may be counted one bin off; of small integers and 16 bits none are, but on an edge.
            moved = np.abs(np.cumsum(counts) - np.cumsum(expected)).max()
            check(f"{name}: histogram, {moved} off", moved <= len(finite) * 0.02)


def same_whatever_the_shards(directory):
    state = {f"layers.{i}.weight": torch.randn(64, 33).bfloat16() for i in range(20)}
    state['odd "name"\n'] = torch.arange(6).reshape(2, 3)
    whole, reverse = directory / "whole.safetensors", directory / "reverse.safetensors"
    save_file(state, whole, {"format": "pt"})
    save_file(dict(reversed(state.items())), reverse)
    places = [reverse]
    for size in ["10KB", "30KB", "1GB"]:
        places.append(directory / f"shards-{size}")
        places[-1].mkdir()
        save_torch_state_dict(state, places[-1], max_shard_size=size)
    for algorithm in ["blake3", "sha256"]:
        expected = run("hash", whole, "--algorithm", algorithm).decode()
        for place in places:
            check(f"{place} {algorithm}", run("hash", place, "--algorithm", algorithm).decode() == expected)
        manifest = directory / f"manifest.{algorithm}"
        manifest.write_text(expected)
        run("hash", places[1], "--check", manifest)
        run("verify", places[2], "--manifest", manifest)
    lines = expected.splitlines()
    body = "".join(line + "\n" for line in lines[1:])
    check("the whole is the digest of the lines", lines[0] == f"sha256 {hashlib.sha256(body.encode()).hexdigest()}")
    for line in lines[1:]:
        digest, _, _, name = line.split(" ", 3)
        data = state[json.loads(name)].contiguous().view(torch.uint8).numpy().tobytes()
        check(f"the digest of {name}", digest == hashlib.sha256(data).hexdigest())
    run("verify", whole, "--sha256", hashlib.sha256(whole.read_bytes()).hexdigest())
    run("verify", whole, "--sha256", "0" * 64, status=1)
    for place in places:
        run("diff", whole, place, "--data", "--ignore", "metadata")
        run("verify", place, "--data", "--profile", "strict")


def differences(directory):
    a = {f"t{i}": torch.randn(50, 7) for i in range(4)}
    b = {name: tensor.clone() for name, tensor in a.items()}
    b["t1"][3, 2] += 0.5
    b["t2"] *= 1 + 1e-6
    b["renamed"] = b.pop("t3")
    paths = [directory / "a.safetensors", directory / "b.safetensors"]
    save_file(a, paths[0])
    save_file(b, paths[1])
    found = report("diff", *paths, "--data", status=1)
    check("renamed", found["renamed"] == [{"from": "t3", "to": "renamed"}])
    moved = {tensor["name"]: tensor for tensor in found["values"]}
    check("which moved", list(moved) == ["t1", "t2"])
    for name in moved:
        left, right = a[name].double(), b[name].double()
        distance = (left - right).abs()
        check(f"{name}: how many", moved[name]["differing"] == (a[name] != b[name]).sum())
        check(f"{name}: absolute", math.isclose(moved[name]["max_absolute"], distance.max(), rel_tol=1e-12))
        relative = (distance / torch.maximum(left.abs(), right.abs())).max()
        check(f"{name}: relative", math.isclose(moved[name]["max_relative"], relative, rel_tol=1e-12))
        check(f"{name}: moved", math.isclose(moved[name]["moved"], distance.norm() / left.norm(), rel_tol=1e-9))
    near = report("diff", *paths, "--data", "--rtol", "1e-5", "--atol", "1e-8", status=1)
    close = [name for name in ["t0", "t1", "t2"] if not np.allclose(a[name], b[name], rtol=1e-5, atol=1e-8)]
    check("within the tolerance", [tensor["name"] for tensor in near["values"]] == close)


def faults(directory):
    good = directory / "good"
    state = {f"layers.{i}.weight": torch.randn(64, 33) for i in range(8)}

    def broken(name, change, rules, *options, status=1):
        place = directory / f"broken-{name}"
        shutil.rmtree(place, ignore_errors=True)
        save_and_list(state, place)
        change(place)
        found = report("verify", place, *options, status=status)["checkpoints"][0]
        check(f"{name}: {found['rules']}", set(rules) <= set(found["rules"]))

    def edit(place, change):
        path = place / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index)
        path.write_text(json.dumps(index))

    shards = sorted(save_and_list(state, good))
    first, last = shards[0], shards[-1]

    def cut(place):
        with open(place / first, "r+b") as file:
            file.truncate((place / first).stat().st_size - 3)

    def fill(name, bits):
        tensor = torch.zeros(10)
        tensor.view(torch.int32)[3] = bits
        return lambda place: save_file({**state, name: tensor}, place / "model.safetensors")

    broken("nothing", lambda place: None, [], status=0)
    broken("cut", cut, ["data-length"])
    broken("gone", lambda place: (place / last).unlink(), ["missing-shard"])
    broken("both", lambda place: (cut(place), (place / last).unlink()), ["data-length", "missing-shard"])
    broken("outside", lambda place: edit(place, lambda index: index["weight_map"].update(x="../x.safetensors")), ["shard-name"])
    broken("absent", lambda place: edit(place, lambda index: index["weight_map"].update(x=first)), ["missing-tensor"])
    broken("unlisted", lambda place: edit(place, lambda index: index["weight_map"].pop("layers.0.weight")), ["unlisted-tensor"])
    broken("total", lambda place: edit(place, lambda index: index["metadata"].update(total_size=1)), ["total-size"])
    broken("twice", lambda place: save_file(state, place / first), ["duplicate-tensor"])
    broken("orphan", lambda place: shutil.copy(place / first, place / "model-00009-of-00009.safetensors"), ["orphaned-shard"])
    broken("json", lambda place: (place / "model.safetensors.index.json").write_text("{"), ["index"])
    broken("garbage", lambda place: (place / first).write_bytes(b"PK\x03\x04" + bytes(100)), ["header-truncated"])
    broken("nan", fill("n", 0x7FC00000), ["nan"], "--data")
    broken("inf", fill("n", 0x7F800000), ["infinity"], "--data")
    run("verify", directory / "nowhere", status=2)


def save_and_list(state, place):
    place.mkdir()
    save_torch_state_dict(state, place, max_shard_size="20KB")
    return [path.name for path in place.glob("*.safetensors")]


with tempfile.TemporaryDirectory() as name:
    for test in [cat_as_numpy, printed_as_numpy, cast_as_torch, figures_as_numpy, same_whatever_the_shards, differences, faults]:
        directory = Path(name) / test.__name__
        directory.mkdir()
        test(directory)
print(f"{checks} checks passed")
