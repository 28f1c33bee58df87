#!/usr/bin/env python3
"""Counts how many instructions the crate's loops take for an element, under qemu, which a busy machine does not change.

    cargo build --release -p weighbridge --example loops
    python3 benches/loops.py --x86-64 target/release/examples/loops
    python3 benches/loops.py --aarch64 PROGRAM --scalar PROGRAM --x86-64 PROGRAM --update docs/benchmarks.md
    python3 benches/loops.py --aarch64 PROGRAM --check

Each loop of crates/weighbridge/examples/loops.rs runs over 262,144 elements and over twice as many, on one core; the
difference counts, so that what happens once for each tensor is not in it. Copies out of the file are.

scripts/check-aarch64 builds the program for aarch64 and has it checked; with `--scalar` it leaves one there that was compiled
without vectors, beside the other. A loop of BOUNDS that takes more than that is no vector code any more.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import marked

ELEMENTS = 262_144
PLUGIN = Path(__file__).with_suffix(".c")

# Instructions for each element, at most, on aarch64: half as many again as were counted. Without vectors all take more.
BOUNDS = {
    "BF16:F32": 1.3, "F16:F32": 6.4, "F32:BF16": 4.3, "F32:F16": 9.6, "BF16:F16": 10.5, "F8_E4M3:F32": 6.0,
    "F8_E4M3:BF16": 6.2, "F32:F8_E4M3": 9.2, "I8:F32": 1.4, "I32:F32": 2.2, "I32:I8": 2.9, "F32:I8": 5.8, "F32:F64": 2.7,
    "F64:F32": 3.4, "F64:F16": 18.0, "F64:I8": 14.7, "I64:BF16": 24.8,
    "blend:linear": 13.1, "blend:ties": 36.2, "blend:dare_ties": 55.3,
    "quantize:fp8": 12.6, "quantize:int8": 8.8, "quantize:int4-rtn": 12.1, "quantize:nf4": 22.6, "quantize:mxfp4": 24.4,
    "dequantize:fp8": 11.9, "dequantize:int8": 7.2, "dequantize:int4-rtn": 8.0, "dequantize:nf4": 15.5,
    "dequantize:mxfp4": 13.5,
    "low-rank:16": 32.2, "norm": 11.4, "truncate:16": 372.0,
}

# A processor's name, its emulator, and the options that make it: without `erms` memory is copied by vectors, not by the one
# instruction that qemu counts once for each byte.
AARCH64 = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]
PROCESSORS = {
    "aarch64": AARCH64,
    "aarch64, no vectors": AARCH64,
    "x86-64": ["qemu-x86_64", "-cpu", "max,-erms,-avx2"],
    "x86-64, AVX2": ["qemu-x86_64", "-cpu", "max,-erms"],
}


def count(processor, program, names, plugin):
    """Instructions for each element, by the name of the loop."""
    # On one core, so that work that would be spread over threads is done by one.
    command = ["taskset", "-c", "0", *PROCESSORS[processor], "-plugin", plugin, program, *names]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{program}: {done.stderr.strip()}")
    lines = [line.split() for line in done.stdout.splitlines()]
    counts = {}
    for (start, _), (middle, _), (end, name) in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        counts[name] = (int(end) - 2 * int(middle) + int(start)) / ELEMENTS
    return counts


def compile_plugin(directory):
    plugin = Path(directory) / "loops.so"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", PLUGIN, "-o", plugin], check=True)
    return plugin


def check(counts):
    """Says which loops take more than they may, and whether any does."""
    failed = 0
    for name, most in BOUNDS.items():
        worse = counts[name] > most
        failed += worse
        print(f"{name:24} {counts[name]:6.2f} of {most:5.1f} instructions for each element{'  TOO MANY' if worse else ''}")
    return failed


def tables(counts):
    """The loops that have a bound, on all processors; and a matrix of all casts for each."""
    others = (name for name in next(iter(counts.values())) if not name[0].isupper())
    names = list(dict.fromkeys([*BOUNDS, *others]))
    yield f"| | {' | '.join(counts)} |"
    yield "|---|" + "---|" * len(counts)
    for name in names:
        title = re.sub(r"(.*):(.*)", r"`\1` to `\2`" if name[0].isupper() else r"\1, \2", name)
        yield f"| {title} | {' | '.join(f'{of[name]:.1f}' for of in counts.values())} |"
    for processor, of in counts.items():
        if "no vectors" in processor:
            continue
        pairs = {tuple(name.split(":")): value for name, value in of.items() if re.fullmatch(r"[A-Z]\w+:[A-Z]\w+", name)}
        sources, targets = (list(dict.fromkeys(pair[place] for pair in pairs)) for place in (0, 1))
        yield f"\n| {processor} | {' | '.join(f'`{to}`' for to in targets)} |"
        yield "|---|" + "---|" * len(targets)
        for source in sources:
            cells = (f"{pairs[source, to]:.1f}" if (source, to) in pairs else "" for to in targets)
            yield f"| `{source}` | {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--aarch64", help="the program `loops`, built for aarch64-unknown-linux-gnu")
    parser.add_argument("--scalar", help="the same, compiled without vectors")
    parser.add_argument("--x86-64", help="the program `loops`, built for x86_64-unknown-linux-gnu")
    parser.add_argument("--check", action="store_true", help="counts those that have a bound on aarch64, and fails when one is over it")
    parser.add_argument("--update", type=Path, help="a page whose marked section is replaced")
    arguments = parser.parse_args()
    programs = [arguments.aarch64, arguments.scalar, arguments.x86_64, arguments.x86_64]
    with tempfile.TemporaryDirectory() as directory:
        plugin = compile_plugin(directory)
        if arguments.check:
            sys.exit(check(count("aarch64", arguments.aarch64, list(BOUNDS), plugin)) > 0)
        pairs = zip(PROCESSORS, programs, strict=True)
        counts = {name: count(name, program, [], plugin) for name, program in pairs if program}
    table = "\n".join(tables(counts))
    print(table)
    if arguments.update:
        marked.replace(arguments.update, "loops", table)


if __name__ == "__main__":
    main()
