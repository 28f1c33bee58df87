"""Holds the cache of remote files against huggingface_hub: it loads what we fill, offline, and we read what it fills.

    hub_cache.py PATH_OF_HUB_CACHE
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import checks
import numpy as np
from checks import check, done
from safetensors.numpy import save_file

MAIN, PULL = "1" * 40, "2" * 40
REVISIONS = {"main": MAIN, "refs/pr/1": PULL, MAIN: MAIN, PULL: PULL}
REPO = "org/tiny"


def git(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def make_files(directory, seed):
    """A model of a few files, as a directory and as a dictionary."""
    chance = np.random.default_rng(seed)
    (directory / "onnx" / "deep").mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"seed": seed}))
    (directory / "same.json").write_text("{}")
    (directory / "empty.txt").write_text("")
    (directory / "onnx" / "deep" / "config.json").write_text("[]")
    save_file({"w": chance.normal(size=(300, 1000)).astype("f4")}, directory / "model.safetensors")
    save_file({"v": np.arange(7, dtype="i8") + seed}, directory / "onnx" / "small.safetensors")
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as huggingface_hub asks for."""

    commits, requests = {}, []

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        headers.setdefault("Content-Length", len(body))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.requests.append((self.command, path))
        if path.startswith(f"/api/models/{REPO}/revision/"):
            commit = REVISIONS[path.split("/revision/")[1]]
            siblings = [{"rfilename": name} for name in self.commits[commit]]
            body = json.dumps({"id": REPO, "sha": commit, "siblings": siblings}).encode()
            return self.answer(200, body, Content_Type="application/json")
        if path.startswith(f"/api/models/{REPO}/tree/"):
            files = [self.entry(name, content) for name, content in self.commits[path.split("/tree/")[1]].items()]
            return self.answer(200, json.dumps(files).encode(), Content_Type="application/json")
        revision, name = next(
            (revision, path.split(f"/resolve/{revision}/", 1)[1]) for revision in REVISIONS if f"/resolve/{revision}/" in path
        )
        commit = REVISIONS[revision]
        content = self.commits[commit].get(name)
        if content is None:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        etag = sha256(content) if name.endswith(".safetensors") else git(content)
        if self.command == "GET" and name == "model.safetensors":
            time.sleep(0.3)
        self.answer(200, content, X_Repo_Commit=commit, ETag=f'"{etag}"', Accept_Ranges="bytes")

    do_HEAD = do_GET

    @staticmethod
    def entry(name, content):
        entry = {"type": "file", "path": name, "size": len(content), "oid": git(content)}
        if name.endswith(".safetensors"):
            entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
        return entry

    def log_message(self, *_):
        pass


PYTHON = """
import json, sys
from pathlib import Path
from huggingface_hub import _CACHED_NO_EXIST, get_cached_repo_tree, hf_hub_download, scan_cache_dir
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub._tree_cache import read_tree_cache
from huggingface_hub.errors import EntryNotFoundError
repo, = sys.argv[1:2]
"""


