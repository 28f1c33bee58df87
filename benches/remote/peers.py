#!/usr/bin/env python3
"""Loads over a network, ours and those of others, from the same servers over the same links.

    peers.py REMOTE_LOAD REMOTE_PEERS [MIB] [RUNS]

REMOTE_LOAD is the program `remote-load` of weighbridge-tests, REMOTE_PEERS that of `peers/` beside this file; both in release.

A model is served by a hub with a CDN, a web server and an S3 store, over links of 20 ms a request and a cap that all
connections share. Each load is a process of its own, in turns: seconds from the first look-up to the last tensor in memory
(without the start of the interpreter), when the first tensor of 8 MiB was there, processor time, and peak memory. Caches are
empty before.

Needs huggingface_hub, safetensors, torch, runai-model-streamer and runai-model-streamer-s3; what is not there is left out.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FIRST = "layers.0.q.weight"


def with_hub(hub):
    """huggingface_hub's download into its cache, then safetensors' load, as transformers does it."""
    from huggingface_hub import snapshot_download
    from safetensors.torch import load_file

    def load():
        directory = snapshot_download("org/model", endpoint=hub)
        tensors = load_file(Path(directory) / "model.safetensors")
        return time.perf_counter(), sum(float(tensor.view(-1)[0]) * 0 + tensor.nbytes for tensor in tensors.values())

    return load


def with_runai(s3):
    """Run:ai's streamer, tensor by tensor, each cloned out of its buffer."""
    os.environ.update(
        AWS_ENDPOINT_URL=s3,
        AWS_ACCESS_KEY_ID="key",
        AWS_SECRET_ACCESS_KEY="5ecr3t",
        AWS_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true",
        RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING="0",
        RUNAI_STREAMER_CONCURRENCY="16",
    )
    from runai_model_streamer import SafetensorsStreamer

    def load():
        first, tensors = None, {}
        with SafetensorsStreamer() as streamer:
            streamer.stream_file("s3://bucket/model/model.safetensors")
            for name, tensor in streamer.get_tensors():
                tensors[name] = tensor.clone()
                if name == FIRST:
                    first = time.perf_counter()
        return first, sum(tensor.nbytes for tensor in tensors.values())

    return load


def one(peer, address):
    """A load by somebody else, in this process."""
    load = {"huggingface_hub": with_hub, "runai": with_runai}[peer](address)
    started = time.perf_counter()
    first, _ = load()
    print(json.dumps({"seconds": time.perf_counter() - started, "first": first and first - started}))


def run(command, environment):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    out, errors = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        return None, errors.strip().splitlines()[-1:] or ["no word"]
    result = json.loads(out.strip().splitlines()[-1])
    result |= {"cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss * 1024}
    return result, None


def main():
    program, peers = sys.argv[1:3]
    mib, runs = map(int, (sys.argv[3:] + ["280", "5"][len(sys.argv) - 3 :])[:2])
    server = subprocess.Popen([program, "serve", str(mib)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    links = [json.loads(server.stdout.readline()) for _ in range(3)]
    python = [sys.executable, __file__, "--one"]
    print("|link|load|s|of the link|first, ms|processor, s|peak, MiB|\n|---|---|--:|--:|--:|--:|--:|")
    for link in links:
        s3 = {"AWS_ENDPOINT_URL": link["s3"], "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "5ecr3t", "AWS_REGION": "us-east-1"}
        loads = {
            "**weighbridge**, web server": ([program, "load", link["web"]], {}),
            "**weighbridge**, hub, into the cache": ([program, "load", "hf://org/model"], {"HF_ENDPOINT": link["hub"]}),
            "**weighbridge**, S3": ([program, "load", "s3://bucket/model"], s3),
            "hf-hub and Candle": ([peers, "hub"], {"HF_ENDPOINT": link["hub"]}),
            "object_store alone, S3": ([peers, "store"], s3),
            "huggingface_hub and safetensors": ([*python, "huggingface_hub", link["hub"]], {"HF_HUB_DISABLE_XET": "1"}),
            "Run:ai's streamer, S3": ([*python, "runai", link["s3"]], {}),
        }
        results = {name: [] for name in loads}
        for _ in range(runs):
            for name, (command, environment) in loads.items():
                with tempfile.TemporaryDirectory() as home:
                    environment = os.environ | {"HF_HOME": home, "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment
                    result, error = run(command, environment)
                if error:
                    print(f"{name}: {error[0]}", file=sys.stderr)
                    continue
                results[name].append(result)
        cap = link["cap"]
        for name, results in results.items():
            if not results:
                continue
            median = {key: statistics.median(r[key] or 0 for r in results) for key in ["seconds", "first", "cpu", "peak"]}
            share = f"{link['bytes'] / median['seconds'] / cap:.1%}" if cap else "–"
            first = f"{median['first'] * 1e3:.0f}" if median["first"] else "–"
            title = f"{cap // 10**6} MB/s" if cap else "no cap"
            print(
                f"|{title}|{name}|{median['seconds']:.2f}|{share}|{first}|{median['cpu']:.2f}|"
                f"{median['peak'] / 2**20:.0f}|",
                flush=True,
            )
    server.stdin.close()
    server.wait()


if sys.argv[1:2] == ["--one"]:
    one(*sys.argv[2:])
else:
    main()
