"""What `weighbridge lora merge` makes is what PEFT's `merge_and_unload` makes, within one rounding of the dtype: LoRA, rsLoRA, DoRA, patterns,
embeddings, convolutions, weights stored the other way round, biases, saved modules, several adapters, fused and apart.

    adapters.py WEIGHBRIDGE [FUNCTION...]     (torch, transformers, peft, diffusers; numpy)
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

warnings.simplefilter("ignore")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
weighbridge = sys.argv[1]
checks = 0


def check(what, good):
    global checks
    checks += 1
    if not good:
        sys.exit(f"FAILED: {what}")


def run(*args, fails=None):
    done = subprocess.run([weighbridge, *map(str, args)], capture_output=True, text=True)
    if fails is None:
        check(f"{args}: {done.stderr}", done.returncode == 0)
    else:
        check(f"{args} fails: {done.stderr}", done.returncode == 2 and all(word in done.stderr for word in fails))
        check(f"{args}: one line", done.stderr.strip().count("\n") == 0)
    return done.stderr


def tensors(where):
    found = {}
    for file in sorted(Path(where).glob("*.safetensors")):
        found |= load_file(file)
    return found


def shake(model, seed):
    """Factors that are not zero, and magnitudes that are not what they were."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        if "lora_magnitude" in name:
            value.data *= 1 + 0.3 * torch.rand(value.shape, generator=generator).to(value.dtype)
        elif "lora_" in name:
            value.data = (torch.randn(value.shape, generator=generator) * 0.2).to(value.dtype)
        elif "modules_to_save" in name or (".bias" in name and value.requires_grad):
            value.data = value.data + (torch.randn(value.shape, generator=generator) * 0.2).to(value.dtype)


def exact(base, adapter):
    """What PEFT makes in float64: the truth that both are held against."""
    model = PeftModel.from_pretrained(base, adapter)
    return model.double().merge_and_unload().state_dict()


def compare(what, ours, wanted, dtype, slack=1.0):
    for name, weight in wanted.items():
        if name not in ours:
            continue
        mine = ours[name]
        check(f"{what}: {name} has shape {tuple(mine.shape)}", mine.shape == weight.shape)
        eps = torch.finfo(dtype).eps
        weight = weight.double()
        # One rounding of the dtype, and what F32 loses where numbers cancel out.
        room = slack * (weight.abs() * eps * 0.5000001) + 2e-6
        worst = ((mine.double() - weight).abs() - room).max().item() if weight.numel() else -1
        check(f"{what}: {name} is off by {worst:g} more than one rounding", worst <= 0)


def llama(**more):
    config = transformers.LlamaConfig(
        **{
            **dict(hidden_size=72, intermediate_size=104, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=12,
                   vocab_size=97, tie_word_embeddings=False),
            **more,
        }
    )
    return lambda: transformers.LlamaForCausalLM(config)


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=48, n_layer=2, n_head=4, vocab_size=61, n_positions=16))


def gpt2_untied():
    config = transformers.GPT2Config(n_embd=48, n_layer=2, n_head=4, vocab_size=61, n_positions=16, tie_word_embeddings=False)
    return transformers.GPT2LMHeadModel(config)


