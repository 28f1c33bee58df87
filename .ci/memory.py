#!/usr/bin/env python3
"""The memory of commands that make one model of several: at most 256 MiB, however large the models are.

    memory.py WEIGHBRIDGE DIRECTORY [GIGABYTES]      (4 GB otherwise; the directory needs room for as much)

The models are sparse files of so many bytes, one of whose tensors has a tenth of them. What counts is anonymous memory,
without pages of files; the peak of both together is printed beside it.
"""

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

LIMIT = 256 << 20
COLUMNS = 4096


def sparse(file, tensors):
    """A checkpoint of F32 zeros."""
    header, end = {}, 0
    for name, shape in tensors.items():
        start, end = end, end + 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + end)


def model(gigabytes):
    rows = int(gigabytes * 1e9) // (4 * COLUMNS)
    tensors = {"model.embed_tokens.weight": [rows // 10 // 4 * 4, COLUMNS]}
    layers = (rows - rows // 10) // 16384
    tensors |= {f"model.layers.{layer}.mlp.up_proj.weight": [16384, COLUMNS] for layer in range(layers)}
    return tensors


def run(name, output, command):
    """Runs a command to its end, and looks at its memory all the time."""
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    anonymous = 0
    status = Path(f"/proc/{process.pid}/status")
    while True:
        done, code, usage = os.wait4(process.pid, os.WNOHANG)
        if done:
            break
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            anonymous = max(anonymous, int(lines["RssAnon"].split()[0]) << 10)
        except (KeyError, FileNotFoundError, ProcessLookupError):
            pass
        time.sleep(0.005)
    seconds = time.perf_counter() - start
    if code != 0:
        sys.exit(f"{name}: {process.stderr.read().decode()}")
    written = sum(file.stat().st_size for file in output.rglob("*.safetensors"))
    peak = usage.ru_maxrss << 10
    print(f"{name}: {written / 1e9:.1f} GB in {seconds:.0f} s, peak {anonymous >> 20} MiB anonymous, {peak >> 20} MiB with files",
          flush=True)
    return anonymous <= LIMIT


def main():
    binary, directory = sys.argv[1], Path(sys.argv[2])
    gigabytes = float(sys.argv[3]) if len(sys.argv) > 3 else 4
    half = model(gigabytes / 2)
    for name in ["base", "one", "other"]:
        sparse(directory / name / "model.safetensors", model(gigabytes))
    names = list(half)
    parts = [{name: half[name] for name in names[part::2]} for part in range(2)]
    for part, tensors in enumerate(parts):
        sparse(directory / f"part-{part}.safetensors", tensors)
    sparse(directory / "half" / "model.safetensors", half)
    adapter = {}
    for name in names[1:]:
        module = name.removesuffix(".weight")
        adapter |= {f"{module}.lora_A.weight": [16, COLUMNS], f"{module}.lora_B.weight": [half[name][0], 16]}
    sparse(directory / "adapter.safetensors", adapter)
    (directory / "rules").write_text("*.up_proj.weight: column\n*.embed_tokens.weight: vocab\n")

    output = directory / "out"
    base, one, other = (directory / name for name in ["base", "one", "other"])
    blend = ["blend", "--to", "bf16", "--weight", "0.4,0.6", "-o", output, one, other]
    differences = [*blend, "--base", base]
    density = [*differences, "--density", "0.3"]
    commands = {
        "blend linear": [*blend, "--method", "linear"],
        "blend slerp": ["blend", "--to", "bf16", "--t", "0.4", "-o", output, one, other, "--method", "slerp"],
        "blend task_arithmetic": [*differences, "--method", "task_arithmetic"],
        "blend dare_linear": [*density, "--method", "dare_linear"],
        "blend dare_ties": [*density, "--method", "dare_ties"],
        "blend ties": [*density, "--method", "ties"],
        "lora merge": ["lora", "merge", base, directory / "adapter.safetensors", "--to", "bf16", "-o", output],
        "merge": ["merge", directory / "part-0.safetensors", directory / "part-1.safetensors", "-o", output],
        "shard": ["shard", directory / "half", "--plan", directory / "rules", "--tp", "4", "-o", output],
    }
    good = []
    for name, command in commands.items():
        good.append(run(name, output, [binary, *command]))
        if name != "shard":
            subprocess.run(["rm", "-r", output], check=True)
    subprocess.run(["rm", "-r", base, one, other, directory / "half"], check=True)
    joined = directory / "joined"
    good.append(run("consolidate", joined, [binary, "consolidate", output, "-o", joined]))
    subprocess.run(["rm", "-r", output, joined], check=True)
    if not all(good):
        sys.exit(f"more than {LIMIT >> 20} MiB")


main()
