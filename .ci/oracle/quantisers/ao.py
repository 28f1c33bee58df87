"""torchao: int8 and float8, with the tensors described in the file's metadata."""

import torch
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

from quantisers.common import Case, llama, main, versions

LIBRARY = versions("torchao")


class Model(torch.nn.Module):
    def __init__(self, chance, dtype):
        super().__init__()
        for name, bias in [("q_proj", True), ("k_proj", False)]:
            rows, columns = chance.size(9), chance.size(32, 16)
            linear = torch.nn.Linear(columns, rows, bias=bias, dtype=dtype)
            linear.weight.data = chance.weight(rows, columns).to(dtype)
            if bias:
                linear.bias.data = chance.weight(rows).to(dtype)
            setattr(self, name, linear)
        self.norm = torch.nn.RMSNorm(8, dtype=dtype)


def kinds(chance):
    for kind, config in [("int8", Int8WeightOnlyConfig(version=2)), ("float8", Float8WeightOnlyConfig())]:
        for dtype in [torch.bfloat16, torch.float32]:
            model = Model(chance, dtype)
            quantize_(model, config, filter_fn=lambda module, _: isinstance(module, torch.nn.Linear))
            tensors, metadata = flatten_tensor_state_dict(model.state_dict())
            dense = {name: tensor.dequantize() if hasattr(tensor, "dequantize") and name.endswith("proj.weight") else tensor for name, tensor in model.state_dict().items()}
            section = {"quant_method": "torchao", "quant_type": {"default": {"_type": type(config).__name__, "_version": 2, "_data": {}}}, "modules_to_not_convert": None}
            name = f"torchao-{kind}-{str(dtype).removeprefix('torch.')}"
            yield Case(name, LIBRARY, tensors, dense, llama(quantization_config=section), metadata={"format": "pt"} | metadata)


if __name__ == "__main__":
    main([kinds])