def phi3():
    config = transformers.Phi3Config(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                     vocab_size=61, pad_token_id=0, tie_word_embeddings=False)
    return transformers.Phi3ForCausalLM(config)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(6, 10, 3)
        self.two = nn.Conv2d(10, 7, 1)
        self.head = nn.Linear(7, 5)

    def forward(self, x):
        return self.head(self.two(self.one(x)).mean((2, 3)))


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "LoRA": (llama(), dict(r=4, lora_alpha=7, target_modules=ALL)),
    "LoRA of a large rank": (llama(), dict(r=33, lora_alpha=16, target_modules=["q_proj", "down_proj"])),
    "rsLoRA": (llama(), dict(r=8, lora_alpha=16, use_rslora=True, target_modules=ALL)),
    "DoRA": (llama(), dict(r=3, lora_alpha=6, use_dora=True, target_modules=ALL)),
    "DoRA and rsLoRA": (llama(), dict(r=5, lora_alpha=6, use_dora=True, use_rslora=True, target_modules=ALL)),
    "patterns": (
        llama(),
        dict(r=4, lora_alpha=8, target_modules=ALL, rank_pattern={"q_proj": 6, r"model\.layers\.1\.mlp\.up_proj": 2},
             alpha_pattern={"v_proj": 3, r".*\.1\..*\.down_proj": 30, "layers.0.self_attn.k_proj": 1}),
    ),
    "saved modules": (llama(), dict(r=4, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])),
    "embeddings": (llama(), dict(r=4, lora_alpha=9, target_modules=["embed_tokens", "lm_head", "q_proj"])),
    "tied embeddings": (llama(tie_word_embeddings=True), dict(r=4, target_modules=["embed_tokens", "v_proj"])),
    "biases": (llama(attention_bias=True, mlp_bias=True), dict(r=4, target_modules=ALL, bias="all")),
    "biases of LoRA": (llama(attention_bias=True, mlp_bias=True), dict(r=4, target_modules=ALL, lora_bias=True)),
    "GPT-2": (gpt2, dict(r=4, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    # Its attention's c_proj is square, and PEFT writes that the last module is stored the usual way round.
    "GPT-2 and its head": (gpt2_untied, dict(r=4, target_modules=["c_attn", "c_proj", "lm_head"], fan_in_fan_out=True)),
    "GPT-2 without a word": (gpt2, dict(r=4, target_modules=["c_proj"])),
    "Llama, said to be the other way round": (llama(), dict(r=4, target_modules=ALL, fan_in_fan_out=True)),
    "fused": (phi3, dict(r=4, target_modules=["qkv_proj", "gate_up_proj", "o_proj", "down_proj"])),
    "convolutions": (Convolutions, dict(r=4, lora_alpha=5, target_modules=["one", "two", "head"])),
    "DoRA of convolutions": (Convolutions, dict(r=4, use_dora=True, target_modules=["one", "two", "head"])),
    "DoRA of embeddings": (llama(), dict(r=4, lora_alpha=6, use_dora=True, target_modules=["embed_tokens", "v_proj"])),
    "DoRA of GPT-2": (gpt2, dict(r=4, lora_alpha=6, use_dora=True, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    "DoRA of embeddings and GPT-2": (gpt2, dict(r=3, use_dora=True, use_rslora=True, target_modules=["wte", "wpe", "c_fc"], fan_in_fan_out=True)),
    "EVA-like defaults": (llama(), dict(target_modules=["k_proj"])),
}


def save_base(model, where):
    where.mkdir(parents=True)
    if isinstance(model, transformers.PreTrainedModel):
        model.save_pretrained(where, max_shard_size="60KB")
    else:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, where / "model.safetensors")


def reload(make, where):
    model = make()
    if isinstance(model, transformers.PreTrainedModel):
        return type(model).from_pretrained(where, dtype="auto")
    model.load_state_dict(load_file(where / "model.safetensors"))
    return model.to(next(iter(load_file(where / "model.safetensors").values())).dtype)


def cases(here):
    for number, (name, (make, config)) in enumerate(CASES.items()):
        for dtype in [torch.float32, torch.bfloat16, torch.float16]:
            torch.manual_seed(number)
            where = here / f"{number}-{str(dtype)[6:]}"
            model = make().to(dtype)
            save_base(model, where / "base")
            tuned = get_peft_model(model, LoraConfig(**config))
            shake(tuned, number)
            tuned.save_pretrained(where / "adapter")
            wanted = exact(reload(make, where / "base"), where / "adapter")
            run("lora", "merge", where / "base", where / "adapter", "-o", where / "merged")
            compare(f"{name}, {dtype}", tensors(where / "merged"), wanted, dtype)
            run("lora", "merge", where / "base", where / "adapter", "-o", where / "wide", "--to", "f32")
            compare(f"{name}, {dtype} to F32", tensors(where / "wide"), wanted, torch.float32, slack=4.0)
            info = json.loads(subprocess.run([weighbridge, "lora", "info", where / "adapter", "--json"], capture_output=True, text=True).stdout)
            check(f"{name}: info", info["format"] == "PEFT" and len(info["modules"]) > 0)
            if isinstance(model, transformers.PreTrainedModel):
                loaded = type(model).from_pretrained(where / "merged", dtype="auto")
                ids = torch.arange(9).unsqueeze(0)
                with torch.no_grad():
                    check(f"{name}: it computes", bool(torch.isfinite(loaded(ids).logits.float()).all()))
        print(f"ok  {name}")


def several(here):
    """Two adapters, with weights."""
    make = llama()
    torch.manual_seed(3)
    base = make().to(torch.bfloat16)
    save_base(base, here / "base")
    for name, seed, config in [("one", 1, dict(r=4, target_modules=ALL)), ("two", 2, dict(r=7, lora_alpha=3, target_modules=["q_proj", "up_proj"]))]:
        tuned = get_peft_model(reload(make, here / "base"), LoraConfig(**config))
        shake(tuned, seed)
        tuned.save_pretrained(here / name)
    model = PeftModel.from_pretrained(reload(make, here / "base"), here / "one", adapter_name="one")
    model.load_adapter(here / "two", adapter_name="two")
    model = model.double()
    for adapter, weight in [("one", 0.75), ("two", -0.5)]:
        for module in model.modules():
            if isinstance(getattr(module, "scaling", None), dict) and adapter in module.scaling:
                module.scaling[adapter] *= weight
    wanted = model.merge_and_unload(adapter_names=["one", "two"]).state_dict()
    run("lora", "merge", here / "base", here / "one", here / "two", "--weight", "0.75,-0.5", "-o", here / "merged")
    compare("several", tensors(here / "merged"), wanted, torch.bfloat16)
    print("ok  several")


def fused_and_apart(here):
    """An adapter of q, k and v for a model that has them in one, and the other way round."""
    torch.manual_seed(5)
    hidden, q, kv, inner, rank = 40, 48, 16, 56, 3
    weight = {name: torch.randn(rows, hidden) for name, rows in [("q_proj", q), ("k_proj", kv), ("v_proj", kv), ("gate_proj", inner), ("up_proj", inner)]}
    factors = {name: (torch.randn(rank, hidden), torch.randn(value.shape[0], rank)) for name, value in weight.items()}
    wanted = {name: value + 2 * factors[name][1] @ factors[name][0] for name, value in weight.items()}
    for part in [["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"], ["k_proj", "up_proj"], ["v_proj"], ["q_proj", "gate_proj"]]:
        where = here / "-".join(part)
        where.mkdir()
        fused = {"x.qkv_proj.weight": torch.cat([weight[name] for name in ["q_proj", "k_proj", "v_proj"]]),
                 "x.gate_up_proj.weight": torch.cat([weight["gate_proj"], weight["up_proj"]])}
        save_file(fused, where / "base.safetensors")
        adapter = {}
        for name in part:
            adapter[f"x.{name}.lora_down.weight"], adapter[f"x.{name}.lora_up.weight"] = factors[name]
            adapter[f"x.{name}.alpha"] = torch.tensor(2.0 * rank)
        save_file(adapter, where / "adapter.safetensors")
        run("lora", "merge", where / "base.safetensors", where / "adapter.safetensors", "-o", where / "merged.safetensors")
        merged = load_file(where / "merged.safetensors")
        pick = lambda name: wanted[name] if name in part else weight[name]  # noqa: E731
        expected = {"x.qkv_proj.weight": torch.cat([pick(name) for name in ["q_proj", "k_proj", "v_proj"]]),
                    "x.gate_up_proj.weight": torch.cat([pick("gate_proj"), pick("up_proj")])}
        for name, value in expected.items():
            check(f"fused {part}: {name}", torch.allclose(merged[name], value, rtol=1e-5, atol=1e-5))
    where = here / "apart"
    where.mkdir()
    save_file({f"x.{name}.weight": value for name, value in weight.items()}, where / "base.safetensors")
    down = torch.randn(rank, hidden)
    ups = {name: torch.randn(value.shape[0], rank) for name, value in weight.items()}
    adapter = {"x.qkv_proj.lora_A.weight": down.clone(), "x.qkv_proj.lora_B.weight": torch.cat([ups[name] for name in ["q_proj", "k_proj", "v_proj"]]),
               "x.gate_up_proj.lora_A.weight": down, "x.gate_up_proj.lora_B.weight": torch.cat([ups["gate_proj"], ups["up_proj"]])}
    save_file(adapter, where / "adapter.safetensors")
    run("lora", "merge", where / "base.safetensors", where / "adapter.safetensors", "-o", where / "merged.safetensors")
    merged = load_file(where / "merged.safetensors")
    for name, value in weight.items():
        check(f"apart: {name}", torch.allclose(merged[f"x.{name}.weight"], value + ups[name] @ down, rtol=1e-5, atol=1e-5))
    print("ok  fused and apart")


def kohya(here):
    """Names with underscores, and the model with dots."""
    torch.manual_seed(6)
    base = {"down_blocks.0.attentions.1.to_q.weight": torch.randn(24, 16), "down_blocks.0.conv_in.weight": torch.randn(8, 4, 3, 3)}
    save_file(base, here / "unet.safetensors")
    adapter = {
        "lora_unet_down_blocks_0_attentions_1_to_q.lora_down.weight": torch.randn(4, 16),
        "lora_unet_down_blocks_0_attentions_1_to_q.lora_up.weight": torch.randn(24, 4),
        "lora_unet_down_blocks_0_attentions_1_to_q.alpha": torch.tensor(2.0),
        "lora_unet_down_blocks_0_conv_in.lora_down.weight": torch.randn(4, 4, 3, 3),
        "lora_unet_down_blocks_0_conv_in.lora_up.weight": torch.randn(8, 4, 1, 1),
    }
    save_file(adapter, here / "style.safetensors")
    run("lora", "merge", here / "unet.safetensors", here / "style.safetensors", "-o", here / "merged.safetensors", "--weight", "0.5")
    merged = load_file(here / "merged.safetensors")
    for name, value in base.items():
        flat = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        down, up = adapter[f"{flat}.lora_down.weight"].flatten(1), adapter[f"{flat}.lora_up.weight"].flatten(1)
        scale = adapter.get(f"{flat}.alpha", torch.tensor(4.0)).item() / 4
        wanted = value + 0.5 * scale * (up @ down).reshape(value.shape)
        check(f"Kohya: {name}", torch.allclose(merged[name], wanted, rtol=1e-5, atol=1e-5))
    print("ok  Kohya")


def product(where, name):
    """B A of a module of PEFT's, with its scale, in float64; and its rank."""
    config, found = json.loads((where / "adapter_config.json").read_text()), tensors(where)
    down, up = (found[f"base_model.model.{name}.lora_{part}.weight"].double() for part in "AB")
    rank = down.shape[0]
    pick = lambda key, plain: next((value for pattern, value in config[key].items() if re.match(rf"(.*\.)?({pattern})$", name)), plain)  # noqa: E731
    check(f"{name}: rank_pattern", pick("rank_pattern", config["r"]) == rank)
    return pick("alpha_pattern", config["lora_alpha"]) / rank * (up.flatten(1) @ down.flatten(1)), rank


def best(matrix, rank):
    """What is left of a matrix without its largest singular values."""
    return torch.linalg.svdvals(matrix.flatten(1).double())[rank:].norm().item()


def spectra():
    """Singular values of differences as they come: of low rank, slowly falling, fast, flat, and noise."""
    generator = torch.Generator().manual_seed(11)
    for rows, columns in [(160, 96), (96, 400), (300, 300), (8, 64), (1, 5), (640, 512)]:
        count = min(rows, columns)
        at = torch.arange(count, dtype=torch.float64)
        kinds = {"slow": 1 / (1 + at).sqrt(), "fast": 0.8**at, "flat": torch.ones(count), "steps": torch.where(at < 4, 1.0, 1e-3)}
        for kind, values in kinds.items():
            left, _ = torch.linalg.qr(torch.randn(rows, count, generator=generator, dtype=torch.float64))
            right, _ = torch.linalg.qr(torch.randn(columns, count, generator=generator, dtype=torch.float64))
            yield f"{kind}_{rows}x{columns}", (left * values) @ right.T
        yield f"noise_{rows}x{columns}", torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    yield "conv", torch.randn(24, 6, 3, 3, generator=generator, dtype=torch.float64)


def extract(here):
    """Differences of every kind: what is left is what torch's own singular values leave."""
    generator = torch.Generator().manual_seed(12)
    base, tuned = {}, {}
    for name, change in spectra():
        base[f"{name}.weight"] = torch.randn(change.shape, generator=generator)
        tuned[f"{name}.weight"] = (base[f"{name}.weight"].double() + 0.1 * change).float()
    base["same.weight"] = tuned["same.weight"] = torch.randn(5, 7, generator=generator)
    for where, weights in [("base", base), ("tuned", tuned)]:
        (here / where).mkdir()
        save_file({name: value.clone() for name, value in weights.items()}, here / where / "model.safetensors")
    for rank in [1, 4, 16, 64]:
        run("lora", "extract", here / "base", here / "tuned", "--rank", rank, "-o", here / f"{rank}")
        run("lora", "merge", here / "base", here / f"{rank}", "-o", here / f"merged-{rank}")
        merged = tensors(here / f"merged-{rank}")
        for name in base:
            change = tuned[name].double() - base[name].double()
            left, least = (tuned[name].double() - merged[name].double()).norm().item(), best(change, rank)
            check(f"extract {name} at {rank}: {left} of {least}", left <= 1.05 * least + 2e-6 * base[name].norm().item())
        names = [name for name in tensors(here / f"{rank}") if "same" in name]
        check("what is the same has no module", names == [])
    run("lora", "extract", here / "base", here / "tuned", "--rank", 64, "--energy", 0.9, "-o", here / "energy")
    for name in base:
        if name != "same.weight":
            change = (tuned[name].double() - base[name].double()).flatten(1)
            squares = torch.linalg.svdvals(change).square().cumsum(0) / change.square().sum()
            wanted = min(64, int((squares < 0.9).sum()) + 1)
            _, rank = product(here / "energy", name.removesuffix(".weight"))
            # Of a slowly falling spectrum the last ones are not told apart exactly.
            check(f"energy {name}: {rank}, not {wanted}", abs(rank - wanted) <= max(1, wanted // 12))
    print("ok  extract")


def extracted_again(here):
    """An adapter merged and extracted comes back, and PEFT loads it; quantised and rounded bases, and what is no matrix."""
    torch.manual_seed(13)
    for number, (make, config, dtype) in enumerate([
        (llama(), dict(r=4, lora_alpha=8, target_modules=ALL), torch.float32),
        (gpt2, dict(r=4, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True), torch.float32),
        (Convolutions, dict(r=4, target_modules=["one", "two", "head"]), torch.float32),
        (llama(attention_bias=True), dict(r=4, target_modules=["q_proj"], bias="all", modules_to_save=["embed_tokens", "norm"]), torch.bfloat16),
    ]):
        where = here / str(number)
        save_base(make().to(dtype), where / "base")
        model = get_peft_model(reload(make, where / "base"), LoraConfig(**config))
        shake(model, number)
        model.save_pretrained(where / "adapter")
        run("lora", "merge", where / "base", where / "adapter", "-o", where / "tuned")
        rank = 4 if dtype == torch.float32 else 16
        run("lora", "extract", where / "base", where / "tuned", "--rank", rank, "--full", "-o", where / "again")
        run("lora", "merge", where / "base", where / "again", "-o", where / "merged")
        tuned, merged = tensors(where / "tuned"), tensors(where / "merged")
        wanted = PeftModel.from_pretrained(reload(make, where / "base"), where / "again").merge_and_unload().state_dict()
        for name in tuned:
            room = 2e-6 * tuned[name].double().norm() if dtype == torch.float32 else 0.02 * tuned[name].double().norm()
            check(f"extracted again {number}: {name}", (tuned[name].double() - merged[name].double()).norm() <= room)
            if name in wanted:
                check(f"PEFT of extracted {number}: {name}", (wanted[name].double() - merged[name].double()).norm() <= room)
        for name in tuned:
            if "norm" in name or "embed" in name or name.endswith("bias"):
                check(f"whole {number}: {name}", torch.equal(tuned[name], merged[name]))
    print("ok  extracted again")


def resize(here):
    """Products at other ranks are the nearest ones, whatever the kind of LoRA."""
    torch.manual_seed(14)
    make = llama()
    save_base(make(), here / "base")
    for number, config in enumerate([
        dict(r=16, lora_alpha=24, target_modules=ALL),
        dict(r=8, lora_alpha=4, use_rslora=True, target_modules=["q_proj", "up_proj"]),
        dict(r=6, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 9}, alpha_pattern={"v_proj": 5}),
    ]):
        model = get_peft_model(reload(make, here / "base"), LoraConfig(**config))
        shake(model, number)
        model.save_pretrained(here / f"{number}")
        before = PeftModel.from_pretrained(reload(make, here / "base"), here / f"{number}").double().merge_and_unload().state_dict()
        base = make().state_dict().keys()
        for rank in [1, 4, 7, 40]:
            run("lora", "resize", here / f"{number}", "--rank", rank, "-o", here / f"{number}-{rank}")
            after = PeftModel.from_pretrained(reload(make, here / "base"), here / f"{number}-{rank}").double().merge_and_unload().state_dict()
            plain = reload(make, here / "base").double().state_dict()
            for name in base:
                change, made = before[name] - plain[name], after[name] - plain[name]
                if change.dim() == 2 and change.norm() > 0:
                    left, least = (change - made).norm().item(), best(change, rank)
                    check(f"resize {number} {name} to {rank}: {left} of {least}", left <= least + 2e-6 * change.norm().item())
    run("lora", "resize", here / "0", "--rank", 16, "--energy", 0.5, "-o", here / "half")
    print("ok  resize")


class Names(nn.Module):
    """A model whose modules have these names."""

    def __init__(self, shapes):
        super().__init__()
        for name, shape in shapes.items():
            place = self
            *parents, last = name.split(".")
            for parent in parents:
                if not hasattr(place, parent):
                    place.add_module(parent, nn.Module())
                place = getattr(place, parent)
            place.add_module(last, nn.Linear(shape[1], shape[0], bias=False) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], shape[2:], bias=False))


UNET = {
    "down_blocks.0.attentions.1.proj_in": (8, 8, 1, 1),
    "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q": (8, 8),
    "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0": (8, 8),
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": (16, 8),
    "up_blocks.1.attentions.2.transformer_blocks.0.ff.net.2": (8, 16),
}
SDXL = {**UNET, "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k": (8, 12), "up_blocks.0.attentions.2.transformer_blocks.3.attn1.to_v": (8, 8)}
TEXT = {"text_model.encoder.layers.0.self_attn.q_proj": (8, 8), "text_model.encoder.layers.11.mlp.fc1": (16, 8)}
FLUX = {"transformer_blocks.0.attn.to_q": (8, 8), "transformer_blocks.1.attn.add_k_proj": (8, 8), "single_transformer_blocks.3.proj_mlp": (16, 8)}


def peft_adapter(shapes, where, **config):
    model = get_peft_model(Names(shapes), LoraConfig(target_modules=list(shapes), **config))
    shake(model, 1)
    model.save_pretrained(where)
    return load_file(where / "adapter_model.safetensors")


def same_adapter(what, one, other):
    check(f"{what}: tensors {sorted(one.keys() ^ other.keys())}", one.keys() == other.keys())
    for name, value in one.items():
        check(f"{what}: {name}", value.dtype == other[name].dtype and value.shape == other[name].shape and torch.equal(value, other[name]))


def convert(here):
    """Names of other formats: PEFT's and diffusers' own loaders find the same factors and scales, and back it is the same."""
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers, _maybe_map_sgm_blocks_to_diffusers
    from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
    from peft.utils import load_peft_weights

    settings = dict(r=4, lora_alpha=3, rank_pattern={"to_q": 2}, alpha_pattern={"to_q": 5})
    for name, shapes, component in [("sd", UNET, "unet"), ("sdxl", SDXL, "unet"), ("text", TEXT, "text_encoder"), ("flux", FLUX, "transformer")]:
        where = here / name
        where.mkdir()
        peft = peft_adapter(shapes, where / "peft", **settings)
        scales = {module: product(where / "peft", module) for module in shapes}
        for format in ["kohya", "diffusers"]:
            file = where / f"{format}.safetensors"
            run("lora", "convert", where / "peft", "--to", format, "-o", file)
            run("lora", "convert", file, "--to", "peft", "-o", where / f"{format}-peft")
            same_adapter(f"{name} by {format} and back", peft, load_peft_weights(str(where / f"{format}-peft"), device="cpu"))
            for module, (wanted, _) in scales.items():
                check(f"{name} by {format}: scale of {module}", torch.equal(product(where / f"{format}-peft", module)[0], wanted))
            PeftModel.from_pretrained(Names(shapes), where / f"{format}-peft")
        run("lora", "convert", where / "kohya.safetensors", "--to", "diffusers", "-o", where / "direct.safetensors")
        same_adapter(f"{name} from Kohya to diffusers", load_file(where / "diffusers.safetensors"), load_file(where / "direct.safetensors"))
        run("lora", "convert", where / "diffusers.safetensors", "--to", "kohya", "-o", where / "again.safetensors")
        same_adapter(f"{name} to Kohya again", load_file(where / "kohya.safetensors"), load_file(where / "again.safetensors"))
        # With the model, whose names tell.
        save_file({f"{key}.weight": torch.zeros(shape) for key, shape in shapes.items()}, where / "base.safetensors")
        if name != "sdxl":
            run("lora", "convert", where / "kohya.safetensors", "--to", "peft", "--base", where / "base.safetensors", "-o", where / "with-base")
            same_adapter(f"{name} with its model", peft, load_file(where / "with-base" / "adapter_model.safetensors"))
        # diffusers reads Kohya's names with rules of its own.
        if component != "transformer":
            state = load_file(where / "kohya.safetensors")
            layers = type("Config", (), {"layers_per_block": 2})()
            converted, alphas = _convert_non_diffusers_lora_to_diffusers(_maybe_map_sgm_blocks_to_diffusers(state, layers))
            own = {key.removeprefix(f"{component}."): value for key, value in converted.items()}
            own = convert_unet_state_dict_to_peft(own) if component == "unet" else convert_state_dict_to_peft(own)
            ours = {key.removeprefix("base_model.model."): value for key, value in peft.items()}
            own = {key.replace("_lora.down.", ".lora_A.").replace("_lora.up.", ".lora_B."): value for key, value in own.items()}
            own = {re.sub(r"\.processor", "", key).replace("to_out.lora", "to_out.0.lora"): value for key, value in own.items()}
            if component == "text_encoder":
                own = {key.replace("to_q", "q_proj"): value for key, value in own.items()}
            same_adapter(f"{name}: diffusers reads Kohya's", ours, own)
            check(f"{name}: alphas", sorted(alphas.values()) == sorted(settings["alpha_pattern"].get(key.split(".")[-1], 3) for key in shapes))
        metadata = json.loads(safe_open(where / "diffusers.safetensors", "pt").metadata()["lora_adapter_metadata"])
        LoraConfig(**{key.removeprefix(f"{component}."): value for key, value in metadata.items()})
    # DoRA goes along, and what has no name does not.
    peft = peft_adapter(UNET, here / "dora", r=2, use_dora=True)
    run("lora", "convert", here / "dora", "--to", "kohya", "-o", here / "dora.safetensors")
    check("dora_scale", load_file(here / "dora.safetensors")["lora_unet_down_blocks_0_attentions_1_proj_in.dora_scale"].shape == (8, 1, 1, 1))
    run("lora", "convert", here / "dora.safetensors", "--to", "peft", "-o", here / "dora-again")
    same_adapter("DoRA and back", peft, load_file(here / "dora-again" / "adapter_model.safetensors"))
    save_file({f"{key}.weight": torch.randn(shape) for key, shape in UNET.items()}, here / "unet.safetensors")
    for adapter in ["dora", "dora.safetensors"]:
        run("lora", "merge", here / "unet.safetensors", here / adapter, "-o", here / f"merged-{adapter.removesuffix('.safetensors')}-{'file' if '.' in adapter else 'peft'}.safetensors")
    same_adapter("DoRA merged", load_file(here / "merged-dora-file.safetensors"), load_file(here / "merged-dora-peft.safetensors"))
    peft_adapter({"model.layers.0.q_proj": (8, 8)}, here / "llm", r=2)
    run("lora", "convert", here / "llm", "--to", "kohya", "-o", here / "no.safetensors", fails=["model.layers.0.q_proj", "Kohya"])
    save_file({"lora_unet_my_own_layer.lora_down.weight": torch.zeros(2, 8), "lora_unet_my_own_layer.lora_up.weight": torch.ones(8, 2)}, here / "own.safetensors")
    run("lora", "convert", here / "own.safetensors", "--to", "peft", "-o", here / "no", fails=["lora_unet_my_own_layer", "--base"])
    save_file({"my.own_layer.weight": torch.zeros(8, 8)}, here / "own-base.safetensors")
    run("lora", "convert", here / "own.safetensors", "--to", "peft", "--base", here / "own-base.safetensors", "-o", here / "own")
    check("own", "base_model.model.my.own_layer.lora_A.weight" in load_file(here / "own" / "adapter_model.safetensors"))
    save_file({"my.own_layer.weight": torch.zeros(8, 8), "my.own.layer.weight": torch.zeros(8, 8)}, here / "two-base.safetensors")
    run("lora", "convert", here / "own.safetensors", "--to", "peft", "--base", here / "two-base.safetensors", "-o", here / "no", fails=["two modules"])
    check("nothing is written", not (here / "no").exists() and not (here / "no.safetensors").exists())
    print("ok  convert")


def refusals(here):
    torch.manual_seed(7)
    make = llama()
    save_base(make(), here / "base")
    tuned = get_peft_model(reload(make, here / "base"), LoraConfig(r=4, target_modules=["q_proj"]))
    shake(tuned, 1)
    tuned.save_pretrained(here / "good")
    good, config = load_file(here / "good" / "adapter_model.safetensors"), json.loads((here / "good" / "adapter_config.json").read_text())
    first = next(iter(good))

    def bad(words, changed=None, **fields):
        where = here / "bad"
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir()
        save_file({name: value.contiguous() for name, value in (changed or good).items()}, where / "adapter_model.safetensors")
        (where / "adapter_config.json").write_text(json.dumps({**config, **fields}))
        run("lora", "merge", here / "base", where, "-o", here / "out", fails=words)
        check(f"{words}: nothing is written", not (here / "out").exists())

    bad(["peft_type", "IA3"], peft_type="IA3")
    bad(["pissa"], init_lora_weights="pissa")
    bad(["layer_replication"], layer_replication=[[0, 1]])
    bad(["trainable_token_indices"], trainable_token_indices=[1])
    bad(["lora_alpha", "adapter_config.json"], lora_alpha="x")
    bad(["alpha_pattern"], alpha_pattern={"(?=x)": 1})
    bad(["rank", "no rank_pattern"], r=5)
    bad(["loftq"], init_lora_weights="loftq")
    bad(["alora_invocation_tokens"], alora_invocation_tokens=[1])
    bad(["magnitude", "use_dora"], use_dora=True)
    bad(["alpha_pattern", "differ"], alpha_pattern={"q_proj": 1, "self_attn.q_proj": 2})
    bad(["scale"], lora_alpha=1e300)
    bad(["lora_B.weight", "missing"], {name: value for name, value in good.items() if name != first})
    bad(["model.layers.7.self_attn.q_proj.weight", "nearest"], {name.replace("layers.1", "layers.7"): value for name, value in good.items()})
    bad(["[72, 72]"], {name: (value[:, :-1] if "lora_A" in name else value) for name, value in good.items()})
    bad([first], {**good, first: good[first].int()})
    bad(["LoHa"], {**good, "base_model.model.x.hada_w1_a": torch.ones(1)})
    (here / "alone").mkdir()
    shutil.copy(here / "good" / "adapter_model.safetensors", here / "alone")
    run("lora", "merge", here / "base", here / "alone", "-o", here / "out", fails=["adapter_config.json is not beside it"])
    run("lora", "merge", here / "base", here / "good", "--weight", "1,2", "-o", here / "out", fails=["--weight"])
    run("lora", "merge", here / "base", here / "base", "-o", here / "out", fails=["no part of an adapter"])
    print("ok  refusals")


with tempfile.TemporaryDirectory() as temporary:
    here = Path(temporary)
    functions = [cases, several, fused_and_apart, kohya, extract, extracted_again, resize, convert, refusals]
    for function in functions:
        if sys.argv[2:] and function.__name__ not in sys.argv[2:]:
            continue
        place = here / function.__name__
        place.mkdir()
        function(place)
print(f"{checks} checks passed (peft {__import__('peft').__version__}, torch {torch.__version__})")
