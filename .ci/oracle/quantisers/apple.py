"""MLX, on the CPU of Linux: affine of 2 to 8 bits, its four- and eight-bit floats, overrides, embeddings, experts."""

import json
import tempfile
from pathlib import Path

import mlx.core as mx
import mlx_lm

from quantisers.common import Case, main, tiny_llama, versions

mx.set_default_device(mx.cpu)
LIBRARY = versions("mlx")
ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"
DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}


class MlxCase(Case):
    """Written by MLX itself."""

    def save(self, tensors, path, metadata):
        mx.save_safetensors(str(path), tensors, metadata)


def module(path, weight, dtype, **options):
    """Stored tensors; dense as MLX computes it (in the dtype of the scales); dense of the same scales in float32."""
    weight = mx.array(weight).astype(dtype)
    packed, scales, *biases = mx.quantize(weight, **options)
    stored = {f"{path}.weight": packed, f"{path}.scales": scales}
    if biases:
        stored[f"{path}.biases"] = biases[0]
        wide = mx.dequantize(packed, scales.astype(mx.float32), biases[0].astype(mx.float32), **options)
        return stored, mx.dequantize(packed, scales, biases[0], **options), wide
    return (
        stored,
        mx.dequantize(packed, scales, dtype=dtype, **options),
        mx.dequantize(packed, scales, dtype=mx.float32, **options),
    )


def config_of(section):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "quantization": section,
        "quantization_config": section,
    }


def case(name, modules, default, dtype, section=None, plain=None):
    """`modules`: path -> weight, or weight and its own options."""
    made, dense, single = {}, {}, {}
    for path, weight in modules.items():
        weight, options = weight if isinstance(weight, tuple) else (weight, default)
        stored, own, wide = module(path, weight, DTYPES[dtype], **options)
        made |= stored
        single[f"{path}.weight"] = wide
        # In 16 bits MLX rounds twice: the product of code and scale, and the sum with the bias.
        dense[f"{path}.weight"] = own
    plain = {key: mx.array(value).astype(DTYPES[dtype]) for key, value in (plain or {}).items()}
    return MlxCase(
        name,
        LIBRARY,
        made | plain,
        dense | plain,
        config_of(section or dict(default)),
        dense_f32=single | plain if dtype != "f32" else None,
        metadata={"format": "mlx"},
    )


def affine(chance):
    for bits in [2, 3, 4, 5, 6, 8]:
        for group, dtype in [(32, "f16"), (64, "f32"), (128, "bf16")]:
            if not chance.fresh and (bits, group) not in [
                (2, 32),
                (3, 64),
                (3, 32),
                (4, 64),
                (4, 32),
                (4, 128),
                (5, 32),
                (6, 64),
                (8, 128),
                (8, 32),
            ]:
                continue
            options = {"group_size": group, "bits": bits, "mode": "affine"}
            if bits == 2:
                del options["mode"]  # as older files are
            modules = {f"{ATTENTION}.q_proj": chance.normal(chance.size(5), chance.size(2 * group, group))}
            yield case(
                f"mlx-affine-{bits}bit-g{group}",
                modules,
                options,
                dtype,
                plain={f"{ATTENTION}.q_proj.bias": chance.normal(5)},
            )


def floats(chance):
    for mode, group, bits in [("mxfp4", 32, 4), ("nvfp4", 16, 4), ("mxfp8", 32, 8)]:
        options = {"group_size": group, "bits": bits, "mode": mode}
        modules = {f"{MLP}.up_proj": chance.normal(chance.size(5), chance.size(96, 32))}
        yield case(f"mlx-{mode}", modules, options, "bf16")


