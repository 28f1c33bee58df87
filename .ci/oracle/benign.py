"""What PyTorch, NumPy, joblib and others write is harmless to `weighbridge scan`.

    benign.py WEIGHBRIDGE

Writes every kind of file that these packages make, and looks at each. joblib, onnx, h5py, flax and gguf are used where they are
installed.
"""

import argparse
import collections
import datetime
import decimal
import importlib.util
import pathlib
import pickle
import random
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import torch
import torch.distributed.checkpoint
from torch import nn

warnings.simplefilter("ignore")
WEIGHBRIDGE = sys.argv[1]


def has(package):
    return importlib.util.find_spec(package) is not None


def tensors():
    kinds = ("float16 bfloat16 float64 int8 uint8 int16 int32 int64 bool complex64 float8_e4m3fn float8_e5m2 uint16").split()
    return {
        "dtypes": {kind: torch.zeros(2).to(getattr(torch, kind)) for kind in kinds},
        "per tensor": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "per channel": torch.quantize_per_channel(torch.ones(2, 3), torch.ones(2), torch.zeros(2), 0, torch.qint8),
        "sparse": torch.eye(3).to_sparse(),
        "rows": torch.eye(3).to_sparse_csr(),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "parameter": nn.Parameter(torch.ones(2)),
        "buffer": nn.Buffer(torch.ones(2)),
        "meta": torch.ones(3, device="meta"),
        "views": [torch.arange(10)[2:5], torch.arange(10).view(2, 5).t()],
        "storages": [torch.ones(3).untyped_storage(), torch.ones(3).storage()],
        "others": [torch.Size([1, 2]), torch.device("cpu"), torch.float32, torch.get_rng_state(), torch.empty(0)],
    }


def modules():
    yield "linear", nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 2))
    yield "transformer", nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2)
    yield "gelu", nn.TransformerEncoderLayer(8, 2, 16, activation="gelu")
    yield "recurrent", nn.ModuleList([nn.LSTM(3, 4, 2), nn.GRU(3, 4, bidirectional=True), nn.RNN(3, 4)])
    yield "images", nn.ModuleDict({
        "conv": nn.Conv2d(1, 2, 3), "pool": nn.MaxPool2d(2), "drop": nn.Dropout(), "flat": nn.Flatten(),
        "norm": nn.LayerNorm(3), "group": nn.GroupNorm(1, 2), "act": nn.GELU(), "embed": nn.Embedding(3, 4)})
    yield "loss", nn.CrossEntropyLoss()


def values():
    return {
        "counter": collections.Counter("aab"), "default": collections.defaultdict(list, {1: [2]}), "deque": collections.deque([1]),
        "ordered": collections.OrderedDict(a=1), "range": range(3), "slice": slice(1, 2), "complex": 1j, "ellipsis": ...,
        "set": {1}, "frozen": frozenset([1]), "bytes": b"abc", "array": bytearray(b"x"), "decimal": decimal.Decimal("1.5"),
        "date": datetime.datetime(2026, 1, 1), "delta": datetime.timedelta(1), "path": pathlib.PurePosixPath("a/b"), "big": 10**40,
        "arguments": argparse.Namespace(a=1), "none": None}


def arrays():
    return {
        "array": np.arange(3), "f4": np.float32(1), "i8": np.int64(2), "bool": np.bool_(True), "type": np.float32,
        "objects": np.array([{}, None], object), "dtype": np.dtype("f4"), "text": np.array(["a"]), "fields": np.zeros(2, [("a", "f4")]),
        "time": np.datetime64("2020-01-01"), "generator": np.random.default_rng(1), "state": np.random.RandomState(1),
        "legacy": np.random.get_state()}


