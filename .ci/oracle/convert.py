"""Checkpoints that torch.save wrote, of many kinds and shapes, converted by the command: every tensor has the bits that torch.load gives.

    convert.py WEIGHBRIDGE      (target/release/weighbridge)
"""

import collections
import pickle
import random
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import numpy
import torch
from torch import nn
from safetensors import safe_open

command = sys.argv[1]
checks = 0
random.seed(3)
torch.manual_seed(3)

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int16, torch.int32,
    torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32,
    torch.uint64,
]  # fmt: skip
OLD = DTYPES[:10]


def check(what, good):
    global checks
    checks += 1
    if not good:
        sys.exit(f"FAILED: {what}")


def raw(tensor):
    tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def run(*args, status=0):
    done = subprocess.run([command, *map(str, args)], capture_output=True, text=True)
    check(f"{args}: status {done.returncode}: {done.stderr}", done.returncode == status)
    return done


def compare(source, expected, *options, more=()):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "out.safetensors"
        run("convert", source, "-o", path, *options)
        with safe_open(path, "pt") as file:
            aliases = file.metadata()
            names = set(file.keys())
            missing = {name for name in expected if name not in names}
            check(f"{source}: {missing} are aliases", all(aliases.get(name) in names for name in missing))
            check(f"{source}: {names - set(expected)}", names <= {*expected, *more})
            for name, tensor in expected.items():
                found = file.get_tensor(name if name in names else aliases[name])
                check(f"{source}: {name}", (found.dtype, found.shape) == (tensor.dtype, tensor.shape))
                check(f"{source}: {name}", raw(found) == raw(tensor))


def any_tensor(dtypes):
    dtype = random.choice(dtypes)
    shape = [random.choice([0, 1, 2, 3, 5, 17, 64]) for _ in range(random.randrange(5))]
    if dtype == torch.bool:
        tensor = torch.rand(shape) > 0.5
    else:
        size = torch.tensor([], dtype=dtype).element_size()
        count = int(numpy.prod(shape, dtype=int))
        tensor = torch.randint(0, 256, (count * size,), dtype=torch.uint8).view(dtype).reshape(shape)
    for _ in range(random.randrange(4)):
        kind = random.randrange(4)
        if kind == 0 and tensor.dim() > 1:
            tensor = tensor.permute(random.sample(range(tensor.dim()), tensor.dim()))
        elif kind == 1 and tensor.dim() and tensor.shape[0] > 1:
            tensor = tensor[1 :: random.choice([1, 2])]
        elif kind == 2 and tensor.dim() and tensor.shape[-1] > 2:
            tensor = tensor[..., :: random.choice([2, 3])]
        elif kind == 3 and tensor.dim() < 5:
            tensor = tensor.unsqueeze(0).expand(random.choice([1, 3]), *tensor.shape)
    return tensor


def flatten(value, name=""):
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else []
    return {key: tensor for at, inner in items for key, tensor in flatten(inner, f"{name}.{at}" if name else str(at)).items()}


def nested(dtypes, depth=0):
    tensors = {f"t{number}": any_tensor(dtypes) for number in range(random.randrange(1, 5))}
    if depth < 3 and random.random() < 0.6:
        tensors["inner"] = nested(dtypes, depth + 1)
        tensors["list"] = [nested(dtypes, depth + 1), any_tensor(dtypes), 3, "x"]
    if random.random() < 0.3:
        tensors["tied"] = tensors["t0"]
        tensors["view"] = tensors["t0"][..., :1] if tensors["t0"].dim() else tensors["t0"]
    return collections.OrderedDict(tensors) if random.random() < 0.5 else tensors


def any_module(depth=0):
    if depth < 3 and random.random() < 0.4:
        parts = [any_module(depth + 1) for _ in range(random.randrange(1, 4))]
        shared = nn.Sequential(*parts, parts[0])
        return random.choice([shared, nn.ModuleList(parts), nn.ModuleDict({f"m{at}": part for at, part in enumerate(parts)})])
    wide = 2 * random.randrange(1, 4)
    encoder = nn.TransformerEncoderLayer(wide, 2, activation=random.choice(["relu", "gelu", nn.functional.silu]))
    module = random.choice([
        nn.Linear(wide, 3), nn.Linear(wide, 3, bias=False), nn.BatchNorm2d(wide), nn.LSTM(wide, 3, 2, bidirectional=True),
        nn.MultiheadAttention(wide, 2), encoder, nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False),
        nn.TransformerDecoderLayer(wide, 2), nn.Conv2d(wide, 3, 3), nn.ConvTranspose1d(wide, 2, 3), nn.Embedding(5, wide),
        nn.LayerNorm(wide), nn.GroupNorm(2, wide), nn.GRU(wide, 2), nn.PReLU(), nn.Bilinear(wide, 2, 3),
        nn.ParameterList([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]), nn.RMSNorm(wide),
        nn.ParameterDict({"p": nn.Parameter(torch.ones(2))}), nn.CrossEntropyLoss(weight=torch.ones(3)),
        nn.InstanceNorm1d(wide, affine=True, track_running_stats=True),
    ])  # fmt: skip
    if random.random() < 0.3:
        module.register_buffer("temporary", torch.ones(2), persistent=False)
        module.plain = torch.ones(4)
    return module


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.ReLU()])
        self.gru = nn.GRUCell(4, 3)
        self.register_buffer("kept", torch.randn(2))
        self.plain = torch.randn(2)
        self.table = {"a": torch.randn(3)}

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return self.gru(x[:, :, 0]) + self.plain.sum() + self.kept.sum() + self.table["a"]


