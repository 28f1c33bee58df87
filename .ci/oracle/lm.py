#!/usr/bin/env python3
"""Compare a text generator with transformers' own greedy decoding.

    python lm.py BIN [--work DIR] [--family NAME] [--table README]

Makes tiny checkpoints with random weights of every family of models that BIN
runs, lets BIN continue a few prompts from each,

    BIN --model DIR --prompt TEXT --max-new-tokens 24 --temperature 0 --json

and compares the tokens with those of `generate` (float32, on the CPU), and
the reported number of tensors and bytes with what the files hold.  A second
set of checkpoints asks for something BIN does not support; BIN must say so in
one line and fail.

Some of the checkpoints are run with adapters (LoRA, as PEFT saves them), and
some as GGUF files of the same weights.

Prints a line for each case and exits with 0 only if all of them passed.  With
--table, what was found out is written into the table of README.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import lm_gguf
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from lm_families import FAMILIES, other_rope, rope, size

logging.set_verbosity_error()
# The models are tiny: more threads only wait for each other.
torch.set_num_threads(1)
logging.disable_progress_bar()

NEW_TOKENS = 24
TIMEOUT = 300  # seconds for one run of BIN

# Two implementations round differently.  A prompt where the two best tokens
# are nearer to each other than this would compare luck, so the weights are
# drawn anew until no step of any prompt is that close.
LEAST_MARGIN = 5e-3

WORDS = ["a", "hello world", "the quick brown fox jumps over"]
UNICODE = ["x", "Grüße, Jürgen!", "東京 2024: “naïve” 🙂"]

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # So short that all three ranges of wavelengths occur in these models.
    "original_max_position_embeddings": 32,
}


def char_tokenizer(bos: bool) -> Tokenizer:
    """Lower-case letters and a space, one token each."""
    symbols = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", " ", ".", ","]
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    return finish_tokenizer(tokenizer, bos)


def byte_tokenizer(bos: bool) -> Tokenizer:
    """The 256 bytes, and a few merges, in the style of GPT-2 and Llama 3."""
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("Ã", "¼")]
    symbols = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    symbols += [left + right for left, right in merges]
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return finish_tokenizer(tokenizer, bos)


def finish_tokenizer(tokenizer: Tokenizer, bos: bool) -> Tokenizer:
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return tokenizer


@dataclass
class Case:
    """One checkpoint.  What is not said here is the family's default."""

    name: str
    config: dict
    tokenizer: Tokenizer
    family: str = "llama"
    prompts: list[str] = field(default_factory=lambda: WORDS)
    dtype: torch.dtype = torch.float32
    # None for one file, else the size transformers splits at.
    shards: str | None = None
    # "none", "int" or "list".  The token is picked among those the model does
    # produce, so that generation really ends early.
    eos: str = "none"
    # Only generation_config.json has the right eos; config.json has another.
    eos_in_generation_config: bool = False
    # Write generation_config.json at all?
    generation_config: bool = True
    # Rewrite config.json the way transformers 4 wrote it.
    transformers4: bool = False
    # Keys to leave out of config.json, for their defaults to apply.
    omit: tuple[str, ...] = ()
    # The modules that an adapter is for, and what it counts.
    adapter: tuple[str, ...] = ()
    adapter_weight: float = 1.0
    # Store the weights of layers in FP8 with a scale for each tensor.
    fp8: bool = False
    # Run a GGUF file of the same weights, in this dtype, in the place of safetensors.
    gguf: str | None = None
    # More tokens in the model than in the tokenizer, as padded models have.
    padded_vocabulary: int = 0


