"""Writes the fixtures of pickles beside it, and what must become of each: NAME.safetensors.

    generate.py      (torch 2, numpy and safetensors from PyPI)
"""

import argparse
import collections
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy
import torch
from safetensors.torch import save_file

here = Path(__file__).parent
torch.manual_seed(7)


def expect(name, tensors, metadata=None):
    clones = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    save_file(clones, here / f"{name}.safetensors", {"format": "pt", **(metadata or {})})


def bits(dtype, *shape):
    """Any bits, so that nothing depends on what they mean."""
    size = torch.tensor([], dtype=dtype).element_size()
    flat = torch.randint(0, 256, (*shape[:-1], shape[-1] * size), dtype=torch.uint8)
    return flat.view(dtype)


PLAIN = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int16, torch.int32,
    torch.int64, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu, torch.complex64,
]  # fmt: skip

dtypes = {str(dtype).removeprefix("torch."): bits(dtype, 3, 4) for dtype in PLAIN}
dtypes["bool"] = torch.tensor([True, False, True])
dtypes["complex128"] = bits(torch.complex128, 3, 2)
dtypes["complex32"] = bits(torch.complex32, 3, 2)
torch.save(dtypes, here / "dtypes.pt")
pairs = {key: torch.view_as_real(dtypes[key]) for key in ("complex128", "complex32")}
expect("dtypes", dtypes | pairs, {f"{key}.dtype": key for key in pairs})

# Views of all kinds; old files have no storage for some dtypes.
base = torch.randn(5, 6, 7)
views = {
    "transposed": base.transpose(0, 2),
    "permuted": base.permute(1, 2, 0),
    "rows": base[1:3],
    "steps": base[::2, 1::3, ::2],
    "column": base[:, 2, 3],
    "expanded": torch.randn(1, 4).expand(3, 4),
    "expanded_scalar": torch.tensor(2.5).expand(2, 2),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "empty": torch.empty(0, 3),
    "parameter": torch.nn.Parameter(torch.randn(2, 3)),
    "buffer": torch.nn.Parameter(torch.randn(4), requires_grad=False),
    "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "half": torch.randn(3, 3).half().t(),
}
for protocol in (2, 3, 4, 5):
    torch.save(views, here / f"views{protocol}.pt", pickle_protocol=protocol)
    torch.save(views, here / f"legacy{protocol}.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=False)
expect("views", views)

# The same with big-endian storages, as a machine of that order writes it.
widths = {}
for value in torch.load(here / "views2.pt", weights_only=True).values():
    storage = value.untyped_storage()
    widths[bytes(storage)] = value.element_size()
big = io.BytesIO()
with zipfile.ZipFile(here / "views2.pt") as old, zipfile.ZipFile(big, "w") as new:
    for info in old.infolist():
        data = old.read(info)
        if "/data/" in info.filename and data:
            data = numpy.frombuffer(data, f"u{widths[data]}").byteswap().tobytes()
        if info.filename.endswith("byteorder"):
            data = b"big"
        new.writestr(info.filename, data)
(here / "big_endian.pt").write_bytes(big.getvalue())
reread = torch.load(here / "big_endian.pt", weights_only=True)
assert all(torch.equal(reread[key], views[key]) for key in views)

# Compressed, as somebody repacks it.
packed = io.BytesIO()
with zipfile.ZipFile(here / "views2.pt") as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
    for info in old.infolist():
        new.writestr(info.filename, old.read(info))
(here / "deflated.pt").write_bytes(packed.getvalue())

# Tied weights, once under the first name; overlapping ones each.
embedding = torch.randn(6, 4)
tied = collections.OrderedDict(
    [("model.embed.weight", embedding), ("lm_head.weight", embedding), ("first_rows", embedding[:2]), ("other", torch.ones(2))]
)
tied._metadata = {"": {"version": 1}}
torch.save(tied, here / "tied.bin")
once = {key: value for key, value in tied.items() if key != "model.embed.weight"}
expect("tied", once, {"model.embed.weight": "lm_head.weight"})

# Training programs: Lightning, DataParallel, an optimizer.
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
optimizer = torch.optim.Adam(model.parameters(), lr=0.25)
model(torch.randn(5, 3)).sum().backward()
optimizer.step()
state = model.state_dict()
torch.save(
    {
        "epoch": 3,
        "global_step": 120,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": state,
        "hyper_parameters": argparse.Namespace(width=4, name="größe"),
        "callbacks": {},
        "loops": None,
    },
    here / "lightning.ckpt",
)
expect(
    "lightning",
    state,
    {
        "epoch": "3", "global_step": "120", "pytorch-lightning_version": "2.1.0", "hyper_parameters.width": "4",
        "hyper_parameters.name": "größe", "callbacks": "{}", "loops": "null",
    },
)  # fmt: skip
parallel = {f"module.{key}": value for key, value in state.items()}
torch.save({"model": parallel, "optimizer": optimizer.state_dict(), "best": 0.5}, here / "training.pth")
named = {}
metadata = {"best": "0.5"}
for number, slots in optimizer.state_dict()["state"].items():
    for slot, value in slots.items():
        named[f"optimizer.state.{number}.{slot}"] = value
for number, group in enumerate(optimizer.state_dict()["param_groups"]):
    for key, value in group.items():
        path = f"optimizer.param_groups.{number}.{key}"
        metadata[path] = json.dumps(value, separators=(",", ":")).replace("1e-08", "1e-8")
expect("training", state | named, metadata)

# A whole module, which is an object of a class.
torch.save(model, here / "module.pt")
expect("module", state)

# Quantised: per tensor, per channel.
per_tensor = torch.quantize_per_tensor(torch.randn(3, 4), 0.5, 3, torch.quint8)
scales, zeros = torch.tensor([0.5, 0.25]), torch.tensor([1, 2])
per_channel = torch.quantize_per_channel(torch.randn(2, 3), scales, zeros, 0, torch.qint8)
torch.save({"a": per_tensor, "b": per_channel}, here / "quantised.pt")
expect(
    "quantised",
    {
        "a": per_tensor.int_repr(), "b": per_channel.int_repr(), "b.scales": per_channel.q_per_channel_scales(),
        "b.zero_points": per_channel.q_per_channel_zero_points(),
    },
    {
        "a.quantization": '{"dtype":"quint8","scale":0.5,"zero_point":3}',
        "b.quantization": '{"axis":0,"dtype":"qint8"}',
    },
)  # fmt: skip

# Old files have the classes of modules with the source that defined them.
old = torch.nn.PReLU(2)
torch.save(old, here / "module_legacy.pt", _use_new_zipfile_serialization=False)
expect("module_legacy", old.state_dict())
layer = torch.nn.TransformerEncoderLayer(2, 1, dim_feedforward=2, activation="gelu")
layer.register_buffer("temporary", torch.ones(1), persistent=False)
layer.plain = torch.ones(1)
torch.save(layer, here / "layer.pt")
expect("layer", layer.state_dict())

# Two values of 4 bits in a byte.
halves = {"w": torch.arange(8, dtype=torch.uint8).reshape(2, 4).view(torch.float4_e2m1fn_x2)}
torch.save(halves, here / "float4.pt")
expect("float4", halves)
torch.save({"b": torch.ones(2, dtype=torch.uint8).view(torch.bits8), "ok": torch.ones(1)}, here / "bits.pt")
jagged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
torch.save({"j": jagged, "m": torch.ones(1, device="meta"), "ok": torch.ones(1)}, here / "jagged.pt")


# TorchScript: attributes that are no parameters, constants of a frozen module.
class Scripted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)
        self.parts = torch.nn.ModuleList([torch.nn.BatchNorm1d(1)])
        self.plain = torch.full((2,), 3.0)
        self.listed = [torch.ones(1)]

    def forward(self, x):
        for part in self.parts:
            x = part(self.linear(x))
        return x + self.plain.sum() + self.listed[0]


