"""Writes bert.safetensors and resnet.safetensors: small models of transformers and PyTorch with random weights, as
their `state_dict` has them, with an input (`in.*`) and what they make of it (`out.*`).

Needs torch, transformers and safetensors; run it in this directory.
"""

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig, BertModel

torch.manual_seed(11)


def randomise(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "norm" in name.lower() or "bn" in name
            parameter.copy_(torch.rand_like(parameter) + 0.5 if norm else torch.randn_like(parameter) * 0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn_like(buffer) * 0.1)
            if name.endswith("running_var"):
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    return model.eval()


def save(name, model, **values):
    tensors = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    tensors.update({key.replace("__", "."): value.contiguous() for key, value in values.items()})
    save_file(tensors, f"{name}.safetensors", metadata={"format": "pt"})


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        skip = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + skip)


class ResNet(nn.Module):
    """As torchvision's."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Block(4, 4, 1), Block(4, 4, 1))
        self.layer2 = nn.Sequential(Block(4, 8, 2), Block(8, 8, 1))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(x.mean((2, 3)))


with torch.no_grad():
    config = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=12, attn_implementation="eager",
    )
    bert = randomise(BertModel(config))
    ids = torch.tensor([[2, 7, 1, 19, 4], [0, 3, 3, 8, 5]])
    made = bert(ids)
    save("bert", bert, in__ids=ids, out__hidden=made.last_hidden_state, out__pooled=made.pooler_output)

    resnet = randomise(ResNet())
    image = torch.randn(2, 3, 16, 16)
    save("resnet", resnet, in__image=image, out__scores=resnet(image))
