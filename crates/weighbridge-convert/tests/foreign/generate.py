"""Writes the fixtures of tests/foreign.rs with the real libraries, and beside each, as NAME.json, what is in it.

    generate.py DIRECTORY [FUNCTION ...]      (numpy, onnx, gguf, h5py, flax, ml_dtypes of PyPI)

The expected bytes come from the libraries, too: they read the files that they wrote.
"""

import hashlib
import json
import sys
import zipfile
from pathlib import Path

import flax.serialization
import gguf
import h5py
import ml_dtypes
import numpy as np
import onnx
from gguf import GGMLQuantizationType as Q
from onnx import TensorProto, external_data_helper, helper, numpy_helper

out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
rng = np.random.default_rng(7)

DTYPES = {
    "bool": "BOOL", "int8": "I8", "uint8": "U8", "int16": "I16", "uint16": "U16", "int32": "I32", "uint32": "U32",
    "int64": "I64", "uint64": "U64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0",
}


def entry(array, dtype=None, shape=None):
    """Dtype, shape, and a digest of the bytes as safetensors has them."""
    array = np.asarray(array)
    little = array.astype(array.dtype.newbyteorder("<")) if array.dtype.byteorder == ">" else array
    data = np.ascontiguousarray(little).tobytes()
    return {
        "dtype": dtype or DTYPES[array.dtype.name],
        "shape": list(array.shape) if shape is None else shape,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def expect(name, tensors, metadata=None):
    text = json.dumps({"tensors": tensors, "metadata": metadata or {}}, indent=1, sort_keys=True)
    (out / f"{name}.json").write_text(text + "\n")


def numbers(shape, dtype):
    dtype = np.dtype(dtype)
    if dtype == bool:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    if dtype.kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    return np.asarray(rng.standard_normal(shape)).astype(dtype)


def write_numpy():
    arrays = {}
    for code in ["b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8"]:
        for order in ["<", ">"]:
            array = numbers((3, 4, 5), code).astype(np.dtype(order + code))
            arrays[f"{code}_{'big' if order == '>' else 'little'}"] = array
            arrays[f"{code}_{'big' if order == '>' else 'little'}_fortran"] = np.asfortranarray(array)
    arrays["scalar"] = np.float32(2.5)
    arrays["empty"] = np.zeros((0, 3), "f4")
    arrays["one"] = np.arange(7, dtype="i4")
    arrays["layers/0.weight"] = np.asfortranarray(numbers((33, 17), "f4"))
    np.savez(out / "stored.npz", **arrays)
    np.savez_compressed(out / "deflated.npz", **arrays)
    expect("stored.npz", {name: entry(array) for name, array in arrays.items()})
    expect("deflated.npz", {name: entry(array) for name, array in arrays.items()})
    for version in [(1, 0), (2, 0), (3, 0)]:
        name = f"version{version[0]}.npy"
        array = np.asfortranarray(numbers((5, 6), ">f4"))
        with open(out / name, "wb") as file:
            np.lib.format.write_array(file, array, version=version)
        expect(name, {f"version{version[0]}": entry(array)})
    np.save(out / "objects.npy", np.array([{"a": 1}], dtype=object))
    np.save(out / "structured.npy", np.zeros(3, dtype=[("a", "f4"), ("b", "i4")]))
    np.save(out / "bfloat16.npy", np.zeros(3, ml_dtypes.bfloat16))
    np.save(out / "text.npy", np.array(["a", "bc"]))


def onnx_tensor(name, kind, array, raw=True):
    return helper.make_tensor(name, kind, array.shape, array.tobytes() if raw else array.flatten(), raw=raw)


def write_onnx():
    kinds = {
        TensorProto.FLOAT: "float32", TensorProto.UINT8: "uint8", TensorProto.INT8: "int8",
        TensorProto.UINT16: "uint16", TensorProto.INT16: "int16", TensorProto.INT32: "int32",
        TensorProto.INT64: "int64", TensorProto.BOOL: "bool", TensorProto.FLOAT16: "float16",
        TensorProto.DOUBLE: "float64", TensorProto.UINT32: "uint32", TensorProto.UINT64: "uint64",
        TensorProto.COMPLEX64: "complex64", TensorProto.BFLOAT16: ml_dtypes.bfloat16,
        TensorProto.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn, TensorProto.FLOAT8E4M3FNUZ: ml_dtypes.float8_e4m3fnuz,
        TensorProto.FLOAT8E5M2: ml_dtypes.float8_e5m2, TensorProto.FLOAT8E5M2FNUZ: ml_dtypes.float8_e5m2fnuz,
    }
    tensors, expected, metadata = [], {}, {"made": "by generate.py"}
    for kind, dtype in kinds.items():
        name = f"{TensorProto.DataType.Name(kind).lower()}"
        array = numbers((3, 5), dtype)
        for raw in [True, False]:
            own = f"{name}.{'raw' if raw else 'typed'}"
            tensor = onnx_tensor(own, kind, array, raw)
            tensors.append(tensor)
            expected[own] = entry(numpy_helper.to_array(tensor))
    for kind, bits in [(TensorProto.INT4, 4), (TensorProto.UINT4, 4), (TensorProto.FLOAT4E2M1, 4)]:
        label = TensorProto.DataType.Name(kind)
        for values in [6, 7]:
            name = f"{label.lower()}.{values}"
            packed = rng.integers(0, 256, (values + 1) // 2, dtype=np.uint8)
            if values == 7:
                packed[-1] &= 15
            tensors.append(helper.make_tensor(name, kind, [values], packed.tobytes(), raw=True))
            if label == "FLOAT4E2M1" and values == 6:
                expected[name] = entry(packed, "F4", [6])
            else:
                expected[name] = entry(packed)
                metadata[f"onnx.packed.{name}"] = f"{label} [{values}]"
    tensors.append(helper.make_tensor("words", TensorProto.STRING, [2], [b"a", b"b"]))
    big = numpy_helper.from_array(numbers((40, 60), "int64"), "large.typed")
    values = numpy_helper.to_array(big)
    big = helper.make_tensor("large.typed", TensorProto.INT64, values.shape, values.flatten())
    tensors.append(big)
    expected["large.typed"] = entry(values)

    def branch(name, weight):
        tensor = numpy_helper.from_array(weight, "w")
        node = helper.make_node("Identity", ["w"], ["y"])
        value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
        return helper.make_graph([node], name, [], [value], [tensor])

    then, other = numbers((2,), "float32"), numbers((2,), "float32")
    nodes = [
        helper.make_node("If", ["c"], ["r"], name="choice", then_branch=branch("t", then), else_branch=branch("e", other)),
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.float32([1, 2]))),
    ]
    expected["choice/then_branch/w"] = entry(then)
    expected["choice/else_branch/w"] = entry(other)
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, [2])], tensors,
    )
    model = helper.make_model(graph, producer_name="generate.py")
    helper.set_model_props(model, {"made": "by generate.py"})
    onnx.save(model, out / "inline.onnx")
    expect("inline.onnx", expected, metadata)

    arrays = {f"w{place}": numbers((16, 8), "float32") for place in range(3)}
    graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(array, name) for name, array in arrays.items()])
    model = helper.make_model(graph)
    (out / "external.onnx.data").unlink(missing_ok=True)
    external_data_helper.convert_model_to_external_data(model, location="external.onnx.data", size_threshold=0)
    onnx.save(model, out / "external.onnx")
    (out / "external.onnx.data").chmod(0o644)
    expect("external.onnx", {name: entry(array) for name, array in arrays.items()})

    dense = numpy_helper.from_array(np.float32([1, 2]), "s")
    sparse = helper.make_sparse_tensor(dense, numpy_helper.from_array(np.int64([0, 3]), "i"), [5])
    graph = helper.make_graph([], "g", [], [], [], sparse_initializer=[sparse])
    onnx.save(helper.make_model(graph), out / "sparse.onnx")


