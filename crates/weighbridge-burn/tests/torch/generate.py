"""Writes layers.safetensors: PyTorch's layers with their inputs and outputs, for the tests of weighbridge-burn.

Tensors are named as `state_dict` has them, `in.<layer>` and `out.<layer>` hold an input and what the layer makes of it.
Needs torch and safetensors; run it in this directory.
"""

import torch
from safetensors.torch import save_file
from torch import nn

torch.manual_seed(7)


class RmsNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.column = nn.Linear(6, 4)
        self.embedding = nn.Embedding(5, 6)
        self.batch_norm = nn.BatchNorm1d(6)
        self.layer_norm = nn.LayerNorm(6)
        self.group_norm = nn.GroupNorm(2, 6)
        self.instance_norm = nn.InstanceNorm1d(6, affine=True)
        self.rms_norm = RmsNorm(6)
        self.prelu = nn.PReLU(3)
        self.conv1d = nn.Conv1d(3, 4, 2)
        self.conv2d = nn.Conv2d(3, 4, (2, 3))
        self.conv_transpose = nn.ConvTranspose2d(3, 4, 2)
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.bilstm = nn.LSTM(6, 5, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(6, 5, batch_first=True)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)


layers = Layers().eval()
with torch.no_grad():
    for parameter in layers.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.5)
    for name, buffer in layers.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn_like(buffer))
        if name.endswith("running_var"):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    inputs = {
        "linear": torch.randn(2, 6),
        "column": torch.randn(2, 6),
        "embedding": torch.tensor([[0, 4, 2]]),
        "batch_norm": torch.randn(2, 6, 3),
        "layer_norm": torch.randn(2, 6),
        "group_norm": torch.randn(2, 6, 3),
        "instance_norm": torch.randn(2, 6, 3),
        "rms_norm": torch.randn(2, 6),
        "prelu": torch.randn(2, 3, 4),
        "conv1d": torch.randn(1, 3, 5),
        "conv2d": torch.randn(1, 3, 5, 5),
        "conv_transpose": torch.randn(1, 3, 3, 3),
        "lstm": torch.randn(2, 4, 6),
        "bilstm": torch.randn(2, 4, 6),
        "gru": torch.randn(2, 4, 6),
        "attention": torch.randn(2, 4, 6),
    }
    tensors = dict(layers.state_dict())
    for name, value in inputs.items():
        layer = getattr(layers, name)
        output = layer(value, value, value) if name == "attention" else layer(value)
        output = output[0] if isinstance(output, tuple) else output
        tensors[f"in.{name}"] = value
        tensors[f"out.{name}"] = output.contiguous()
save_file(tensors, "layers.safetensors", metadata={"format": "pt"})
