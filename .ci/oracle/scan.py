"""Holds `weighbridge scan` against CPython's own unpicklers.

    scan.py WEIGHBRIDGE [COUNT] [SEED]

COUNT pickles (200,000 unless given) are made at random: of all opcodes, out of whole objects, and of both with bytes changed.
Three unpicklers read each of them, C over memory, C over a file, and the one in Python, with a `find_class` that only writes
down what is asked for. Whatever any of them asks for must be in the list of `scan`, or the file incomplete.
"""

import copyreg
import io
import json
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import tempfile
import warnings

WEIGHBRIDGE = sys.argv[1]
COUNT = int(sys.argv[2]) if len(sys.argv) > 2 else 200_000
SEED = int(sys.argv[3]) if len(sys.argv) > 3 else random.SystemRandom().randrange(1 << 32)
BATCH = 4_000

# A memo with an index of billions must fail, not take the machine's memory.
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
warnings.simplefilter("ignore")


class Anything:
    """What every global is: it can be called, filled and changed."""

    def __init__(self, *args, **kwargs):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass

    def add(self, item):
        pass

    def __setitem__(self, key, value):
        pass

    def __setstate__(self, state):
        pass


def noted(base):
    class Noted(base):
        def find_class(self, module, name):
            self.asked.append((module, name))
            return Anything

        def persistent_load(self, pid):
            return pid if isinstance(pid, str) else Anything()

    return Noted


C, PYTHON = noted(pickle.Unpickler), noted(pickle._Unpickler)


def asked(data, path):
    """What the three ask for."""
    found = set()
    # What CPython says of buffers that outlive a broken pickle.
    said, sys.stderr = sys.stderr, io.StringIO()
    for base, source in ((C, io.BytesIO(data)), (C, open(path, "rb")), (PYTHON, io.BytesIO(data))):
        with source:
            unpickler = base(source)
            unpickler.asked = []
            try:
                unpickler.load()
            except RecursionError:
                pass
            except Exception:
                pass
            found.update(unpickler.asked)
    sys.stderr = said
    return found


NAMES = [("os", "system"), ("builtins", "eval"), ("collections", "OrderedDict"), ("torch", "FloatStorage"), ("a.b", "C.d"),
         ("posix", "popen"), ("__builtin__", "xrange"), ("é", "ü"), ("numpy", "dtype"), ("my mod", "x")]


