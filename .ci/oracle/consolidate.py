"""What `weighbridge consolidate` makes of directories that PyTorch's own distributed code wrote with 4 processes is what PyTorch
itself loads from them, bit for bit.

    consolidate.py WEIGHBRIDGE     (torch, safetensors)
"""

import os
import socket
import tempfile
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint import FileSystemWriter, HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import checks
from checks import check, done, run

warnings.simplefilter("ignore")
RANKS = 4


# What the processes write.

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64]
SMALL = [torch.float8_e4m3fn, torch.float8_e5m2]


def random(shape, dtype):
    values = torch.randn(shape) * 50
    return values > 0 if dtype == torch.bool else values.to(dtype)


def tensors(dtypes):
    """Uneven shapes in one and two dimensions of processes, replicated, plain, empty ones and scalars."""
    line = init_device_mesh("cpu", (RANKS,))
    grid = init_device_mesh("cpu", (2, RANKS // 2), mesh_dim_names=("rows", "columns"))
    found = {}
    for dtype in dtypes:
        name = str(dtype).split(".")[1]
        put = lambda key, shape, mesh, how: found.__setitem__(  # noqa: E731
            f"{name}.{key}", distribute_tensor(random(shape, dtype), mesh, how, src_data_rank=None)
        )
        put("rows", (10, 6), line, [Shard(0)])
        put("columns", (6, 10), line, [Shard(1)])
        put("middle", (3, 7, 5), line, [Shard(1)])
        put("few", (5, 3), line, [Shard(0)])
        put("fewer", (2, 3), line, [Shard(0)])
        put("one", (1,), line, [Shard(0)])
        put("same", (3, 3), line, [Replicate()])
        put("grid", (7, 9), grid, [Shard(0), Shard(1)])
        put("twice", (11, 4), grid, [Shard(0), Shard(0)])
        put("rows_of_grid", (9, 2), grid, [Shard(0), Replicate()])
        put("columns_of_grid", (4, 9), grid, [Replicate(), Shard(1)])
        put("deep", (3, 2, 5, 4), grid, [Shard(2), Shard(0)])
        put("large", (300, 700), grid, [Shard(1), Shard(0)])
        # Each process has values of its own; those of the first that writes them count.
        found[f"{name}.plain"] = random((2, 3), dtype)
        found[f"{name}.turned"] = random((4, 3), dtype).T
        found[f"{name}.scalar"] = random((), dtype)
        found[f"{name}.nothing"] = random((0, 3), dtype)
    return found


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(37, 24)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(24, 24) for _ in range(3))
        self.head = torch.nn.Linear(24, 37, bias=False)
        self.register_buffer("steps", torch.tensor(5))

    def forward(self, ids):
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = hidden + torch.relu(layer(hidden))
        return self.head(hidden)


def trained(mesh):
    """A model under FSDP2, and AdamW after a step."""
    model = Net()
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.arange(8)).square().mean().backward()
    optimizer.step()
    return get_state_dict(model, optimizer)