LLAMAS = [
    Case(
        "plain multi-head, f32, one file",
        size(64, 2, 4, 4, 128) | rope(10000.0),
        char_tokenizer(bos=True),
    ),
    Case(
        "grouped queries, f32, shards, eos int",
        size(64, 3, 8, 2, 160) | rope(10000.0),
        char_tokenizer(bos=True),
        shards="50KB",
        eos="int",
    ),
    Case(
        "multi-query, bf16, rope_theta 500000, eos list",
        size(96, 2, 6, 1, 200) | rope(500000.0),
        byte_tokenizer(bos=True),
        prompts=UNICODE,
        dtype=torch.bfloat16,
        eos="list",
    ),
    Case(
        "tied embeddings, f16, no bos",
        size(64, 2, 4, 2, 96, tie_word_embeddings=True) | rope(1000000.0),
        byte_tokenizer(bos=False),
        prompts=UNICODE,
        dtype=torch.float16,
    ),
    Case(
        "llama3 rope, bf16, shards, explicit head_dim",
        size(128, 2, 8, 2, 224, head_dim=16) | rope(500000.0, **LLAMA3_ROPE),
        byte_tokenizer(bos=True),
        prompts=UNICODE,
        dtype=torch.bfloat16,
        shards="60KB",
        eos="int",
    ),
    Case(
        "llama3 rope, transformers-4 config, tied, f32",
        size(64, 3, 4, 1, 128, tie_word_embeddings=True) | rope(500000.0, **LLAMA3_ROPE),
        char_tokenizer(bos=True),
        transformers4=True,
        eos="list",
    ),
    Case(
        "transformers-4 config, rope_theta 500000, f16, shards",
        size(80, 2, 5, 5, 144) | rope(500000.0),
        byte_tokenizer(bos=True),
        prompts=UNICODE,
        dtype=torch.float16,
        shards="40KB",
        transformers4=True,
    ),
    Case(
        "Llama 1 config without rope_theta, kv heads or head_dim",
        size(48, 2, 3, 3, 100) | rope(10000.0),
        char_tokenizer(bos=True),
        transformers4=True,
        generation_config=False,
        omit=("rope_theta", "rope_scaling", "num_key_value_heads", "head_dim", "attention_bias", "mlp_bias"),
        eos="int",
    ),
    Case(
        "one layer, one head",
        size(32, 1, 1, 1, 40, spread=0.5) | rope(10000.0),
        char_tokenizer(bos=False),
    ),
    Case(
        "six layers, odd sizes, other eps, rope_theta 1234.5, bf16",
        size(72, 6, 6, 3, 101, spread=0.25, rms_norm_eps=1e-3) | rope(1234.5),
        char_tokenizer(bos=True),
        dtype=torch.bfloat16,
    ),
    Case(
        "vocabulary padded past the tokenizer, f32, shards",
        size(64, 2, 4, 2, 128) | rope(10000.0),
        byte_tokenizer(bos=True),
        prompts=UNICODE,
        shards="100KB",
        padded_vocabulary=55,
    ),
    Case(
        "eos list of generation_config.json over config.json, bf16",
        size(64, 2, 4, 2, 128) | rope(10000.0),
        char_tokenizer(bos=True),
        dtype=torch.bfloat16,
        eos="list",
        eos_in_generation_config=True,
    ),
    Case(
        "one tensor to a shard, tied, transformers-4 config, bf16",
        size(64, 2, 4, 2, 128, tie_word_embeddings=True) | rope(20000.0),
        byte_tokenizer(bos=True),
        prompts=UNICODE,
        dtype=torch.bfloat16,
        shards="1KB",
        transformers4=True,
        eos="int",
    ),
]


def family_cases(family: str) -> list[Case]:
    """Its configurations, each with some of the ways to store it, and one with an adapter."""
    about = FAMILIES[family]
    cases = []
    for number, config in enumerate(about.configs):
        dtype = [torch.float32, torch.bfloat16, torch.float16][number % 3]
        tied = config.get("tie_word_embeddings")
        words = [str(dtype).removeprefix("torch.")]
        words += ["shards"] * (number == 1) + ["tied"] * bool(tied) + ["transformers-4 config"] * (number == 2)
        cases.append(
            Case(
                f"{family}: {', '.join(words)}",
                config,
                byte_tokenizer(bos=True) if number == 1 else char_tokenizer(bos=number == 0),
                family=family,
                prompts=UNICODE if number == 1 else WORDS,
                dtype=dtype,
                shards="50KB" if number == 1 else None,
                transformers4=number == 2,
                eos=["none", "int", "list"][number % 3],
            )
        )
    for weight in 1.0, 0.6:
        cases.append(
            Case(
                f"{family}: adapter for {' and '.join(about.adapted)} that counts {weight}",
                about.configs[0],
                char_tokenizer(bos=True),
                family=family,
                adapter=about.adapted,
                adapter_weight=weight,
            )
        )
    cases.append(
        Case(f"{family}: FP8", about.configs[0], char_tokenizer(bos=True), family=family, fp8=True)
    )
    return cases + gguf_cases(family, about.configs[0])


def gguf_cases(family: str, config: dict) -> list[Case]:
    if family not in lm_gguf.ARCHITECTURES:
        return []
    return [
        Case(f"{family}: GGUF, {kind}", config, char_tokenizer(bos=True), family=family, dtype=dtype, gguf=kind)
        for kind, dtype in [("float32", torch.float32), ("float16", torch.float16)]
    ]


