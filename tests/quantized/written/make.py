"""Makes the vectors beside it: small weights, and what the libraries make of them by rounding to nearest.

    make.py      (torch, compressed-tensors 0.20, bitsandbytes 0.50, transformers 5.24)

Of compressed-tensors the scales are those of its CPU code in the weight's dtype; codes are quotients in single precision, as its GPU
kernels compute them and its CPU code does for weights in single precision.
"""

from pathlib import Path
from types import SimpleNamespace

import torch
from bitsandbytes.functional import quantize_4bit
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Quantize

HERE = Path(__file__).parent
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def scales(weight, args):
    group = args.group_size if args.group_size and args.group_size > 0 else weight.shape[1]
    groups = weight.unflatten(-1, (weight.shape[1] // group, group))
    return calculate_qparams(groups.amin(-1), groups.amax(-1), args)[0]


def compressed(weight, preset, form, group=None):
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
    config = {"weight_block_size": [min(128, side) for side in weight.shape]}
    config = SimpleNamespace(**config, scale_fmt="float")
    return Fp8Quantize(SimpleNamespace(quantization_config=config))._quantize_one("weight", weight)


def nf4(weight):
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=False)
    return {"weight": packed, **{f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}}


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


if __name__ == "__main__":
    main()
