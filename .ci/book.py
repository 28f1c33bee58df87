#!/usr/bin/env python3
"""Run every command of the book, and compare what it prints with what the book shows.

    python book.py [--bin DIR]... [--update] [--all] [PAGE ...]

A block of commands and their output is fenced as ```console: lines that begin with "$ " are commands ("> " continues one), the others are
what they print.  Each page runs in a directory of its own that shows the checkout, so that commands leave nothing there.  Programs are taken from the directories of --bin, and `cargo run --release -p NAME -- ...` from there,
too.  A page's comment <!-- run: COMMAND --> is a command that readers do not see.

Blocks whose program is not in --bin are skipped, and named; with --all that is a failure.  Durations and speeds, which differ from run to
run, may differ.  --update writes what was printed into the pages.

Exits with 0 only if everything that ran printed what the book says.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "docs/book/src"
TIMEOUT = 300  # seconds for one command
# What a run may print otherwise than the last one: times, speeds, and columns that only align them.
VOLATILE = re.compile(r"\d+(\.\d+)? ?(ms|s|GB/s|MB/s|kB/s|tokens/s|%/s)\b")
CARGO = """#!/usr/bin/env bash
# `cargo run --release -p NAME [--features F] -- ARGUMENTS`, as it was built before.
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    [ "$1" = -p ] && name=$2
    shift
done
[ $# -gt 0 ] && shift
exec "$name" "$@"
"""


def blocks(text: str):
    """The parts of a page: (kind, text), where kind is "text", "console" or "hidden"; joined they are the page."""
    at = 0
    for found in re.finditer(r"^```console\n(.*?)^```$|^<!-- run: (.*?) -->$", text, re.S | re.M):
        console = found.group(1) is not None
        start, end = found.span(1 if console else 2)
        yield "text", text[at:start]
        yield ("console" if console else "hidden"), text[start:end]
        at = end
    yield "text", text[at:]


def commands(block: str):
    """The commands of a block, each with what the book says that it prints."""
    command, said = None, []
    for line in block.splitlines():
        if line.startswith("$ "):
            if command is not None:
                yield command, said
            command, said = line[2:], []
        elif line.startswith("> ") and not said and command is not None and command.endswith("\\"):
            command += "\n" + line[2:]
        else:
            said.append(line)
    if command is not None:
        yield command, said


def program(command: str) -> str | None:
    """The program of ours that a command needs."""
    if found := re.search(r"\bcargo run\b.*? -p ([\w-]+)", command):
        return found.group(1)
    first = command.split()[0]
    return first if first == "weighbridge" else None


class Page:
    def __init__(self, path: Path, bins: list[Path]):
        self.path, self.bins = path, bins
        self.directory = Path(tempfile.mkdtemp(prefix="weighbridge-book-"))
        tools = self.directory / ".bin"
        tools.mkdir()
        (tools / "cargo").write_text(CARGO)
        (tools / "cargo").chmod(0o755)
        for name in ("samples", "crates", "tests", "examples", "docs"):
            (self.directory / name).symlink_to(ROOT / name)
        self.environment = {
            "PATH": os.pathsep.join([str(tools), *map(str, bins), os.environ["PATH"]]),
            "HOME": str(self.directory / ".home"), "TMPDIR": os.environ.get("TMPDIR", "/tmp"), "LC_ALL": "C.UTF-8",
            "NO_COLOR": "1", "COLUMNS": "100", "HF_HUB_OFFLINE": "1",
        }

    def has(self, name: str) -> bool:
        return any((directory / name).exists() for directory in self.bins)

    def run(self, command: str) -> list[str]:
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.directory, env=self.environment, text=True, timeout=TIMEOUT,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )
        printed = done.stdout.replace(f"{self.directory}/.home", "~").replace(f"{self.directory}/", "").replace(str(ROOT) + "/", "")
        # Examples know the sample by the place that they were built in.
        printed = re.sub(r"/\S*/samples/adder", "samples/adder", printed)
        return [line.rstrip() for line in printed.splitlines()]

    def close(self):
        shutil.rmtree(self.directory)


def same(said: list[str], printed: list[str]) -> bool:
    def plain(lines: list[str]) -> list[str]:
        return [re.sub(r" +", " ", VOLATILE.sub("N", line)).rstrip() for line in lines]
    # A line of dots stands for any number of lines.
    if "..." not in said:
        return plain(said) == plain(printed)
    pattern = "".join(r"(?:.*\n)*" if line == "..." else re.escape(line) + "\n" for line in plain(said))
    return re.fullmatch(pattern, "".join(line + "\n" for line in plain(printed))) is not None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", action="append", type=Path, default=[])
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("pages", nargs="*", type=Path)
    options = parser.parse_args()
    bins = [directory.resolve() for directory in options.bin]
    ran, skipped, failed = 0, [], 0
    for path in options.pages or sorted(BOOK.rglob("*.md")):
        page, whole = Page(path.resolve(), bins), []
        try:
            for kind, text in blocks(path.read_text()):
                if kind == "hidden":
                    page.run(text)
                if kind != "console":
                    whole.append(text)
                    continue
                done = []
                for command, said in commands(text):
                    needs = program(command)
                    if needs and not page.has(needs):
                        skipped.append(f"{path.name}: {command}")
                        printed = said
                    else:
                        ran += 1
                        printed = page.run(command)
                        if same(said, printed):
                            printed = said
                        elif not options.update:
                            failed += 1
                            print(f"FAILED {path.name}: $ {command}\n  the book says:")
                            print("".join(f"    {line}\n" for line in said), "  it prints:\n", sep="", end="")
                            print("".join(f"    {line}\n" for line in printed), end="")
                    done += ["$ " + command.replace("\n", "\n> "), *printed]
                whole.append("".join(line + "\n" for line in done))
        finally:
            page.close()
        if options.update:
            path.write_text("".join(whole))
    for command in skipped:
        print("skipped", command)
    print(f"book: {ran} commands, {failed} failed, {len(skipped)} skipped")
    return 1 if failed or (options.all and skipped) else 0


if __name__ == "__main__":
    sys.exit(main())
