"""Python's loaders on safetensors files: what `peers --python PYTHON` measures beside us.

    python benches/python_peers.py --list
    python benches/python_peers.py --measure safetensors-mmap model.safetensors
    python benches/python_peers.py --repeat 5 model.safetensors

The last measures each loader in a process of its own, and prints the medians as JSON. Imports are not measured, nor is
the memory that Python and torch have before a loader begins.
"""

import argparse
import importlib.metadata
import json
import statistics
import subprocess
import sys
import time


def touch(tensors):
    """Reads one byte of each page: a mapped tensor is not in memory before."""
    import torch

    for tensor in tensors.values():
        if tensor.numel():
            tensor.flatten().view(torch.uint8)[::4096].max()


def load_file(backend, mapped):
    from safetensors.torch import load_file

    def run(files):
        tensors = {}
        for file in files:
            tensors.update(load_file(file, backend=backend))
        if mapped:
            touch(tensors)
        return tensors

    return run


def safe_open_each():
    from safetensors import safe_open

    def run(files):
        tensors = {}
        for file in files:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():
                    tensors[name] = opened.get_tensor(name)
        touch(tensors)
        return tensors

    return run


def fastsafetensors():
    from fastsafetensors import fastsafe_open

    def run(files):
        with fastsafe_open(filenames=files, nogds=True, device="cpu") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}

    return run


def runai():
    from runai_model_streamer import SafetensorsStreamer

    def run(files):
        tensors = {}
        with SafetensorsStreamer() as streamer:
            streamer.stream_files(files)
            # The streamer uses the memory of what it yields again.
            for name, tensor in streamer.get_tensors():
                tensors[name] = tensor.clone()
        return tensors

    return run


# Name, distribution, title, and what imports the library and gives the loader.
LOADERS = [
    (
        "python-mmap",
        "safetensors",
        "`load_file`, mapped, one byte of each page read",
        lambda: load_file("mmap", True),
    ),
    (
        "python-pread",
        "safetensors",
        '`load_file(backend="pread")`',
        lambda: load_file("pread", False),
    ),
    (
        "python-safe-open",
        "safetensors",
        "`safe_open`, `get_tensor` of each, mapped, one byte of each page read",
        safe_open_each,
    ),
    (
        "python-fastsafetensors",
        "fastsafetensors",
        "`fastsafe_open`, `nogds`",
        fastsafetensors,
    ),
    (
        "python-runai",
        "runai-model-streamer",
        "`SafetensorsStreamer`, `clone` of each",
        runai,
    ),
]


def why_absent(distribution, prepare):
    """None, or why the loader cannot be measured."""
    try:
        importlib.metadata.version(distribution)
        prepare()
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def listed():
    loaders = []
    for name, distribution, title, prepare in LOADERS:
        absent = why_absent(distribution, prepare)
        version = "" if absent else " " + importlib.metadata.version(distribution)
        loaders.append({"name": name, "title": f"Python {distribution}{version}: {title}", "absent": absent})
    return loaders


def labelled(path, label):
    """The number behind a label in a file of /proc, 0 where there is none."""
    try:
        with open(path) as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(label))
    except (OSError, StopIteration):
        return 0


def page_faults():
    with open("/proc/self/stat") as stat:
        fields = stat.read().rsplit(") ", 1)[1].split()
    return int(fields[7]) + int(fields[9])


def measure(prepare, files):
    import torch

    # Whatever torch starts at first use is not the loader's.
    torch.zeros(1 << 20, dtype=torch.bfloat16).max()
    run = prepare()
    try:
        with open("/proc/self/clear_refs", "w") as clear:
            clear.write("5")
    except OSError:
        pass
    counts = lambda: (
        page_faults(),
        labelled("/proc/self/io", "rchar:"),
        labelled("/proc/self/io", "read_bytes:"),
    )
    resident = labelled("/proc/self/status", "VmRSS:") * 1024
    before, cpu, start = counts(), time.process_time(), time.perf_counter()
    tensors = run(files)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = labelled("/proc/self/status", "VmHWM:") * 1024
    faults, read, disk = (after - before for after, before in zip(counts(), before))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_bytes": peak - resident,
        "tensor_bytes": size,
        "moved_bytes": size,
        "page_faults": faults,
        "read_call_bytes": read,
        "disk_read_bytes": disk,
    }


def measure_all(files, repeat):
    """Each loader in turn, in processes of their own; the first round fills the page cache."""
    loaders = listed()
    runs = {loader["name"]: [] for loader in loaders if not loader["absent"]}
    for turn in range(repeat + 1):
        for name in runs:
            command = [sys.executable, __file__, "--measure", name, *files]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            if turn:
                runs[name].append(json.loads(out.splitlines()[-1]))
    for loader in loaders:
        if found := runs.get(loader["name"]):
            loader["median"] = {key: statistics.median(run[key] for run in found) for key in found[0]}
    return loaders


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*")
    parser.add_argument("--list", action="store_true", help="the loaders, and why some are absent, as JSON")
    parser.add_argument("--measure", metavar="NAME", help="one loader, once, in this process")
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.list:
        print(json.dumps(listed()))
    elif not arguments.files:
        parser.error("which files?")
    elif arguments.measure:
        prepare = {name: prepare for name, _, _, prepare in LOADERS}[arguments.measure]
        print(json.dumps(measure(prepare, arguments.files)))
    else:
        print(json.dumps(measure_all(arguments.files, arguments.repeat), indent=2))


if __name__ == "__main__":
    main()
