"""What embed.py compares for the tiny models of every family."""

import json
import shutil
import subprocess
from pathlib import Path

import torch
from torch import nn

import embed_jina
from embed_families import FAMILIES
from embed_models import PROMPTS, TEXTS, Case, edit_json, make

# The models are tiny: more threads only wait for each other.
torch.set_num_threads(1)

TIMEOUT = 300  # seconds for one run of BIN

HEADS = [
    ("mean, normalised", {"steps": ["normalize"]}),
    ("cls, dot", {"pooling": "cls", "similarity": "dot"}),
    ("max, a dense layer, euclidean", {"pooling": "max", "steps": [(24, nn.Tanh(), {})], "similarity": "euclidean"}),
    (
        "bf16, shards, mean_sqrt_len_tokens, manhattan",
        {
            "pooling": "mean_sqrt_len_tokens",
            "similarity": "manhattan",
            "dtype": torch.bfloat16,
            "shards": "30KB",
        },
    ),
    (
        "weightedmean, prompts that are not pooled",
        {"pooling": "weightedmean", "include_prompt": False, "prompts": PROMPTS, "steps": ["normalize"]},
    ),
    (
        "lasttoken, two dense layers",
        {
            "pooling": "lasttoken",
            "steps": [(40, nn.Identity(), {"bias": False}), (16, nn.GELU(), {}), "normalize"],
        },
    ),
]

# For one family only, since they do not depend on it.
OTHERS = [
    ("several poolings", {"pooling": ("mean", "max", "cls"), "steps": ["norm", "normalize"]}),
    ("prompts", {"prompts": PROMPTS, "default_prompt": "cluster"}),
    ("mean without the prompt", {"include_prompt": False, "prompts": PROMPTS, "default_prompt": "cluster"}),
    ("cls without the prompt", {"pooling": "cls", "include_prompt": False, "prompts": PROMPTS}),
    ("lower case", {"lower_case": True}),
    ("the first elements", {"truncate": 12}),
    (
        "a dense layer in a pickle, with a residual",
        {
            "pickled": True,
            "steps": [(20, nn.ReLU(), {"use_residual": True}), (20, nn.Sigmoid(), {"use_residual": True})],
        },
    ),
    ("silu", {"steps": [(8, nn.SiLU(), {})]}),
    ("without other files", {"bare": True}),
    ("names with a prefix", {"prefix": "bert."}),
    ("FP8", {"fp8": True}),
    ("an adapter", {"adapter": True}),
]


def cases():
    for name, family in FAMILIES.items():
        rewrites = [*family.rewrites] if family.model_type else [None, *family.rewrites]
        for number, config in enumerate(family.configs):
            for rewrite in rewrites:
                heads = HEADS if number == 0 and rewrite == rewrites[0] else HEADS[: 5 : 4]
                for head, options in heads:
                    what = f"config {number}, {rewrite.__name__}" if rewrite else f"config {number}"
                    yield Case(f"{name}: {what}, {head}", name, config, rewrite=rewrite, **options)
        if not family.configs:
            continue
        if name == "bert":
            for what, options in OTHERS:
                yield Case(f"{name}: {what}", name, family.configs[0], **options)
        elif family.adapted:
            yield Case(f"{name}: an adapter", name, family.configs[0], adapter=True)
        if name == "qwen3":
            yield Case(f"{name}: FP8", name, family.configs[0], fp8=True)
        if family.sixteen_bits:
            more = ("--dtype", "bf16")
            options = {"steps": ["normalize"], "more": more, "dtype": torch.bfloat16, "tolerance": 0.05}
            yield Case(f"{name}: computed in bf16", name, family.configs[0], **options)


