"""Writes the fixtures in this directory with PyTorch: what 2 processes save, as a distributed checkpoint and as safetensors.

    make.py
"""

import os
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

HERE = Path(__file__).parent


def write(rank):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29541")
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    model = {
        "rows": distribute_tensor(torch.arange(15.0).view(5, 3), mesh, [Shard(0)]),
        "columns": distribute_tensor(torch.arange(15.0).view(3, 5).bfloat16(), mesh, [Shard(1)]),
        "scale": torch.tensor(0.5),
    }
    # A path of its own would be in the metadata.
    os.chdir(HERE)
    dcp.save({"model": model, "step": 7}, checkpoint_id="dcp")
    dcp.save({"model": model}, storage_writer=HuggingFaceStorageWriter("hf", save_distributed=True))
    dist.destroy_process_group()


if __name__ == "__main__":
    for name in ["dcp", "hf"]:
        shutil.rmtree(HERE / name, ignore_errors=True)
    mp.spawn(write, nprocs=2)
