#!/usr/bin/env python3
"""Times Python's libraries on the checkpoints that `quantised --keep DIR` leaves, on the CPU.

    quantised.py DIR [--only CHECKPOINT ...] [--repeat N] [--threads N]

Each way runs where its library is installed and is left out otherwise, so that it takes the environments of
.ci/oracle/quantized.py, one after the other: compressed-tensors, bitsandbytes, gptqmodel, AutoAWQ (its one file),
transformers, mlx. What is printed is how many bytes of weights a way makes a second, and the seconds and CPU seconds
that it takes (medians). Reading the file is part of it, as it is part of a load.
"""

import argparse
import importlib.metadata
import importlib.util
import json
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

    args = QuantizationArgs(num_bits=4, strategy="group", group_size=128)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    tensors = load_file(directory / "model.safetensors")
    for name in modules(tensors, "weight_packed"):
        state = {key: tensors[name + key] for key in ["weight_packed", "weight_scale", "weight_shape"]}
        yield compressor.decompress(state, scheme)["weight"]


def compressed_tensors_int8(directory):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(num_bits=8, strategy="channel"))
    compressor = BaseCompressor.get_value_from_registry("int-quantized")
    tensors = load_file(directory / "model.safetensors")
    for name in modules(tensors, "weight_scale"):
        state = {key: tensors[name + key] for key in ["weight", "weight_scale"]}
        yield compressor.decompress(state, scheme)["weight"]


def bitsandbytes(directory):
    import bitsandbytes.functional as functional

    tensors = load_file(directory / "model.safetensors")
    for name in modules(tensors, "weight.absmax"):
        weight = name + "weight"
        state = json.loads(bytes(tensors[f"{weight}.quant_state.bitsandbytes__nf4"].tolist()))
        state = functional.QuantState(
            absmax=tensors[f"{weight}.absmax"],
            shape=torch.Size(state["shape"]),
            code=tensors[f"{weight}.quant_map"],
            blocksize=state["blocksize"],
            quant_type="nf4",
            dtype=torch.bfloat16,
        )
        yield functional.dequantize_4bit(tensors[weight], state)


def gptqmodel(directory):
    from gptqmodel.utils.model_dequant import convert_gptq_file

    config = {"bits": 4, "checkpoint_format": "gptq"}
    yield from convert_gptq_file(directory / "model.safetensors", torch.bfloat16, config, "cpu").values()


def autoawq(directory):
    try:
        files = importlib.metadata.files("autoawq")
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError("autoawq") from error
    place = next(file.locate() for file in files if str(file) == "awq/utils/packing_utils.py")
    spec = importlib.util.spec_from_file_location("packing_utils", place)
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    tensors = load_file(directory / "model.safetensors")
    for name in modules(tensors, "qweight"):
        parts = (tensors[name + part] for part in ["qweight", "qzeros", "scales"])
        # A layer's weight has the outputs first.
        yield utils.dequantize_gemm(*parts, 4, 128).t().contiguous()


def transformers(directory):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    tensors = load_file(directory / "model.safetensors")
    for name in modules(tensors, "weight_scale_inv"):
        parts = (tensors[name + part] for part in ["weight", "weight_scale_inv"])
        yield Fp8Dequantize(None)._dequantize_one(*parts, torch.bfloat16)


def transformers_mxfp4(directory):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    tensors = load_file(directory / "model.safetensors")
    for name in modules(tensors, "weight_blocks"):
        yield convert_moe_packed_tensors(tensors[f"{name}weight_blocks"], tensors[f"{name}weight_scales"])


def mlx(directory):
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    tensors = mx.load(str(directory / "model.safetensors"))
    for name in modules(tensors, "scales"):
        parts = (tensors[name + part] for part in ["weight", "scales", "biases"])
        weight = mx.dequantize(*parts, group_size=64, bits=4)
        mx.eval(weight)
        yield weight


WAYS = [
    ("fp8blocksof128", transformers),
    ("int8rows", compressed_tensors_int8),
    # Of GPTQ gptqmodel reads nothing without `g_idx`.
    ("gptq4bitsactorder", gptqmodel),
    ("awqgemm", autoawq),
    ("compressedtensors4bits", compressed_tensors),
    ("mlx4bits", mlx),
    ("bitsandbytesnf4", bitsandbytes),
    ("mxfp4gptoss", transformers_mxfp4),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", nargs="+", help="of the checkpoints in DIR, these")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch, which takes all cores otherwise; mlx has its own")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    for checkpoint, way in WAYS:
        if arguments.only and checkpoint not in arguments.only:
            continue
        what, runs = f"{checkpoint}, {way.__name__}", []
        try:
            # The first one imports.
            for _ in range(arguments.repeat + 1):
                start, cpu = time.perf_counter(), time.process_time()
                made = list(way(arguments.directory / checkpoint))
                runs.append((time.perf_counter() - start, time.process_time() - cpu))
                size = sum(weight.nbytes for weight in made)
                del made
        except (ImportError, FileNotFoundError) as error:
            print(f"{what}: not run: {error!r}", flush=True)
            continue
        seconds, cpu = (statistics.median(times) for times in zip(*runs[1:]))
        rate = size / seconds / 1e9
        print(
            f"{what}: {rate:.2f} GB/s of weights, {seconds:.2f} s, {cpu:.2f} CPU seconds, {size / 1e9:.2f} GB"
            f" ({torch.get_num_threads()} threads)",
            flush=True,
        )


if __name__ == "__main__":
    main()
