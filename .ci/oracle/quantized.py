#!/usr/bin/env python3
"""Quantised checkpoints by the quantisers' own libraries, and `weighbridge dequantize` held against them.

    quantized.py --out DIR                 writes DIR/vectors and DIR/refused, as tests/quantized has them
    quantized.py --check WEIGHBRIDGE       makes others (other numbers, odd shapes, whole tiny models), lets
                                           WEIGHBRIDGE dequantise each, and compares every tensor bit for bit
    quantized.py --check ... --candle BIN  lets BIN (candle-lm) continue prompts from each whole Llama, too: as it is
                                           stored, dequantised by the library, and dequantised by WEIGHBRIDGE

Each family of libraries has a virtual environment of its own, which is made with pip where it is missing (below
target/quantisers, or --environments). Torch is installed once, or taken from the Python that WEIGHBRIDGE_PYTHON
names; the environments see it there. What could not be installed is said, and the rest is run all the same.

Exits with 0 if nothing differed and everything that was installed could be made. Needs nothing but Python itself.
"""

import argparse
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

from quantisers import refusals

TORCH = ["torch==2.15.0", "numpy==2.4.6", "safetensors==0.8.0"]
TRANSFORMERS = ["transformers==5.24.0", "accelerate==1.15.0"]


@dataclass
class Environment:
    """What pip installs, in this order; `alone` without what it depends on, built with what is there."""

    packages: list
    alone: tuple = ()


ENVIRONMENTS = {
    "transformers": Environment([*TRANSFORMERS, "compressed-tensors==0.20.0"]),
    "compressed-tensors-0.13": Environment([*TRANSFORMERS, "compressed-tensors==0.13.0"]),
    "bitsandbytes": Environment([*TRANSFORMERS, "bitsandbytes==0.50.2"]),
    "mlx": Environment([*TRANSFORMERS, "mlx[cpu]==0.32.4", "mlx-lm==0.32.2"]),
    "gptqmodel": Environment(["gptqmodel==7.7.0"]),
    # Of AutoAWQ single files are loaded, so that it needs nothing of what it asks for, and cannot have.
    "autoawq": Environment(["setuptools", "wheel"], ("autoawq==0.2.9",)),
    "modelopt": Environment([*TRANSFORMERS, "nvidia-modelopt==0.47.0", "requests"]),
    "hqq": Environment([*TRANSFORMERS, "hqq==0.2.8.post1", "termcolor", "einops"]),
    "quanto": Environment([*TRANSFORMERS, "optimum-quanto==0.2.7", "ninja"]),
    "torchao": Environment([*TRANSFORMERS, "torchao==0.18.0"]),
    "auto-round": Environment(["auto-round==0.16.1", "compressed-tensors==0.20.0"]),
}

# Script in quantisers/ -> environment.
FAMILIES = {
    "compressed": "transformers",
    "compressed_old": "compressed-tensors-0.13",
    "fp8": "transformers",
    "hub": "transformers",
    "bnb": "bitsandbytes",
    "apple": "mlx",
    "gptq": "gptqmodel",
    "awq": "autoawq",
    "modelopt": "modelopt",
    "half_quadratic": "hqq",
    "quanto": "quanto",
    "ao": "torchao",
    "autoround": "auto-round",
}


def last_line(output):
    lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


def pip(python, *arguments):
    """Whether it installed, and what pip said if it did not."""
    ran = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *arguments],
        capture_output=True,
        env=os.environ | {"PYPI_BUILD": "1"},
    )
    errors = [line for line in ran.stderr.splitlines() if line.lower().startswith(b"error")]
    return ran.returncode == 0, last_line(b"\n".join(errors) or ran.stderr)


def python_of(place):
    return place / "bin" / "python"


def make_environment(place, wanted):
    """Makes an empty one, unless there is one with what is wanted: whether it made one."""
    said = place / "installed.txt"
    if said.exists() and said.read_text() == wanted:
        return False
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    return True


