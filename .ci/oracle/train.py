#!/usr/bin/env python3
"""Continue one another's training runs: examples/candle-train and PyTorch's AdamW over the same Llama of transformers.

    python train.py BIN SAMPLE

BIN trains a few steps from SAMPLE (samples/adder).  PyTorch takes the next one from what was saved, weights, moments and steps,
and has to come to what BIN comes to (Candle -> PyTorch).  Then BIN goes on from what PyTorch saved (PyTorch -> Candle), and has
to come to what PyTorch comes to.  The batches are drawn here as BIN draws them.

Prints a line for each case and exits with 0 only if all of them passed.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()

STEPS, BATCH, SEED, BEGUN = 40, 8, 3, 5
CLOSE = 1e-6
MASK = (1 << 64) - 1
SCALARS = "weighbridge.burn.scalars"
MOMENTS = {"exp_avg": "momentum.moment_1", "exp_avg_sq": "momentum.moment_2"}


def mixed(value):
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


class Random:
    def __init__(self, seed, stream):
        self.state = mixed(mixed(seed) ^ stream)

    def below(self, limit):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        return mixed(self.state) % limit


def draw(random):
    while True:
        even = random.below(5) < 3
        numbers = []
        for _ in range(2):
            kind = random.below(3)
            first, count = (0, 1000) if even else [(0, 10), (10, 90), (100, 900)][kind]
            numbers.append(first + random.below(count))
        low, high = sorted(numbers)
        if mixed(low * 1000 + high) % 64:
            return numbers


def batch(step, vocabulary):
    random = Random(SEED, step)
    rows = []
    for _ in range(BATCH):
        a, b = draw(random)
        prompt = [vocabulary["<bos>"], *(vocabulary[character] for character in f"{a}+{b}=")]
        answer = [*(vocabulary[character] for character in str(a + b)), vocabulary["<eos>"]]
        rows.append((prompt, answer))
    length = max(len(prompt) + len(answer) for prompt, answer in rows) - 1
    ids, labels = torch.zeros(BATCH, length, dtype=torch.long), torch.full((BATCH, length), -100)
    for row, (prompt, answer) in enumerate(rows):
        whole = torch.tensor(prompt + answer)
        ids[row, : len(whole) - 1] = whole[:-1]
        labels[row, len(prompt) - 1 : len(whole) - 1] = torch.tensor(answer)
    return ids, labels


def rate(step):
    warmup = STEPS // 20
    if step < warmup:
        return 2e-3 * (step + 1) / warmup
    return 2e-5 + 0.5 * (2e-3 - 2e-5) * (1 + math.cos((step - warmup) / (STEPS - warmup) * math.pi))


def step_of_torch(model, optimizer, step, vocabulary):
    ids, labels = batch(step, vocabulary)
    for group in optimizer.param_groups:
        group["lr"] = rate(step)
    optimizer.zero_grad()
    logits = model(ids).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100).backward()
    optimizer.step()


def load(directory, model):
    """The model and an AdamW as they were saved in a directory."""
    model.load_state_dict(load_file(directory / "model.safetensors"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.05)
    tensors = load_file(directory / "optimizer.safetensors")
    with safe_open(directory / "optimizer.safetensors", "pt") as opened:
        scalars = json.loads(opened.metadata()[SCALARS])
    whole = optimizer.state_dict()
    for number, (name, _) in enumerate(model.named_parameters()):
        kind, _, time = scalars[f"{name}.momentum.time"].partition(" ")
        assert kind == "uint"
        whole["state"][number] = {"step": torch.tensor(float(time))}
        whole["state"][number].update({theirs: tensors[f"{name}.{ours}"] for theirs, ours in MOMENTS.items()})
    optimizer.load_state_dict(whole)
    return optimizer


def save(directory, model, optimizer):
    """Puts the model and an AdamW in the place of those in a directory."""
    with safe_open(directory / "optimizer.safetensors", "pt") as opened:
        metadata = opened.metadata()
    scalars, tensors = json.loads(metadata[SCALARS]), {}
    for number, (name, _) in enumerate(model.named_parameters()):
        state = optimizer.state_dict()["state"][number]
        scalars[f"{name}.momentum.time"] = f"uint {int(state['step'])}"
        tensors.update({f"{name}.{ours}": state[theirs].contiguous() for theirs, ours in MOMENTS.items()})
    metadata[SCALARS] = json.dumps(scalars)
    save_file(tensors, directory / "optimizer.safetensors", metadata=metadata)
    with safe_open(directory / "model.safetensors", "pt") as opened:
        metadata = opened.metadata()
    weights = {name: value.detach().contiguous() for name, value in model.named_parameters()}
    save_file(weights, directory / "model.safetensors", metadata=metadata)
    manifest = directory.parent / "checkpoints.json"
    entries = json.loads(manifest.read_text())
    for entry in entries["checkpoints"]:
        if entry["directory"] == directory.name:
            entry["bytes"] = {file: (directory / file).stat().st_size for file in entry["bytes"]}
    manifest.write_text(json.dumps(entries))


def apart(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def main(binary, sample):
    torch.manual_seed(0)
    vocabulary = json.loads((sample / "tokenizer.json").read_text())["model"]["vocab"]
    model = LlamaForCausalLM.from_pretrained(sample, dtype=torch.float32, attn_implementation="eager")
    failures = 0

    def check(name, ours, torchs, before):
        nonlocal failures
        worst, moved = apart(ours, torchs), apart(before, torchs)
        passed = worst < CLOSE < moved
        failures += not passed
        print(f"{'ok  ' if passed else 'FAIL'} {name}: at most {worst:.1e} apart, and up to {moved:.1e} from before")

    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"

        def train(*arguments):
            subprocess.run([binary, run, *map(str, arguments)], check=True, stderr=subprocess.DEVNULL)

        def at(step):
            return run / f"step-{step:08}"

        train("--from", sample, "--steps", STEPS, "--batch", BATCH, "--seed", SEED, "--until", BEGUN)
        before = load_file(at(BEGUN) / "model.safetensors")
        optimizer = load(at(BEGUN), model)
        shutil.copytree(run, Path(temporary) / "kept")
        train("--resume", "--until", BEGUN + 1)
        step_of_torch(model, optimizer, BEGUN, vocabulary)
        check("Candle -> PyTorch", load_file(at(BEGUN + 1) / "model.safetensors"), model.state_dict(), before)

        # PyTorch's steps take the place of Candle's.
        shutil.rmtree(run)
        shutil.copytree(Path(temporary) / "kept", run)
        optimizer = load(at(BEGUN), model)
        # The learning rate of the step is the one that Candle takes next.
        for _ in range(3):
            step_of_torch(model, optimizer, BEGUN, vocabulary)
        save(at(BEGUN), model, optimizer)
        before = load_file(at(BEGUN) / "model.safetensors")
        train("--resume", "--until", BEGUN + 1)
        step_of_torch(model, optimizer, BEGUN, vocabulary)
        check("PyTorch -> Candle", load_file(at(BEGUN + 1) / "model.safetensors"), model.state_dict(), before)
        moments = load_file(at(BEGUN + 1) / "optimizer.safetensors")
        state = optimizer.state_dict()["state"]
        torchs = {
            f"{name}.{ours}": state[number][theirs]
            for number, (name, _) in enumerate(model.named_parameters())
            for theirs, ours in MOMENTS.items()
        }
        worst = apart(moments, torchs)
        failures += worst >= CLOSE
        print(f"{'ok  ' if worst < CLOSE else 'FAIL'} the moments after it: at most {worst:.1e} apart")
    return failures


if __name__ == "__main__":
    sys.exit(bool(main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))))
