"""Makes the vectors beside it: small weights, and what the libraries make of them by rounding to nearest.

    make.py      (torch, compressed-tensors 0.20, bitsandbytes 0.50, transformers 5.24; pywhispercpp 1.5.1, which brings ggml)

Of compressed-tensors the scales are those of its CPU code in the weight's dtype; codes are quotients in single precision, as its GPU
kernels compute them and its CPU code does for weights in single precision.
"""

import ctypes
import importlib.metadata
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def scales(weight, args):
    from compressed_tensors.quantization.utils import calculate_qparams

    group = args.group_size if args.group_size and args.group_size > 0 else weight.shape[1]
    groups = weight.unflatten(-1, (weight.shape[1] // group, group))
    return calculate_qparams(groups.amin(-1), groups.amax(-1), args)[0]


def compressed(weight, preset, form, group=None):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import preset_name_to_scheme

    scheme = preset_name_to_scheme(preset, ["Linear"])
    if group:
        scheme.weights.group_size = group
    # F16 has not all powers of two that are scales.
    scale = scales(weight.float() if preset == "MXFP4A16" else weight, scheme.weights)
    state = {"weight": weight.float(), "weight_scale": scale.float()}
    made = BaseCompressor.get_value_from_registry(form).compress(state, scheme)
    if made["weight_scale"].dtype == torch.float32:
        made["weight_scale"] = scale
    return {key: value.contiguous() for key, value in made.items()}


def block(weight):
    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    config = {"weight_block_size": [min(128, side) for side in weight.shape]}
    config = SimpleNamespace(**config, scale_fmt="float")
    return Fp8Quantize(SimpleNamespace(quantization_config=config))._quantize_one("weight", weight)


def nf4(weight):
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=False)
    return {"weight": packed, **{f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}}


# The numbers of ggml's types.
GGML = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}


def ggml():
    """A function that has ggml make blocks of a type, as bytes, of a matrix."""
    files = importlib.metadata.files("pywhispercpp")
    for part in ["libgomp-", "libggml-base-"]:
        path = next(file for file in files if part in file.name).locate()
        library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    quantize, row_size = library.ggml_quantize_chunk, library.ggml_row_size
    quantize.restype = row_size.restype = ctypes.c_size_t
    row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def blocks(weight, kind):
        values = weight.float().contiguous()
        columns = values.shape[-1]
        rows = values.numel() // columns
        made = torch.zeros(rows, row_size(kind, columns), dtype=torch.uint8)
        quantize(kind, values.data_ptr(), made.data_ptr(), 0, rows, columns, None)
        return made

    return blocks


def of_ggml():
    blocks, tensors = ggml(), {}
    for kind, number in GGML.items():
        columns = 256 if kind.endswith("K") else 64
        chosen = weights((3, columns), torch.float32) | {
            "above": torch.rand(3, columns),
            "below": -torch.rand(3, columns).bfloat16(),
            "tails": torch.randn(3, columns) ** 5,
        }
        for what, weight in chosen.items():
            tensors[f"source.{kind}.{what}.weight"] = weight
            tensors[f"{kind}.{what}.weight"] = blocks(weight, number)
    save_file(tensors, HERE / "ggml.safetensors")


METHODS = {
    "fp8": ((5, 40), lambda w: compressed(w, "FP8_DYNAMIC", "float-quantized")),
    "fp8-block": ((256, 48), block),
    "int8": ((5, 40), lambda w: compressed(w, "INT8", "int-quantized")),
    "int4-rtn": ((4, 256), lambda w: compressed(w, "W4A16", "pack-quantized")),
    "int4-rtn-32": ((4, 96), lambda w: compressed(w, "W4A16", "pack-quantized", 32)),
    "nf4": ((5, 45), nf4),
    "mxfp4": ((4, 96), lambda w: compressed(w, "MXFP4A16", "mxfp4-pack-quantized")),
}


def weights(shape, dtype):
    """Of usual size; with a row of zeros; on the lines between codes."""
    usual = torch.randn(shape) * 0.05
    zeros = usual.clone()
    zeros[1] = 0
    lines = torch.randint(-28, 29, shape) / 4.0
    lines[:, 0] = 7.0
    return {"usual": usual.to(dtype), "zeros": zeros.to(dtype), "lines": lines.to(dtype)}


def main():
    torch.manual_seed(19)
    for method, (shape, make) in METHODS.items():
        tensors = {}
        for dtype, kind in DTYPES.items():
            if method == "fp8-block" and dtype != "bf16":
                continue
            for what, weight in weights(shape, kind).items():
                if method == "fp8-block" and what != "usual":
                    weight = weight[:40].contiguous()
                if method == "nf4" and what == "zeros":
                    weight[:] = 0
                name = f"{dtype}.{what}"
                tensors[f"source.{name}.weight"] = weight
                tensors |= {f"{name}.{key}": value for key, value in make(weight).items()}
        save_file(tensors, HERE / f"{method}.safetensors")
    of_ggml()


if __name__ == "__main__":
    main()