def whole_modules(path):
    for _ in range(60):
        module = any_module()
        new, protocol = random.random() < 0.6, random.choice([2, 3, 4, 5])
        torch.save(module, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
        compare(path, module.state_dict(), "--raw-names", *random.choice([(), ("--aliases", "each")]))
    for _ in range(5):
        module = Scripted().eval()
        more = ("plain", "table.a")
        for made in (torch.jit.script(module), torch.jit.trace(module, torch.randn(2, 3, 2))):
            made.save(path)
            compare(path, torch.jit.load(path).state_dict(), more=more)
    torch.jit.freeze(torch.jit.script(module)).save(path)
    check("a frozen module has constants", "a frozen module" in run("convert", path, "-o", path.with_suffix(".safetensors")).stderr)


def optimizers(path):
    optimizers = [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.LBFGS]
    for make in optimizers:
        module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        optimizer = make(module.parameters(), lr=0.1)

        def loss():
            optimizer.zero_grad()
            loss = module(torch.ones(2, 3)).sum()
            loss.backward()
            return loss

        optimizer.step(loss)
        torch.save({"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(), "numpy": numpy.random.get_state()}, path)
        saved = torch.load(path, weights_only=False)
        saved["numpy"] = [None, torch.from_numpy(saved["numpy"][1])]
        compare(path, flatten(saved))


def refusals(path):
    one = lambda value: torch.full((1,), float(value))
    pairs = [(1, "1"), (None, "null"), (2.5, "2.5"), ((1, 2), "[1,2]"), (True, "true"), (torch.float32, "torch.float32")]
    for first, second in pairs:
        torch.save({first: one(1), second: one(2), "other": one(3)}, path)
        error = run("convert", path, "-o", path.with_suffix(".safetensors"), status=2).stderr
        written = "torch.float32" if first is torch.float32 else repr(first)
        check(error, f'{written} and "{second}"' in error)
        compare(path, {"other": one(3)}, "--only", "other")
    torch.save({1: one(1), True: one(2), 1.0: one(3)}, path)
    compare(path, {"1": one(3)})
    torch.save({"": one(1), "a": {"": one(2)}}, path)
    compare(path, {"": one(1), "a.": one(2)})
    jagged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    bits = torch.ones(2, dtype=torch.uint8).view(torch.bits8)
    for odd in (jagged, bits, torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr(), torch.empty(2, device="meta")):
        torch.save({"odd": odd, "ok": one(1)}, path)
        error = run("convert", path, "-o", path.with_suffix(".safetensors"), status=2).stderr
        check(error, 'tensor "odd": it is a' in error)
        compare(path, {"ok": one(1)}, "--skip-unsupported")
        compare(path, {"ok": one(1)}, "--except", "odd")
    halves = torch.arange(8, dtype=torch.uint8).reshape(2, 4).view(torch.float4_e2m1fn_x2)
    torch.save({"w": halves, "t": halves[1:]}, path)
    compare(path, {"w": halves, "t": halves[1:]})

    class Node:
        pass

    for module in ("conf", "conf.inner"):
        sys.modules[module] = types.ModuleType(module)
    Node.__module__, Node.__qualname__, sys.modules["conf.inner"].Node = "conf.inner", "Node", Node
    top, node = Node(), Node()
    top.content, node.parent, node.value = {"lr": node}, top, 0.1
    torch.save({"state_dict": {"w": one(1)}, "hyper_parameters": top}, path)
    check("it names the class", "conf.inner.Node" in run("convert", path, "-o", path.with_suffix(".safetensors"), status=2).stderr)
    compare(path, {"w": one(1)}, "--allow-global", "conf.*")
    compare(path, {"w": one(1)}, "--except", "hyper_parameters.*")


with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "file.pt"
    whole_modules(path)
    optimizers(path)
    refusals(path)
    for number in range(120):
        new, protocol = random.random() < 0.6, random.choice([2, 3, 4, 5])
        value = nested(DTYPES if new else OLD)
        torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
        expected = flatten(torch.load(path, weights_only=False))  # it is our own
        compare(path, expected, *random.choice([(), ("--aliases", "each")]))
    # Large ones that take several blocks to gather.
    large = {"t": torch.randn(3000, 5000).t(), "p": torch.randn(70, 300, 400).permute(2, 0, 1), "s": torch.randn(2_000_000, 8)[:, 3]}
    torch.save(large, path)
    compare(path, large)
    for protocol in (0, 1, 2, 3, 4, 5):
        arrays = {"a": numpy.random.rand(300, 7), "f": numpy.asfortranarray(numpy.random.rand(30, 7)), "n": [numpy.arange(5)]}
        path.write_bytes(pickle.dumps(arrays, protocol=protocol))
        compare(path, {"a": torch.from_numpy(arrays["a"]), "f": torch.from_numpy(arrays["f"]), "n.0": torch.from_numpy(arrays["n"][0])})

    class Evil:
        def __reduce__(self):
            import os

            return os.system, (f"touch {directory}/ran",)

    for protocol in (0, 1, 2, 3, 4, 5):
        for save in (True, False):
            if save and protocol >= 2:
                torch.save({"w": torch.ones(2), "x": Evil()}, path, pickle_protocol=protocol)
            else:
                path.write_bytes(pickle.dumps({"x": Evil()}, protocol=protocol))
            run("convert", path, "-o", Path(directory) / "out.safetensors", status=2)
            found = run("scan", path, "--format", "json", status=1)
            check("system is named", '"system"' in found.stdout and '"dangerous"' in found.stdout)
    check("nothing ran", not (Path(directory) / "ran").exists() and not (Path(directory) / "out.safetensors").exists())

print(f"convert: {checks} checks passed")