class Maker:
    def __init__(self, seed):
        self.random = random.Random(seed)

    def line(self, text):
        return text.encode("utf-8", "surrogatepass") + b"\n"

    def text(self, text):
        """A text by one of the opcodes that have one."""
        r = self.random
        data = text.encode("utf-8")
        kind = r.randrange(9)
        if kind == 0:
            return b"\x8c" + bytes([len(data) % 256]) + data
        if kind == 1:
            return b"X" + struct.pack("<I", len(data)) + data
        if kind == 2:
            return b"\x8d" + struct.pack("<Q", len(data)) + data
        if kind == 3:
            escaped = "".join(c if r.random() < 0.6 and ord(c) < 256 and c != "\\" else
                              (f"\\u{ord(c):04x}" if r.random() < 0.5 else f"\\U{ord(c):08x}") for c in text)
            return b"V" + escaped.encode("latin-1") + b"\n"
        if kind in (4, 5):
            quote = r.choice("'\"")
            escaped = "".join(chr(b) if r.random() < 0.8 and 32 <= b < 127 and chr(b) not in "\\'\"" else
                              r.choice([f"\\x{b:02x}", f"\\{b:03o}"]) for b in data)
            return b"S" + (quote + escaped + quote).encode("latin-1") + b"\n"
        if kind == 6:
            return b"U" + bytes([len(data) % 256]) + data
        if kind == 7:
            return b"T" + struct.pack("<i", len(data)) + data
        return b"X" + struct.pack("<I", len(data)) + data

    def number(self):
        r = self.random
        value = r.choice([0, 1, 2, 7, 10, 255, 256, 1 << 31, 1 << 70, -1, -5])
        text = str(value) if r.random() < 0.6 else r.choice([str(value), hex(value), oct(value), f"{value:_}", f" {value}", f"{value} ", f"+{value}",
                         f"{value}L", f"0{value}", "00", "01", "", "x", f"{value}\0", f"\t{value}\r", "1__0", f"{value:b}"])
        return text

    def index(self):
        r = self.random
        value = r.randrange(4)
        return str(value) if r.random() < 0.6 else r.choice([str(value), f" {value}", f"{value} ", f"+{value}", f"0{value}", f"{value}_0", f"0x{value}", f"-{value}",
                         f"{value}L", str(value)])

    def global_(self):
        r = self.random
        module, name = r.choice(NAMES)
        kind = r.randrange(5)
        if kind == 0:
            return b"c" + self.line(module) + self.line(name)
        if kind == 1:
            return b"(" + self.simple() + b"i" + self.line(module) + self.line(name)
        if kind == 2:
            return self.text(module) + self.text(name) + b"\x93"
        if kind == 3:
            # Through the memo.
            at = r.randrange(3)
            put = r.choice([b"q" + bytes([at]), b"r" + struct.pack("<I", at), f"p{self.index()}\n".encode(), b"\x94"])
            get = r.choice([b"h" + bytes([at]), b"j" + struct.pack("<I", at), f"g{self.index()}\n".encode()])
            return self.text(module) + put + b"0" + self.simple() + r.choice([b"0", b""]) + get + self.text(name) + b"\x93"
        return self.text(module) + self.text(name) + self.simple() + b"0\x93"

    def simple(self):
        r = self.random
        return r.choice([
            lambda: b"N", lambda: b"\x88", lambda: b"\x89", lambda: b"K" + bytes([r.randrange(256)]),
            lambda: b"M" + os.urandom(0) + struct.pack("<H", r.randrange(65536)), lambda: b"J" + struct.pack("<i", r.randrange(-9, 9)),
            lambda: b"I" + self.number().encode() + b"\n", lambda: b"L" + self.number().encode() + b"\n",
            lambda: b"F" + r.choice([b"1.5", b"inf", b"nan", b"1e5", b" 1", b"x", b"1_0"]) + b"\n",
            lambda: b"G" + struct.pack(">d", r.random()), lambda: b"]", lambda: b")", lambda: b"}", lambda: b"\x8f",
            lambda: self.text(r.choice(["a", "os", "system", "b" * 40])), lambda: b"C\x03abc", lambda: b"B\x02\0\0\0ab",
            lambda: b"\x8e\x02\0\0\0\0\0\0\0ab", lambda: b"\x96\x02\0\0\0\0\0\0\0ab", lambda: b"\x8a\x02\x01\x02", lambda: b"\x8b\x01\0\0\0\x05",
            lambda: b"Pid\n",
        ])()

    def piece(self, depth=0):
        r = self.random
        kind = r.randrange(22)
        inner = lambda: self.piece(depth + 1) if depth < 4 else self.simple()
        if kind < 5:
            return self.simple()
        if kind < 8:
            return self.global_()
        return [
            lambda: b"(" + inner() + inner() + b"t", lambda: b"(" + inner() + b"l", lambda: b"(" + self.text("k") + inner() + b"d",
            lambda: b"](" + inner() + inner() + b"e", lambda: b"]" + inner() + b"a", lambda: b"}" + self.text("k") + inner() + b"s",
            lambda: b"}(" + self.text("k") + inner() + b"u", lambda: inner() + b"\x85", lambda: inner() + inner() + b"\x86",
            lambda: inner() + inner() + inner() + b"\x87", lambda: self.global_() + b")R", lambda: self.global_() + inner() + b"\x85R",
            lambda: self.global_() + b")\x81" + b"}" + self.text("x") + inner() + b"sb",
            lambda: b"(" + self.global_() + inner() + b"o",
        ][kind - 8]()

    def random_pickle(self):
        r = self.random
        body = b"".join(self.piece() + (b"0" if r.random() < 0.7 else b"") for _ in range(r.randrange(1, 6)))
        for _ in range(r.choice([0] * 12 + [1, 2, 4])):
            # Anything, anywhere.
            at = r.randrange(len(body) + 1)
            body = body[:at] + bytes([r.choice(b"(0122NQ.RboatudesglcipVSUTX\x80\x81\x82\x83\x84\x85\x93\x94\x95\x97\x98")]) + body[at:]
        head = r.choice([b"", b"\x80\x02", b"\x80\x04", b"\x80\x05", b"\x80\x03"])
        return head + self.framed(body + r.choice([b"N."] * 8 + [b".", b"0.", b""]))

    def framed(self, body):
        r = self.random
        kind = r.randrange(9)
        if kind < 5:
            return body
        if kind < 7:
            return b"\x95" + struct.pack("<Q", len(body)) + body
        # Frames that end where they should not, and frames in frames.
        cut = r.randrange(len(body) + 1)
        first, second = body[:cut], body[cut:]
        if kind == 7:
            return (b"\x95" + struct.pack("<Q", len(first) + r.choice([0, 0, 0, 1, -1]) & (1 << 64) - 1) + first
                    + b"\x95" + struct.pack("<Q", len(second)) + second)
        return b"\x95" + struct.pack("<Q", max(0, cut + r.randrange(-8, 8))) + body

    def whole(self):
        r = self.random
        value = {"a": [1, 2.5, "text", b"bytes", None, (True, {3, 4}), frozenset([5])], "b": {"n": list(range(r.randrange(40)))},
                 "o": __import__("collections").OrderedDict(x=1), "c": r.choice([complex(1, 2), slice(1, 2), range(3), 10**30]),
                 "t": "t" * r.choice([1, 300, 70_000]), "x": r.choice([os.getcwd, len, Exception("e"), copyreg.pickle])}
        return pickle.dumps(value, r.randrange(6))

    def mutated(self, data):
        r = self.random
        data = bytearray(data)
        for _ in range(r.choice([1, 1, 2, 3, 8])):
            at = r.randrange(len(data)) if data else 0
            kind = r.randrange(5)
            if kind == 0 and data:
                data[at] = r.randrange(256)
            elif kind == 1:
                data[at:at] = bytes([r.randrange(256)])
            elif kind == 2 and data:
                del data[at]
            elif kind == 3 and data:
                data[at] ^= 1 << r.randrange(8)
            else:
                end = min(len(data), at + r.randrange(12))
                to = r.randrange(len(data) + 1)
                data[to:to] = data[at:end]
        return bytes(data)

    def any(self):
        kind = self.random.randrange(10)
        if kind < 6:
            return self.random_pickle()
        if kind < 8:
            return self.mutated(self.random_pickle())
        return self.mutated(self.whole())


