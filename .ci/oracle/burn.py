#!/usr/bin/env python3
"""Compare the Burn programs of examples/ with transformers and PEFT, and open every file that they write.

    python burn.py BINARIES SAMPLE

BINARIES is a directory with burn-llama, burn-lm, burn-lora, candle-lm and weighbridge; SAMPLE is samples/adder.

burn-llama: makes small Llama checkpoints with random weights and the tokenizer of SAMPLE, lets it compute the logits after a
prompt and export the model,

    burn-llama --from DIR --epochs 0 --prompts 1 --logits TEXT --export DIR --json

and compares the logits with those of transformers, for the checkpoint and for what was exported.  Then trains two epochs of a
few steps, and has the official Python library open every safetensors file of the checkpoints.

burn-lm: the checkpoints of lm.py of its families, and some that only Burn's model computes; the greedy tokens have to be those
of transformers' `generate` and of candle-lm.

burn-lora: trains a few steps beside SAMPLE and beside small random models; PEFT and transformers load the adapter, burn-lm
and candle-lm run it, and weighbridge merges it: all give the logits or tokens of the model that was trained.

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

import lm
import torch
from lm_families import other_rope, rope, size
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
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


def random_llama(sample: Path, start: Path, name: str, changes: dict) -> None:
    """Writes a small model that knows digits."""
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
    shutil.rmtree(start, ignore_errors=True)
    model.to(dtype).save_pretrained(start, max_shard_size=shards)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(sample / file, start / file)


def case(program: str, sample: Path, work: Path, name: str, changes: dict) -> None:
    start, export = work / "start", work / "export"
    shutil.rmtree(export, ignore_errors=True)
    random_llama(sample, start, name, changes)
    expected = logits(LlamaForCausalLM.from_pretrained(start, dtype=torch.float32).eval())
    made = run(program, "--from", start, "--epochs", 0, "--prompts", 1, "--logits", PROMPT, "--export", export)
    furthest = (torch.tensor(made["logits"]) - expected).abs().max().item()
    exported = logits(LlamaForCausalLM.from_pretrained(export, dtype=torch.float32).eval())
    same = torch.equal(exported, expected)
    check(name, furthest < CLOSE and same, f"furthest {furthest:.1e}, exported {'the same' if same else 'another'}")


# Only Burn's model computes them.
WIDER = [
    lm.Case("llama: biases, heads of their own size", size(64, 2, 4, 2, 96, head_dim=32, attention_bias=True, mlp_bias=True)
            | rope(10000.0), lm.char_tokenizer(bos=True)),
    lm.Case("mistral: llama3 rope, f16, shards", size(64, 2, 4, 2, 96, sliding_window=None) | rope(5e5, **lm.LLAMA3_ROPE),
            lm.byte_tokenizer(bos=True), family="mistral", prompts=lm.UNICODE, dtype=torch.float16, shards="50KB"),
    lm.Case("qwen2: heads of their own size", size(64, 2, 4, 2, 96, head_dim=32) | rope(10000.0),
            lm.char_tokenizer(bos=True), family="qwen2", eos="list"),
    lm.Case("qwen3: biases, bf16, tied", size(64, 2, 4, 1, 96, head_dim=32, attention_bias=True, tie_word_embeddings=True)
            | rope(1e6), lm.char_tokenizer(bos=True), family="qwen3", dtype=torch.bfloat16, eos="int"),
]
REFUSED = [
    ("llama", "rope type linear", other_rope("linear"), "linear"),
    ("llama", "rope type yarn", other_rope("yarn", original_max_position_embeddings=64), "yarn"),
    ("llama", "hidden_act gelu", {"hidden_act": "gelu"}, "gelu"),
    ("mistral", "attention_bias", {"attention_bias": True}, "attention_bias"),
    ("mistral", "sliding_window", {"sliding_window": 4}, "sliding_window"),
    ("qwen2", "sliding_window", {"use_sliding_window": True, "sliding_window": 4, "layer_types": None}, "sliding_window"),
    ("gemma2", "another family", {}, "gemma2"),
]


def texts(binaries: Path, work: Path) -> None:
    """Greedy tokens, of burn-lm and of candle-lm."""
    families = ("llama", "mistral", "qwen2", "qwen3")
    cases = lm.LLAMAS + [case for family in families[1:] for case in lm.family_cases(family) if not case.gguf]
    cases.append(lm.Case("llama: FP8", size(64, 2, 4, 2, 96) | rope(10000.0), lm.char_tokenizer(bos=True), fp8=True))
    cases.append(lm.Case("llama: adapter for q_proj and v_proj that counts 0.6", size(64, 2, 4, 2, 96) | rope(10000.0),
                         lm.char_tokenizer(bos=True), adapter=("q_proj", "v_proj"), adapter_weight=0.6))
    for number, one in enumerate(cases + WIDER):
        directory = work / f"text-{number}"
        try:
            trouble = lm.check(one, str(binaries / "burn-lm"), directory)
            if not trouble and one in cases:
                trouble = same_as_candle(one, binaries, directory)
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}"
        check(f"burn-lm: {one.name}", not trouble, trouble)
    for family, name, changes, word in REFUSED:
        trouble = lm.check_refused(family, changes, word, str(binaries / "burn-lm"), work / f"refused-{family}")
        check(f"burn-lm refuses: {family}: {name}", not trouble, trouble)


def same_as_candle(one, binaries: Path, directory: Path) -> str:
    place = directory / "fp8" if one.fp8 else directory
    adapter = ["--adapter", str(directory / "adapter"), "--adapter-weight", str(one.adapter_weight)] if one.adapter else []
    answers = [
        json.loads(lm.run(str(binaries / program), place, one.prompts[-1], *adapter).stdout)
        for program in ("burn-lm", "candle-lm")
    ]
    differ = [key for key in ("tokens", "text", "tensors", "bytes", "dtypes", "dtype") if answers[0][key] != answers[1][key]]
    return f"candle-lm has another {' and '.join(differ)}" if answers[0].keys() != answers[1].keys() or differ else ""


LORA_BASES = {
    "tied, grouped queries, wide heads, llama3 rope": {
        "tie_word_embeddings": True, "head_dim": 32, "rope_parameters": LLAMA3,
    },
    "biases, bf16 in shards": {
        "attention_bias": True, "mlp_bias": True, "shards": "40KB", "dtype": torch.bfloat16,
    },
}


def lora(binaries: Path, work: Path, name: str, base: Path, *more) -> None:
    """An adapter that was trained in Burn, everywhere."""
    adapter, merged = work / "adapter", work / "merged"
    for directory in (adapter, merged):
        shutil.rmtree(directory, ignore_errors=True)
    made = run(
        str(binaries / "burn-lora"), "--base", base, "--steps", 8, "--batch-size", 8, "--every", 4, "--rate", 0.01,
        "--checkpoint-dir", work / "lora", "--force", "--export", adapter, "--logits", PROMPT, *more,
    )
    burn = torch.tensor(made["logits"])
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    before = logits(plain)
    peft = PeftModel.from_pretrained(plain, adapter).eval()
    transformers = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    transformers.load_adapter(str(adapter))
    done = subprocess.run(
        [binaries / "weighbridge", "lora", "merge", base, adapter, "-o", merged, "--to", "f32"], capture_output=True, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    whole = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    apart = {
        "PEFT": logits(peft), "transformers": logits(transformers.eval()), "merged": logits(whole),
    }
    apart = {who: (burn - other).abs().max().item() for who, other in apart.items()}
    moved = (burn - before).abs().max().item()
    detail = ", ".join(f"{who} {value:.1e}" for who, value in apart.items()) + f" apart, moved {moved:.1e}"
    check(f"burn-lora: {name}", max(apart.values()) < CLOSE and moved > 100 * CLOSE, detail)
    ids = torch.tensor([TOKENS])
    with torch.no_grad():
        expected = peft.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
    expected = expected[0, len(TOKENS):].tolist()
    for program in ("burn-lm", "candle-lm"):
        if program == "candle-lm" and name in LORA_BASES:
            continue  # It computes neither biases nor heads of their own size.
        more = ["--model", base, "--adapter", adapter, "--prompt", PROMPT, "--max-new-tokens", 8]
        tokens = run(str(binaries / program), *more)["tokens"]
        check(f"{program} runs the adapter: {name}", tokens == expected, f"{tokens}, PEFT {expected}")


def main() -> None:
    binaries, sample = Path(sys.argv[1]), Path(sys.argv[2])
    program = str(binaries / "burn-llama")
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
        texts(binaries, work)
        bases = {"the sample": sample, **{name: work / f"base-{n}" for n, name in enumerate(LORA_BASES)}}
        for name, base in bases.items():
            try:
                if name in LORA_BASES:
                    random_llama(sample, base, name, LORA_BASES[name])
                lora(binaries, work, name, base, "--rank", 4)
                if base == sample:
                    lora(binaries, work, "the sample, queries and values only", base, "--targets", "q_proj,v_proj", "--alpha", 5)
            except Exception as error:
                check(f"burn-lora: {name}", False, str(error))
    print(f"{failures} failed")
    sys.exit(failures > 0)


main()