def write_packed():
    """Numbers of less than a byte: the library packs typed ones itself, two or four to a number, floats of 6 bits one."""
    rng = np.random.default_rng(9)
    kinds = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
    same = {"FLOAT4E2M1": "F4", "FLOAT6E2M3": "F6_E2M3", "FLOAT6E3M2": "F6_E3M2"}
    tensors, expected, metadata = [], {}, {}
    for label, bits in kinds.items():
        kind = TensorProto.DataType.Value(label)
        for shape in [(), (2,), (3,), (2, 3, 4), (0,)]:
            array = np.asarray(rng.integers(0, 1 << bits, shape, dtype=np.uint8))
            if label in ("INT4", "INT2"):
                array = array.astype("int8") - (1 << bits - 1)
            dtype = helper.tensor_dtype_to_np_dtype(kind)
            array = np.asarray(array).view(dtype) if "FLOAT" in label else np.asarray(array).astype(dtype)
            for raw in [True, False]:
                name = f"{label}.{'x'.join(map(str, shape)) or 'scalar'}.{'raw' if raw else 'typed'}"
                tensor = helper.make_tensor(name, kind, shape, array if raw else array.flatten(), raw=raw)
                tensors.append(tensor)
                assert np.array_equal(numpy_helper.to_array(tensor).view(np.uint8), array.view(np.uint8)), name
                if raw:
                    packed = np.frombuffer(tensor.raw_data, np.uint8)
                if label in same and array.size * bits % 8 == 0:
                    expected[name] = entry(packed, same[label], list(shape))
                else:
                    expected[name] = entry(packed)
                    metadata[f"onnx.packed.{name}"] = f"{label} {list(shape)}"
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [], tensors)), out / "packed.onnx")
    expect("packed.onnx", expected, metadata)


