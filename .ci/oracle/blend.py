"""What `weighbridge blend` makes is what mergekit makes: linear, slerp and task_arithmetic within one rounding of the dtype, ties but for
elements at the threshold, dare by the density, the rescaling and the choice that a seed stands for.

    blend.py WEIGHBRIDGE     (torch, safetensors, mergekit)

mergekit computes in the dtype of its inputs unless told otherwise; it is told F64 here, and rounds once, as we do.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
from mergekit.merge_methods.base import PerInputValues, TensorGroup
from mergekit.merge_methods.registry import get
from safetensors.torch import load_file, save_file

weighbridge = sys.argv[1]
checks = 0
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
SHAPES = [(1,), (7,), (33, 5), (64, 1023), (3, 5, 7, 11), (300, 1000)]
NAMES = [f"layers.{number}.weight" for number in range(len(SHAPES))]


def check(what, good):
    global checks
    checks += 1
    if not good:
        sys.exit(f"FAILED: {what}")


def run(*args, status=0):
    done = subprocess.run([weighbridge, *map(str, args)], capture_output=True, text=True)
    check(f"{args}: {done.stderr}", done.returncode == status)
    return done.stderr


def model(where, seed, dtype, near=None):
    """Random tensors, or those of another model with small changes, as training makes them."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in zip(NAMES, SHAPES):
        values = torch.randn(shape, generator=random)
        if near is not None:
            values = near[name].float() + 0.1 * values
        tensors[name] = values.to(dtype)
    where.mkdir(parents=True)
    save_file(tensors, where / "model.safetensors", metadata={"format": "pt"})
    return tensors


def theirs(method, name, models, base, out, **parameters):
    """mergekit's tensor: parameters that are lists have a value for each model."""
    tensors = [one[name] for one in ([base] if base else []) + models]
    # Without a base, slerp's is the first.
    first = 0 if base or method == "slerp" else None
    group = TensorGroup.from_tensors(tensors, base_index=first, name=name)
    ids = [entry.id for entry in group.entries][len(tensors) - len(models) :]
    given = {
        key: PerInputValues(list(zip(ids, value))) if isinstance(value, list) else value for key, value in parameters.items()
    }
    (made,) = get(method)([group], parameters=given, dtype=torch.float64, out_dtype=out)
    return made


def within_a_rounding(what, ours, name, call, terms):
    """Ours is mergekit's, or a neighbour of it in the dtype; in F32 the terms of a sum are rounded, too."""
    made = ours[name]
    mergekit = call(made.dtype)
    check(f"{what}: {made.dtype} {tuple(made.shape)}", made.dtype == mergekit.dtype and made.shape == mergekit.shape)
    step = torch.finfo(made.dtype).eps * mergekit.double().abs() + torch.finfo(made.dtype).smallest_normal * torch.finfo(made.dtype).eps
    # Half a rounding of F32 for each of a few operations on the terms.
    rounding = 4 * torch.finfo(torch.float32).eps * terms
    off = (made.double() - mergekit.double()).abs()
    check(f"{what}: {(off > step + rounding).sum()} elements are off", bool((off <= step + rounding).all()))
    return (off > 0).double().mean().item()


def magnitudes(models, base, name, weights):
    """How large the terms are that are added up."""
    total = base[name].double().abs() if base else 0
    for one, weight in zip(models, weights):
        difference = one[name].double() - (base[name].double() if base else 0)
        total = total + abs(weight) * (difference.abs() + one[name].double().abs())
    return total


def blended(here, inputs, *options):
    out = here / "out"
    run("blend", *inputs, "-o", out, "--force", *options)
    return load_file(out / "model.safetensors")


