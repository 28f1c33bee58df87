#!/usr/bin/env python3
"""Ctrl-C, typed at a terminal while a large file is written, leaves neither output nor temporary file.

    .ci/interrupt.py COMMAND...     # how weighbridge is run: target/release/weighbridge, or scripts/wine .../weighbridge.exe
"""

import os
import pathlib
import pty
import struct
import sys
import tempfile
import threading
import time

command = [str(pathlib.Path(part).resolve()) if os.path.exists(part) else part for part in sys.argv[1:]]
with tempfile.TemporaryDirectory() as directory:
    os.chdir(directory)
    # Much to cast, and nothing to store: a sparse file.
    size = 8 << 30
    header = f'{{"w":{{"dtype":"F32","shape":[{size // 4}],"data_offsets":[0,{size}]}}}}'.encode()
    with open("m.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)

    child, terminal = pty.fork()
    if child == 0:
        os.execvp(command[0], [*command, "cast", "m.safetensors", "--to", "f8_e4m3", "-o", "out.safetensors"])

    shown = []

    def show():
        try:
            while part := os.read(terminal, 4096):
                shown.append(part)
        except OSError:
            pass  # The other end is closed.

    threading.Thread(target=show, daemon=True).start()
    begun = lambda: any(name.startswith(".out.safetensors.") and os.stat(name).st_size for name in os.listdir())
    until = time.monotonic() + 60
    while not begun() and time.monotonic() < until:
        time.sleep(0.01)
    assert begun(), b"".join(shown)
    os.write(terminal, b"\x03")
    _, status = os.waitpid(child, 0)
    code, left = os.waitstatus_to_exitcode(status), sorted(os.listdir())
    assert code == 130, (code, b"".join(shown))
    assert left == ["m.safetensors"], left
print("interrupted: status 130, and nothing is left")
