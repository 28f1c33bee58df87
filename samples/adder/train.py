#!/usr/bin/env python3
"""Train the `adder` sample checkpoint: a tiny Llama that adds two numbers.

    123+456=   ->   579<eos>

Numbers run from 0 to 999, are written plainly (most significant digit first,
no leading zeros), and every character is one token.  The model is a stock
`LlamaForCausalLM` with grouped-query attention, trained from scratch on the
CPU, and saved by transformers itself as a sharded bfloat16 checkpoint.

    pip install -r requirements.txt
    python train.py --output .

Same versions, same machine type, same result: seeds and the thread count are
fixed and torch is told to use deterministic algorithms only.
"""

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SEED = 20240579
THREADS = 1
LIMIT = 1000  # operands are 0 .. LIMIT-1
HELD_OUT_PAIRS = 4000  # unordered; both orders of each are held out
MAX_LEN = 14  # <bos> 999+999=1998 <eos>

VOCABULARY = ["<pad>", "<bos>", "<eos>", "<unk>", *"0123456789", "+", "="]
IDS = {token: number for number, token in enumerate(VOCABULARY)}
PAD, BOS, EOS = IDS["<pad>"], IDS["<bos>"], IDS["<eos>"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character; `<bos>` comes from the post-processor."""
    # A BPE without merges is a plain character lookup.
    tokenizer = Tokenizer(models.BPE(vocab=IDS, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "")
    tokenizer.decoder = decoders.Fuse()  # join without spaces
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A $B",
        special_tokens=[("<bos>", BOS)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=32,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config)


def all_problems() -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of every problem, and the labels (answer and <eos> only).

    Row a * LIMIT + b holds `<bos>a+b=sum<eos>`, padded on the right.  Causal
    attention never looks right, so the padding needs no attention mask.
    """
    ids = np.full((LIMIT * LIMIT, MAX_LEN), PAD, dtype=np.int16)
    labels = np.full((LIMIT * LIMIT, MAX_LEN), -100, dtype=np.int16)
    spelled = [[IDS[digit] for digit in str(n)] for n in range(2 * LIMIT)]
    plus, equals = [IDS["+"]], [IDS["="]]
    for a in range(LIMIT):
        head = [BOS] + spelled[a] + plus
        for b in range(LIMIT):
            prompt = head + spelled[b] + equals
            row = prompt + spelled[a + b] + [EOS]
            ids[a * LIMIT + b, : len(row)] = row
            labels[a * LIMIT + b, len(prompt) : len(row)] = row[len(prompt) :]
    return torch.from_numpy(ids), torch.from_numpy(labels)


def held_out_mask() -> np.ndarray:
    """True at [a, b] for the pairs kept away from training, twins included."""
    mask = np.zeros((LIMIT, LIMIT), dtype=bool)
    unordered = LIMIT * (LIMIT + 1) // 2
    a, b = np.tril_indices(LIMIT)
    chosen = random.Random(SEED).sample(range(unordered), HELD_OUT_PAIRS)
    mask[a[chosen], b[chosen]] = True
    mask[b[chosen], a[chosen]] = True
    return mask


def sampling_weights(held_out: np.ndarray) -> torch.Tensor:
    """Cumulative probability of each pair of being drawn for training.

    Uniform draws are almost all three digits plus three digits, so a part of
    each batch is balanced over the lengths of the operands, and a part is
    drawn from the problems where a digit pair sums to nine, where a carry may
    have to travel.
    """
    a, b = np.meshgrid(np.arange(LIMIT), np.arange(LIMIT), indexing="ij")
    seen = (~held_out).astype(np.float64)

    def share(weights: np.ndarray) -> np.ndarray:
        weights = weights * seen
        return weights / weights.sum()

    length = np.array([len(str(n)) for n in range(LIMIT)])
    group = length[a] * 10 + length[b]
    balanced = np.zeros_like(seen)
    for key in np.unique(group):
        members = group == key
        # The square root keeps the smallest groups from drowning the rest.
        balanced[members] = 1.0 / math.sqrt((members & ~held_out).sum())
    tens_nine = (a // 10 % 10) + (b // 10 % 10) == 9
    hundreds_nine = (a // 100) + (b // 100) == 9
    travelling = tens_nine + 1.0 * hundreds_nine + 4.0 * (tens_nine & hundreds_nine)
    mixture = 0.60 * share(np.ones_like(seen)) + 0.15 * share(balanced) + 0.25 * share(travelling)
    return torch.from_numpy(np.cumsum(mixture.ravel()))


@torch.no_grad()
def teacher_forced_accuracy(model, ids, labels, rows, batch=2000) -> float:
    """Share of rows whose every answer token is the argmax.

    Feeding the right prefix and asking for an argmax at each place is the
    same as exact match of greedy decoding, but takes one forward pass.
    """
    right = 0
    for chunk in rows.split(batch):
        logits = model(ids[chunk].long()[:, :-1]).logits
        wanted = labels[chunk].long()[:, 1:]
        right += ((logits.argmax(-1) == wanted) | (wanted == -100)).all(1).sum().item()
    return right / len(rows)


@torch.no_grad()
def generated_accuracy(model, tokenizer, pairs, batch=500) -> tuple[float, list[str]]:
    """Exact match of `generate` in greedy mode, and the prompts it got wrong."""
    by_length: dict[int, list[tuple[int, int]]] = {}
    for a, b in pairs:
        by_length.setdefault(len(f"{a}+{b}="), []).append((a, b))
    wrong = []
    for group in by_length.values():  # equal lengths, so no padding
        for start in range(0, len(group), batch):
            part = group[start : start + batch]
            prompts = [f"{a}+{b}=" for a, b in part]
            inputs = tokenizer(prompts, return_tensors="pt", return_token_type_ids=False)
            output = model.generate(**inputs, do_sample=False, max_new_tokens=8)
            answers = output[:, inputs["input_ids"].shape[1] :].tolist()
            for (a, b), prompt, answer in zip(part, prompts, answers):
                expected = [IDS[digit] for digit in str(a + b)] + [EOS]
                while answer and answer[-1] == PAD:
                    answer.pop()
                if answer != expected:
                    wrong.append(prompt)
    return 1 - len(wrong) / len(pairs), wrong


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (K. Jordan and others, 2024).

    On this problem it needs several times fewer steps than AdamW alone.
    """

    def __init__(self, params, lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["momentum"], group["momentum"])
                # Same size of update as AdamW would make, so one learning
                # rate serves both.
                scale = 0.2 * math.sqrt(max(p.shape))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(self.orthogonal(update), alpha=-group["lr"] * scale)

    @staticmethod
    def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
        """The nearest (semi-)orthogonal matrix, roughly, by Newton and Schulz."""
        x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
        x = x / (x.norm() + 1e-7)
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        return x.T if matrix.shape[0] > matrix.shape[1] else x


def train(args, model, ids, labels, held_out) -> None:
    cumulative = sampling_weights(held_out)
    generator = torch.Generator().manual_seed(SEED)
    held_out_rows = torch.from_numpy(np.flatnonzero(held_out.ravel()))
    glance = held_out_rows[torch.randperm(len(held_out_rows), generator=generator)[:1000]]

    # Muon for the matrices inside the layers, AdamW for everything else.
    inner = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in inner}
    outer = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = [
        Muon(inner, lr=args.learning_rate, weight_decay=args.weight_decay),
        torch.optim.AdamW(outer, lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]

    def schedule(step: int) -> float:
        if step < args.warmup:
            return (step + 1) / args.warmup
        progress = (step - args.warmup) / max(1, args.steps - args.warmup)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))

    schedulers = [torch.optim.lr_scheduler.LambdaLR(o, schedule) for o in optimizers]

    started = time.monotonic()
    running = 0.0
    for step in range(1, args.steps + 1):
        draws = torch.rand(args.batch, generator=generator, dtype=torch.float64)
        rows = torch.searchsorted(cumulative, draws * cumulative[-1]).clamp_(max=LIMIT * LIMIT - 1)
        logits = model(ids[rows].long()[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[rows].long()[:, 1:].flatten(), ignore_index=-100
        )
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in [*optimizers, *schedulers]:
            stepper.step()
        running += loss.item()
        if step % args.report == 0:
            accuracy = teacher_forced_accuracy(model, ids, labels, glance)
            print(
                f"step {step:5d}/{args.steps}  loss {running / args.report:.5f}  "
                f"held out {accuracy:7.2%}  {time.monotonic() - started:6.0f} s",
                flush=True,
            )
            running = 0.0


def save(model, tokenizer, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for stale in output.glob("model*.safetensors*"):
        stale.unlink()
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=8, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD
    )
    model.save_pretrained(output, max_shard_size="400KB")
    for shard in output.glob("*.safetensors"):
        shard.chmod(0o644)  # they are written for the owner's eyes only
    tokenizer.save_pretrained(output)


def main() -> int:
    parser = argparse.ArgumentParser(description="train the adder sample checkpoint")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--report", type=int, default=100, help="steps between two progress lines")
    parser.add_argument("--check-only", action="store_true", help="only evaluate what DIR holds")
    parser.add_argument("--check-all", action="store_true", help="also try every pair there is")
    args = parser.parse_args()

    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)

    held_out = held_out_mask()
    if not args.check_only or args.check_all:
        ids, labels = all_problems()
    if not args.check_only:
        model = make_model()
        print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
        train(args, model, ids, labels, held_out)
        save(model, make_tokenizer(), args.output)

    # From here on only what was written counts: bf16 weights, f32 arithmetic.
    tokenizer = AutoTokenizer.from_pretrained(args.output)
    model = AutoModelForCausalLM.from_pretrained(args.output, dtype=torch.float32).eval()
    pairs = [(int(a), int(b)) for a, b in zip(*np.nonzero(held_out))]
    accuracy, wrong = generated_accuracy(model, tokenizer, pairs)
    print(f"held-out exact match, greedy, bf16 weights: {accuracy:.4%} of {len(pairs)} prompts")
    print(f"wrong: {wrong[:20]}")
    if args.check_all:
        share = teacher_forced_accuracy(model, ids, labels, torch.arange(LIMIT * LIMIT))
        print(f"all pairs: {round(share * LIMIT**2)} of {LIMIT**2} right")
    for prompt in ["123+456=", "999+1=", "7+8=", "0+0=", "999+999="]:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        output = model.generate(**inputs, do_sample=False)
        print(json.dumps({"prompt": prompt, "text": tokenizer.decode(output[0], skip_special_tokens=True)}))
    return 0 if accuracy >= 0.99 else 1


if __name__ == "__main__":
    sys.exit(main())