def sums(here, dtype, others):
    """linear, slerp and task_arithmetic."""
    base = model(here / "base", 1, dtype)
    models = [model(here / str(number), 2 + number, other, base) for number, other in enumerate([dtype, *others])]
    far = model(here / "far", 99, dtype)
    paths = [here / str(number) for number in range(len(models))]
    weights = [0.25, 0.75, -0.4][: len(models)]
    given = ",".join(map(str, weights))
    for normalize in [True, False]:
        ours = blended(here, paths, "--method", "linear", "--weight", given, "--normalize", str(normalize).lower())
        for name in NAMES:
            call = lambda out: theirs("linear", name, models, None, out, weight=weights, normalize=normalize)  # noqa: B023, E731
            terms = magnitudes(models, None, name, weights) / (abs(sum(weights)) if normalize else 1)
            within_a_rounding(f"linear {dtype} {name}", ours, name, call, terms)
    for other, path in [(models[0], paths[0]), (far, here / "far")]:
        for t in [0.0, 0.3, 0.5, 1.0]:
            ours = blended(here, [here / "base", path], "--method", "slerp", "--t", t)
            for name in NAMES:
                call = lambda out: theirs("slerp", name, [base, other], None, out, t=t)  # noqa: B023, E731
                terms = magnitudes([base, other], None, name, [1, 1])
                within_a_rounding(f"slerp {dtype} {t} {name}", ours, name, call, terms)
    for factor, normalize in [(1.0, False), (1.5, False), (0.5, True)]:
        options = ["--lambda", factor, "--normalize", str(normalize).lower(), "--weight", given]
        ours = blended(here, paths, "--method", "task_arithmetic", "--base", here / "base", *options)
        for name in NAMES:
            parameters = {"weight": weights, "lambda": factor, "normalize": normalize}
            call = lambda out: theirs("task_arithmetic", name, models, base, out, **parameters)  # noqa: B023, E731
            terms = magnitudes(models, base, name, weights) * factor / (abs(sum(weights)) if normalize else 1)
            within_a_rounding(f"task_arithmetic {dtype} {factor} {name}", ours, name, call, terms + base[name].double().abs())
    # To another dtype: rounded once, to that.
    for to, out in DTYPES.items():
        ours = blended(here, paths, "--method", "linear", "--weight", given, "--to", to)
        for name in NAMES:
            call = lambda out: theirs("linear", name, models, None, out, weight=weights)  # noqa: B023, E731
            check(f"--to {to}", ours[name].dtype == out)
            terms = magnitudes(models, None, name, weights) / abs(sum(weights))
            within_a_rounding(f"linear {dtype} to {to} {name}", ours, name, call, terms)


def ties(here, dtype):
    """But for elements at a threshold, or whose sum is so small that rounding elects its sign."""
    base = model(here / "base", 11, dtype)
    models = [model(here / str(number), 12 + number, dtype, base) for number in range(3)]
    weights = [0.5, 0.7, 0.4]
    paths = [here / str(number) for number in range(3)]
    for densities, normalize in [([0.5], True), ([0.2, 0.5, 1.0], True), ([0.3], False), ([0.001], True)]:
        each = densities if len(densities) == 3 else densities * 3
        options = ["--density", ",".join(map(str, densities)), "--normalize", str(normalize).lower()]
        options += ["--weight", ",".join(map(str, weights)), "--base", here / "base"]
        ours = blended(here, paths, "--method", "ties", *options)
        for name in NAMES:
            what = f"ties {dtype} {densities} {name}"
            parameters = {"weight": weights, "density": each, "normalize": normalize}
            made, expected = ours[name], theirs("ties", name, models, base, dtype, **parameters)
            differences = [one[name].float() - base[name].float() for one in models]
            free = torch.zeros_like(base[name], dtype=torch.bool)
            total, size = torch.zeros_like(base[name], dtype=torch.float64), 0
            for difference, weight, density in zip(differences, weights, each):
                count = max(1, int(density * difference.numel()))
                least = difference.abs().flatten().topk(count).values[-1]
                at = difference.abs() == least
                kept = (difference.abs() >= least).sum().item()
                # All that are as large as the last one are kept, and none else.
                free |= at if kept > count else torch.zeros_like(at)
                weighted = (difference * (difference.abs() >= least)).double() * weight
                total, size = total + weighted, size + weighted.abs()
            # Where so little is left of a sum, rounding elects its sign.
            free |= total.abs() < 1e-6 * size
            check(f"{what}: {free.double().mean():.3f} are free", name != NAMES[-1] or dtype != torch.float32 or free.double().mean() < 0.01)
            step = torch.finfo(dtype).eps * expected.double().abs()
            rounding = 8 * torch.finfo(torch.float32).eps * magnitudes(models, base, name, weights)
            off = (made.double() - expected.double()).abs() > step + rounding
            check(f"{what}: {(off & ~free).sum()} of {off.numel()} are off", not bool((off & ~free).any()))


def kept_by(seed, name, number, shape, density):
    """The choice that the documentation describes, computed here once more."""
    import numpy as np

    mask = (1 << 64) - 1

    def mixed_64(bits):
        bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & mask
        bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & mask
        return bits ^ bits >> 31

    def mixed(bits):
        bits = (bits ^ bits >> np.uint32(16)) * np.uint32(0x7FEB352D)
        bits = (bits ^ bits >> np.uint32(15)) * np.uint32(0x846CA68B)
        return bits ^ bits >> np.uint32(16)

    hashed = 0xCBF29CE484222325
    for byte in name.encode():
        hashed = (hashed ^ byte) * 0x100000001B3 & mask
    key = mixed_64((mixed_64(seed ^ mixed_64(hashed)) + number) & mask)
    elements = np.arange(int(np.prod(shape)), dtype=np.uint32)
    bits = mixed(mixed(elements ^ np.uint32(key & 0xFFFFFFFF)) ^ np.uint32(key >> 32))
    return torch.from_numpy((bits >> np.uint32(8)) < round(density * (1 << 24))).reshape(shape)


