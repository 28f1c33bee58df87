"""What `weighbridge shard` writes for each rank is what transformers itself gives the ranks of tensor parallelism, bit for bit, and
`weighbridge consolidate` makes the checkpoint of it again.

    ranks.py WEIGHBRIDGE     (torch, transformers, safetensors)

Models of several families are made here, saved, and loaded by transformers in several processes with its own plan (`tp_plan="auto"`).
The plan by names that `weighbridge` has for them gives the same parts wherever all sizes divide.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open

import checks
from checks import check, done


def opened(path):
    tensors = {}
    for file in [path] if path.is_file() else sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as reader:
            tensors.update({name: reader.get_tensor(name) for name in reader.keys()})
    return tensors


def same(what, ours, theirs):
    check(f"{what}: names {sorted(set(ours) ^ set(theirs))[:4]}", set(ours) == set(theirs))
    for name, tensor in theirs.items():
        own = ours[name]
        check(f"{what}: {name} {own.dtype} {tuple(own.shape)} {tuple(tensor.shape)}", own.dtype == tensor.dtype and own.shape == tensor.shape)
        check(f"{what}: {name}", torch.equal(own.contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8)))


def worker(directory):
    """One rank of transformers: its local parameters."""
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor
    from transformers import AutoModelForCausalLM

    dist.init_process_group("gloo")
    model = AutoModelForCausalLM.from_pretrained(directory, tp_plan="auto", dtype=torch.bfloat16)
    local = {}
    for name, parameter in model.named_parameters():
        data = parameter.data
        local[name] = (data.to_local() if isinstance(data, DTensor) else data).clone().contiguous()
    torch.save(local, f"{directory}/local-{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


def transformers_ranks(directory, world):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, __file__, "--worker", directory], env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world)
    ]
    for process in processes:
        check(f"transformers loads {directory} in {world} processes", process.wait() == 0)
    return [torch.load(f"{directory}/local-{rank}.pt") for rank in range(world)]


SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 96, "intermediate_size": 96,
         "head_dim": 8, "max_position_embeddings": 64, "tie_word_embeddings": False}


def models():
    import transformers as t
    yield "llama", t.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)
    yield "qwen2", t.Qwen2Config(**SIZES)
    yield "qwen3", t.Qwen3Config(**SIZES)
    yield "mistral", t.MistralConfig(**SIZES)
    yield "phi3", t.Phi3Config(**SIZES, pad_token_id=0)
    yield "gpt_neox", t.GPTNeoXConfig(**{k: v for k, v in SIZES.items() if k != "head_dim" and k != "num_key_value_heads"})
    yield "gemma2", t.Gemma2Config(**(SIZES | {"tie_word_embeddings": True}))


def main():
    import transformers
    torch.manual_seed(20)
    for name, config in models():
        with tempfile.TemporaryDirectory() as here:
            here = Path(here)
            model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(torch.randn_like(parameter))
            model.save_pretrained(here / "model")
            whole = opened(here / "model")
            # The plan of transformers, as it is and in the configuration.
            plan = model.tp_plan if model.tp_plan else {}
            (here / "plan.json").write_text(json.dumps(plan))
            for world in [2, 4]:
                out = here / f"names-{world}"
                done("shard", here / "model", "--tp", world, "-o", out)
                done("consolidate", out, "-o", here / f"again-{world}")
                same(f"{name}: {world} ranks by names, joined", opened(here / f"again-{world}"), whole)
                if not plan or world == 4 and name != "llama":
                    continue
                done("shard", here / "model", "--plan", here / "plan.json", "--tp", world, "-o", here / f"tp-{world}")
                theirs = transformers_ranks(str(here / "model"), world)
                for rank in range(world):
                    ours = opened(here / f"tp-{world}" / f"rank-{rank:05}")
                    # Some parameters have other names in the model than in its file.
                    both = ours.keys() & theirs[rank].keys()
                    check(f"{name}: {len(both)} of {len(ours)} names are known", len(both) >= len(ours) - 2)
                    same(f"{name}: rank {rank} of {world}", {key: ours[key] for key in both}, {key: theirs[rank][key] for key in both})
            for plan in [["--tp", 3, "--pp", 2], ["--tp", 2, "--pp", 3], ["--tp", 8], ["--pp", 2]]:
                label = "-".join(map(str, plan))
                done("shard", here / "model", *plan, "-o", here / label)
                done("consolidate", here / label, "-o", here / f"again{label}")
                same(f"{name}: {plan} joined", opened(here / f"again{label}"), whole)
                shown = json.loads(done("plan", here / "model", *plan, "--format", "json").stdout)
                for rank in shown["ranks"]:
                    files = (here / label / f"rank-{rank['rank']:05}").glob("*.safetensors")
                    held = sum(tensor.nbytes for file in files for tensor in opened(file).values())
                    check(f"{name}: {plan} holds {held}", held == rank["held_bytes"])
            print(f"{name}: {checks.count} checks passed", flush=True)


if sys.argv[1] == "--worker":
    worker(sys.argv[2])
else:
    main()
