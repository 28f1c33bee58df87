"""The whole circle of foreign formats: NumPy, ONNX, GGUF, Keras' HDF5, Flax and Burn's files that the real libraries write come out with
their values bit for bit, and the libraries read what we write.

    foreign.py WEIGHBRIDGE      (numpy, ml_dtypes, safetensors; and whichever of the others are installed: it says what ran)
"""

import importlib
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import ml_dtypes  # noqa: F401  (NumPy knows bfloat16 after this)
import numpy as np
import safetensors

warnings.simplefilter("ignore", DeprecationWarning)
weighbridge = sys.argv[1]
rng = np.random.default_rng(11)
checks = 0
NAMES = {
    "BOOL": "bool", "I8": "int8", "U8": "uint8", "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32",
    "I64": "int64", "U64": "uint64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
}


def check(what, good):
    global checks
    checks += 1
    if not good:
        sys.exit(f"FAILED: {what}")


def run(*args):
    return subprocess.run([weighbridge, "convert", *map(str, args), "--force"], capture_output=True, text=True)


def convert(*args):
    done = run(*args)
    check(f"convert {args}: {done.stderr}", done.returncode == 0)


def refused(reason, *args):
    """One line, which says why."""
    done = run(*args)
    line = done.stderr.strip()
    check(f"convert {args}: {done.returncode} {line}", done.returncode == 2 and reason in line and "\n" not in line)


def numbers(shape, dtype):
    dtype = np.dtype(dtype)
    if dtype == bool:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    return np.asarray(rng.standard_normal(shape)).astype(dtype)


def same(path, expected):
    """The file's tensors are these, by the format's own reader."""
    found = dict(safetensors.deserialize(Path(path).read_bytes()))
    check(f"{path}: names {set(found) ^ set(expected)}", found.keys() == expected.keys())
    for name, array in expected.items():
        array = np.asarray(array)
        data = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).tobytes()
        theirs = found[name]
        check(f"{path}: {name}: shape", theirs["shape"] == list(array.shape))
        check(f"{path}: {name}: dtype", NAMES[theirs["dtype"]] == array.dtype.newbyteorder("=").name)
        check(f"{path}: {name}: bytes", bytes(theirs["data"]) == data)


def with_numpy(here):
    arrays = {}
    for code in ["b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8"]:
        for place, order in enumerate("<>"):
            array = numbers((5, 1, 7, 3), code).astype(np.dtype(order + code))
            arrays[f"{code}{place}"] = array
            arrays[f"{code}{place}.fortran"] = np.asfortranarray(array)
    # Larger than what is read at a time.
    arrays["large"] = np.asfortranarray(numbers((3001, 2003), "f4"))
    for save in [np.savez, np.savez_compressed]:
        save(here / "a.npz", **arrays)
        convert(here / "a.npz", "-o", here / "a.safetensors")
        same(here / "a.safetensors", arrays)
    convert(here / "a.safetensors", "-o", here / "b.npz")
    with np.load(here / "b.npz", allow_pickle=False) as back:
        check("npz: names", set(back.files) == set(arrays))
        for name, array in arrays.items():
            check(f"npz: {name}", back[name].tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes())
    np.save(here / "one.npy", arrays["large"])
    convert(here / "one.npy", "-o", here / "one.safetensors")
    same(here / "one.safetensors", {"one": arrays["large"]})
    convert(here / "one.safetensors", "-o", here / "two.npy")
    check("npy", np.array_equal(np.load(here / "two.npy"), arrays["large"]))


    every_spelling(here)
    damaged(here)
    unsafe(here)