def torch_packages(environments):
    """The folder of the packages that have torch, and a file that keeps pip from installing another one."""
    python = os.environ.get("WEIGHBRIDGE_PYTHON")
    if not python:
        place = environments / "torch"
        wanted = "\n".join(TORCH)
        if make_environment(place, wanted):
            installed, said = pip(python_of(place), *TORCH)
            if not installed:
                sys.exit(f"torch could not be installed: {said}")
            (place / "installed.txt").write_text(wanted)
        python = python_of(place)
    script = "import sysconfig, torch, numpy, safetensors; print(sysconfig.get_path('purelib')); print(torch.__version__.split('+')[0])"
    ran = subprocess.run([python, "-c", script], capture_output=True)
    if ran.returncode:
        sys.exit(f"{python} has no torch, numpy and safetensors: {last_line(ran.stderr)}")
    packages, version = ran.stdout.decode().split()
    constraint = environments / "constraint.txt"
    constraint.write_text(f"torch=={version}\n")
    return packages, constraint


def prepared(environments, name, torch, constraint):
    """The Python of an environment, or None and why there is none."""
    environment, place = ENVIRONMENTS[name], environments / name
    wanted = "\n".join([torch, *environment.packages, *environment.alone])
    if make_environment(place, wanted):
        python = python_of(place)
        packages = (
            subprocess.run(
                [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                capture_output=True,
                check=True,
            )
            .stdout.decode()
            .strip()
        )
        Path(packages, "torch.pth").write_text(torch + "\n")
        installed, said = pip(python, "--constraint", constraint, *environment.packages)
        if installed and environment.alone:
            installed, said = pip(python, "--no-deps", "--no-build-isolation", *environment.alone)
        if not installed:
            return None, said
        (place / "installed.txt").write_text(wanted)
    return python_of(place), None


class Report:
    def __init__(self):
        self.passed, self.failed, self.missing = 0, 0, []

    def check(self, what, fault):
        """`fault` is what is wrong, or nothing."""
        if fault:
            self.failed += 1
            print(f"FAILED {what}: {fault}", flush=True)
        else:
            self.passed += 1

    def end(self):
        for name, said in self.missing:
            print(f"not installed: {name}: {said}")
        print(f"{self.passed} passed, {self.failed} failed")
        sys.exit(self.failed != 0 or self.passed == 0)


def make(report, pythons, only, out, seed, whole=False):
    """Lets each family write its cases into `out`."""
    for family, name in FAMILIES.items():
        if family not in only or name not in pythons:
            continue
        arguments = [pythons[name], "-m", f"quantisers.{family}", out, str(seed), *(["whole"] if whole else [])]
        # Some libraries write their logs into the directory that they run in.
        with tempfile.TemporaryDirectory() as elsewhere:
            ran = subprocess.run(
                arguments,
                cwd=elsewhere,
                env=os.environ | {"PYTHONPATH": str(HERE)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        lines = ran.stdout.decode(errors="replace").splitlines()
        made = [line for line in lines if line.startswith("made ")]
        for line in made:
            print(f"  {line}", flush=True)
        start = next((i for i, line in enumerate(lines) if line.startswith("FAILED")), max(0, len(lines) - 15))
        report.check(
            f"{family}, seed {seed}{', whole models' if whole else ''}: making",
            ran.returncode and "\n" + "\n".join(lines[start:]),
        )


def tensors_of(path):
    """Name -> (dtype, shape, bytes), of a file or of all files of a directory."""
    found = {}
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            found[name] = (entry["dtype"], entry["shape"], data[8 + length + begin : 8 + length + end])
    return found


# Of each dtype: the code of an element, the bits of its exponent and of its mantissa.
FLOATS = {"F32": ("I", 0x7F800000, 0x007FFFFF), "F16": ("H", 0x7C00, 0x03FF), "BF16": ("H", 0x7F80, 0x007F)}


def difference(found, expected):
    """What differs, or nothing. One NaN is as good as another."""
    if found[:2] != expected[:2]:
        return f"{found[0]} {found[1]}, not {expected[0]} {expected[1]}"
    if found[2] == expected[2]:
        return None
    if found[0] not in FLOATS:
        return "other bytes"
    code, exponent, mantissa = FLOATS[found[0]]
    values = [struct.unpack(f"<{len(data) // struct.calcsize(code)}{code}", data) for data in (found[2], expected[2])]

    def is_nan(bits):
        return bits & exponent == exponent and bits & mantissa

    differing = [(i, a, b) for i, (a, b) in enumerate(zip(*values)) if a != b and not (is_nan(a) and is_nan(b))]
    if not differing:
        return None
    index, a, b = differing[0]
    return f"{len(differing)} of {len(values[0])} elements differ, first {index}: {a:#x}, not {b:#x}"


def compare(report, what, out, dense):
    found, expected = tensors_of(out), tensors_of(dense)
    if found.keys() != expected.keys():
        missing, more = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        report.check(what, f"missing {missing[:4]}, not expected {more[:4]}")
    for name in sorted(found.keys() & expected.keys()):
        report.check(f"{what} {name}", difference(found[name], expected[name]))


def dequantise(command, checkpoint, out, *options):
    return subprocess.run([command, "dequantize", checkpoint, "-o", out, *options], capture_output=True)


def check_case(report, command, case):
    checkpoint = case / "checkpoint"
    for dense, options in [("dense", []), ("dense_f32", ["--to", "f32"])]:
        expected = case / f"{dense}.safetensors"
        if not expected.exists():
            continue
        what, out = " ".join([case.name, *options]), case / f"{dense}-out"
        ran = dequantise(command, checkpoint, out, *options)
        if ran.returncode:
            report.check(what, last_line(ran.stderr))
            continue
        if options:
            # What was never quantised is cast, too.
            check_f32(report, what, out, expected)
        else:
            compare(report, what, out, expected)
        check_config(report, what, out, checkpoint)


def check_f32(report, what, out, dense):
    """The weights in float32; of the rest, which the file keeps as they were, name and shape."""
    found, expected = tensors_of(out), tensors_of(dense)
    report.check(
        what, None if found.keys() == expected.keys() else f"other names: {sorted(found.keys() ^ expected.keys())[:4]}"
    )
    for name in sorted(found.keys() & expected.keys()):
        if expected[name][0] == "F32":
            report.check(f"{what} {name}", difference(found[name], expected[name]))
        else:
            report.check(f"{what} {name}", None if found[name][1] == expected[name][1] else "another shape")


def check_config(report, what, out, checkpoint):
    """No file beside the weights says any more that they are quantised."""
    for name in [
        "quantize_config.json",
        "quant_config.json",
        "hf_quant_config.json",
        "quanto_qmap.json",
        "quantization_config.json",
    ]:
        report.check(f"{what}: {name}", "is still there" if (out / name).exists() else None)
    for name in ["config.json", "params.json"]:
        if (checkpoint / name).exists():
            config = json.loads((out / name).read_text()) if (out / name).exists() else None
            left = config and [key for key in ["quantization", "quantization_config"] if key in config]
            report.check(f"{what}: {name}", "is not there" if config is None else left and f"still has {left}")


PROMPTS = ["w1", "w7 w30 w2 w41 w5", "w47 w46 w45 w44 w43 w42 w41"]


def check_tokens(report, command, candle, case):
    """Greedy tokens of a stored Llama are those of its weights: the library's, and those that `command` writes."""
    checkpoint = case / "checkpoint"
    config = json.loads((checkpoint / "config.json").read_text())
    if config.get("model_type") != "llama":
        return
    write_tokenizer(checkpoint, config["vocab_size"])
    library, ours, single = (case / f"candle-{name}" for name in ["library", "ours", "single"])
    for out, options in [(ours, []), (single, ["--to", "f32"])]:
        ran = dequantise(command, checkpoint, out, *options)
        if ran.returncode:
            report.check(f"{case.name}: tokens", last_line(ran.stderr))
            return
    library.mkdir()
    shutil.copy(case / "dense.safetensors", library / "model.safetensors")
    for name in ["config.json", "tokenizer.json"]:
        shutil.copy(ours / name, library / name)
    # What a dtype rounds, it rounds in both; of others, one side would be rounded and the other not.
    dtype = tensors_of(library)["model.layers.0.mlp.down_proj.weight"][0].lower()
    for others, dtype in [([library, ours], dtype), ([single], "f32")]:
        for prompt in PROMPTS:
            expected, said = continued(candle, checkpoint, prompt, dtype)
            for other in others:
                found, said_other = continued(candle, other, prompt, dtype)
                fault = said or said_other or (found != expected and f"{found}, not {expected}")
                report.check(f"{case.name}: tokens of {other.name} in {dtype}", fault)


def continued(candle, model, prompt, dtype):
    """The tokens that follow, or None and what the program said."""
    asked = ["--model", model, "--prompt", prompt, "--max-new-tokens", "24", "--dtype", dtype, "--json"]
    ran = subprocess.run([candle, *asked], capture_output=True)
    if ran.returncode:
        return None, last_line(ran.stderr)
    tokens = json.loads(ran.stdout)["tokens"]
    return tokens, None if tokens else "no tokens"


def write_tokenizer(checkpoint, count):
    """One token for each of the words w0, w1 and so on."""
    words = {f"w{number}": number for number in range(count)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    }
    rest = dict.fromkeys(["truncation", "padding", "normalizer", "post_processor", "decoder"])
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer | rest))


def check_refusal(report, command, case):
    out = case / "out"
    ran = dequantise(command, case / "checkpoint", out)
    said = ran.stderr.decode(errors="replace").strip()
    absent = [part for part in (case / "expect.txt").read_text().splitlines() if part not in said]
    what = f"refused: {case.name}"
    if ran.returncode == 0:
        report.check(what, "was read")
    elif ran.returncode < 0 or "panicked" in said or len(said.splitlines()) != 1:
        report.check(what, f"status {ran.returncode}, {said[:300]!r}")
    else:
        report.check(what, absent and f"does not mention {absent}: {said[:300]}")
    report.check(f"{what}: what is left", [path.name for path in tensor_files(out)])


def tensor_files(out):
    return list(out.glob("*.safetensors")) if out.is_dir() else []


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    todo = parser.add_mutually_exclusive_group(required=True)
    todo.add_argument("--out", type=Path, help="write the committed checkpoints into this directory")
    todo.add_argument("--check", type=Path, metavar="WEIGHBRIDGE", help="hold this command against the libraries")
    parser.add_argument("--candle", type=Path, metavar="BIN", help="of --check: candle-lm, to run whole Llamas with")
    parser.add_argument("--environments", type=Path, default=ROOT / "target" / "quantisers")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="these families alone")
    parser.add_argument("--seed", type=int, help="of --check; drawn where there is none")
    parser.add_argument("--keep", type=Path, help="of --check: make the checkpoints here, and leave them")
    arguments = parser.parse_args()

    report, pythons = Report(), {}
    arguments.environments.mkdir(parents=True, exist_ok=True)
    torch, constraint = torch_packages(arguments.environments.resolve())
    for name in dict.fromkeys(FAMILIES[family] for family in arguments.only):
        python, said = prepared(arguments.environments.resolve(), name, torch, constraint)
        if python:
            pythons[name] = python
        else:
            report.missing.append((name, said))
            print(f"not installed: {name}: {said}", flush=True)

    if arguments.out:
        for part in ["vectors", "refused"]:
            (arguments.out / part).mkdir(parents=True)
        make(report, pythons, arguments.only, (arguments.out / "vectors").resolve(), 0)
        print(f"  made {refusals.write(arguments.out / 'refused')} refusals")
        report.end()

    seed = arguments.seed or random.randrange(1, 2**31)
    command = arguments.check.resolve()
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory() as temporary:
        place = (arguments.keep or Path(temporary)).resolve()
        for kind, number, whole in [("committed", 0, False), ("drawn", seed, False), ("whole", seed, True)]:
            (place / kind).mkdir(parents=True)
            make(report, pythons, arguments.only, place / kind, number, whole)
            for case in sorted((place / kind).iterdir()):
                check_case(report, command, case)
                if whole and arguments.candle:
                    check_tokens(report, command, arguments.candle.resolve(), case)
        refusals.write(place / "refused")
        for case in sorted((place / "refused").iterdir()):
            check_refusal(report, command, case)
    report.end()


if __name__ == "__main__":
    main()
