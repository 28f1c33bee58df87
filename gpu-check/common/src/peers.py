"""Loads a file onto the GPU with a loader of Python, and prints what it took as JSON: LOADER FILE REPEAT."""

import json
import sys
import threading
import time

import torch


def resident():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    kib = {name: int(fields[name].split()[0]) for name in ("VmRSS", "RssFile")}
    return (kib["VmRSS"] - kib["RssFile"]) << 10


def load(loader, file):
    if loader == "safetensors.torch":
        from safetensors.torch import load_file

        return load_file(file, device="cuda:0")
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    files = SafeTensorsFileLoader(SingleGroup(), torch.device("cuda:0"), nogds=True)
    files.add_filenames({0: [file]})
    buffer = files.copy_files_to_device()
    return {name: buffer.get_tensor(name) for name in files.get_keys()}, files, buffer


def main():
    loader, file, repeat = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if loader == "fastsafetensors":
        import fastsafetensors  # noqa: F401
    torch.zeros(1, device="cuda:0")
    torch.cuda.synchronize()
    before, peak, stop = resident(), 0, False

    def watch():
        nonlocal peak
        while not stop:
            peak = max(peak, resident() - before)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    seconds = []
    for _ in range(repeat):
        loaded = None
        start = time.perf_counter()
        loaded = load(loader, file)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    del loaded
    stop = True
    watcher.join()
    print(json.dumps({"seconds": seconds, "memory": peak, "wrong": None}))


main()