def npy(descr, array):
    """A file with that text for its dtype."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {array.shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text + array.tobytes()


def every_spelling(here):
    """What NumPy takes for a plain type is read as that type, or refused; what it does not take is refused."""
    names = [name for name in np._core.numerictypes.sctypeDict if isinstance(name, str)]
    codes = [chr(code) for code in range(33, 127)]
    codes += [kind + size for kind in "biufcSUVOmM" for size in ["0", "1", "2", "4", "8", "16", "32", "64"]]
    held = {name: code for code, name in NAMES.items()}
    read = 0
    for name in dict.fromkeys([order + name for name in names + codes for order in ["", "<", ">", "=", "|"]]):
        # What ends a text; and what numpy.save makes of float8_e5m2, though numpy.load does not take it.
        if name[-1:] in "'\\" or name.endswith("f1"):
            continue
        try:
            dtype = np.dtype(name)
        except (TypeError, ValueError, SyntaxError):
            dtype = None
        if dtype is not None and dtype.kind != "T" and dtype.newbyteorder("=").name in held:
            array = np.arange(2).astype(dtype)
            (here / "x.npy").write_bytes(npy(name, array))
            convert(here / "x.npy", "-o", here / "x.safetensors")
            same(here / "x.safetensors", {"x": array})
            read += 1
        else:
            (here / "x.npy").write_bytes(npy(name, np.zeros(2, "c16")))
            refused("", here / "x.npy", "-o", here / "x.safetensors")
    check("spellings", read > 100)
    print(f"numpy: {read} spellings of dtypes read")


def damaged(here):
    """NumPy refuses an archive with a wrong checksum, and so do we."""
    array = np.arange(100, dtype="u1")
    np.savez(here / "d.npz", a=array)
    whole = (here / "d.npz").read_bytes()
    at = whole.index(array.tobytes())
    (here / "d.npz").write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    refused("checksum", here / "d.npz", "-o", here / "d.safetensors")
    (here / "d.npz").write_bytes(whole + whole)
    refused("stand before the archive", here / "d.npz", "-o", here / "d.safetensors")
    np.savez(here / "d.npz", ok=array, o=np.array([{}], object), t=np.array(["a"]))
    refused("Python objects", here / "d.npz", "-o", here / "d.safetensors")
    for option in [["--skip-unsupported"], ["--only", "ok"], ["--except", "[ot]"]]:
        convert(here / "d.npz", *option, "-o", here / "d.safetensors")
        same(here / "d.safetensors", {"ok": array})


def unsafe(here):
    """NumPy loads what is written, by name; what it could not load or unpack is refused."""
    from safetensors.numpy import save_file

    names = ["A", "a", "..a", "a/b", "dense/kernel:0", "x..y", "\u00e4", "b.npy", "a.npz", "with space"]
    arrays = {name: np.full(3, place, "i2") for place, name in enumerate(names)}
    arrays["deep"] = np.ones([1] * 64, "f4")
    save_file(arrays, here / "n.safetensors")
    convert(here / "n.safetensors", "-o", here / "n.npz")
    with np.load(here / "n.npz", allow_pickle=False) as back:
        for name, array in arrays.items():
            check(f"npz: {name}", np.array_equal(back[name], array))
    convert(here / "n.npz", "-o", here / "again.safetensors")
    same(here / "again.safetensors", arrays)
    for name in ["../x", "a/../../x", "/x", "C:x", "a\\b", ""]:
        save_file({name: arrays["a"]}, here / "n.safetensors")
        refused("--rename", here / "n.safetensors", "-o", here / "bad.npz")
    check("npz: nothing is written", not (here / "bad.npz").exists())


def with_onnx(here):
    import onnx
    from onnx import TensorProto, external_data_helper, helper, numpy_helper

    kinds = ["float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "bool", "float16", "float64", "uint32",
             "uint64", "complex64", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]
    arrays, tensors = {}, []
    for dtype in kinds:
        array = numbers((6, 7), dtype)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        for raw in [True, False]:
            name = f"{dtype}.{raw}"
            values = array.tobytes() if raw else array.flatten()
            tensors.append(helper.make_tensor(name, kind, array.shape, values, raw=raw))
            arrays[name] = array
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 7])
    node = helper.make_node("MatMul", ["x", "float32.True"], ["y"])
    graph = helper.make_graph([node], "g", [x], [y], tensors, doc_string="kept")
    model = helper.make_model(graph)
    onnx.save(model, here / "a.onnx")
    external = onnx.load(here / "a.onnx")
    for tensor in external.graph.initializer:
        array = arrays[tensor.name]
        tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, array.shape, array.tobytes(), raw=True))
    external_data_helper.convert_model_to_external_data(external, location="e.data", size_threshold=0)
    onnx.save(external, here / "e.onnx")
    # Other numbers, to be put in.
    others = {name: numbers(array.shape, array.dtype) for name, array in arrays.items()}
    writable = {name: array for name, array in others.items() if array.dtype.isbuiltin == 1}
    np.savez(here / "o.npz", **writable)
    for source in ["a.onnx", "e.onnx"]:
        convert(here / source, "-o", here / "o.safetensors")
        same(here / "o.safetensors", arrays)
        convert(here / "o.npz", "--into", here / source, "-o", here / "out.onnx")
        onnx.checker.check_model(str(here / "out.onnx"))
        back = onnx.load(here / "out.onnx")
        check(f"{source}: the graph", back.graph.node == model.graph.node and back.graph.doc_string == "kept")
        for tensor in back.graph.initializer:
            expected = writable.get(tensor.name, arrays[tensor.name])
            found = numpy_helper.to_array(tensor)
            check(f"{source}: {tensor.name}", found.tobytes() == expected.tobytes() and found.shape == expected.shape)
    # As it came, the way back is the same file where all data is raw.
    raw = onnx.load(here / "a.onnx")
    kept = [tensor for tensor in raw.graph.initializer if tensor.name.endswith("True")]
    del raw.graph.initializer[:]
    raw.graph.initializer.extend(kept)
    onnx.save(raw, here / "r.onnx")
    convert(here / "r.onnx", "-o", here / "r.safetensors")
    convert(here / "r.safetensors", "--into", here / "r.onnx", "-o", here / "r2.onnx")
    check("onnx: the same file", (here / "r.onnx").read_bytes() == (here / "r2.onnx").read_bytes())


    cache = here / "cache"
    for place in ["blobs", "snapshots/abc"]:
        (cache / place).mkdir(parents=True)
    for blob, name, file in [("1", "e.onnx", here / "e.onnx"), ("2", "e.data", here / "e.data")]:
        (cache / "blobs" / blob).write_bytes(file.read_bytes())
        (cache / "snapshots/abc" / name).symlink_to(f"../../blobs/{blob}")
    convert(cache / "snapshots/abc/e.onnx", "-o", here / "o.safetensors")
    same(here / "o.safetensors", arrays)
    with_onnx_models(here, onnx)


PACKED = {"INT4": 4, "UINT4": 4, "INT2": 2, "UINT2": 2, "FLOAT4E2M1": 4, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}


def initializers(graph, onnx, path=""):
    """All of them by the names that they get, those of graphs in nodes, too."""
    for tensor in graph.initializer:
        yield path + tensor.name, tensor
    for number, node in enumerate(graph.node):
        for attribute in node.attribute:
            base = f"{path}{node.name or f'{node.op_type}_{number}'}/{attribute.name}"
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from initializers(attribute.g, onnx, base + "/")
            for place, inner in enumerate(attribute.graphs):
                yield from initializers(inner, onnx, f"{base}.{place}/")


def with_onnx_models(here, onnx):
    """The models that come with the package, and numbers of less than a byte that it packed."""
    from onnx import TensorProto, helper, numpy_helper

    tensors = []
    for label, bits in PACKED.items():
        kind = TensorProto.DataType.Value(label) if label in TensorProto.DataType.keys() else None
        dtype = kind and helper.tensor_dtype_to_np_dtype(kind)
        if kind is None:
            continue
        for shape in [(), (1,), (2,), (3,), (5,), (8,), (3, 7), (2, 3, 4), (0,)]:
            array = np.asarray(rng.integers(0, 1 << bits, shape, dtype=np.uint8))
            if label.startswith("INT"):
                array = np.asarray(array.astype("int8") - (1 << bits - 1))
            array = array.view(dtype) if label.startswith("FLOAT") else array.astype(dtype)
            for raw in [True, False]:
                name = f"{label}.{shape}.{raw}"
                tensors.append(helper.make_tensor(name, kind, shape, array if raw else array.flatten(), raw=raw))
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [], tensors)), here / "packed.onnx")
    models = [here / "packed.onnx", *Path(onnx.__file__).parent.rglob("*.onnx")]
    for path in models:
        expected = {name: tensor for name, tensor in initializers(onnx.load(path).graph, onnx) if tensor.data_type != TensorProto.STRING}
        convert(path, "-o", here / "o.safetensors")
        found = dict(safetensors.deserialize((here / "o.safetensors").read_bytes()))
        check(f"{path}: names", found.keys() == expected.keys())
        for name, tensor in expected.items():
            array, data = numpy_helper.to_array(tensor), bytes(found[name]["data"])
            if bits := PACKED.get(TensorProto.DataType.Name(tensor.data_type)):
                stored = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: array.size * bits].reshape(-1, bits)
                values = (stored << np.arange(bits, dtype=np.uint8)).sum(1).astype(np.uint8)
                check(f"{path}: {name}", np.array_equal(values, array.view(np.uint8).ravel() & ((1 << bits) - 1)))
            else:
                check(f"{path}: {name}", data == array.tobytes() and found[name]["shape"] == list(array.shape))
    print(f"onnx: {len(models)} models")


def with_gguf(here):
    import gguf

    kinds = [kind for kind in gguf.quants._type_traits if kind.name != "BF16"]
    writer = gguf.GGUFWriter(here / "a.gguf", "llama")
    expected = {}
    for dtype in ["float32", "float16", "float64", "int8", "int16", "int32", "int64"]:
        expected[dtype] = numbers((5, 3, 64), dtype)
        writer.add_tensor(dtype, expected[dtype].copy())
    for kind in kinds:
        values, size = gguf.constants.GGML_QUANT_SIZES[kind]
        # Any bytes are blocks; those that are no numbers are left out.
        blocks = rng.integers(0, 256, (4000, size), dtype=np.uint8)
        with np.errstate(all="ignore"):
            made = gguf.quants.dequantize(blocks, kind).reshape(len(blocks), values)
        good = np.isfinite(made).all(axis=1)
        blocks = blocks[good]
        check(f"{kind.name}: blocks", len(blocks) > 1000)
        writer.add_tensor(kind.name, blocks, raw_dtype=kind)
        expected[kind.name] = gguf.quants.dequantize(blocks, kind).astype("float32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    convert(here / "a.gguf", "-o", here / "a.safetensors")
    same(here / "a.safetensors", expected)
    print(f"gguf: {', '.join(kind.name for kind in kinds)}")
    # In parts, as the library cuts them.
    writer = gguf.GGUFWriter(here / "parts.gguf", "llama", split_max_tensors=3)
    expected = {f"w{number}": numbers((5, 8), "float32") for number in range(8)}
    for name, array in expected.items():
        writer.add_tensor(name, array.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(here.glob("parts-*.gguf"))
    check("gguf: parts", len(parts) == 3)
    for part in parts:
        convert(part, "-o", here / "p.safetensors")
        same(here / "p.safetensors", expected)
    parts[1].unlink()
    refused(
        f"2 of 3 parts with 5 of 8 tensors are here; missing: {parts[1].name}", parts[0], "-o", here / "split.safetensors"
    )


def with_h5py(here):
    import h5py

    arrays = {"layer/kernel:0": numbers((300, 200), "f4"), "layer/bias:0": numbers((200,), ">f8"), "step": numbers((), "i8")}
    for version in ["earliest", "latest"]:
        with h5py.File(here / "a.h5", "w", libver=version) as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array)
            file.create_dataset("cut", data=arrays["layer/kernel:0"], chunks=(64, 64), compression="gzip", shuffle=True)
            # Larger than what is put together at once.
            large = np.arange(2500 * 2000, dtype="i4").reshape(2500, 2000)
            file.create_dataset("large", data=large, chunks=(128, 300), compression="gzip")
        convert(here / "a.h5", "-o", here / "h.safetensors")
        same(here / "h.safetensors", arrays | {"cut": arrays["layer/kernel:0"], "large": large})
        with_h5py_kinds(here, h5py, version)


def with_h5py_kinds(here, h5py, version):
    """Every type that h5py makes a number of, whole and in chunks, behind a block of the user's."""
    real = numbers((6, 5), "f8")
    arrays = {code: numbers((6, 5), code.lstrip("<>")).astype(code) for code in ["i1", "u1", ">i2", "<u2", ">i4", ">u8", ">f2", "<f4", ">f8", "?", "bfloat16"]}
    arrays |= {"c8": (real + 1j).astype("c8"), ">c8": (real - 1j).astype(">c8"), "scalar": numbers((), "f4").astype(">f4"), "none": np.zeros((0, 3), "i2")}
    pairs = {"c16": real + 2j, ">c16": (real - 2j).astype(">c16")}
    with h5py.File(here / "k.h5", "w", libver=version, userblock_size=2048) as file:
        for name, array in (arrays | pairs).items():
            file[f"whole/{name}"] = array
            if array.ndim and array.size:
                file.create_dataset(f"cut/{name}", data=array, chunks=(4, 3), compression="gzip", shuffle=True, fletcher32=True)
        file["link"] = h5py.SoftLink("/whole/i1")
        file["text"] = "a"
        file["null"] = h5py.Empty("f4")
        file["other"] = h5py.ExternalLink("other.h5", "/w")
    expected = {"link": arrays["i1"]}
    for name, array in arrays.items():
        expected[f"whole/{name}"] = array
        if array.ndim and array.size:
            expected[f"cut/{name}"] = array
    for name, array in pairs.items():
        array = array.astype("c16").view("f8").reshape(6, 5, 2)
        expected |= {f"whole/{name}": array, f"cut/{name}": array}
    convert(here / "k.h5", "-o", here / "k.safetensors")
    same(here / "k.safetensors", expected)
    with h5py.File(here / "o.h5", "w", libver=version) as file:
        file["w"] = real
        file["long"] = real.astype("longdouble")
    refused("floats of 80 bits", here / "o.h5", "-o", here / "o.safetensors")
    convert(here / "o.h5", "--skip-unsupported", "-o", here / "k.safetensors")
    same(here / "k.safetensors", {"w": real})


