#!/usr/bin/env python3
"""Counts what loads cost: instructions, system calls and page faults for each GB, which a busy machine does not change.

    cargo build --release -p benches --bin peers
    python3 benches/counts.py target/release/peers --update docs/benchmarks.md

Instructions are those of the program, without the kernel's, counted by valgrind; system calls are counted by strace. Both must
be installed. Starting the program, half a million instructions and a hundred calls, is included.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import marked


# Work, layout, and its ways with their titles.
CANDLE = "candle `VarBuilder::from_mmaped_safetensors`"
OURS = "**weighbridge** `var_builder`"
WORKS = [
    ("a Llama in bf16", "load", "llama", [("limit", "the limit of a copy"), ("weighbridge", OURS), ("candle-mmap", CANDLE)]),
    ("cast to f32", "cast", "llama", [("limit", "the limit of a cast"), ("weighbridge", OURS), ("candle-mmap", CANDLE)]),
    ("tensors of 64 KB", "small", "small",
     [("limit-small", "the limit of small tensors"), ("weighbridge", OURS), ("candle-mmap", CANDLE)]),
    ("tensors of 64 KB, cast to f32", "small-cast", "small",
     [("limit-small", "the limit of small tensors"), ("weighbridge", OURS), ("candle-mmap", CANDLE)]),
    ("one rank of eight, columns, for each GB of the file", "rank-columns", "llama",
     [("weighbridge", "**weighbridge** `sharded_var_builder`"), ("candle", "candle `ShardedSafeTensors::var_builder`")]),
]


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr.strip().splitlines()[-1:]}")
    return done


def instructions(command):
    # Without a simulated cache, cachegrind only counts.
    text = run("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", *command).stderr
    return int(re.search(r"I\s+refs:\s+([\d,]+)", text)[1].replace(",", ""))


def system_calls(command):
    with tempfile.NamedTemporaryFile() as out:
        run("strace", "-f", "-c", "-U", "calls,name", "-o", out.name, *command)
        total = [line for line in Path(out.name).read_text().splitlines() if line.endswith("total")]
        return int(total[-1].split()[0])


def page_faults(command):
    return json.loads(run(*command).stdout.splitlines()[-1])["page_faults"]


def count(program, work, way, directory, size):
    command = [program, "--measure", work, way, directory, "--size", str(size)]
    return [instructions(command), system_calls(command), page_faults(command)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="the built program `peers`")
    parser.add_argument("--size", type=int, default=1_000_000_000, help="bytes of the checkpoints")
    parser.add_argument("--directory", help="where checkpoints are made")
    parser.add_argument("--update", type=Path, help="a page whose marked section is replaced")
    arguments = parser.parse_args()
    lines = ["| | instructions, millions | system calls | page faults |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory(dir=arguments.directory) as temporary:
        places = {layout: f"{temporary}/{layout}" for layout in sorted({work[2] for work in WORKS})}
        for layout, place in places.items():
            run(arguments.program, "--make", place, "--layout", layout, "--size", str(arguments.size))
        for title, work, layout, ways in WORKS:
            lines.append(f"| *{title}* | | | |")
            stored = sum(file.stat().st_size for file in Path(places[layout]).glob("*.safetensors"))
            for way, name in ways:
                counts = count(arguments.program, work, way, places[layout], arguments.size)
                costs = [total / stored * 1e9 for total in counts]
                lines.append(f"| {name} | {costs[0] / 1e6:,.1f} | {costs[1]:,.0f} | {costs[2]:,.0f} |")
    table = "\n".join(lines)
    print(table)
    if arguments.update:
        marked.replace(arguments.update, "counts", table)


if __name__ == "__main__":
    main()