class Results:
    """What is in the table."""

    def __init__(self):
        self.right, self.tried, self.refused = {}, {}, {}

    def count(self, family: str, is_right: bool) -> None:
        self.right[family] = self.right.get(family, 0) + is_right
        self.tried[family] = self.tried.get(family, 0) + 1

    def write(self, readme: Path) -> None:
        start, end = "<!-- made by .ci/oracle/embed.py --table -->\n", "<!-- end of the table -->\n"
        lines = ["| `model_type` | Candle's model | embeddings equal | refused by name |", "|---|---|---|---|"]
        for family, about in FAMILIES.items():
            right, tried = self.right.get(family, 0), self.tried.get(family, 0)
            words = ", ".join(f"`{word}`" for word in dict.fromkeys(self.refused.get(family, [])))
            kind = "`bert` (alibi)" if family == "jina" else f"`{family}`"
            lines.append(f"| {kind} | {about.candle} | {right} of {tried} checkpoints | {words} |")
        text = readme.read_text()
        before, rest = text.split(start)
        _, after = rest.split(end)
        readme.write_text(before + start + "\n".join(lines) + "\n" + end + after)


def run_all(binary: str, work: Path, families: list[str] | None, results: Results):
    """Names of cases, each with what is wrong."""
    wanted = lambda family: not families or family in families
    for number, case in enumerate(cases(), 1):
        if not wanted(case.family):
            continue
        trouble = attempt(check, case, binary, work / f"case-{number:03}")
        results.count(case.family, not trouble)
        yield case.name, trouble
    if wanted("jina"):
        for number, config in enumerate(embed_jina.CONFIGS):
            trouble = attempt(check_jina, config, binary, work / f"jina-{number}")
            results.count("jina", not trouble)
            yield f"jina: config {number}", trouble
    for family, about in FAMILIES.items():
        for changes, word in about.refused if wanted(family) else []:
            trouble = attempt(check_refused, family, changes, word, binary, work / "refused")
            if not trouble:
                results.refused.setdefault(family, []).append(word)
            yield f"{family}: refuses {word}", trouble
    for changes, word in embed_jina.REFUSED if wanted("jina") else []:
        trouble = attempt(check_jina_refused, changes, word, binary, work / "refused")
        if not trouble:
            results.refused.setdefault("jina", []).append(word)
        yield f"jina: refuses {word}", trouble
    if wanted("bert"):
        yield from check_other_refusals(binary, work / "refused")


def attempt(check, *arguments) -> str:
    try:
        return check(*arguments)
    except subprocess.TimeoutExpired:
        return f"no answer within {TIMEOUT} s"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def run(binary: str, directory: Path, *more: str) -> subprocess.CompletedProcess:
    command = [binary, "--model", str(directory), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)


class Failed(Exception):
    pass


def embed(binary: str, directory: Path, texts: list[str], *more: str) -> torch.Tensor:
    done = run(binary, directory, "--embed", *more, "--", *texts)
    if done.returncode != 0:
        raise Failed(f"exit code {done.returncode}: {done.stderr.strip()}")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if [line["text"] for line in lines] != texts or [line["index"] for line in lines] != list(range(len(texts))):
        raise Failed("the texts are others, or in another order")
    return torch.tensor([line["embedding"] for line in lines])


