#!/usr/bin/env python3
"""Files for .ci/web.mjs, written with Python's standard library: large ones of holes, harmless, hostile and broken ones."""
import json
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

FAR = 20_000_000_000


class Hostile:
    def __reduce__(self):
        return os.system, ("echo no",)


def safetensors(path, tensors, metadata=None, short=0):
    """Tensors of a name, a shape and bytes, all F32; where bytes are None, the file has a hole."""
    header, end = {"__metadata__": metadata} if metadata else {}, 0
    for name, shape, _ in tensors:
        size = 4
        for dim in shape:
            size *= dim
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, _, data in tensors:
            if data is not None:
                file.seek(8 + len(text) + header[name]["data_offsets"][0])
                file.write(data)
        file.truncate(8 + len(text) + end - short)


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(path, tensors, size):
    """F32 tensors at given offsets, in a file of holes that ends so far behind its header."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1) + text("general.architecture") + struct.pack("<I", 8) + text("llama")
    for name, shape, offset in tensors:
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset)
    head += bytes(-len(head) % 32)
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(len(head) + size)


def torch(path, payload):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/version", "3\n")


def main(directory):
    directory.mkdir(parents=True, exist_ok=True)
    # 40 layers of 0.5 GB, with values that are not zero behind them: at 20 GB, where 32 bits do not reach.
    layers = [(f"model.layers.{number}.mlp.weight", [FAR // 160, 1], None) for number in range(40)]
    last = struct.pack("<4f", 1, 2, 3, float("nan"))
    safetensors(directory / "far.safetensors", [*layers, ("zz.last", [4], last)])
    safetensors(directory / "near.safetensors", [("a.weight", [2, 2], last), ("b.bias", [4], last)], {"format": "pt"})
    safetensors(directory / "part-1.safetensors", [("one", [4], last)])
    safetensors(directory / "part-2.safetensors", [("two", [4], last)])
    index = {"metadata": {}, "weight_map": {"one": "part-1.safetensors", "two": "part-2.safetensors"}}
    (directory / "part.safetensors.index.json").write_text(json.dumps(index))
    safetensors(directory / "short.safetensors", [("a", [1000], None)], short=100)
    (directory / "torn.safetensors").write_bytes((directory / "near.safetensors").read_bytes()[:60])
    faulty = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}})
    (directory / "faults.safetensors").write_bytes(struct.pack("<Q", len(faulty)) + faulty.encode() + bytes(12))
    gguf(directory / "far.gguf", [("token_embd.weight", [1 << 15, 1 << 15], 0), ("output.weight", [256], 1 << 32)], (1 << 32) + 1024)
    torch(directory / "hostile.bin", pickle.dumps({"weight": Hostile()}, 2))
    (directory / "hostile.pkl").write_bytes(pickle.dumps(Hostile()))
    (directory / "plain.pkl").write_bytes(pickle.dumps({"epochs": 3, "names": ["a"]}))
    (directory / "text.txt").write_text("This is no checkpoint.\n")
    (directory / "empty.bin").write_bytes(b"")
    (directory / "noise.bin").write_bytes(bytes((37 * i * i + 11 * i) % 251 for i in range(5000)))


main(Path(sys.argv[1]))