def main():
    maker = Maker(SEED)
    done = complete = missing = imports = 0
    with tempfile.TemporaryDirectory() as directory:
        while done < COUNT:
            size = min(BATCH, COUNT - done)
            wanted = {}
            for number in range(size):
                data = maker.any()
                path = os.path.join(directory, f"{number}.pkl")
                with open(path, "wb") as file:
                    file.write(data)
                wanted[path] = (data, asked(data, path))
            run = subprocess.run([WEIGHBRIDGE, "scan", "--format", "json", directory], capture_output=True)
            if run.returncode != 1:
                sys.exit(f"scan.py: seed {SEED}: exit status {run.returncode}: {run.stderr[-500:]}")
            files = json.loads(run.stdout)["files"]
            assert len(files) == size, (len(files), size)
            for file in files:
                data, names = wanted[file["path"]]
                listed = {(g["module"], g["name"]) for p in file["pickles"] for g in p["globals"]}
                imports += bool(names)
                if not file["complete"]:
                    continue
                complete += 1
                computed = ("", "a name that is computed") in listed
                if not computed and not names <= listed:
                    missing += 1
                    if missing <= 10:
                        print(f"missing {sorted(names - listed)} in {data!r}, of which scan says {file['verdict']}")
            for path in wanted:
                os.unlink(path)
            done += size
    print(f"scan: {done} pickles of seed {SEED}, {imports} import something, {complete} are complete")
    assert complete > done // 10, "hardly anything was followed to its end"
    assert imports > done // 4, "hardly anything imports"
    print(f"{done - missing} passed, {missing} failed")
    sys.exit(missing > 0)


main()