def write(place):
    def save(name, value):
        torch.save(value, place / f"{name}.pt")
        torch.save(value, place / f"{name}.2.pt", pickle_protocol=4)

    def legacy(name, value):
        torch.save(value, place / f"{name}.legacy.pt", _use_new_zipfile_serialization=False)

    for name, value in tensors().items():
        save(name, value)
    for name, module in modules():
        for value, kind in ((module, "whole"), (module.state_dict(), "state")):
            save(f"{name}.{kind}", value)
            legacy(f"{name}.{kind}", value)
    model = nn.Linear(2, 2)
    for optimizer in (torch.optim.AdamW(model.parameters()), torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        save(type(optimizer).__name__, optimizer)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        save(f"{type(optimizer).__name__}.training", {
            "model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "epoch": 3,
            "random": random.getstate(), "torch": torch.get_rng_state(), "loss": np.float64(1.5)})
    save("values", values())
    save("arrays", arrays())
    torch.jit.save(torch.jit.script(model), place / "script.pt")
    torch.jit.save(torch.jit.trace(model, torch.ones(1, 2)), place / "trace.pt")
    torch.jit.save(torch.jit.freeze(torch.jit.script(model.eval())), place / "frozen.pt")
    torch.distributed.checkpoint.save({"model": model.state_dict(), "step": 3}, checkpoint_id=str(place / "dcp"), no_dist=True)
    for protocol in range(6):
        with open(place / f"{protocol}.pkl", "wb") as file:
            pickle.dump({**values(), "a": np.arange(4.0)}, file, protocol)
    np.save(place / "numbers.npy", np.arange(4))
    np.save(place / "objects.npy", np.array([1, None], object))
    np.savez(place / "stored.npz", a=np.ones(3), b=np.array([1, None], object))
    np.savez_compressed(place / "deflated.npz", a=np.ones(3))
    if has("safetensors"):
        from safetensors.torch import save_file
        save_file({"a": torch.ones(3)}, place / "model.safetensors")
    if has("joblib"):
        import joblib
        value = {"a": np.arange(1000.0), "o": np.array([1, None], object), "f": np.asfortranarray(np.ones((3, 4))), "e": np.ones(0)}
        joblib.dump(value, place / "plain.joblib")
        for kind in ("zlib", "gzip", "bz2", "xz", "lzma"):
            joblib.dump(value, place / f"{kind}.joblib", compress=(kind, 3))
    if has("onnx"):
        import onnx
        graph = onnx.helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(np.ones(3, "f4"), "w")])
        onnx.save(onnx.helper.make_model(graph), place / "model.onnx")
    if has("h5py"):
        import h5py
        with h5py.File(place / "model.h5", "w") as file:
            file["w"] = np.ones(3)
    if has("flax"):
        import flax.serialization
        (place / "model.msgpack").write_bytes(flax.serialization.to_bytes({"a": {"b": np.ones(3)}}))
    if has("gguf"):
        import gguf
        writer = gguf.GGUFWriter(place / "model.gguf", "llama")
        writer.add_tensor("w", np.ones((2, 32), "f4"))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    texts = {
        "config.json": "{}", "README.md": "---\nlicense: mit\n---\n# Model\n", "vocab.txt": "[PAD]\ncat\n", "empty.txt": "",
        "merges.txt": "#version: 0.2\ni n\n", "modeling.py": "import os\nimport sys\n", "a.py": "class A:\n    x = 1\n",
        ".gitattributes": "*.bin filter=lfs\n", "LICENSE": "          Apache License\n"}
    for name, text in texts.items():
        (place / name).write_text(text)


with tempfile.TemporaryDirectory() as directory:
    write(pathlib.Path(directory))
    files = sorted(path for path in pathlib.Path(directory).rglob("*") if path.is_file())
    failed = 0
    for path in files:
        run = subprocess.run([WEIGHBRIDGE, "scan", path], capture_output=True, text=True)
        if run.returncode != 0:
            failed += 1
            print(f"{path.name}: exit status {run.returncode}\n{run.stdout}{run.stderr}")
    print(f"{len(files) - failed} passed, {failed} failed")
    sys.exit(failed > 0)
