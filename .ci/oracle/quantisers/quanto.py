"""optimum-quanto: int8, float8, int4 and int2."""

import json
import os
import sys
import tempfile
from pathlib import Path

# The extension that unpacks is built on first use, by the ninja of this environment.
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

import torch
from optimum import quanto
from safetensors.torch import load_file

from quantisers.common import Case, llama, main, tiny_llama, versions

LIBRARY = versions("optimum-quanto")


def case(name, chance, types, dtype, shapes, hidden_size=160):
    tensors, dense, single = {}, {}, {}
    for number, kind in enumerate(types):
        for place, (rows, columns) in shapes.items():
            path = f"model.layers.{number}.{place}"
            model = torch.nn.Sequential(torch.nn.Linear(columns, rows, bias=place.endswith("q_proj"), dtype=dtype))
            model[0].weight.data = chance.weight(rows, columns).to(dtype)
            if model[0].bias is not None:
                model[0].bias.data = chance.weight(rows).to(dtype)
            quanto.quantize(model, weights=kind)
            quanto.freeze(model)
            state = {key.replace("0.", f"{path}.", 1): tensor for key, tensor in model.state_dict().items()}
            tensors |= state
            bias = {name: tensor for name, tensor in state.items() if name.endswith(".bias")}
            dense |= {f"{path}.weight": model[0].weight.dequantize()} | bias
            single |= {f"{path}.weight": wide(model, kind)} | bias
    config = llama(
        dtype=str(dtype).removeprefix("torch."),
        # The width of the projections: with groups, nothing else says it.
        hidden_size=hidden_size,
        quantization_config={
            "quant_method": "quanto",
            "weights": types[0].name.removeprefix("q"),
            "activations": None,
            "modules_to_not_convert": None,
        },
    )
    quantisation = {
        name.removesuffix("._data").removesuffix("._data").removesuffix(".weight"): {
            "weights": kind.name,
            "activations": "none",
        }
        for number, kind in enumerate(types)
        for name in tensors
        if name.endswith("._data") and name.startswith(f"model.layers.{number}.")
    }
    return Case(name, LIBRARY, tensors, dense, config, dense_f32=single, sides={"quanto_qmap.json": quantisation})


def wide(model, kind):
    """The same with scale and shift in float32."""
    weight = model[0].weight
    parts = {"_scale": weight._scale.float()} | ({"_shift": weight._shift.float()} if kind.bits < 8 else {})
    if kind.bits == 8:
        return quanto.WeightQBytesTensor(
            weight.qtype, weight.axis, weight.size(), weight.stride(), weight._data, parts["_scale"], None
        ).dequantize()
    made = quanto.WeightQBitsTensor(
        weight.qtype,
        weight.axis,
        weight._group_size,
        weight.size(),
        weight.stride(),
        weight._data,
        **{name[1:]: part for name, part in parts.items()},
    )
    return made.dequantize()


def bytes(chance):
    for name, kinds, dtype in [
        ("int8", [quanto.qint8], torch.float16),
        ("float8", [quanto.qfloat8_e4m3fn, quanto.qfloat8_e5m2], torch.bfloat16),
    ]:
        yield case(f"quanto-{name}", chance, kinds, dtype, {"self_attn.q_proj": (chance.size(9), chance.size(20))})


def fields(chance):
    # Groups of 128; of 32, where that is all that divides. How many inputs a layer has only the config says.
    kinds = [("int4", quanto.qint4, torch.float16, 128), ("int2", quanto.qint2, torch.bfloat16, 160)]
    for name, kind, dtype, hidden in kinds:
        shapes = {f"self_attn.{part}_proj": (chance.size(8, 4), hidden) for part in "qk"}
        yield case(f"quanto-{name}", chance, [kind], dtype, shapes, hidden_size=hidden)


def models(chance):
    """Whole models, as optimum-quanto saves them: what they are only the tensors say, and the map beside them."""
    for kind in [quanto.qint8, quanto.qint4, quanto.qint2, quanto.qfloat8_e4m3fn]:
        # Groups, which codes of less than a byte have, must divide a row.
        sizes = {"intermediate_size": 300} if kind.bits == 8 else {}
        model = tiny_llama(chance, **sizes)
        made = quanto.QuantizedModelForCausalLM.quantize(model, weights=kind, exclude="lm_head")
        with tempfile.TemporaryDirectory() as place:
            made.save_pretrained(place)
            tensors = load_file(Path(place) / "model.safetensors")
            config, side = (
                json.loads((Path(place) / name).read_text()) for name in ["config.json", "quanto_qmap.json"]
            )
        dense = {
            name: tensor.dequantize() if isinstance(tensor, quanto.QTensor) else tensor
            for name, tensor in made.named_parameters()
        }
        yield Case(
            f"quanto-model-{kind.name}",
            versions("optimum-quanto", "transformers"),
            tensors,
            dense,
            config,
            sides={"quanto_qmap.json": side},
        )


if __name__ == "__main__":
    main([bytes, fields], [models])