scripted = torch.jit.script(Scripted().eval())
scripted.save(here / "script.pt")
attributes = {"plain": scripted.plain, "listed.0": scripted.listed[0]}
expect("script", scripted.state_dict() | attributes)
torch.jit.freeze(scripted).save(here / "frozen.pt")

# What is refused.
torch.save({"w": torch.eye(3).to_sparse(), "v": torch.ones(2)}, here / "sparse.pt")
torch.save({"w": torch.randn(3, dtype=torch.complex64).conj()}, here / "conjugate.pt")

# NumPy's arrays in plain pickles.
arrays = {
    "c": numpy.arange(12, dtype="<f4").reshape(3, 4),
    "fortran": numpy.asfortranarray(numpy.arange(12, dtype="<i8").reshape(3, 4)),
    "big": numpy.arange(6, dtype=">f8").reshape(2, 3),
    "bool": numpy.array([True, False]),
    "nested": {"half": numpy.arange(4, dtype="<f2"), "list": [numpy.ones(2, "<u2"), numpy.zeros((0, 2), "<i4")]},
    "scalar": numpy.float64(1.5),
    "count": numpy.int32(-7),
    "text": "words",
    "objects": numpy.array([None, {}], dtype=object),
}
for protocol in (2, 3, 4, 5):
    with open(here / f"numpy{protocol}.pkl", "wb") as file:
        pickle.dump(arrays, file, protocol=protocol)
flat = {
    "c": arrays["c"], "fortran": arrays["fortran"], "big": arrays["big"].astype("<f8"), "bool": arrays["bool"],
    "nested.half": arrays["nested"]["half"], "nested.list.0": arrays["nested"]["list"][0],
    "nested.list.1": arrays["nested"]["list"][1],
}  # fmt: skip
expect(
    "numpy",
    {key: torch.from_numpy(numpy.ascontiguousarray(value)) for key, value in flat.items()},
    {"scalar": "1.5", "count": "-7", "text": "words"},
)

# A set of shards, tied across names within one.
shards = here / "sharded"
shards.mkdir(exist_ok=True)
parts = [{"a.weight": torch.randn(3, 2), "a.bias": torch.randn(3)}, {"b.weight": torch.randn(2, 3).t()}]
weight_map = {}
for number, part in enumerate(parts, 1):
    file = f"pytorch_model-{number:05}-of-{len(parts):05}.bin"
    torch.save(part, shards / file)
    weight_map |= dict.fromkeys(part, file)
index = {"metadata": {"total_size": 72}, "weight_map": weight_map}
(shards / "pytorch_model.bin.index.json").write_text(json.dumps(index))
expect("sharded", parts[0] | parts[1])