def edit_json(path: Path, edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content, indent=2) + "\n")


def to_transformers4(config: dict) -> None:
    """Turn config.json into what transformers 4 would have written."""
    parameters = config.pop("rope_parameters", None)
    if parameters and "full_attention" in parameters:
        config["rope_theta"] = parameters["full_attention"]["rope_theta"]
        config["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
        config["rope_scaling"] = None
    elif parameters:
        config["rope_theta"] = parameters.pop("rope_theta")
        if "partial_rotary_factor" in parameters:
            config["partial_rotary_factor"] = parameters.pop("partial_rotary_factor")
        config["rope_scaling"] = None if parameters["rope_type"] == "default" else parameters
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.44.0"


def write_checkpoint(case: Case, directory: Path, seed: int, eos) -> None:
    vocabulary = case.tokenizer.get_vocab_size() + case.padded_vocabulary
    config = AutoConfig.for_model(
        case.family,
        **{"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": eos, "pad_token_id": None} | case.config,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    adds_one = case.family in FAMILIES and FAMILIES[case.family].norms_add_one
    with torch.no_grad():
        # Norms start as ones and biases as zeros, and these would go unnoticed.
        for name, parameter in model.named_parameters():
            if adds_one and "embed_tokens" in name:
                # They would drown what the layers add, whose sums are normed, and the model would repeat itself.
                parameter *= 0.05
            if parameter.ndim == 1 and name.endswith("bias") and "dt_proj" not in name:
                parameter.uniform_(-0.5, 0.5)
            elif "norm" in name or ".ln_" in name:
                parameter.uniform_(-0.5, 0.5) if adds_one else parameter.uniform_(0.5, 1.5)
                if adds_one and name == "model.norm.weight":
                    parameter += 6.0
    for old in directory.glob("*"):
        if old.is_file():
            old.unlink()
    size_limit = {} if case.shards is None else {"max_shard_size": case.shards}
    model.to(case.dtype).save_pretrained(directory, **size_limit)
    case.tokenizer.save(str(directory / "tokenizer.json"))
    if case.adapter:
        write_adapter(case, directory)
    if case.fp8:
        write_fp8(directory)

    config_file = directory / "config.json"
    if case.transformers4:
        edit_json(config_file, to_transformers4)
    edit_json(config_file, lambda content: [content.pop(key, None) for key in case.omit])
    if case.eos_in_generation_config:
        edit_json(config_file, lambda content: content.update(eos_token_id=0))
        # Without this mark, as if written by hand: transformers may prefer
        # config.json to a file that was derived from it.
        edit_json(
            directory / "generation_config.json",
            lambda content: content.pop("_from_model_config", None),
        )
    if not case.generation_config:
        (directory / "generation_config.json").unlink()


def write_fp8(directory: Path) -> None:
    """Rounds the weights of layers to FP8, and writes the codes into another directory."""
    (directory / "fp8").mkdir(exist_ok=True)
    rounded, codes = {}, {}
    for name, weight in load_file(directory / "model.safetensors").items():
        rounded[name] = codes[name] = weight
        if weight.ndim == 2 and ("layers." in name or ".h." in name) and "A_log" not in name:
            scale = torch.tensor(2.0**-8)
            codes[name] = (weight / scale).to(torch.float8_e4m3fn)
            codes[f"{name}_scale"] = scale
            rounded[name] = codes[name].float() * scale
    save_file(rounded, directory / "model.safetensors", {"format": "pt"})
    save_file(codes, directory / "fp8" / "model.safetensors", {"format": "pt"})
    for file in directory.glob("*.json"):
        (directory / "fp8" / file.name).write_bytes(file.read_bytes())


def write_adapter(case: Case, directory: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=list(case.adapter)))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.2)
    adapted.save_pretrained(directory / "adapter")


def with_adapter(model, case: Case, directory: Path):
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    model = PeftModel.from_pretrained(model, directory / "adapter")
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling = {name: scale * case.adapter_weight for name, scale in module.scaling.items()}
    return model


