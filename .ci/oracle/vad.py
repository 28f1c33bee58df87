#!/usr/bin/env python3
"""What `candle-vad` finds in recordings is what the Python package silero-vad finds: probabilities and segments.

    vad.py CANDLE_VAD [SEED]      (silero-vad without its dependencies, torch, safetensors, numpy; espeak-ng, where it is there, speaks)

The recordings are made here: tones with the harmonics of a voice that come and go, noise, silence, and sentences. The
weights are read from the package's safetensors, ONNX and TorchScript files.
"""

import itertools
import json
import math
import shutil
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

import numpy as np
import silero_vad
import torch
from safetensors.torch import load_file
from silero_vad.utils_vad import get_speech_timestamps_from_probs

torch.set_num_threads(1)
binary, seed = sys.argv[1], int((sys.argv[2:] or [7])[0])
data = Path(silero_vad.__file__).parent / "data"
random = np.random.default_rng(seed)
checks = 0
RATE = 16000


def check(what, good):
    global checks
    checks += 1
    if not good:
        sys.exit(f"FAILED: {what}")


def voice(seconds, rate):
    """A voice without words: a pitch that wanders, formants that change, and pauses."""
    time = np.arange(int(seconds * rate)) / rate
    pitch = 110 + 40 * np.sin(2 * math.pi * 0.7 * time + random.uniform(0, 6)) + 20 * random.standard_normal()
    phase = 2 * math.pi * np.cumsum(pitch) / rate
    formants = [(500 + 200 * np.sin(2 * math.pi * 3 * time), 120), (1500 + 500 * np.sin(2 * math.pi * 2.3 * time), 200), (2500, 250)]
    out = np.zeros_like(time)
    for harmonic in range(1, 30):
        strength = sum(np.exp(-(((harmonic * pitch - centre) / width) ** 2)) for centre, width in formants)
        out += np.where(harmonic * pitch < rate / 2, strength, 0) * np.sin(harmonic * phase)
    syllables = np.clip(1.5 * np.sin(2 * math.pi * 4 * time), 0, 1)
    out *= syllables * (np.sin(2 * math.pi * time / random.uniform(2, 4)) > -0.3)
    return 0.3 * out / max(np.abs(out).max(), 1e-9)


def spoken(directory):
    """Sentences, if something here can speak."""
    if not shutil.which("espeak-ng"):
        print("espeak-ng is not there: no sentences")
        return
    sentences = ["The quick brown fox jumps over the lazy dog.", "Weights are read once. ... ... Then they are gone!"]
    for number, (sentence, speed) in enumerate(itertools.product(sentences, [120, 220])):
        file = directory / f"said-{number}.wav"
        subprocess.run(["espeak-ng", "-s", str(speed), "-w", file, sentence], check=True)
        with wave.open(str(file)) as stream:
            rate, values = stream.getframerate(), np.frombuffer(stream.readframes(1 << 30), np.int16) / 32768
        at = np.arange(0, len(values) - 1, rate / RATE)
        values = np.interp(at, np.arange(len(values)), values)
        silence = np.zeros(int(RATE * random.uniform(0.2, 1.5)))
        yield f"said {number}", np.concatenate([silence, values, silence, values]), RATE


def recordings(directory):
    yield "nothing", np.zeros(0), RATE
    yield "short", 0.1 * random.standard_normal(100), RATE
    yield "silence", np.zeros(RATE), RATE
    yield "noise", 0.2 * random.standard_normal(3 * RATE), RATE
    for number in range(6):
        rate = [RATE, 2 * RATE, 3 * RATE][number % 3]
        yield f"voice {number}", voice(random.uniform(2, 9), rate) + 0.003 * random.standard_normal(), rate
    yield from spoken(directory)


def write(file, values, rate, channels):
    with wave.open(str(file), "wb") as stream:
        stream.setnchannels(channels)
        stream.setsampwidth(2)
        stream.setframerate(rate)
        values = np.clip(np.round(values * 32767), -32768, 32767).astype("<i2")
        stream.writeframes(np.repeat(values[:, None], channels, 1).tobytes())
    return values.astype(np.float32) / 32768


def run(*arguments):
    return subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True)


