#!/usr/bin/env python3
"""Compare a program that embeds sentences with sentence-transformers.

    python embed.py BIN MODEL_DIR [--work DIR] [--family NAME] [--table README]

MODEL_DIR holds all-MiniLM-L6-v2 or a model of the same kind.  For several sets
of sentences this runs

    BIN --model MODEL_DIR --json QUERY SENTENCE ...

which must print one JSON object

    {"query": "...", "results": [{"sentence": "...", "score": 0.123, "index": 0}, ...]}

with the results sorted by descending score, and compares the scores with the
cosine of the embeddings from transformers: BertModel, the mean over the
attention mask, L2 normalisation, and sentences cut at the max_seq_length of
sentence_bert_config.json.

Then it makes tiny models with random weights of every family that BIN runs,
with all kinds of pooling, dense layers, prompts and dtypes, and compares the
vectors that

    BIN --model DIR --embed TEXT ...

prints, {"index": 0, "text": "...", "embedding": [...]} a line, with those of
sentence-transformers (float32, on the CPU), whatever the size of the batch.
Other checkpoints ask for something BIN does not compute; BIN must say so in
one line and fail.

With --table, what was found out is written into the table of README.

Prints a line for each set and exits with 0 only if all of them passed.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoTokenizer, BertModel
from transformers.utils import logging

import embed_checks

logging.set_verbosity_error()
logging.disable_progress_bar()

TOLERANCE = 1e-4
TIMEOUT = 300  # seconds for one run of BIN

LONG = (
    "The harbour master keeps a ledger of every ship that enters the bay, the cargo it carries, "
    "the weight declared by its captain and the weight found on the weighbridge. "
)


@dataclass
class Case:
    name: str
    query: str
    sentences: list[str]


CASES = [
    Case(
        "short sentences",
        "How do I weigh a truck?",
        [
            "A weighbridge measures the load of a lorry.",
            "The cat sleeps on the sofa.",
            "Drive onto the scale and wait for the reading.",
            "Stock prices fell on Monday.",
        ],
    ),
    Case("one sentence", "hello", ["Hello there!"]),
    Case("single words", "king", ["queen", "monarch", "banana", "King", "KING", "antidisestablishmentarianism"]),
    Case(
        "the query and duplicates among the sentences",
        "The same sentence.",
        ["Another sentence.", "The same sentence.", "the SAME   sentence.", "Another sentence."],
    ),
    # tokenizer.json of all-MiniLM-L6-v2 asks for truncation (and padding) at
    # 128 word pieces, the model's own max_seq_length is 256.  The sentences of
    # these sets differ in their ends only.
    Case(
        "more than 128 word pieces",
        "What does the smuggler hide below deck?",
        [
            LONG * 4 + "The smuggler hides barrels of brandy below deck.",
            LONG * 4 + "The lighthouse was painted white last spring.",
            "The smuggler hides barrels of brandy below deck.",
        ],
    ),
    Case(
        "more than 256 word pieces",
        LONG * 3,
        [
            LONG * 9 + "The smuggler hides barrels of brandy below deck.",
            LONG * 9 + "The lighthouse was painted white last spring.",
            "brandy " * 253,
            "brandy " * 254,
            "brandy " * 255,
            "brandy " * 600,
            "Short.",
        ],
    ),
    Case(
        "unicode",
        "Où est la bibliothèque ?",
        [
            "Die Straße heißt „Große Bleichen“.",
            "図書館はどこですか。",
            "Где находится библиотека?",
            "أين المكتبة؟",
            "The library 📚 is over there 👉🏽.",
            "cafe\u0301 and caf\u00e9, \ufb01ne \u2167 \u00bd",
            "zero\u200bwidth, soft\u00adhyphen, nbsp\u00a0here, \ufffd",
        ],
    ),
    Case(
        "punctuation and symbols",
        "C++ vs. Rust?!",
        ["!?...", "((()))", "~#$%^&*_+=|\\<>", "«quoted» — dashed – text…", "a-b_c.d/e@f", "3.14159 + 2,718 = 5.86"],
    ),
    Case("empty and blank sentences", "nothing", ["", " ", "\t\n", "something", "\u200b"]),
    Case("empty query", "", ["", "Not empty."]),
    Case("special tokens spelled out", "[CLS] hello [SEP]", ["[MASK]", "[PAD] [PAD]", "[UNK] word", "hello"]),
    Case(
        "many sentences of mixed length",
        "quantity of goods",
        [LONG[: 3 * n] for n in range(1, 41)],
    ),
]


class Reference:
    """Embeddings as sentence-transformers makes them for this kind of model."""

    def __init__(self, directory: Path):
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.model = BertModel.from_pretrained(directory, dtype=torch.float32).eval()
        self.max_length = self.model.config.max_position_embeddings
        settings = directory / "sentence_bert_config.json"
        if settings.exists():
            self.max_length = json.loads(settings.read_text()).get("max_seq_length") or self.max_length

    @torch.no_grad()
    def embed(self, texts: list[str]) -> torch.Tensor:
        batch = self.tokenizer(
            texts, padding="longest", truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        hidden = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=1)

    def scores(self, query: str, sentences: list[str]) -> list[float]:
        embeddings = self.embed([query, *sentences])
        return (embeddings[1:] @ embeddings[0]).tolist()


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check(case: Case, expected: list[float], binary: str, model: Path) -> str:
    """Empty if BIN agrees with the reference, else what is wrong."""
    command = [binary, "--model", str(model), "--json", case.query, *case.sentences]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode != 0:
        return f"exit code {done.returncode}: {done.stderr.strip()}"
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        return f"stdout is not one JSON object: {error}"
    if not isinstance(answer, dict) or not isinstance(answer.get("results"), list):
        return "stdout is not a JSON object with a list of results"
    if answer.get("query") != case.query:
        return f"query is {answer.get('query')!r}"

    results = answer["results"]
    if not all(isinstance(r, dict) and is_number(r.get("score")) for r in results):
        return "a result without a finite score"
    if sorted(str(r.get("index")) for r in results) != sorted(map(str, range(len(case.sentences)))):
        return f"indices are {[r.get('index') for r in results]}"
    for result in results:
        index, score = result["index"], result["score"]
        if result.get("sentence") != case.sentences[index]:
            return f"result {index} has the sentence {result.get('sentence')!r}"
        if abs(score - expected[index]) > TOLERANCE:
            return f"{case.sentences[index][:60]!r} scores {score:.6f}, expected {expected[index]:.6f}"
    scores = [r["score"] for r in results]
    if scores != sorted(scores, reverse=True):
        return f"not sorted by descending score: {scores}"
    return ""


def check_true_model(binary: str, model: Path):
    """Names of sets of sentences, each with what is wrong."""
    reference = Reference(model)
    for case in CASES:
        yield case.name, check(case, reference.scores(case.query, case.sentences), binary, model)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", metavar="BIN")
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--work", type=Path, metavar="DIR", help="make the checkpoints here, and keep them")
    parser.add_argument("--family", action="append", metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--table", type=Path, metavar="README", help="write the results into this file's table")
    args = parser.parse_args()

    results = embed_checks.Results()
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="oracle-embed-") as temporary:
        jobs = [embed_checks.run_all(args.binary, args.work or Path(temporary), args.family, results)]
        if not args.family:
            jobs.insert(0, check_true_model(args.binary, args.model))
        for name, trouble in (line for job in jobs for line in job):
            passed, failed = passed + (not trouble), failed + bool(trouble)
            print(f"FAIL  {name}: {trouble}" if trouble else f"ok    {name}", flush=True)
    print(f"{passed} passed, {failed} failed")
    if args.table and not args.family:
        results.write(args.table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
