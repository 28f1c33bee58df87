"""Takes over from Burn's AdamW: an optimizer file as a PyTorch state_dict, and back.

    python adamw.py DIRECTORY      checks what `cargo run -p burn-adamw -- DIRECTORY` wrote

The mapping, for a parameter P of the module and its path in Burn:

    file                                        state_dict
    P.momentum.moment_1                         state[P]["exp_avg"]
    P.momentum.moment_2                         state[P]["exp_avg_sq"]
    P.momentum.max_moment_2                     state[P]["max_exp_avg_sq"]   (amsgrad)
    __metadata__ scalars: P.momentum.time       state[P]["step"]

A Linear's weight is [in, out] in Burn and [out, in] in PyTorch, so its moments are transposed; the weight and bias of a
norm are gamma and beta in Burn, and the weight of a PReLU is alpha. Parameters that were never trained have no state in
either. Rates, betas and decay are not in Burn's records: give them to AdamW as you gave them to
Burn.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

SCALARS = "weighbridge.burn.scalars"
MOMENTS = {"exp_avg": "moment_1", "exp_avg_sq": "moment_2", "max_exp_avg_sq": "max_moment_2"}
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def burn_names(module):
    """Of each parameter its path in Burn, and whether it is transposed there."""
    names = {}
    for prefix, layer in module.named_modules():
        for name, _ in layer.named_parameters(prefix=prefix, recurse=False):
            path, _, leaf = name.rpartition(".")
            if isinstance(layer, NORMS):
                leaf = {"weight": "gamma", "bias": "beta"}[leaf]
            if isinstance(layer, nn.PReLU):
                leaf = "alpha"
            transposed = isinstance(layer, nn.Linear) and leaf == "weight"
            names[name] = (f"{path}.{leaf}" if path else leaf, transposed)
    return names


def to_torch(file, module, optimizer):
    """Loads an optimizer file of Burn into a PyTorch AdamW over `module.parameters()`."""
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        scalars = json.loads(opened.metadata()[SCALARS])
    state = {}
    names = burn_names(module)
    for number, (name, _) in enumerate(module.named_parameters()):
        path, transposed = names[name]
        if f"{path}.momentum.time" not in scalars:
            continue
        kind, _, time = scalars[f"{path}.momentum.time"].partition(" ")
        assert kind in ("int", "uint")
        state[number] = {"step": torch.tensor(float(time))}
        for theirs, ours in MOMENTS.items():
            moment = tensors.get(f"{path}.momentum.{ours}")
            if moment is not None:
                state[number][theirs] = moment.T.contiguous() if transposed else moment
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)


def from_torch(optimizer, module, like, file):
    """Writes a PyTorch AdamW as an optimizer file of Burn; ids and the like are those of the file `like`."""
    with safe_open(like, "pt") as opened:
        metadata = opened.metadata()
    scalars = json.loads(metadata[SCALARS])
    tensors = {}
    names = burn_names(module)
    state = optimizer.state_dict()["state"]
    for number, (name, _) in enumerate(module.named_parameters()):
        if number not in state:
            continue
        path, transposed = names[name]
        if f"{path}.momentum.time" not in scalars:
            raise ValueError(f"{like} has no id for {path}, which is trained here")
        kind = scalars[f"{path}.momentum.time"].partition(" ")[0]
        scalars[f"{path}.momentum.time"] = f"{kind} {int(state[number]['step'])}"
        for theirs, ours in MOMENTS.items():
            if theirs in state[number]:
                moment = state[number][theirs]
                tensors[f"{path}.momentum.{ours}"] = (moment.T if transposed else moment).contiguous()
    metadata[SCALARS] = json.dumps(scalars)
    save_file(tensors, file, metadata=metadata)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.up = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.scale = nn.RMSNorm(6)
        self.prelu = nn.PReLU()
        self.down = nn.Linear(6, 3)
        self.unused = nn.Linear(2, 2)


def optimizer_file(directory):
    return next(directory.glob("epoch-*/optimizer.safetensors"))


def main(directory):
    model = Model()
    model.load_state_dict(load_file(directory / "before.safetensors"))
    gradients = load_file(directory / "gradients.safetensors")
    for name, parameter in model.named_parameters():
        if not name.startswith("unused."):
            parameter.grad = gradients[name]
    # As in main.rs; Burn's own defaults for the rest.
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.999), eps=1e-5, weight_decay=0.05)
    before = optimizer_file(directory / "training")
    to_torch(before, model, optimizer)

    again = directory / "again.safetensors"
    from_torch(optimizer, model, before, again)
    original, again = load_file(before), load_file(again)
    assert original.keys() == again.keys()
    assert all(torch.equal(original[name], again[name]) for name in original)

    optimizer.step()
    after = load_file(directory / "after.safetensors")
    worst = max((after[name] - value).abs().max().item() for name, value in model.state_dict().items())
    moved = max((after[name] - value).abs().max().item() for name, value in load_file(directory / "before.safetensors").items())
    print(f"PyTorch's step and Burn's: at most {worst:.1e} apart, and up to {moved:.1e} from where they began")
    assert worst < 1e-5 < moved

    stepped = directory / "stepped.safetensors"
    from_torch(optimizer, model, before, stepped)
    burn, torchs = load_file(optimizer_file(directory / "after")), load_file(stepped)
    apart = max((burn[name] - torchs[name]).abs().max().item() for name in burn)
    print(f"the optimizers' states after it: at most {apart:.1e} apart")
    assert burn.keys() == torchs.keys() and apart < 1e-5


if __name__ == "__main__":
    main(Path(sys.argv[1]))
