"""What `weighbridge quantize` writes is what the libraries make by rounding to nearest, bit for bit, and transformers loads it: every
weight of the loaded model is what our codes and scales stand for. What `weighbridge convert --type` writes is read by llama.cpp's
package `gguf`.

    quantize.py WEIGHBRIDGE     (torch, transformers, gguf; and of compressed-tensors and bitsandbytes what is installed: it says what ran)
"""

import importlib.util
import json
import logging
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")
logging.disable(logging.ERROR)
transformers.utils.logging.disable_progress_bar()
weighbridge = sys.argv[1]
checks = 0
NEEDS = {"fp8-block": None, "nf4": "bitsandbytes"}
METHODS = ["fp8", "fp8-block", "int8", "int4-rtn", "nf4", "mxfp4"]
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def check(what, good):
    global checks
    checks += 1
    if not good:
        sys.exit(f"FAILED: {what}")


def run(*args):
    done = subprocess.run([weighbridge, *map(str, args)], capture_output=True, text=True)
    check(f"{args}: {done.stderr}", done.returncode == 0)
    return done.stderr


def installed(name):
    return importlib.util.find_spec(name) is not None


def llama(where, dtype, tied=False, **sizes):
    """A small Llama of random weights, in several shards."""
    torch.manual_seed(19)
    sizes = {"hidden_size": 256, "intermediate_size": 640, **sizes}
    config = LlamaConfig(
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=320, head_dim=64, tie_word_embeddings=tied, **sizes
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(where, max_shard_size="1MB")


def tensors(where):
    found = {}
    for file in sorted(Path(where).glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}
    return found


def nibbles(packed):
    """The low four bits first."""
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2).long()


def dense(method, module, of, shape):
    """What the codes and scales of a module stand for, in double precision: exact."""
    get = lambda name: of[f"{module}.{name}"]  # noqa: E731
    if method in ("fp8", "int8"):
        return get("weight").double() * get("weight_scale").double()
    if method == "fp8-block":
        scale = get("weight_scale_inv").double().repeat_interleave(128, 0).repeat_interleave(128, 1)
        return get("weight").double() * scale[: shape[0], : shape[1]]
    if method == "int4-rtn":
        scale = get("weight_scale").double()
        codes = nibbles(get("weight_packed").view(torch.uint8)).double() - 8
        check(f"{module}: shape", get("weight_shape").tolist() == list(shape))
        return (codes.unflatten(-1, (scale.shape[1], -1)) * scale.unsqueeze(-1)).flatten(-2)
    if method == "mxfp4":
        scale = torch.exp2(get("weight_scale").double() - 127)
        codes = nibbles(get("weight_packed"))
        values = (E2M1[codes & 7] * torch.where(codes > 7, -1, 1)).double()
        return (values.unflatten(-1, (scale.shape[1], -1)) * scale.unsqueeze(-1)).flatten(-2)
    codes = nibbles(get("weight").flatten()).unflatten(-1, (-1, 2)).flip(-1).flatten()
    values = get("weight.quant_map").double()[codes][: shape[0] * shape[1]]
    return (values * get("weight.absmax").double().repeat_interleave(64)[: len(values)]).reshape(shape)


def loaded(method, where, dtype):
    """The weights of the model that transformers makes of it, by name."""
    options = {"dtype": dtype, "output_loading_info": True}
    if method not in ("fp8-block", "nf4"):
        options["quantization_config"] = transformers.CompressedTensorsConfig(dequantize=True)
    model, info = AutoModelForCausalLM.from_pretrained(where, **options)
    for what in ["missing_keys", "unexpected_keys", "mismatched_keys"]:
        check(f"{method}: {what} {info[what]}", not info[what])
    found = {}
    for name, parameter in model.named_parameters():
        if method == "nf4" and hasattr(parameter, "quant_state"):
            from bitsandbytes.functional import dequantize_4bit

            parameter = dequantize_4bit(parameter.data, parameter.quant_state)
        found[name] = parameter.data
    # On a CPU bitsandbytes computes with some shapes only.
    if method != "nf4":
        with torch.no_grad():
            logits = model(torch.arange(9).unsqueeze(0)).logits
        check(f"{method}: it computes", bool(torch.isfinite(logits).all()))
    return found


def library():
    """The script that has the libraries quantise."""
    path = Path(__file__).parents[2] / "tests/quantized/written/make.py"
    spec = importlib.util.spec_from_file_location("make", path)
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    return make


def as_the_library(method, before, after, kept):
    """Our codes and scales are the library's."""
    make = library()
    for name, weight in before.items():
        if name in kept:
            check(f"{method}: {name} as before", torch.equal(after[name], weight))
            continue
        module = name.removesuffix(".weight")
        for key, expected in make.METHODS[method][1](weight).items():
            ours = after[f"{module}.{key}"]
            same = ours.dtype == expected.dtype and ours.shape == expected.shape
            check(f"{method}: {module}.{key}: {ours.dtype} {tuple(ours.shape)}", same)
            if "quant_state" in key:
                ours, expected = (json.loads(bytes(state.tolist())) for state in (ours, expected))
                check(f"{method}: {module}.{key}", ours == expected)
            else:
                bits = lambda tensor: tensor.contiguous().view(torch.uint8)  # noqa: E731
                check(f"{method}: {module}.{key}", torch.equal(bits(ours), bits(expected)))


