"""What `weighbridge consolidate` makes of checkpoints that DeepSpeed's ZeRO wrote with 3 processes is what DeepSpeed's own
zero_to_fp32.py makes of them, bit for bit.

    zero.py WEIGHBRIDGE     (torch, safetensors, deepspeed; without deepspeed it says so and ends)
"""

import importlib.util
import os
import socket
import tempfile
from pathlib import Path

import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

import checks
from checks import check, run

RANKS = 3


class Net(torch.nn.Module):
    """Frozen and shared parameters, buffers of two dtypes, sizes that no number of ranks divides."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(37, 10)
        self.frozen = torch.nn.Linear(10, 7)
        for parameter in self.frozen.parameters():
            parameter.requires_grad_(False)
        self.up = torch.nn.Linear(7, 10)
        self.scale = torch.nn.Parameter(torch.tensor([1.5]))
        self.head = torch.nn.Linear(10, 37, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("steps", torch.tensor(5))
        self.register_buffer("table", torch.linspace(0, 1, 9).reshape(3, 3))

    def forward(self, ids):
        hidden = self.embed(ids)
        hidden = hidden + torch.relu(self.up(self.frozen(hidden))) * self.scale * self.table.sum()
        return self.head(hidden)


def write(rank, place, port):
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_SIZE": RANKS, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in own.items()}, MASTER_ADDR="127.0.0.1", DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    import deepspeed
    import deepspeed.comm.torch

    # It would compile an extension for sums in shared memory.
    deepspeed.comm.torch.build_shm_op = lambda: None
    deepspeed.init_distributed(dist_backend="gloo")
    for stage in (1, 2, 3):
        for dtype in ("fp32", "bf16"):
            torch.manual_seed(stage)
            model = Net()
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            groups = [
                {"params": [parameter for parameter in trained if parameter.dim() > 1], "weight_decay": 0.1},
                {"params": [parameter for parameter in trained if parameter.dim() <= 1], "weight_decay": 0.0},
            ]
            zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
            if stage == 3:
                # Parameters that are in two of the flat groups.
                zero["sub_group_size"] = 150
            config = {
                "train_micro_batch_size_per_gpu": 1,
                "zero_optimization": zero,
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "bf16": {"enabled": dtype == "bf16"},
            }
            engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(groups, lr=1e-2), config=config)
            for _ in range(2):
                engine.backward(engine(torch.arange(8) + rank).float().square().mean())
                engine.step()
            engine.save_checkpoint(str(Path(place) / f"zero{stage}-{dtype}"), client_state={"seen": 16})
            engine.destroy()
    torch.distributed.destroy_process_group()


def compared(directory, here):
    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict

    convert_zero_checkpoint_to_fp32_state_dict(str(directory), str(here / f"{directory.name}-theirs"))
    theirs = torch.load(here / f"{directory.name}-theirs" / "pytorch_model.bin")
    step = next(directory.glob("global_step*"))
    for number, source in enumerate([directory, step]):
        out = here / f"{directory.name}-{number}.safetensors"
        ran = run("consolidate", source, "-o", out)
        check(f"{source}: {ran.stderr}", ran.returncode == 0)
        ours = load_file(out)
        # zero_to_fp32.py loses what stage 1 does not train; it is in the module all the same.
        frozen = {"frozen.weight", "frozen.bias"}
        missed = frozen if directory.name.startswith("zero1") else set()
        check(f"{source}: {sorted(ours.keys() ^ theirs.keys())}", ours.keys() == theirs.keys() | missed and len(ours) > 4)
        check(f"{source}: {frozen}", frozen <= ours.keys())
        for name, tensor in theirs.items():
            own = ours[name]
            same = own.dtype == tensor.dtype and own.shape == tensor.shape
            bits = lambda tensor: tensor.contiguous().flatten().view(torch.uint8)  # noqa: E731
            check(f"{source}: {name}", same and torch.equal(bits(own), bits(tensor)))
    lost = sorted(step.glob("*_optim_states.pt"))[-1]
    lost.unlink()
    ran = run("consolidate", directory, "-o", here / "never")
    check(f"a rank is missing: {ran.stderr}", ran.returncode == 2 and "3 ranks" in ran.stderr)
    check("nothing is written", not (here / "never").exists())


def main():
    if importlib.util.find_spec("deepspeed") is None:
        print("deepspeed is not installed: nothing was checked")
        return
    with tempfile.TemporaryDirectory() as place:
        written, here = Path(place) / "written", Path(place) / "here"
        here.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        mp.spawn(write, (str(written), port), nprocs=RANKS)
        directories = sorted(written.iterdir())
        for directory in directories:
            compared(directory, here)
    print(f"{checks.count} checks passed: {', '.join(directory.name for directory in directories)}")


if __name__ == "__main__":
    main()
