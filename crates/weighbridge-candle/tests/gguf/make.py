"""Writes the GGUF files beside it with llama.cpp's own package: pip install gguf numpy."""

import sys
from pathlib import Path

import numpy
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type, GGUFWriter
from gguf.quants import quantize

HERE = Path(sys.argv[1] if len(sys.argv) > 1 else __file__).resolve()
HERE = HERE if HERE.is_dir() else HERE.parent
ROWS, COLUMNS = 3, 512

# Where the F16 numbers of a block are, for the types that the package does not write itself.
HALVES = {
    Type.Q2_K: [80, 82],
    Type.Q3_K: [108],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
    Type.IQ4_NL: [0],
    Type.IQ4_XS: [0],
}


def blocks(random, kind):
    """Blocks of any codes whatever, whose scales are small."""
    weights, size = GGML_QUANT_SIZES[kind]
    count = ROWS * COLUMNS // weights
    data = random.integers(0, 256, (count, size), dtype=numpy.uint8)
    for at in HALVES[kind]:
        scales = random.uniform(-0.02, 0.02, count).astype(numpy.float16)
        data[:, at : at + 2] = scales.view(numpy.uint8).reshape(count, 2)
    return data.reshape(ROWS, -1)


def write(name, kinds):
    random = numpy.random.default_rng(29)
    writer = GGUFWriter(HERE / name, "llama")
    writer.add_name("types")
    writer.add_block_count(1)
    norm = random.normal(size=COLUMNS).astype(numpy.float32)
    writer.add_tensor("output_norm.weight", norm)
    for kind in kinds:
        tensor = f"blk.0.{kind.name.lower()}.weight"
        if kind in HALVES:
            data = blocks(random, kind)
        else:
            data = quantize(random.normal(scale=0.1, size=(ROWS, COLUMNS)).astype(numpy.float32), kind)
        writer.add_tensor(tensor, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


LEGACY = [Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0]
write("types.gguf", LEGACY + [Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K])
write("others.gguf", [Type.Q4_0, Type.IQ4_NL, Type.IQ4_XS, Type.TQ2_0])
