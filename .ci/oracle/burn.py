#!/usr/bin/env python3
"""Compare the Burn Llama of examples/burn-llama with transformers, and open every file that it writes.

    python burn.py BIN SAMPLE

Makes small Llama checkpoints with random weights and the tokenizer of SAMPLE (samples/adder), lets BIN compute the logits after a
prompt and export the model,

    BIN --from DIR --epochs 0 --prompts 1 --logits TEXT --export DIR --json

and compares the logits with those of transformers, for the checkpoint and for what was exported.  Then trains two epochs of a
few steps, and has the official Python library open every safetensors file of the checkpoints.

Prints a line for each case and exits with 0 only if all of them passed.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

PROMPT = "123+456="
TOKENS = [1, 5, 6, 7, 14, 8, 9, 10, 15]
CLOSE = 1e-4
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES = {
    "one head of keys a query": {"num_key_value_heads": 4},
    "grouped queries": {"num_key_value_heads": 2},
    "one head of keys": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 32},
    "llama3 rope": {"rope_parameters": LLAMA3},
    "theta and epsilon": {"rope_parameters": {"rope_type": "default", "rope_theta": 250.0}, "rms_norm_eps": 1e-3},
    "bf16 in shards": {"shards": "40KB", "dtype": torch.bfloat16},
    "f16": {"dtype": torch.float16},
}

failures = 0


def check(name: str, passed: bool, detail: str = "") -> None:
    global failures
    failures += not passed
    print(f"{'ok' if passed else 'FAILED':6} {name} {detail}")


def run(program: str, *arguments) -> dict:
    done = subprocess.run([program, *map(str, arguments), "--json"], capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout)


def logits(model: LlamaForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0, -1]


def case(program: str, sample: Path, work: Path, name: str, changes: dict) -> None:
    changes = dict(changes)
    shards, dtype = changes.pop("shards", "1GB"), changes.pop("dtype", torch.float32)
    torch.manual_seed(len(name))
    shape = dict(
        vocab_size=16, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )
    model = LlamaForCausalLM(LlamaConfig(**(shape | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.dim() == 1))
    start, export = work / "start", work / "export"
    for directory in (start, export):
        shutil.rmtree(directory, ignore_errors=True)
    model.to(dtype).save_pretrained(start, max_shard_size=shards)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(sample / file, start / file)
    expected = logits(LlamaForCausalLM.from_pretrained(start, dtype=torch.float32).eval())
    made = run(program, "--from", start, "--epochs", 0, "--prompts", 1, "--logits", PROMPT, "--export", export)
    furthest = (torch.tensor(made["logits"]) - expected).abs().max().item()
    exported = logits(LlamaForCausalLM.from_pretrained(export, dtype=torch.float32).eval())
    same = torch.equal(exported, expected)
    check(name, furthest < CLOSE and same, f"furthest {furthest:.1e}, exported {'the same' if same else 'another'}")


def main() -> None:
    program, sample = sys.argv[1], Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        for name, changes in CASES.items():
            try:
                case(program, sample, work, name, changes)
            except Exception as error:
                check(name, False, str(error))
        steps = ["--steps-per-epoch", 3, "--batch-size", 8, "--prompts", 1]
        for epochs, more in ((1, []), (2, ["--resume"])):
            run(program, *steps, "--epochs", epochs, "--checkpoint-dir", work / "run", "--export", work / "out", *more)
        files = sorted([*(work / "run").rglob("*.safetensors"), *(work / "out").glob("*.safetensors")])
        tensors = {file.relative_to(work): len(load_file(file)) for file in files}
        check("every file opens", len(files) >= 4 and max(tensors.values()) > 39, f"{len(files)} files")
        moments = load_file(next((work / "run").rglob("optimizer.safetensors")))
        named = "model.layers.0.mlp.up_proj.weight.momentum.moment_1" in moments
        check("moments have readable names", named, next(iter(moments)))
    print(f"{failures} failed")
    sys.exit(failures > 0)


main()
