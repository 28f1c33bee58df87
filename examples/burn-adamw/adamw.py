"""Takes over a run from Burn, with AdamW or with SGD and momentum, and gives it back.

    python adamw.py DIRECTORY      goes on with what `cargo run -p burn-adamw -- DIRECTORY` wrote

An optimizer file of weighbridge's, for a parameter P by the name that it has in the model file beside it, and a state_dict:

    file                                        state_dict
    P.momentum.moment_1                         state[P]["exp_avg"]          AdamW
    P.momentum.moment_2                         state[P]["exp_avg_sq"]
    P.momentum.max_moment_2                     state[P]["max_exp_avg_sq"]   amsgrad
    __metadata__ scalars: P.momentum.time       state[P]["step"]
    P.momentum.velocity                         state[P]["momentum_buffer"]  SGD

docs/book/src/training-layout.md has all of it.  A Linear's weight is [in, out] in Burn and [out, in] in PyTorch, so its moments are transposed;
the weight and bias of a norm are gamma and beta in Burn, and the weight of a PReLU is alpha.  Parameters that were never trained
have no state in either.  Rates, betas and decay are not in the file: give them to the optimizer as you gave them to Burn.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

SCALARS = "weighbridge.burn.scalars"
STATES = {
    "exp_avg": "momentum.moment_1",
    "exp_avg_sq": "momentum.moment_2",
    "max_exp_avg_sq": "momentum.max_moment_2",
    "momentum_buffer": "momentum.velocity",
}
TIME = "momentum.time"
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
CLOSE = 1e-6


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


def metadata_of(file):
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def turned(tensor, transposed):
    return (tensor.T if transposed else tensor).contiguous()


def to_torch(file, module, optimizer):
    """Loads an optimizer file into a PyTorch optimizer over `module.parameters()`."""
    tensors = load_file(file)
    scalars = json.loads(metadata_of(file).get(SCALARS, "{}"))
    names = burn_names(module)
    state = {}
    for number, (name, _) in enumerate(module.named_parameters()):
        path, transposed = names[name]
        found = {theirs: tensors.get(f"{path}.{ours}") for theirs, ours in STATES.items()}
        found = {theirs: turned(tensor, transposed) for theirs, tensor in found.items() if tensor is not None}
        if f"{path}.{TIME}" in scalars:
            kind, _, time = scalars[f"{path}.{TIME}"].partition(" ")
            assert kind in ("int", "uint")
            found["step"] = torch.tensor(float(time))
        if found:
            state[number] = found
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)


def from_torch(optimizer, module, like, file):
    """Writes a PyTorch optimizer as a file; ids and the like are those of the file `like`."""
    metadata = metadata_of(like)
    scalars = json.loads(metadata.get(SCALARS, "{}"))
    names = burn_names(module)
    state = optimizer.state_dict()["state"]
    tensors = {}
    for number, (name, _) in enumerate(module.named_parameters()):
        path, transposed = names[name]
        found = state.get(number, {})
        if "step" in found:
            if f"{path}.{TIME}" not in scalars:
                raise ValueError(f"{like} has no id for {path}, which is trained here")
            kind = scalars[f"{path}.{TIME}"].partition(" ")[0]
            scalars[f"{path}.{TIME}"] = f"{kind} {int(found['step'])}"
        for theirs, ours in STATES.items():
            if found.get(theirs) is not None:
                tensors[f"{path}.{ours}"] = turned(found[theirs], transposed)
    if scalars:
        metadata[SCALARS] = json.dumps(scalars)
    save_file(tensors, file, metadata=metadata)


def write_model(module, like, file):
    """Writes the parameters of a module by Burn's names; ids are those of the file `like`."""
    names = burn_names(module)
    tensors = {names[name][0]: turned(parameter.detach(), names[name][1]) for name, parameter in module.named_parameters()}
    save_file(tensors, file, metadata=metadata_of(like))


def write_checkpoint(module, optimizer, like, directory, step):
    """Writes a checkpoint for `Checkpoints`, of a step; what is not known here is that of the checkpoint `like`."""
    shutil.rmtree(directory, ignore_errors=True)
    parts = directory / f"step-{step:08}"
    parts.mkdir(parents=True)
    shutil.copy(like / "scheduler.safetensors", parts)
    write_model(module, like / "model.safetensors", parts / "model.safetensors")
    from_torch(optimizer, module, like / "optimizer.safetensors", parts / "optimizer.safetensors")
    sizes = {file.name: file.stat().st_size for file in sorted(parts.iterdir())}
    entry = {"epoch": 0, "step": step, "directory": parts.name, "bytes": sizes}
    (directory / "checkpoints.json").write_text(json.dumps({"version": 2, "checkpoints": [entry]}))


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


def optimizer_of(name, parameters):
    """As in main.rs; Burn's own defaults for the rest."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    decay = {"weight_decay": 0.05, "amsgrad": name == "amsgrad"}
    return torch.optim.AdamW(parameters, lr=0.01, betas=(0.9, 0.999), eps=1e-5, **decay)


def apart(one, other):
    assert one.keys() == other.keys(), sorted(one.keys() ^ other.keys())
    return max((one[name] - other[name]).abs().max().item() for name in one)


def check(name, directory):
    model = Model()
    model.load_state_dict(load_file(directory / "before.safetensors"))
    gradients = load_file(directory / "gradients.safetensors")
    for parameter_name, parameter in model.named_parameters():
        if not parameter_name.startswith("unused."):
            parameter.grad = gradients[parameter_name]
    optimizer = optimizer_of(name, model.parameters())
    before = next((directory / "training").glob("step-*"))
    to_torch(before / "optimizer.safetensors", model, optimizer)

    again = directory / "again.safetensors"
    from_torch(optimizer, model, before / "optimizer.safetensors", again)
    original, again = load_file(before / "optimizer.safetensors"), load_file(again)
    assert original.keys() == again.keys() and all(torch.equal(original[key], again[key]) for key in original)

    optimizer.step()
    weights = dict(model.state_dict())
    step = apart(load_file(directory / "after.safetensors"), weights)
    moved = apart(load_file(directory / "before.safetensors"), weights)
    write_checkpoint(model, optimizer, before, directory / "pytorch", int(before.name.rpartition("-")[2]) + 1)
    ours = next((directory / "pytorch").glob("step-*")) / "optimizer.safetensors"
    burns = next((directory / "after").glob("step-*")) / "optimizer.safetensors"
    state = apart(load_file(burns), load_file(ours))
    print(f"{name}: PyTorch's step and Burn's at most {step:.1e} apart, up to {moved:.1e} from where they began; states {state:.1e}")
    assert step < CLOSE < moved and state < CLOSE


def main(directory):
    for name in ("adamw", "amsgrad", "sgd"):
        check(name, directory / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
