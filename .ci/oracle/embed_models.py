"""Tiny sentence-transformers models with random weights, and the embeddings that they make."""

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Normalize, Pooling, Transformer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast, T5EncoderModel

from embed_families import FAMILIES, TOKENS

MAX_LENGTH = 40

LONG = "the harbour master keeps a ledger of every ship that enters the bay"
TEXTS = ["a", "hello world", "the quick brown fox jumps over", "", "Grüße, Jürgen!", "東京 2024", LONG, LONG + "!"]

PROMPTS = {"query": "find: ", "document": "doc: ", "cluster": "same topic as: "}


def tokenizer(decoder: bool) -> PreTrainedTokenizerFast:
    """The 256 bytes, and a few merges."""
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"), ("Ã", "¼")]
    symbols = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    symbols += [left + right for left, right in merges]
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(symbols[:4])
    single = "$A </s>" if decoder else "<s> $A </s>"
    inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


@dataclass
class Case:
    """One checkpoint.  What is not said here is the usual."""

    name: str
    family: str
    config: dict
    pooling: str | tuple = "mean"
    include_prompt: bool = True
    # Each is "normalize", "norm", or what `Dense` is given.
    steps: list = field(default_factory=list)
    similarity: str | None = None
    prompts: dict | None = None
    default_prompt: str | None = None
    truncate: int | None = None
    lower_case: bool = False
    dtype: torch.dtype = torch.float32
    shards: str | None = None
    # Made of the weights of a whole checkpoint, with a head and prefixed names.
    prefix: str = ""
    # A pickle has the weights of the dense layers.
    pickled: bool = False
    # Without the files of sentence-transformers.
    bare: bool = False
    fp8: bool = False
    adapter: bool = False
    rewrite: object = None
    # Arguments of BIN.
    more: tuple[str, ...] = ()
    # What the embeddings may differ by.
    tolerance: float = 1e-5


def dense(inputs: int, outputs: int, activation, **more) -> Dense:
    return Dense(inputs, outputs, activation_function=activation, **more)


def make(case: Case, directory: Path) -> SentenceTransformer:
    """Writes the checkpoint, and gives the model that it is."""
    family = FAMILIES[case.family]
    shutil.rmtree(directory, ignore_errors=True)
    words = tokenizer(family.causal)
    torch.manual_seed(len(case.name) + 97 * sorted(FAMILIES).index(case.family))
    config = AutoConfig.for_model(
        family.model_type or case.family, vocab_size=len(words), **TOKENS | case.config
    )
    kind = T5EncoderModel if case.family == "t5" else AutoModel
    model = kind.from_config(config) if kind is AutoModel else kind(config)
    model = model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    inner = directory / "inner"
    model.to(case.dtype).save_pretrained(inner, max_shard_size=case.shards or "1GB")
    words.save_pretrained(inner)
    if case.adapter:
        write_adapter(model, family, directory / "adapter")

    transformer = Transformer(str(inner), max_seq_length=MAX_LENGTH, do_lower_case=case.lower_case)
    transformer.model.float()
    width = transformer.get_embedding_dimension()
    pooling = Pooling(width, case.pooling, include_prompt=case.include_prompt)
    width = pooling.get_embedding_dimension()
    modules = [transformer, pooling]
    for step in case.steps:
        if step == "normalize":
            modules.append(Normalize())
        elif step == "norm":
            modules.append(LayerNorm(width))
            torch.nn.init.normal_(modules[-1].norm.weight)
        else:
            outputs, activation, more = step
            modules.append(dense(width, outputs, activation, **more))
            width = outputs
    whole = SentenceTransformer(
        modules=modules,
        prompts=case.prompts,
        default_prompt_name=case.default_prompt,
        similarity_fn_name=case.similarity,
        truncate_dim=case.truncate,
        device="cpu",
    ).eval()
    whole.save(str(directory), create_model_card=False, safe_serialization=not case.pickled)
    # As transformers wrote it: `save` has made one file in f32 of it.
    for file in directory.glob("*.bin"):
        file.unlink()
    for file in inner.glob("model*.safetensors*"):
        shutil.move(file, directory / file.name)
    if case.shards:
        (directory / "model.safetensors").unlink(missing_ok=True)
    write_options(directory, case)
    if case.fp8:
        write_fp8(directory, whole)
    if case.adapter:
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(whole[0].model, directory / "adapter").merge_and_unload()
        whole[0].model = adapted.float()
    shutil.rmtree(inner)
    if case.prefix:
        weights = load_file(directory / "model.safetensors")
        weights = {case.prefix + name: weight for name, weight in weights.items()}
        weights["lm_head.bias"] = torch.zeros(3)
        save_file(weights, directory / "model.safetensors", {"format": "pt"})
    if case.rewrite:
        edit_json(directory / "config.json", case.rewrite)
    if case.bare:
        for path in [directory / "modules.json", directory / "config_sentence_transformers.json"]:
            path.unlink()
        shutil.rmtree(directory / "1_Pooling")
    return whole


def write_options(directory: Path, case: Case) -> None:
    """sentence-transformers does not save these, older versions did."""
    path = directory / "sentence_bert_config.json"
    options = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(options | {"max_seq_length": MAX_LENGTH, "do_lower_case": case.lower_case}))
    if case.truncate:
        edit_json(
            directory / "config_sentence_transformers.json", lambda config: config.update(truncate_dim=case.truncate)
        )


def edit_json(path: Path, edit) -> None:
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config, indent=2))


def write_adapter(model, family, directory: Path) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=list(family.adapted)))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.2)
    adapted.save_pretrained(directory)
    adapted.unload()


def write_fp8(directory: Path, whole: SentenceTransformer) -> None:
    """Rounds the weights of layers to FP8, in the file and in the model."""
    codes, rounded = {}, {}
    for name, weight in load_file(directory / "model.safetensors").items():
        codes[name] = rounded[name] = weight
        if weight.ndim == 2 and "layer" in name:
            scale = torch.tensor(2.0**-8)
            codes[name] = (weight / scale).to(torch.float8_e4m3fn)
            codes[f"{name}_scale"] = scale
            rounded[name] = codes[name].float() * scale
    whole[0].model.load_state_dict(rounded, strict=False)
    save_file(codes, directory / "model.safetensors", {"format": "pt"})