def mixed(chance):
    """Overrides by path, a dense module among them; quantised embeddings; experts of three dimensions; tied lm_head."""
    default = {"group_size": 64, "bits": 4, "mode": "affine"}
    embedding = {"group_size": 32, "bits": 6, "mode": "affine"}
    down = {"group_size": 32, "bits": 8, "mode": "affine"}
    floats = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    modules = {
        "model.embed_tokens": (chance.normal(chance.size(24), 64), embedding),
        f"{ATTENTION}.q_proj": chance.normal(chance.size(8), 64),
        f"{MLP}.down_proj": (chance.normal(chance.size(8), 64), down),
        f"{MLP}.switch_mlp.gate_proj": chance.normal(2, chance.size(6), 64),
        f"{MLP}.switch_mlp.up_proj": (chance.normal(2, chance.size(6), 64), floats),
    }
    section = default | {
        "model.embed_tokens": embedding,
        f"{MLP}.down_proj": down,
        f"{MLP}.switch_mlp.up_proj": floats,
        f"{MLP}.gate": False,
    }
    plain = {f"{MLP}.gate.weight": chance.normal(2, 64), "model.norm.weight": chance.normal(64)}
    made = case("mlx-mixed", modules, default, "bf16", section, plain)
    made.config["tie_word_embeddings"] = True
    made.second_shard = [name for name in made.tensors if name.endswith((".scales", "q_proj.weight"))]
    return made


def scales(chance):
    """E8M0 scales at their ends: 0 is 2^-127, 254 is 2^127; 255, which is NaN to some, is infinite here."""
    options = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    for name, values in [
        ("mlx-mxfp4-scales", [[0, 1], [127, 253], [254, 120], [2, 128]]),
        ("mlx-mxfp4-scale-255", [[255, 127]]),
    ]:
        packed, bytes = (
            mx.array(chance.integers(0, 2**32, len(values), 8).astype("u4")),
            mx.array(values, dtype=mx.uint8),
        )
        wide = mx.dequantize(packed, bytes, dtype=mx.float32, **options)
        own = mx.dequantize(packed, bytes, **options)
        path = f"{MLP}.gate_proj"
        yield MlxCase(
            name,
            LIBRARY,
            {f"{path}.weight": packed, f"{path}.scales": bytes},
            {f"{path}.weight": own},
            config_of(options),
            dense_f32={f"{path}.weight": wide},
            metadata={"format": "mlx"},
        )


def models(chance):
    """Whole models, converted and dequantised by mlx-lm."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    kinds = {
        "4bit": {"q_bits": 4, "q_group_size": 32},
        "8bit": {"q_bits": 8, "q_group_size": 64},
        "3bit": {"q_bits": 3, "q_group_size": 32},
        "f16": {"q_bits": 4, "q_group_size": 64, "dtype": "float16"},
        "mxfp4": {"q_mode": "mxfp4"},
        "nvfp4": {"q_mode": "nvfp4"},
        "mxfp8": {"q_mode": "mxfp8"},
        "mixed": {
            "q_group_size": 32,
            "quant_predicate": lambda path, *_: (
                {"bits": 6, "group_size": 32} if "down_proj" in path else "lm_head" not in path
            ),
        },
    }
    for name, options in kinds.items():
        # Groups of 64 have to fit.
        model = tiny_llama(chance, tied=name in ("4bit", "mxfp4"), intermediate_size=64 * int(chance.integers(2, 10)))
        with tempfile.TemporaryDirectory() as place:
            plain, quantised, dense = (str(Path(place) / part) for part in ["plain", "quantised", "dense"])
            model.save_pretrained(plain)
            PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<unk>").save_pretrained(plain)
            mlx_lm.convert(plain, quantised, quantize=True, **options)
            mlx_lm.convert(quantised, dense, dequantize=True)
            tensors, expected = (mx.load(f"{part}/model.safetensors") for part in [quantised, dense])
            mx.eval(tensors, expected)
            config = json.loads((Path(quantised) / "config.json").read_text())
        yield MlxCase(
            f"mlx-model-{name}", versions("mlx", "mlx-lm"), tensors, expected, config, metadata={"format": "mlx"}
        )


if __name__ == "__main__":
    main([affine, floats, mixed, scales], [models])