def dare(here, dtype):
    base = model(here / "base", 21, dtype)
    models = [model(here / str(number), 22 + number, dtype, base) for number in range(2)]
    weights, density, seed = [0.6, 0.5], 0.3, 5
    paths = [here / str(number) for number in range(2)]
    options = ["--weight", "0.6,0.5", "--density", density, "--seed", seed, "--base", here / "base"]
    for method in ["dare_linear", "dare_ties"]:
        ours = blended(here, paths, "--method", method, *options)
        again = blended(here, paths, "--method", method, *options)
        for name in NAMES:
            check(f"{method} {name}: a seed is a choice", torch.equal(ours[name], again[name]))
            # mergekit with our choice in the place of its own, and the rescaling of the paper: one by the density.
            masks = [kept_by(seed, name, number, base[name].shape, density) for number in range(2)]
            chosen = iter(masks)
            rescaled = [weight / density for weight in weights]
            with mock.patch("torch.bernoulli", lambda *_: next(chosen).double()):  # noqa: B023
                expected = theirs(
                    method, name, models, base, dtype, weight=rescaled, density=[density] * 2, rescale=False, normalize=False
                )
            step = torch.finfo(dtype).eps * expected.double().abs()
            rounding = 8 * torch.finfo(torch.float32).eps * magnitudes(models, base, name, rescaled)
            differences = [(one[name].double() - base[name].double()) * mask for one, mask in zip(models, masks)]
            total = sum(difference * weight for difference, weight in zip(differences, rescaled))
            # Where so little is left of a sum, rounding elects its sign.
            elects = method == "dare_ties"
            free = elects & (total.abs() < 1e-6 * sum(map(torch.abs, differences)))
            check(f"{method} {dtype} {name}: {free.sum()} are free", free.double().mean() < 0.001)
            off = (ours[name].double() - expected.double()).abs() > step + rounding
            check(f"{method} {dtype} {name}: {(off & ~free).sum()} are off", not bool((off & ~free).any()))
    # With one model the choice can be seen: the share that is kept, and that the differences stay as large on average.
    name = NAMES[-1]
    ours = blended(here, paths[:1], "--method", "dare_linear", "--weight", 1, "--to", "f32", *options[2:])
    change, difference = ours[name] - base[name].float(), models[0][name].float() - base[name].float()
    changed = (difference != 0) & (change.abs() > 1e-4)
    share = changed.sum().item() / (difference.abs() > 1e-4).sum().item()
    check(f"dare: {share} of the differences are kept", abs(share - density) < 5 * (density * (1 - density) / difference.numel()) ** 0.5 + 1e-3)
    ratio = (change.double().abs().sum() / difference.double().abs().sum()).item()
    check(f"dare: the sum is {ratio} of what it was", abs(ratio - 1) < 0.02)


def recipe(here):
    """Rules by name are mergekit's of each tensor."""
    base = model(here / "base", 31, torch.float32)
    models = [model(here / str(number), 32 + number, torch.float32, base) for number in range(2)]
    rules = [{"names": "layers.[01].*", "method": "slerp", "t": 0.4}, {"names": NAMES[2], "weight": [2, 1]}, {"names": NAMES[3], "take": 1}]
    (here / "recipe.json").write_text(json.dumps({"method": "linear", "weight": 0.5, "rules": rules}))
    ours = blended(here, [here / "0", here / "1"], "--recipe", here / "recipe.json")
    for number, name in enumerate(NAMES):
        if number == 3:
            check("recipe: taken", torch.equal(ours[name], models[1][name]))
            continue
        weights = [2, 1] if number == 2 else [0.5, 0.5]
        method, parameters = ("slerp", {"t": 0.4}) if number < 2 else ("linear", {"weight": weights})
        call = lambda out: theirs(method, name, models, None, out, **parameters)  # noqa: B023, E731
        within_a_rounding(f"recipe {name}", ours, name, call, magnitudes(models, None, name, [1, 1]))


def main():
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        for name, dtype in DTYPES.items():
            sums(place / f"sums-{name}", dtype, [dtype, dtype])
            sums(place / f"mixed-{name}", dtype, [torch.float32, torch.bfloat16])
            ties(place / f"ties-{name}", dtype)
            dare(place / f"dare-{name}", dtype)
        recipe(place / "recipe")
    print(f"{checks} checks passed")


main()
