"""What oracles have in common: they run the command that is their first argument, count what they check, and end at the first failure."""

import subprocess
import sys

count = 0


def check(what, good):
    global count
    count += 1
    if not good:
        sys.exit(f"FAILED: {what}")


def run(*args):
    return subprocess.run([sys.argv[1], *map(str, args)], capture_output=True, text=True)


def done(*args):
    """What it says; it has to succeed."""
    ran = run(*args)
    check(f"{args}: {ran.stderr}", ran.returncode == 0)
    return ran