def quantized(method, here, dtype, **sizes):
    before, after = here / "dense", here / method
    llama(before, dtype, **sizes)
    options = ["--max-shard-size", "300KB"]
    told = run("quantize", before, "--method", method, "-o", after, *options)
    source, made = tensors(before), tensors(after)
    check(f"{method}: shards", (after / "model.safetensors.index.json").is_file())
    check(f"{method}: other files", (after / "generation_config.json").is_file())
    kept = [name for name in source if name in made and made[name].dtype == dtype]
    count = len(source) - len(kept)
    check(f"{method}: {told}", f"{count} weights quantised to {method}, {len(kept)} as before" in told)
    check(f"{method}: {count} are quantised", count > 0)
    as_the_library(method, source, made, kept)
    model = loaded(method, after, dtype)
    for name, weight in model.items():
        if name in kept:
            check(f"{method}: {name} is loaded", torch.equal(weight, source[name]))
        elif name in source:
            exact = dense(method, name.removesuffix(".weight"), made, source[name].shape)
            # Rounded once or twice to a dtype whose smallest numbers have fewer bits.
            close = (weight.double() - exact).abs() <= (exact.abs() + torch.finfo(dtype).tiny) * torch.finfo(dtype).eps
            check(f"{method}: {name} is loaded", weight.shape == exact.shape and bool(close.all()))
            error = (exact - source[name].double()).norm() / source[name].double().norm()
            check(f"{method}: {name} is {error:.3f} off", error < (0.04 if "8" in method else 0.17))


def experts(method, here):
    """Experts one by one, and a router that stays as it is."""
    torch.manual_seed(19)
    config = transformers.MixtralConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, vocab_size=128,
        num_local_experts=4,
    )
    before, after = here / "dense", here / method
    transformers.MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(before)
    run("quantize", before, "--method", method, "-o", after)
    source, made = tensors(before), tensors(after)
    kept = [name for name in source if name in made and made[name].dtype == torch.bfloat16]
    router = [name for name in kept if name.endswith(".gate.weight")]
    check(f"{method}: routers {router}", len(router) == 1)
    as_the_library(method, source, made, kept)


GGUF = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16", "F32"]


def ggufs(here, make):
    """Files that gguf reads; what it can quantise, and ggml if it is there, has the same bytes."""
    import gguf
    import numpy as np

    blocks = make.ggml() if installed("pywhispercpp") else None
    llama(here / "dense", torch.bfloat16, intermediate_size=512)
    source = tensors(here / "dense")
    for kind in GGUF:
        file = here / f"{kind}.gguf"
        told = run("convert", here / "dense", "--type", kind.lower(), "-o", file)
        check(f"{kind}: {told}", f"{len(source)} tensors from safetensors" in told)
        reader = gguf.GGUFReader(file)
        check(f"{kind}: names", {tensor.name for tensor in reader.tensors} == source.keys())
        for tensor in reader.tensors:
            weight = source[tensor.name].float()
            expected = kind if weight.ndim > 1 else "F32"
            check(f"{kind}: {tensor.name}: {tensor.tensor_type.name}", tensor.tensor_type.name == expected)
            check(f"{kind}: {tensor.name}: shape", [*map(int, tensor.shape)] == [*reversed(weight.shape)])
            bytes_of = np.ascontiguousarray(tensor.data).view(np.uint8).tobytes()
            if not expected.endswith("_K"):
                theirs = gguf.quantize(weight.numpy(), tensor.tensor_type)
                check(f"{kind}: {tensor.name} as gguf", theirs.view(np.uint8).tobytes() == bytes_of)
            if blocks is not None and weight.ndim > 1 and kind in make.GGML:
                theirs = blocks(weight, make.GGML[kind]).numpy().tobytes()
                check(f"{kind}: {tensor.name} as ggml", theirs == bytes_of)
            values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).reshape(weight.shape)
            error = (values - weight).norm() / weight.norm()
            most = {"4": 0.09, "5": 0.045, "6": 0.022, "8": 0.007}.get(expected[1], 0.002)
            check(f"{kind}: {tensor.name} is {error:.4f} off", error <= most)
    return "gguf" + ("" if blocks is None else " and ggml")


def main():
    ran = []
    with tempfile.TemporaryDirectory() as place:
        for method in METHODS:
            needs = NEEDS.get(method, "compressed_tensors")
            if needs is not None and not installed(needs):
                continue
            for number, (dtype, sizes) in enumerate([
                (torch.bfloat16, {}),
                (torch.float32, {"tied": True}),
                # 96 and 300 divide into nothing, 576 into blocks of 64 only.
                (torch.bfloat16, {"intermediate_size": 300}),
                (torch.float16, {"intermediate_size": 576}),
            ]):
                here = Path(place) / f"{method}-{number}"
                here.mkdir()
                quantized(method, here, dtype, **sizes)
            if method != "int4-rtn":
                (here := Path(place) / f"{method}-experts").mkdir()
                experts(method, here)
            ran.append(method)
        if installed("gguf"):
            (here := Path(place) / "gguf").mkdir()
            ran.append(ggufs(here, library()))
    print(f"{checks} checks passed: {', '.join(ran)}")


main()