def probabilities(model, audio):
    model.reset_states()
    frames = [audio[at : at + 512] for at in range(0, len(audio), 512)]
    return [model(torch.nn.functional.pad(torch.tensor(f), (0, 512 - len(f))), RATE).item() for f in frames]


def with_weights(file):
    """The package's model with the weights of its safetensors file, which are of another training."""
    model = silero_vad.load_silero_vad()
    names = {"stft_conv.weight": "stft.forward_basis_buffer"}
    for n in range(4):
        names |= {f"conv{n + 1}.{part}": f"encoder.{n}.reparam_conv.{part}" for part in ["weight", "bias"]}
    names |= {f"lstm_cell.{kind}_{of}": f"decoder.rnn.{kind}_{of}" for kind in ["weight", "bias"] for of in ["ih", "hh"]}
    names |= {f"final_conv.{part}": f"decoder.decoder.2.{part}" for part in ["weight", "bias"]}
    state = model.state_dict()
    state |= {f"_model.{names[name]}": tensor for name, tensor in load_file(file).items()}
    model.load_state_dict(state)
    return model


def main():
    weights = [data / "silero_vad_16k.safetensors", data / "silero_vad_16k_op15.onnx", data / "silero_vad.jit"]
    packaged = silero_vad.load_silero_vad()
    models = [with_weights(weights[0]), packaged, packaged]
    rules = [
        {},
        {"threshold": 0.3, "min_speech": 50, "min_silence": 30, "pad": 0},
        {"threshold": 0.7, "min_silence": 400, "pad": 200},
        {"max_speech": 1, "min_silence": 300},
    ]
    with tempfile.TemporaryDirectory() as directory:
        directory, found, furthest = Path(directory), 0, 0
        for number, (name, values, rate) in enumerate(recordings(directory)):
            file = directory / "recording.wav"
            audio = write(file, values, rate, 1 + number % 2)[:: rate // RATE]
            model, file_of_weights = models[number % 3], weights[number % 3]
            expected = probabilities(model, audio)
            for rule in rules:
                options = [text for key, value in rule.items() for text in (f"--{key.replace('_', '-')}", value)]
                done = run("--model", file_of_weights, "--json", *options, file)
                check(f"{name}: {done.stderr}", done.returncode == 0)
                answer = json.loads(done.stdout)
                check(f"{name}: frames", len(answer["probabilities"]) == len(expected))
                apart = max((abs(a - b) for a, b in zip(answer["probabilities"], expected)), default=0)
                furthest = max(furthest, apart)
                check(f"{name}: {apart} apart", apart < 1e-4)
                # Of the same probabilities, so that one that lies on a threshold is no difference.
                segments = get_speech_timestamps_from_probs(
                    answer["probabilities"],
                    threshold=rule.get("threshold", 0.5),
                    min_speech_duration_ms=rule.get("min_speech", 250),
                    min_silence_duration_ms=rule.get("min_silence", 100),
                    speech_pad_ms=rule.get("pad", 30),
                    max_speech_duration_s=rule.get("max_speech", math.inf),
                    audio_length_samples=len(audio),
                    step=rate // RATE,
                )
                check(f"{name} {rule}: {answer['segments']}, expected {segments}", answer["segments"] == segments)
                found += len(segments)
            whole = silero_vad.get_speech_timestamps(torch.tensor(audio), model)
            here = json.loads(run("--model", file_of_weights, "--json", file).stdout)["segments"]
            scaled = [{key: value // (rate // RATE) for key, value in segment.items()} for segment in here]
            check(f"{name}: {scaled}, the package {whole}", scaled == whole)
        check("nothing was speech", found > 10)
        write(file, np.zeros(100), 22050, 1)
        done = run("--model", weights[0], file)
        check(f"another rate: {done.stderr}", done.returncode == 1 and "22050" in done.stderr and done.stderr.count("\n") == 1)
        done = run("--model", data / "silero_vad_half.onnx", file)
        check(f"another model: {done.stderr}", done.returncode == 1 and done.stderr.count("\n") == 1)
    print(f"{checks} checks passed: {found} segments, probabilities at most {furthest:.1e} apart (silero-vad {silero_vad.__version__})")


main()
