#!/usr/bin/env python3
"""Measures the command `weighbridge` beside cp, b3sum, sha256sum, sft-cli and picklescan, and writes a table.

    cargo build --release -p weighbridge-cli
    python3 benches/command.py target/release/weighbridge --sft .venv/bin/sft --update docs/benchmarks.md

The checkpoints are made anew: the tensors of a Llama in bf16, the same in f32, and 20,000 small ones in 100 shards. All ways
of a line take turns; whatever writes is followed by a sync of what it wrote. Only Python's own library is needed.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import marked



PICKLE = """
import sys, torch
from safetensors.torch import load_file
torch.save(load_file(sys.argv[1]), sys.argv[2])
"""

MANY = """
import sys, torch
torch.save({f"h.{i}.w": torch.zeros(8) for i in range(20000)}, sys.argv[1])
"""

CONVERT = """
import sys, torch
from safetensors.torch import save_file
save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])
"""


def header(tensors, bits):
    """The header of a file of those names and shapes, and the bytes of its data."""
    entries, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors:
        start, count = end, 1
        for dim in shape:
            count *= dim
        end += count * bits // 8
        entries[name] = {"dtype": {16: "BF16", 32: "F32"}[bits], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, end


def values(bits, count):
    """Ordinary values between -2 and 2, the same each time."""
    rng = random.Random(bits)
    upper = [rng.choice((0x3C00, 0xBC00)) + rng.getrandbits(9) for _ in range(count)]
    if bits == 16:
        return struct.pack(f"<{count}H", *upper)
    return struct.pack(f"<{count}I", *(value << 16 | rng.getrandbits(12) << 4 for value in upper))


def write(path, tensors, bits):
    head, left = header(tensors, bits)
    piece = values(bits, 1 << 19)
    with open(path, "wb") as file:
        file.write(head)
        while left > 0:
            left -= file.write(piece[:left])
        file.flush()
        os.fsync(file.fileno())


def llama(layers):
    yield "model.embed_tokens.weight", [32000, 2048]
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name, shape in {
            "self_attn.q_proj": [2048, 2048], "self_attn.k_proj": [256, 2048], "self_attn.v_proj": [256, 2048],
            "self_attn.o_proj": [2048, 2048], "mlp.gate_proj": [5632, 2048], "mlp.up_proj": [5632, 2048],
            "mlp.down_proj": [2048, 5632], "input_layernorm": [2048], "post_attention_layernorm": [2048],
        }.items():
            yield f"{prefix}{name}.weight", shape
    yield "model.norm.weight", [2048]
    yield "lm_head.weight", [32000, 2048]


def many(directory, shards, each):
    directory.mkdir()
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        tensors = [(f"model.layers.{shard}.experts.{i}.weight", [32, 32]) for i in range(each)]
        write(directory / name, tensors, 16)
        weight_map.update({tensor: name for tensor, _ in tensors})
    index = {"metadata": {"total_size": shards * each * 2048}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def run(command, outputs):
    """Seconds, CPU seconds and peak MiB of a command and the sync of its outputs."""
    for output in outputs:
        shutil.rmtree(output, ignore_errors=True)
        Path(output).unlink(missing_ok=True)
    os.sync()
    start = time.perf_counter()
    # A process of its own between us and the command, so that its resources are the command's alone.
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os.execvp(command[0], command)
    _, status, usage = os.wait4(child, 0)
    # `diff` of files that differ ends with 1.
    if os.waitstatus_to_exitcode(status) not in (0, 1):
        raise RuntimeError(f"{command}: {os.waitstatus_to_exitcode(status)}")
    for output in outputs:
        files = Path(output).iterdir() if Path(output).is_dir() else [output]
        for file in files:
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
    seconds = time.perf_counter() - start
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def lines(arguments, place):
    """What is measured: a title, and for each way its name, its command and what it writes."""
    w, sft, b3sum = arguments.weighbridge, arguments.sft, arguments.b3sum
    big, wide, other = place / "model.safetensors", place / "f32.safetensors", place / "other.safetensors"
    out, outs = place / "out.safetensors", place / "out"
    cp = ("`cp`", ["cp", big, out], [out])

    def ours(title, *rest, writes=()):
        return f"`weighbridge {title}`", [w, *rest], list(writes)

    def peer(title, *rest, writes=()):
        return [(f"`sft {title}`", [sft, *rest], list(writes))] if sft else []

    yield "one file of another", [
        ours("merge", "merge", big, "-o", out, writes=[out]), cp,
        # It joins two files or more.
        *peer("cat", "cat", big, place / "empty.safetensors", "-o", out, writes=[out])]
    yield "shards of 500 MB", [
        ours("split", "split", big, "--max-shard-size", "500MB", "-o", outs, writes=[outs]), cp,
        *peer("split", "split", big, "--max-size", "500MB", "-o", place / "shard-{index}.safetensors")]
    yield "other names", [
        ours("rename", "rename", big, "--rename-prefix", "model.=", "-o", out, writes=[out]), cp,
        *peer("rename", "rename", big, "--sub", "^model\\.", "--sub", "", "-o", out, writes=[out])]
    yield "half of the layers", [
        ours("filter", "filter", big, "--regex", r"layers\.\d\.", "-o", out, writes=[out]),
        *peer("slice", "slice", big, "--include=model.layers.?.**", "-o", out, writes=[out])]
    yield "f32 to bf16", [
        ours("cast", "cast", wide, "--to", "bf16", "-o", out, writes=[out]),
        *peer("cast", "cast", wide, "--dtype", "bf16", "-o", out, writes=[out])]
    yield "figures of all values", [ours("stat", "stat", big), *peer("stat", "stat", big)]
    yield "every value looked at", [ours("verify --data", "verify", "--data", big), *peer("check", "check", big)]
    yield "two files compared, values too", [
        ours("diff --data", "diff", "--data", big, other), *peer("diff --delta", "diff", "--delta", big, other),
        ("`cmp`", ["cmp", big, other], [])]
    yield "BLAKE3", [
        ours("hash", "hash", big), *([("`b3sum`", [b3sum, big], [])] if b3sum else [])]
    yield "SHA-256", [
        ours("hash --algorithm sha256", "hash", "--algorithm", "sha256", big),
        ("`sha256sum`", ["sha256sum", big], [])]
    if arguments.python:
        pickle = place / "pytorch_model.bin"
        yield "a pickle of PyTorch", [
            ours("convert", "convert", pickle, "-o", out, writes=[out]), ("`cp`", ["cp", pickle, out], [out]),
            ("Python's `torch.load` and `save_file`", [arguments.python, "-W", "ignore", "-c", CONVERT, pickle, out], [out])]
        for title, file in (("what a pickle would import", pickle), ("that of 20,000 tensors", place / "many.bin")):
            yield title, [
                ours("scan", "scan", file),
                *([("`picklescan`", [arguments.picklescan, "-p", file], [])] if arguments.picklescan else [])]
    yield "what is in 20,000 tensors of 100 shards", [
        ours("inspect", "inspect", place / "many"),
        *peer("ls", "ls", *sorted((place / "many").glob("*.safetensors")))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weighbridge", help="the program")
    parser.add_argument("--sft", help="sft-cli's program (PyPI: sft-cli)")
    parser.add_argument("--b3sum", default=shutil.which("b3sum"), help="BLAKE3's program (crates.io: b3sum)")
    parser.add_argument("--python", help="a Python that has torch and safetensors, to make and convert a pickle")
    parser.add_argument("--picklescan", help="picklescan's program (PyPI: picklescan)")
    parser.add_argument("--layers", type=int, default=22, help="22 make 2.2 GB")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", default="", help="lines whose title contains this")
    parser.add_argument("--directory", help="where checkpoints are made; a disk")
    parser.add_argument("--update", type=Path, help="a page whose marked section is replaced")
    arguments = parser.parse_args()

    table = ["| | time | ours is 1 | CPU time | peak, MiB |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory(dir=arguments.directory) as place:
        place = Path(place)
        tensors = list(llama(arguments.layers))
        write(place / "model.safetensors", tensors, 16)
        write(place / "f32.safetensors", tensors, 32)
        write(place / "empty.safetensors", [("nothing", [1])], 16)
        shutil.copy(place / "model.safetensors", place / "other.safetensors")
        with open(place / "other.safetensors", "r+b") as file:
            file.seek(-1000, os.SEEK_END)
            file.write(b"\x00\x3c")
        many(place / "many", 100, 200)
        if arguments.python:
            command = [arguments.python, "-W", "ignore", "-c", PICKLE, place / "model.safetensors"]
            subprocess.run([*command, place / "pytorch_model.bin"], check=True)
            subprocess.run([arguments.python, "-W", "ignore", "-c", MANY, place / "many.bin"], check=True)
        size = (place / "model.safetensors").stat().st_size
        for title, ways in lines(arguments, place):
            if arguments.only not in title:
                continue
            taken = {name: [] for name, _, _ in ways}
            for turn in range(arguments.repeat + 1):
                for name, command, outputs in ways:
                    sys.stderr.write(f"\r\x1b[K{title}: {name}")
                    figures = run([str(part) for part in command], [str(output) for output in outputs])
                    for shard in place.glob("shard-*"):
                        shard.unlink()
                    # The first round warms the caches.
                    if turn > 0:
                        taken[name].append(figures)
            table.append(f"| *{title}* | | | | |")
            first = None
            for name, rounds in taken.items():
                seconds, cpu, peak = (statistics.median(column) for column in zip(*rounds))
                first = first or seconds
                shown = f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
                table.append(f"| {name} | {shown} | {seconds / first:.2f} | {cpu:.2f} s | {peak:.0f} |")
    sys.stderr.write("\r\x1b[K")
    text = f"A checkpoint of {size / 1e9:.2f} GB, page cache hot; medians of {arguments.repeat}.\n\n" + "\n".join(table)
    print(text)
    if arguments.update:
        marked.replace(arguments.update, "command:table", text)


if __name__ == "__main__":
    main()