def start(cache, script, endpoint=None):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    environment |= {"HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_ENDPOINT": endpoint} if endpoint else {"HF_HUB_OFFLINE": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", PYTHON + script, REPO], env=environment, **pipes)


def end(process):
    out, errors = process.communicate()
    check(errors, process.returncode == 0)
    return json.loads(out) if out else None


def python(cache, script, endpoint=None):
    return end(start(cache, script, endpoint))


SCAN = """
info = scan_cache_dir()
print(json.dumps([[str(warning) for warning in info.warnings], sorted(
    [repo.repo_id, revision.commit_hash, sorted(revision.refs), revision.size_on_disk,
     sorted([f.file_path.relative_to(revision.snapshot_path).as_posix(), f.size_on_disk] for f in revision.files)]
    for repo in info.repos for revision in repo.revisions)]))
"""


def agree_on_list(what, cache):
    warnings, theirs = python(cache, SCAN)
    check(f"{what}: {warnings}", warnings == [])
    ours = [
        [repo["id"], revision["commit"], sorted(revision["refs"]), revision["size"], sorted(revision["files"])]
        for repo in json.loads(done("list", cache).stdout) for revision in repo["revisions"]
    ]
    check(f"{what}: list: {ours} {theirs}", sorted(ours) == theirs)
    check(f"{what}: verify", done("verify", cache).stdout == "")


def show(cache, revision, names):
    return json.loads(done("show", cache, "model", REPO, revision, *names).stdout)


def agree_on_files(what, cache, revision, files):
    shown = show(cache, revision, [*files, "absent.json", "adapter_config.json"])
    check(f"{what}: commit", shown["commit"] == REVISIONS[revision])
    for name, content in files.items():
        check(f"{what}: {name}", shown["files"][name] == sha256(content))
    return shown


LOAD = """
found = {}
for name in NAMES:
    path = hf_hub_download(repo, name, revision=REVISION)
    found[name] = Path(path).read_bytes().hex()
snapshot = Path(snapshot_download(repo, revision=REVISION))
listed = sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())
entries = read_tree_cache(str(snapshot.parents[1]), snapshot.name)
tree = {path: [entry.size, entry.lfs_sha256 or entry.blob_id] for path, entry in entries.items()}
assert sorted(tree) == sorted(file.path for file in get_cached_repo_tree(repo, revision=REVISION))
absent = try_to_load_from_cache(repo, "adapter_config.json", revision=REVISION) is _CACHED_NO_EXIST
print(json.dumps([found, listed, tree, absent]))
"""


def load_with_python(what, cache, revision, files, endpoint=None):
    script = LOAD.replace("NAMES", repr(list(files))).replace("REVISION", repr(revision))
    found, listed, tree, absent = python(cache, script, endpoint)
    for name, content in files.items():
        check(f"{what}: {name}", bytes.fromhex(found[name]) == content)
        check(f"{what}: tree of {name}: {tree.get(name)}", tree[name] == [len(content), sha256(content) if name.endswith(".safetensors") else git(content)])
    check(f"{what}: snapshot {listed}", listed == sorted(files))
    return absent


def what_we_fill(root, sources):
    cache = root / "ours"
    for revision in ["main", "refs/pr/1"]:
        done("fill", cache, "model", REPO, revision, REVISIONS[revision], sources[REVISIONS[revision]])
    # Files that are not complete, of a process that was killed, disturb nobody.
    process = subprocess.Popen([sys.argv[1], "fetch", cache, "3000000", "5"], stdout=subprocess.PIPE)
    process.stdout.readline()
    time.sleep(0.5)
    process.kill()
    process.wait()
    check("partial", list((cache / "models--org--name" / ".weighbridge").glob("*.journal")))
    for revision in ["main", "refs/pr/1"]:
        absent = load_with_python(f"ours, {revision}", cache, revision, Hub.commits[REVISIONS[revision]])
        check("absent", absent)
    agree_on_list("ours", cache)
    return cache


def what_they_fill(root, endpoint):
    cache = root / "theirs"
    missing = """
try:
    hf_hub_download(repo, "adapter_config.json", revision=REVISION)
except EntryNotFoundError:
    pass
"""
    for revision in ["main", "refs/pr/1"]:
        files = Hub.commits[REVISIONS[revision]]
        python(cache, missing.replace("REVISION", repr(revision)), endpoint)
        load_with_python(f"theirs, {revision}", cache, revision, files, endpoint)
        shown = agree_on_files(f"theirs, {revision}", cache, revision, files)
        check("absent", shown["files"]["adapter_config.json"] == "absent" and shown["files"]["absent.json"] is None)
        expected = {
            name: [len(content), sha256(content) if name.endswith(".safetensors") else git(content)] for name, content in files.items()
        }
        check("tree", shown["tree"] == expected)
    agree_on_list("theirs", cache)
    return cache


def both_at_once(root, sources, endpoint):
    for attempt in range(5):
        cache = root / f"both{attempt}"
        ours = [
            subprocess.Popen([sys.argv[1], "fill", cache, "model", REPO, "main", MAIN, sources[MAIN]], stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        script = "snapshot_download(repo, revision='main')"
        theirs = [start(cache, script, endpoint) for _ in range(2)]
        for process in ours:
            _, errors = process.communicate()
            check(errors, process.returncode == 0)
        for process in theirs:
            end(process)
        agree_on_files("both", cache, "main", Hub.commits[MAIN])
        load_with_python("both", cache, "main", Hub.commits[MAIN])
        agree_on_list("both", cache)
        blobs = sorted(path.name for path in (cache / "models--org--tiny" / "blobs").iterdir())
        contents = Hub.commits[MAIN].items()
        expected = {sha256(content) if name.endswith(".safetensors") else git(content) for name, content in contents}
        check(f"blobs {blobs}", blobs == sorted(expected))


def the_shared_store(cache):
    """Their own function moves a blob into the store for all repositories, and leaves a link."""
    name, xet = "model.safetensors", "ab" * 32
    content = Hub.commits[MAIN][name]
    blob = cache / "models--org--tiny" / "blobs" / sha256(content)
    publish = f"""
from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store
print(json.dumps(publish_blob_to_shared_store(
    blob_path={str(blob)!r}, xet_hash={xet!r}, cache_dir={str(cache)!r}, expected_size={len(content)})))
"""
    check("published", python(cache, publish) is True and blob.is_symlink())
    stored = cache / "blobs" / "ab" / xet
    agree_on_files("shared", cache, "main", Hub.commits[MAIN])
    agree_on_list("shared", cache)
    before = stored.read_bytes()
    # What is pruned is the commit that no ref names; of the store nothing, while a link is left.
    (cache / "models--org--tiny" / "refs" / "refs" / "pr" / "1").unlink()
    check("pruned", json.loads(done("prune", cache).stdout)["bytes"] > 0)
    check("store", stored.read_bytes() == before)
    load_with_python("pruned", cache, "main", Hub.commits[MAIN])
    agree_on_list("pruned", cache)
    (cache / "models--org--tiny" / "refs" / "main").unlink()
    done("prune", cache)
    check("store is swept", not stored.exists() and not stored.with_name(f"{xet}.refs").exists())
    check("warnings", python(cache, SCAN)[0] == [])


def main():
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        sources = {MAIN: root / "main", PULL: root / "pull"}
        Hub.commits = {commit: make_files(path, seed) for seed, (commit, path) in enumerate(sources.items())}
        server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"

        ours = what_we_fill(root, sources)
        # With a network, they ask for nothing but what the revision is.
        Hub.requests.clear()
        python(ours, "snapshot_download(repo, revision='main')", endpoint)
        check(f"requests {Hub.requests}", [path for _, path in Hub.requests] == [f"/api/models/{REPO}/revision/main"])
        theirs = what_they_fill(root, endpoint)
        both_at_once(root, sources, endpoint)
        the_shared_store(theirs)
        the_shared_store(ours)
        server.shutdown()
    print(f"hub_cache: {checks.count} checks")


main()