def apart(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> str:
    if found.shape != expected.shape:
        return f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    size = expected.abs().amax(1).clamp(min=1.0)
    error = ((found - expected).abs().amax(1) / size).max().item()
    return "" if error <= tolerance else f"vectors differ by {error:.2e}"


def check(case: Case, binary: str, directory: Path) -> str:
    model = make(case, directory)
    more = list(case.more)
    if case.adapter:
        more += ["--adapter", str(directory / "adapter")]
    encode = lambda **options: model.encode(TEXTS, convert_to_tensor=True, **options)
    expected = encode()
    for size in ["32", "1", "3"]:
        found = embed(binary, directory, TEXTS, "--batch-size", size, *more)
        if trouble := apart(found, expected, case.tolerance):
            return f"--batch-size {size}: {trouble}"
    if case.prompts:
        for prompt in case.prompts:
            found = embed(binary, directory, TEXTS, "--prompt", prompt, *more)
            if trouble := apart(found, encode(prompt_name=prompt), case.tolerance):
                return f"--prompt {prompt}: {trouble}"
        found = embed(binary, directory, TEXTS, "--prefix", "other: ", *more)
        if trouble := apart(found, encode(prompt="other: "), case.tolerance):
            return f"--prefix: {trouble}"
    if case.similarity or case.prompts:
        return check_ranking(model, binary, directory, more)
    return ""


def check_ranking(model, binary: str, directory: Path, more: list[str]) -> str:
    query, *sentences = TEXTS[1:]
    done = run(binary, directory, "--json", *more, "--", query, *sentences)
    if done.returncode != 0:
        return f"exit code {done.returncode}: {done.stderr.strip()}"
    embed = lambda encode, texts: encode(texts, convert_to_tensor=True)
    expected = model.similarity(embed(model.encode_query, [query]), embed(model.encode_document, sentences))[0]
    for result in json.loads(done.stdout)["results"]:
        score = expected[result["index"]].item()
        if abs(result["score"] - score) > 2e-5 * max(1.0, abs(score)):
            return f"{result['sentence']!r} scores {result['score']}, expected {score}"
    return ""


def check_jina(config: dict, binary: str, directory: Path) -> str:
    shutil.rmtree(directory, ignore_errors=True)
    model = embed_jina.Jina(config)
    model.save(directory)
    edit_json(directory / "1_Pooling" / "config.json", lambda pooling: pooling.update(word_embedding_dimension=config["hidden_size"]))
    expected = model.encode(TEXTS)
    for size in ["32", "1"]:
        found = embed(binary, directory, TEXTS, "--batch-size", size)
        if trouble := apart(found, expected, 1e-5):
            return f"--batch-size {size}: {trouble}"
    return ""


def check_refused(family: str, changes: dict, word: str, binary: str, directory: Path) -> str:
    about = FAMILIES[family]
    case = Case("refused", family, about.configs[0], rewrite=about.rewrites[0] if about.model_type else None)
    make(case, directory)
    edit_json(directory / "config.json", lambda config: config.update(changes))
    return refusal(binary, directory, word)


def check_jina_refused(changes: dict, word: str, binary: str, directory: Path) -> str:
    shutil.rmtree(directory, ignore_errors=True)
    embed_jina.Jina(embed_jina.CONFIGS[0] | changes).save(directory)
    return refusal(binary, directory, word)


def check_other_refusals(binary: str, directory: Path):
    """What the files of sentence-transformers may ask for."""
    for file, edit, word in [
        ("config.json", lambda config: config.update(model_type="mpnet"), "mpnet"),
        ("config.json", lambda config: config.update(num_hidden_layers=9), "encoder.layer.2."),
        ("modules.json", lambda modules: modules[2].update(type="sentence_transformers.models.CNN"), "CNN"),
        ("modules.json", lambda modules: modules[0].update(type="custom_st.Transformer"), "custom_st"),
        ("modules.json", lambda modules: modules[2].update(path="../2_Dense"), "../2_Dense"),
        ("modules.json", lambda modules: modules.reverse(), "modules.json"),
        ("1_Pooling/config.json", lambda pooling: pooling.update(pooling_mode="attention"), "attention"),
        ("2_Dense/config.json", lambda dense: dense.update(activation_function="my.Activation"), "my.Activation"),
        ("2_Dense/config.json", lambda dense: dense.update(in_features=7), "in_features"),
        ("2_Dense/config.json", lambda dense: dense.update(module_input_name="token_embeddings"), "token_embeddings"),
        ("sentence_bert_config.json", lambda options: options.update(transformer_task="fill-mask"), "fill-mask"),
        ("config_sentence_transformers.json", lambda options: options.update(similarity_fn_name="maxsim"), "maxsim"),
        ("config_sentence_transformers.json", lambda options: options.update(model_type="SparseEncoder"), "SparseEncoder"),
        ("config_sentence_transformers.json", lambda options: options.update(default_prompt_name="none"), "none"),
    ]:
        case = Case("refused", "bert", FAMILIES["bert"].configs[0], steps=[(24, nn.Tanh(), {})])
        make(case, directory)
        edit_json(directory / file, edit)
        yield f"bert: refuses {word} in {file}", attempt(refusal, binary, directory, word)


def refusal(binary: str, directory: Path, word: str) -> str:
    done = run(binary, directory, "--embed", "--", *TEXTS)
    if done.returncode == 0:
        return "it was not refused"
    line = done.stderr.strip()
    if done.returncode != 1 or done.stdout or "\n" in line or not line.startswith("error: ") or "panicked" in line:
        return f"not one line of error: exit code {done.returncode}, {done.stderr!r}"
    return "" if word in line else f"{line!r} does not contain {word!r}"