def write(rank, place):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=os.environ["CONSOLIDATE_PORT"])
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    torch.manual_seed(20)
    place = Path(place)
    state = tensors(DTYPES + SMALL)
    nested = {"model": state, "step": 7, "text": "a", "list": [torch.ones(2), {"x": torch.zeros(3), "y": [1, 2]}]}
    dcp.save(nested, checkpoint_id=place / "dcp")
    dcp.save(nested, storage_writer=FileSystemWriter(place / "files", single_file_per_rank=False))
    dcp.save(nested, storage_writer=FileSystemWriter(place / "threads", thread_count=3))
    line = init_device_mesh("cpu", (RANKS,))
    hybrid = init_device_mesh("cpu", (2, RANKS // 2), mesh_dim_names=("replicate", "shard"))
    for name, mesh in {"fsdp": line, "hsdp": hybrid}.items():
        model, optimizer = trained(mesh)
        dcp.save({"model": model, "optim": optimizer, "epoch": 3}, checkpoint_id=place / name)
    state = tensors([dtype for dtype in DTYPES if dtype != torch.complex64])
    # It writes contiguous tensors only.
    state = {name: tensor for name, tensor in state.items() if not name.endswith(("nothing", "turned"))}
    dcp.save({"model": state}, storage_writer=HuggingFaceStorageWriter(str(place / "hf"), save_distributed=True))
    files = {f"model.{name}": 1 + number % 3 for number, name in enumerate(state)}
    writer = HuggingFaceStorageWriter(str(place / "hf-files"), fqn_to_index_mapping=files, save_distributed=True)
    dcp.save({"model": state}, storage_writer=writer)
    dist.destroy_process_group()


# What is made of it.


def flat(value, name=""):
    """Tensors by their paths, with dots between."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = {}
    for key, inner in items:
        found |= flat(inner, f"{name}.{key}" if name else str(key))
    return found


def opened(where):
    found = {}
    for file in [where] if where.suffix else sorted(where.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys()}
    return found


def same(what, ours, theirs):
    check(f"{what}: {sorted(ours.keys() ^ theirs.keys())}", ours.keys() == theirs.keys())
    for name, tensor in theirs.items():
        own = ours[name]
        check(f"{what}: {name}: {own.dtype} {own.shape}", own.dtype == tensor.dtype and own.shape == tensor.shape)
        bits = lambda tensor: tensor.contiguous().flatten().view(torch.uint8)  # noqa: E731
        check(f"{what}: {name}", torch.equal(bits(own), bits(tensor)))


def loaded(directory, here):
    if directory.name.startswith("hf"):
        state = {}
        reader, planner = HuggingFaceStorageReader(str(directory)), _EmptyStateDictLoadPlanner()
        _load_state_dict(state, storage_reader=reader, planner=planner, no_dist=True)
        return flat(state)
    dcp_to_torch_save(directory, here / "torch.pt")
    return flat(torch.load(here / "torch.pt", weights_only=False))


def consolidated(directory, here):
    theirs = loaded(directory, here)
    check(f"{directory.name}: {len(theirs)} tensors", len(theirs) > 9)
    out = here / f"{directory.name}.safetensors"
    told = done("consolidate", directory, "--verbose", "-o", out).stderr
    same(directory.name, opened(out), theirs)
    shards = here / f"{directory.name}-shards"
    done("consolidate", directory, "-o", shards, "--max-shard-size", "400KB")
    check(f"{directory.name}: shards", len(list(shards.glob("*.safetensors"))) > 1 or directory.name in ("fsdp", "hsdp"))
    same(f"{directory.name} in shards", opened(shards), theirs)
    # What looks at checkpoints sees the directory as one.
    check(f"{directory.name}: diff", run("diff", "--data", directory, out).returncode == 0)
    refused = run("merge", directory, "-o", here / "merged.safetensors")
    check(f"{directory.name}: {refused.stderr}", refused.returncode == 2 and "weighbridge consolidate" in refused.stderr)
    return told, theirs


def selected(directory, here):
    """A part of it, under other names."""
    out = here / "selected.safetensors"
    done("consolidate", directory, "--only", "model.*", "--except", "*.bias", "--rename-prefix", "model.=", "-o", out)
    theirs = {name.removeprefix("model."): tensor for name, tensor in loaded(directory, here).items() if name.startswith("model.")}
    same("selected", opened(out), {name: tensor for name, tensor in theirs.items() if not name.endswith(".bias")})


def by_rules(here):
    """What Megatron cuts, in two and in three ranks."""
    whole = {
        "layers.0.q_proj.weight": random((12, 8), torch.bfloat16),
        "layers.0.o_proj.weight": random((8, 12), torch.bfloat16),
        "layers.0.norm.weight": random((8,), torch.float32),
        "embed": random((18, 8), torch.float32),
    }
    cuts = {"layers.0.q_proj.weight": 0, "layers.0.o_proj.weight": 1, "embed": 0}
    rules = here / "rules"
    rules.write_text("# of columns and rows\n*.q_proj.weight: 0\n*.o_proj.weight: 1\n\nembed: 0\n*norm*: replicated\n")
    for ranks in (2, 3):
        files = []
        for rank in range(ranks):
            parts = {name: tensor.chunk(ranks, cuts[name])[rank] if name in cuts else tensor for name, tensor in whole.items()}
            parts = {name: part.contiguous() for name, part in parts.items()}
            files.append(here / f"rank{rank}.{'pt' if ranks == 3 else 'safetensors'}")
            torch.save(parts, files[-1]) if ranks == 3 else save_file(parts, files[-1])
        out = here / f"of-{ranks}.safetensors"
        done("consolidate", *files, "--rules", rules, "-o", out)
        same(f"rules of {ranks}", opened(out), whole)
        other = torch.load(files[-1]) if ranks == 3 else opened(files[-1])
        other["layers.0.norm.weight"] = other["layers.0.norm.weight"] + 1
        torch.save(other, here / "other.pt")
        told = run("consolidate", *files[:-1], here / "other.pt", "--rules", rules, "-o", here / "never.safetensors")
        check(f"not replicated: {told.stderr}", told.returncode == 2 and "replicated" in told.stderr)
        check("nothing is written", not (here / "never.safetensors").exists())


def main():
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        written, here = place / "written", place / "here"
        here.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ["CONSOLIDATE_PORT"] = str(free.getsockname()[1])
        mp.spawn(write, (written,), nprocs=RANKS)
        directories = sorted(written.iterdir())
        for directory in directories:
            told, theirs = consolidated(directory, here)
            if directory.name in ("dcp", "files", "threads"):
                for left_out in ["step", "text", "list.1.y"]:
                    check(f"{left_out} is told: {told}", f'"{left_out}"' in told)
            if directory.name in ("fsdp", "hsdp"):
                check("the optimizer's state, too", any("exp_avg" in name for name in theirs))
                check(f"epoch is told: {told}", '"epoch"' in told)
        selected(written / "fsdp", here)
        by_rules(here)
        print(f"{checks.count} checks passed: {', '.join(directory.name for directory in directories)}, rules")


if __name__ == "__main__":
    main()