def with_flax(here):
    import flax.serialization

    arrays = {f"params.{dtype}.w": numbers((9, 5), dtype) for dtype in ["float32", "bfloat16", "float16", "int32", "float8_e4m3fn"]}
    tree = {"params": {name.split(".")[1]: {"w": array} for name, array in arrays.items()}}
    for size in [flax.serialization.MAX_CHUNK_SIZE, 50]:
        flax.serialization.MAX_CHUNK_SIZE = size
        (here / "a.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
        convert(here / "a.msgpack", "-o", here / "f.safetensors")
        same(here / "f.safetensors", arrays)
    tree = {"ok": arrays["params.float32.w"], "four": np.ones(3, "int4"), "": {"": np.ones(2, "float8_e5m2fnuz")}}
    tree["list"] = {"0": np.ones(1, "u2"), "1": np.ones((2, 0), ">i4")}
    (here / "b.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    refused("int4", here / "b.msgpack", "-o", here / "f.safetensors")
    convert(here / "b.msgpack", "--skip-unsupported", "-o", here / "f.safetensors")
    expected = {"ok": tree["ok"], ".": tree[""][""], "list.0": tree["list"]["0"], "list.1": np.ones((2, 0), "i4")}
    same(here / "f.safetensors", expected)
    twice = {"a.b": np.ones(1), "a": {"b": np.ones(1)}}
    (here / "b.msgpack").write_bytes(flax.serialization.msgpack_serialize(twice))
    refused('["a"]["b"] and ["a.b"]', here / "b.msgpack", "-o", here / "f.safetensors")
    from safetensors.flax import load_file

    # safetensors' reader for JAX does not know f8.
    convert(here / "a.msgpack", "--except", "*float8*", "-o", here / "j.safetensors")
    found = load_file(here / "j.safetensors")
    check("jax: names", len(found) == len(arrays) - 1)
    for name, array in found.items():
        check(f"jax: {name}", np.asarray(array).tobytes() == arrays[name].tobytes())


def with_msgpack(here):
    """Burn's records, which an old Burn wrote; msgpack reads them here."""
    import gzip

    import msgpack

    def leaves(node, path):
        if isinstance(node, dict) and set(node) == {"id", "param"}:
            node = node["param"]
        if isinstance(node, dict) and set(node) == {"bytes", "shape", "dtype"}:
            kind = node["dtype"] if isinstance(node["dtype"], str) else next(iter(node["dtype"]))
            dtype = "bool" if kind == "Bool" else kind.replace("F", "float").replace("I", "int")
            yield ".".join(path) or "tensor", np.frombuffer(node["bytes"], dtype).reshape(node["shape"])
        elif isinstance(node, dict) and set(node) == {"value", "shape"}:
            values = node["value"]
            if any(isinstance(value, float) for value in values):
                array = np.array(values, metadata["float"].replace("f", "float"))
            elif isinstance(values[0], bool):
                array = np.array(values)
            elif "half" in metadata["float"] and min(values) >= 0:
                array = np.array(values, "u2").view("f2")
            else:
                array = np.array(values, metadata["int"].replace("i", "int"))
            yield ".".join(path), array.reshape(node["shape"])
        elif isinstance(node, (dict, list)):
            for key, value in node.items() if isinstance(node, dict) else enumerate(node):
                yield from leaves(value, [*path, str(key)])

    fixtures = Path(__file__).parents[2] / "crates/weighbridge-convert/tests/burn"
    records = sorted(fixtures.glob("*.mpk*"))
    check("burn: records", len(records) >= 9)
    for path in records:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        record = msgpack.unpackb(data)
        metadata = record["metadata"]
        expected = dict(leaves(record["item"], []))
        check(f"{path.name}: tensors", len(expected) in (1, 24))
        convert(path, "-o", here / "b.safetensors")
        same(here / "b.safetensors", expected)
    for path in fixtures.glob("*.bin*"):
        refused("bincode", path, "-o", here / "b.safetensors")


def with_tensorflow(here):
    import tensorflow as tf

    model = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(3), tf.keras.layers.Dense(2)])
    model.save(here / "m.keras")
    model.save_weights(here / "m.weights.h5")
    model.save(here / "m.h5")
    weights = sorted(weight.numpy().tobytes() for weight in model.weights)
    for name in ["m.keras", "m.weights.h5", "m.h5"]:
        convert(here / name, "-o", here / "k.safetensors")
        found = dict(safetensors.deserialize((here / "k.safetensors").read_bytes()))
        shapes = [bytes(tensor["data"]) for tensor in found.values() if tensor["dtype"] == "F32"]
        check(f"tensorflow: {name}", all(weight in shapes for weight in weights))


ran, missing = [], []
for library, test in [("numpy", with_numpy), ("onnx", with_onnx), ("gguf", with_gguf), ("h5py", with_h5py),
                      ("flax", with_flax), ("msgpack", with_msgpack), ("tensorflow", with_tensorflow)]:
    try:
        module = importlib.import_module(library)
    except ImportError:
        missing.append(library)
        continue
    with tempfile.TemporaryDirectory() as directory:
        test(Path(directory))
    ran.append(f"{library} {module.__version__ if hasattr(module, '__version__') else ''}".strip())
print(f"foreign: {checks} checks with {', '.join(ran)}" + (f"; not installed: {', '.join(missing)}" if missing else ""))