def reference(case: Case, directory: Path) -> tuple[list[list[int]], float]:
    """The continuations transformers gives, and the closest call among them."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    if case.adapter:
        model = with_adapter(model, case, directory)
    model.eval()
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    continuations, margin = [], float("inf")
    for prompt in case.prompts:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
        )
        continuations.append(output.sequences[0, ids.shape[1] :].tolist())
        for logits in output.logits:
            best, second = logits[0].topk(2).values.tolist()
            margin = min(margin, best - second)
    return continuations, margin


def make(case: Case, directory: Path) -> list[list[int]]:
    """Write the checkpoint, and return the expected continuations."""
    directory.mkdir(parents=True, exist_ok=True)
    for seed in range(100):
        write_checkpoint(case, directory, seed, None)
        expected, margin = reference(case, directory)
        # A generator that repeats itself hides most mistakes.
        lively = min(len(set(tokens)) for tokens in expected) >= 5
        if margin < LEAST_MARGIN or not lively:
            continue
        if case.eos == "none":
            return expected
        # Let the first prompt end after some nine tokens: take the first token
        # from there on that has not been seen before.
        first = expected[0]
        ends = [t for i, t in enumerate(first) if i >= 8 and t not in first[:i]]
        if not ends:
            continue
        never = next(t for t in range(case.tokenizer.get_vocab_size()) if t not in first)
        write_checkpoint(case, directory, seed, ends[0] if case.eos == "int" else [never, ends[0]])
        expected, _ = reference(case, directory)
        assert expected[0] == first[: first.index(ends[0]) + 1], "transformers did not stop"
        return expected
    raise RuntimeError(f"no seed gives a usable checkpoint for: {case.name}")


def stored(directory: Path) -> tuple[int, int]:
    """The number of tensors in the checkpoint's files, and their bytes."""
    tensors = size = 0
    for file in directory.glob("*.safetensors"):
        with open(file, "rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        header.pop("__metadata__", None)
        tensors += len(header)
        size += sum(end - start for start, end in (t["data_offsets"] for t in header.values()))
    return tensors, size


def run(binary: str, directory: Path, prompt: str, *more: str) -> subprocess.CompletedProcess:
    command = [binary, "--model", str(directory), "--prompt", prompt, *more]
    command += ["--max-new-tokens", str(NEW_TOKENS), "--temperature", "0", "--json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check(case: Case, binary: str, directory: Path) -> str:
    """Empty if BIN agrees with transformers, else what is wrong."""
    expected = make(case, directory)
    tensors, size = stored(directory)
    if case.gguf:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        file = directory / "model.gguf"
        lm_gguf.write(model, case.family, file, case.gguf)
        return check_answers(case, binary, file, expected, None, file.stat().st_size)
    if case.fp8:
        return check_answers(case, binary, directory / "fp8", expected, None, None)
    return check_answers(case, binary, directory, expected, tensors, size)


def check_answers(case: Case, binary: str, directory: Path, expected, tensors, size) -> str:
    for prompt, tokens in zip(case.prompts, expected):
        more = ["--adapter", str(directory / "adapter"), "--adapter-weight", str(case.adapter_weight)]
        done = run(binary, directory, prompt, *(more if case.adapter else []))
        if done.returncode != 0:
            return f"{prompt!r}: exit code {done.returncode}: {done.stderr.strip()}"
        try:
            answer = json.loads(done.stdout)
        except ValueError as error:
            return f"{prompt!r}: stdout is not one JSON object: {error}"
        if not isinstance(answer, dict):
            return f"{prompt!r}: stdout is not a JSON object"
        if answer.get("tokens") != tokens:
            return f"{prompt!r}: tokens {answer.get('tokens')}, expected {tokens}"
        if not isinstance(answer.get("text"), str):
            return f"{prompt!r}: text is {answer.get('text')!r}"
        if not is_number(answer.get("load_seconds")) or answer["load_seconds"] < 0:
            return f"{prompt!r}: load_seconds is {answer.get('load_seconds')!r}"
        if tensors is not None and answer.get("tensors") != tensors:
            return f"{prompt!r}: {answer.get('tensors')} tensors, expected {tensors}"
        if size is not None and answer.get("bytes") != size:
            return f"{prompt!r}: {answer.get('bytes')} bytes, expected {size}"
    return ""


# Checkpoints to be refused: what is changed in a config.json that is
# otherwise fine, and a word the error message must have.
REFUSED_LLAMAS = [
    ("attention_bias", {"attention_bias": True}, "attention_bias"),
    ("mlp_bias", {"mlp_bias": True}, "mlp_bias"),
    # hidden_size / num_attention_heads is 16.
    ("head_dim of its own", {"head_dim": 32}, "head_dim"),
    ("rope type linear", other_rope("linear"), "linear"),
    ("rope type dynamic", other_rope("dynamic"), "dynamic"),
    ("rope type yarn", other_rope("yarn", original_max_position_embeddings=64), "yarn"),
    (
        "rope type linear, transformers-4 config",
        {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        "linear",
    ),
    ("hidden_act gelu", {"hidden_act": "gelu"}, "gelu"),
]


def check_refused(family: str, changes: dict, word: str, binary: str, directory: Path) -> str:
    """Empty if BIN refuses the checkpoint properly, else what is wrong."""
    directory.mkdir(parents=True, exist_ok=True)
    shape = FAMILIES[family].configs[0] if family in FAMILIES else size(64, 2, 4, 2, 96) | rope(10000.0)
    if "head_dim" in changes:  # the tensors agree with it
        shape = shape | changes
    write_checkpoint(Case("", shape, char_tokenizer(bos=True), family=family), directory, 0, None)

    def edit(config: dict) -> None:
        for key, value in changes.items():
            if value is None:
                config.pop(key, None)
            else:
                config[key] = value

    edit_json(directory / "config.json", edit)

    done = run(binary, directory, "a")
    message = done.stderr.strip()
    if done.returncode == 0:
        return "accepted"
    if done.returncode < 0 or done.returncode == 101:
        return f"crashed (exit code {done.returncode}): {message}"
    if len(message.splitlines()) != 1:
        return f"stderr is not one line: {message!r}"
    if word.lower() not in message.lower():
        return f"the error does not name {word!r}: {message}"
    if done.stdout.strip():
        return f"wrote to stdout all the same: {done.stdout.strip()!r}"
    return ""


TABLE = ("<!-- made by .ci/oracle/lm.py --table -->\n", "<!-- end of the table -->\n")


def table(results: dict) -> str:
    """A row for each family: whose code, what was right, what was refused."""
    lines = [
        "| `model_type` | Candle's model | greedy tokens equal | refused by name |",
        "|---|---|---|---|",
    ]
    for family in sorted(results):
        right, tried, words = results[family]
        about = FAMILIES.get(family)
        code = about.candle if about else "Llama"
        note = f" ({about.note})" if about and about.note else ""
        refused = ", ".join(f"`{word}`" for word in dict.fromkeys(words))
        lines.append(f"| `{family}` | {code}{note} | {right} of {tried} checkpoints | {refused} |")
    return "\n".join(lines) + "\n"


def write_table(readme: Path, results: dict) -> None:
    text = readme.read_text()
    before, rest = text.split(TABLE[0])
    _, after = rest.split(TABLE[1])
    readme.write_text(before + TABLE[0] + table(results) + TABLE[1] + after)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", metavar="BIN")
    parser.add_argument("--work", type=Path, metavar="DIR", help="make the checkpoints here, and keep them")
    parser.add_argument("--family", action="append", metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--table", type=Path, metavar="README", help="write the results into this file's table")
    args = parser.parse_args()

    cases = LLAMAS + gguf_cases("llama", size(64, 2, 4, 2, 96) | rope(10000.0))
    cases += [case for family in FAMILIES for case in family_cases(family)]
    refused = [("llama", *rest) for rest in REFUSED_LLAMAS]
    refused += [
        (family, word, changes, word) for family, about in FAMILIES.items() for changes, word in about.refused
    ]
    results = {}
    with tempfile.TemporaryDirectory(prefix="oracle-lm-") as temporary:
        work = args.work or Path(temporary)
        jobs = [
            (case.family, case.name, None, lambda directory, case=case: check(case, args.binary, directory))
            for case in cases
        ] + [
            (
                family,
                f"{family}: refuses {name}",
                word,
                lambda directory, family=family, changes=changes, word=word: check_refused(
                    family, changes, word, args.binary, directory
                ),
            )
            for family, name, changes, word in refused
        ]
        passed = failed = 0
        for number, (family, name, word, job) in enumerate(jobs, 1):
            if args.family and family not in args.family:
                continue
            try:
                trouble = job(work / f"case-{number:03}")
            except subprocess.TimeoutExpired:
                trouble = f"no answer within {TIMEOUT} s"
            except Exception as error:
                trouble = f"{type(error).__name__}: {error}"
            passed, failed = passed + (not trouble), failed + bool(trouble)
            right, tried, words = results.get(family, (0, 0, []))
            if word is None:
                results[family] = (right + (not trouble), tried + 1, words)
            elif not trouble:
                results[family] = (right, tried, [*words, word])
            print(f"FAIL  {name}: {trouble}" if trouble else f"ok    {name}", flush=True)
    print(f"{passed} passed, {failed} failed")
    if args.table and not args.family:
        write_table(args.table, results)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