def write_gguf():
    quantised = [
        Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K, Q.IQ4_NL, Q.IQ4_XS, Q.TQ1_0,
        Q.TQ2_0, Q.MXFP4, Q.NVFP4,
    ]
    plain = ["float32", "float16", "float64", "int8", "int16", "int32", "int64"]
    for endian in [gguf.GGUFEndian.LITTLE, gguf.GGUFEndian.BIG]:
        big = endian == gguf.GGUFEndian.BIG
        name = "big.gguf" if big else "little.gguf"
        writer = gguf.GGUFWriter(out / name, "llama", endianess=endian)
        writer.add_block_count(2)
        writer.add_float32("llama.rope.freq_base", 10000.0)
        writer.add_bool("llama.flag", True)
        writer.add_chat_template("{{ messages }}")
        writer.add_array("tokenizer.ggml.tokens", ["<s>", "a", "b"])
        writer.add_array("tokenizer.ggml.scores", [1.0, 2.0])
        expected = {}
        for dtype in plain:
            array = numbers((3, 32), dtype)
            writer.add_tensor(f"plain.{dtype}", array.copy())
            expected[f"plain.{dtype}"] = entry(array)
        for kind in [] if big else quantised:
            values, size = gguf.constants.GGML_QUANT_SIZES[kind]
            blocks = rng.integers(0, 256, (3, 512 // values * size), dtype=np.uint8)
            if kind in (Q.Q8_0, Q.Q4_0, Q.Q5_1):
                # What the library itself makes of numbers; the others are any bytes.
                blocks = gguf.quants.quantize(numbers((3, 512), "float32"), kind)
            else:
                blocks = finite(blocks, kind, size)
            writer.add_tensor(f"{kind.name}.weight", blocks, raw_dtype=kind)
            made = gguf.quants.dequantize(blocks, kind)
            expected[f"{kind.name}.weight"] = entry(made.astype("float32"))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        metadata = {
            "general.architecture": "llama", "llama.block_count": "2", "llama.rope.freq_base": "10000",
            "llama.flag": "true", "tokenizer.chat_template": "{{ messages }}",
        }
        expect(name, expected, metadata)


def finite(blocks, kind, size):
    """Any bytes, but with scales that are numbers: where they are in a block of that kind."""
    scales = {
        Q.Q4_1: [0, 2], Q.Q5_0: [0], Q.Q2_K: [80, 82], Q.Q3_K: [108], Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208],
        Q.IQ4_NL: [0], Q.IQ4_XS: [0], Q.TQ1_0: [52], Q.TQ2_0: [64],
    }
    each = blocks.reshape(-1, size)
    for at in scales.get(kind, []):
        each[:, at : at + 2] = rng.standard_normal((len(each), 1)).astype("<f2").view(np.uint8)
    return blocks


def write_codebooks():
    """The types whose values are points of code books, and Q1_0, which the library knows and does not read."""
    rng = np.random.default_rng(8)
    scales = {Q.IQ1_S: 0, Q.IQ2_XXS: 0, Q.IQ2_XS: 0, Q.IQ2_S: 0, Q.IQ3_XXS: 0, Q.IQ3_S: 0, Q.Q1_0: 0, Q.IQ1_M: None}
    writer = gguf.GGUFWriter(out / "codebooks.gguf", "llama")
    expected = {}
    for kind, at in scales.items():
        values, size = gguf.constants.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (4, size), dtype=np.uint8)
        if at is None:
            # An eighth of a scale is in the highest bits of each of four words.
            blocks[:, 55] = blocks[:, 55] & 15 | 0x20
        else:
            blocks[:, at : at + 2] = rng.standard_normal((4, 1)).astype("<f2").view(np.uint8)
        writer.add_tensor(kind.name, blocks.reshape(2, 2 * size), raw_dtype=kind)
        if kind == Q.Q1_0:
            bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little")
            scale = blocks[:, :2].copy().view("<f2").astype("float32")
            made = np.where(bits == 1, scale, -scale)
        else:
            made = gguf.quants.dequantize(blocks, kind)
        assert np.isfinite(made).all()
        expected[kind.name] = entry(made.astype("float32").reshape(2, 2 * values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expect("codebooks.gguf", expected)


def write_hdf5():
    arrays = {
        "dense/dense/kernel:0": numbers((6, 4), "float32"),
        "dense/dense/bias:0": numbers((4,), "float16"),
        "counts/step": numbers((), "int64"),
        "big": numbers((3, 4), ">f8"),
        "flags": numbers((5,), "bool"),
        "empty": np.zeros((0, 2), "float32"),
    }
    expected = {name: entry(array) for name, array in arrays.items()}
    for name, options in [("early.h5", {"libver": "earliest"}), ("late.h5", {"libver": "latest"})]:
        with h5py.File(out / name, "w", **options) as file:
            file.attrs["keras_version"] = "2.15.0"
            file.attrs["backend"] = "tensorflow"
            for path, array in arrays.items():
                file.create_dataset(path, data=array)
            chunked = np.arange(70 * 50, dtype="int32").reshape(70, 50)
            file.create_dataset("chunked", data=chunked, chunks=(16, 16), compression="gzip", shuffle=True)
            file.create_dataset("words", data=["a", "b"])
        expect(name, expected | {"chunked": entry(chunked)}, {"keras_version": "2.15.0", "backend": "tensorflow"})
    weights = numbers((3, 3), "float32")
    half = numbers((4,), ml_dtypes.bfloat16)
    with h5py.File(out / "model.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = weights
        file["layers/dense/vars/1"] = half.view("int16")
        file["layers/dense/vars/1"].attrs["dtype"] = "bfloat16"
    with zipfile.ZipFile(out / "model.keras", "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.0.0"}')
        archive.writestr("config.json", "{}")
        archive.write(out / "model.weights.h5", "model.weights.h5")
    (out / "model.weights.h5").unlink()
    expect("model.keras", {"layers/dense/vars/0": entry(weights), "layers/dense/vars/1": entry(half)})


def write_hdf5_lzf():
    """The filter that h5py brings with it."""
    steps = (np.arange(3000) // 7).astype("int32").reshape(60, 50)
    arrays = {"steps": steps, "shuffled": steps.astype(">f4")}
    with h5py.File(out / "lzf.h5", "w", libver="latest") as file:
        file.create_dataset("steps", data=steps, chunks=(40, 50), compression="lzf")
        file.create_dataset("shuffled", data=arrays["shuffled"], chunks=(40, 50), compression="lzf", shuffle=True, fletcher32=True)
    expect("lzf.h5", {name: entry(array) for name, array in arrays.items()})


def write_hdf5_kinds():
    """What numbers, links and files can be in HDF5, besides what Keras writes; `odd` has what is not a number of safetensors."""
    rng = np.random.default_rng(10)
    real = rng.standard_normal((2, 3))
    whole = (real + 1j * rng.standard_normal((2, 3))).astype("complex128")
    half = real.astype(ml_dtypes.bfloat16)
    for name in ["early", "late"]:
        with h5py.File(out / f"kinds_{name}.h5", "w", libver="earliest" if name == "early" else "latest", userblock_size=512 if name == "early" else 1024) as file:
            arrays = {"c64": whole.astype("complex64"), "c64_big": whole.astype(">c8"), "bool": np.bool_(True), "f16_big": real.astype(">f2"),
                      "u64_big": np.array([1, 2**63], ">u8"), "none": np.zeros((2, 0), "int16"), "scalar": np.float32(1.5), "a/b/w": real}
            for path, array in arrays.items():
                file.create_dataset(path, data=array)
            expected = {path: entry(array) for path, array in arrays.items()}
            for path, dtype in [("c128", "<c16"), ("c128_big", ">c16")]:
                file.create_dataset(path, data=whole.astype(dtype))
                expected[path] = entry(whole.view("f8").reshape(2, 3, 2))
            file.create_dataset("bf16", data=half)
            file.create_dataset("bf16_chunked", data=half, chunks=(1, 2), compression="gzip")
            file.create_dataset("bf16_named", data=half.view("uint16")).attrs["dtype"] = "bfloat16"
            expected |= {path: entry(half) for path in ["bf16", "bf16_chunked", "bf16_named"]}
            file["soft"] = h5py.SoftLink("/a/b/w")
            file["hard"] = file["a/b/w"]
            expected |= {path: entry(real) for path in ["soft", "hard"]}
            file["a_group"] = h5py.SoftLink("/a/b")
            file["dangling"] = h5py.SoftLink("/nothing")
            if name == "late":
                file["external"] = h5py.ExternalLink("other.h5", "/w")
            file["named_type"] = np.dtype("f4")
            file.create_dataset("empty", data=h5py.Empty("f4"))
            file.create_dataset("words", data="text")
            # Many links lie elsewhere in new files.
            for place in range(12):
                file[f"many/{place}"] = np.int8(place)
                expected[f"many/{place}"] = entry(np.int8(place))
            if name == "late":
                file["many/external"] = h5py.ExternalLink("other.h5", "/w")
        expect(f"kinds_{name}.h5", expected, {"c128.dtype": "complex128", "c128_big.dtype": "complex128"})
    with h5py.File(out / "odd.h5", "w") as file:
        file["ok"] = np.float32([1, 2])

        def typed(path, base, *calls):
            datatype = base.copy()
            for call, *arguments in calls:
                getattr(datatype, call)(*arguments)
            h5py.h5d.create(file.id, path, datatype, h5py.h5s.create_simple((2,)))

        t = h5py.h5t
        typed(b"twelve", t.STD_I16LE, ["set_precision", 12])
        typed(b"shifted", t.STD_U16LE, ["set_precision", 8], ["set_offset", 4])
        typed(b"three", t.STD_I32LE, ["set_precision", 24], ["set_size", 3])
        typed(b"bias", t.IEEE_F16LE, ["set_ebias", 16])
        typed(b"exponent", t.IEEE_F16LE, ["set_fields", 15, 9, 6, 0, 9])
        typed(b"vax", t.IEEE_F32LE, ["set_order", t.ORDER_VAX])
        typed(b"norm", t.IEEE_F32LE, ["set_norm", t.NORM_NONE])
        typed(b"bits", t.STD_B8LE)
        # The reader knows nothing of its class, and does not open the group at once because of it.
        typed(b"native", t.COMPLEX_IEEE_F32LE)
        file["long"] = np.longdouble([1, 2])
        file["clong"] = np.clongdouble([1, 2])
        file["tagged"] = np.array([b"ab"], "V4")
        file["byte"] = real.astype(ml_dtypes.float8_e4m3fn)
        file["pair"] = np.zeros(2, [("a", "f4"), ("b", "f4")])
        file["mixed"] = np.zeros(2, [("r", "f4"), ("i", "f8")])
        file["triple"] = np.zeros(2, [("r", "f4"), ("i", "f4"), ("x", "f4")])
        file.create_dataset("colour", (2,), h5py.enum_dtype({"RED": 0, "GREEN": 1}, basetype="i1"))
        file.create_dataset("reference", (2,), h5py.ref_dtype)
        file.create_dataset("ragged", (2,), h5py.vlen_dtype("f4"))
        file.create_dataset("arrays", (2,), np.dtype(("f4", (3,))))
        file.create_dataset("elsewhere", (2,), "f4", external=[("data.bin", 0, 8)])
        layout = h5py.VirtualLayout((2,), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "w", (2,))
        file.create_virtual_dataset("virtual", layout)


def write_flax():
    arrays = {
        "params.dense.kernel": numbers((4, 3), "float32"),
        "params.dense.bias": numbers((3,), ml_dtypes.bfloat16),
        "params.norm.scale": numbers((3,), "float16"),
        "stats.count": numbers((), "int32"),
        "eight": numbers((4,), ml_dtypes.float8_e4m3fn),
        "complex": numbers((2,), "complex64"),
    }
    tree = {"step": 7, "params": {}, "name": "a"}
    for name, array in arrays.items():
        *path, last = name.split(".")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = array
    (out / "tree.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    expect("tree.msgpack", {name: entry(array) for name, array in arrays.items()}, {"step": "7", "name": "a"})
    flax.serialization.MAX_CHUNK_SIZE = 64
    cut = numbers((7, 9), "float32")
    (out / "chunked.msgpack").write_bytes(flax.serialization.msgpack_serialize({"cut": cut, "b": {"scalar": np.float32(1.5)}}))
    expect("chunked.msgpack", {"cut": entry(cut), "b.scalar": entry(np.float32(1.5))})


for write in [write_numpy, write_onnx, write_packed, write_gguf, write_codebooks, write_hdf5, write_hdf5_kinds, write_hdf5_lzf, write_flax]:
    if len(sys.argv) < 3 or write.__name__ in sys.argv[2:]:
        write()
