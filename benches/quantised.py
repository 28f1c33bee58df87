#!/usr/bin/env python3
"""Times Python's libraries on the checkpoints that `quantised --keep DIR` leaves, on the CPU.

    quantised.py DIR [--repeat N]

Each way runs where its library is installed, says how many bytes of weights it makes a second (median), and is left out
otherwise: compressed-tensors, bitsandbytes, gptqmodel, AutoAWQ (its one file, named by AUTOAWQ_PACKING_UTILS), transformers.
Reading the file is part of it, as it is part of a load.
"""

import argparse
import importlib.util
import json
import os
import statistics
import time
from pathlib import Path

import torch
from safetensors.torch import load_file


def modules(tensors, ending):
    return [name.removesuffix(ending) for name in tensors if name.endswith(ending)]


def compressed_tensors(directory):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(num_bits=4, strategy="group", group_size=128))
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    tensors = load_file(directory / "model.safetensors")
    for name in modules(tensors, "weight_packed"):
        state = {key: tensors[name + key] for key in ["weight_packed", "weight_scale", "weight_shape"]}
        yield compressor.decompress(state, scheme)["weight"]


def bitsandbytes(directory):
    import bitsandbytes.functional as functional

    tensors = load_file(directory / "model.safetensors")
    for name in modules(tensors, "weight.absmax"):
        weight = name + "weight"
        state = json.loads(bytes(tensors[f"{weight}.quant_state.bitsandbytes__nf4"].tolist()))
        state = functional.QuantState(
            absmax=tensors[f"{weight}.absmax"], shape=torch.Size(state["shape"]), code=tensors[f"{weight}.quant_map"],
            blocksize=64, quant_type="nf4", dtype=torch.bfloat16)
        yield functional.dequantize_4bit(tensors[weight], state)


def gptqmodel(directory):
    from gptqmodel.utils.model_dequant import convert_gptq_file

    yield from convert_gptq_file(directory / "model.safetensors", torch.bfloat16, {"bits": 4, "checkpoint_format": "gptq"}, "cpu").values()


def autoawq(directory):
    spec = importlib.util.spec_from_file_location("packing_utils", os.environ["AUTOAWQ_PACKING_UTILS"])
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    tensors = load_file(directory / "model.safetensors")
    for name in modules(tensors, "qweight"):
        yield utils.dequantize_gemm(tensors[name + "qweight"], tensors[name + "qzeros"], tensors[name + "scales"], 4, 128)


def transformers(directory):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    tensors = load_file(directory / "model.safetensors")
    for name in modules(tensors, "weight_scale_inv"):
        yield Fp8Dequantize(None)._dequantize_one(tensors[name + "weight"], tensors[name + "weight_scale_inv"], torch.bfloat16)


WAYS = [
    ("fp8blocksof128", transformers),
    ("gptq4bitsactorder", gptqmodel),
    ("awqgemm", autoawq),
    ("compressedtensors4bits", compressed_tensors),
    ("bitsandbytesnf4", bitsandbytes),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    for checkpoint, way in WAYS:
        seconds, size = [], 0
        try:
            for _ in range(arguments.repeat):
                start = time.perf_counter()
                made = list(way(arguments.directory / checkpoint))
                seconds.append(time.perf_counter() - start)
                size = sum(weight.numel() * weight.element_size() for weight in made)
                del made
        except (ImportError, KeyError, FileNotFoundError) as error:
            print(f"{way.__name__}: not run: {error!r}")
            continue
        rate = size / statistics.median(seconds) / 1e9
        print(f"{way.__name__}: {rate:.2f} GB/s of weights ({torch.get_num_threads()} threads)")


if __name__ == "__main__":
    main()
