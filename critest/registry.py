#!/usr/bin/env python3
"""A registry on loopback with every image that critest pulls, made from this machine's busybox-static.

usage: registry.py PORT_FILE CERTS_DIR

Serves on 127.0.0.1 with a free port, writes the port to PORT_FILE once it listens, and writes hosts.toml files below
CERTS_DIR that make it the mirror of registry.k8s.io, gcr.io and k8s.gcr.io. Ends with its parent. Images with the same
content in several tags share one manifest, as critest expects of its tags.
"""

import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import pathlib
import shutil
import struct
import sys
import tarfile
import threading

MIRRORED = ["registry.k8s.io", "gcr.io", "k8s.gcr.io"]
STAGING = "k8s-staging-cri-tools/"
E2E = "e2e-test-images/"
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)

# What the specs call and Debian's busybox-static is built without.
SCRIPTS = {
    "pgrep": """#!/bin/sh
for process in /proc/[0-9]*; do
    read -r name 2>/dev/null <"$process/comm" || continue
    case $name in *"$1"*) echo "${process##*/}"; found=yes ;; esac
done
[ "$found" = yes ]
""",
}
# A script's process is named after the script, so `pidof nginx` finds it; its arguments are nginx's title.
NGINX = """#!/bin/sh
echo $$ >/var/run/nginx.pid
httpd -f -p 80 -h /www &
trap 'kill $!; exit 0' TERM INT QUIT
wait
"""
# The number of every shared memory segment, for x86-64: shmctl(SHM_INFO) for the highest index, then write() of what
# shmctl(SHM_STAT) says is at each, from there to 0. Not a script: gVisor has the calls and no /proc/sysvipc.
IPCS = (
    bytes.fromhex("4881ec00010000 31ff be0e000000 4889e2 b81f000000 0f05 89c3 85db 784f 89df be0d000000 4889e2 b81f000000 0f05")
    + bytes.fromhex("ffcb 85c0 78e5 4c8d8424f0000000 4c89c6 c6060a b90a000000 31d2 f7f1 80c230 48ffce 8816 85c0 75f0")
    + bytes.fromhex("498d5001 4829f2 bf01000000 b801000000 0f05 ebad 31ff b83c000000 0f05")
)
# geteuid(), then one of two texts, for x86-64: a setuid program has to be a binary, and busybox gives the id up.
EFFECTIVE_UID = (
    bytes.fromhex("b86b000000 0f05 85c0 488d3528000000 ba11000000 740c 488d352b000000 ba14000000")
    + bytes.fromhex("b801000000 bf01000000 0f05 b83c000000 31ff 0f05")
    + b"Effective uid: 0\nEffective uid: 1000\n"
)

blobs = {}  # digest -> bytes
manifests = {}  # (repository, tag or digest) -> digest


def put(data):
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    blobs[digest] = data
    return digest


def tar_of(entries):
    """A layer from (name, kind, payload, mode, uid, gid); always the same bytes for the same entries."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, payload, mode, uid, gid in entries:
            info = tarfile.TarInfo(name)
            info.mode, info.uid, info.gid = mode, uid, gid
            if kind == "dir":
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            elif kind == "link":
                info.type, info.linkname = tarfile.LNKTYPE, payload
                tar.addfile(info)
            else:
                info.size = len(payload)
                tar.addfile(info, io.BytesIO(payload))
    return out.getvalue()


def busybox_entries():
    busybox = shutil.which("busybox") or sys.exit("busybox is missing; install the package busybox-static")
    entries = [(d, "dir", None, 0o755, 0, 0) for d in ["bin", "etc", "dev", "proc", "sys", "root", "var", "var/www", "usr", "usr/bin", "usr/sbin"]]
    entries += [("tmp", "dir", None, 0o1777, 0, 0)]
    program = pathlib.Path(busybox).read_bytes()
    entries.append(("bin/busybox", "file", program, 0o755, 0, 0))
    # Debian's busybox-static is its shell's own ls, so one that is masked in the file system would never be looked at. This
    # copy of the shell knows no applet of that name ("lr" keeps the sorted table sorted) and searches PATH.
    shell = program.replace(b"\0ls\0", b"\0lr\0")
    if program.count(b"\0ls\0") != 1:
        sys.exit(f"the table of applets was not found in {busybox}")
    entries.append(("bin/sh", "file", shell, 0o755, 0, 0))
    for applet in os.popen(f"{busybox} --list").read().split():
        if applet not in ("busybox", "sh"):
            # A hard link, as in the real image: what masks one applet's path must not mask them all.
            entries.append((f"bin/{applet}", "link", "bin/busybox", 0o755, 0, 0))
    for program, content in [*((name, script.encode()) for name, script in SCRIPTS.items()), ("ipcs", elf(IPCS))]:
        if f"bin/{program}" not in [entry[0] for entry in entries]:
            entries.append((f"bin/{program}", "file", content, 0o755, 0, 0))
    passwd = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/false\ndefault-user:x:1000:1000::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
    group = "root:x:0:\nwww-data:x:33:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\nnobody:x:65534:\n"
    entries.append(("etc/passwd", "file", passwd.encode(), 0o644, 0, 0))
    entries.append(("etc/group", "file", group.encode(), 0o644, 0, 0))
    return entries


def elf(code):
    """The smallest static x86-64 program that runs `code`."""
    base, headers = 0x400000, 64 + 56
    size = headers + len(code)
    header = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + headers, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + code


@functools.cache
def stored_layer(layer):
    """Stores a layer, once for all its images: digest, bytes and diff id."""
    packed = gzip.compress(layer, 6, mtime=0)
    return put(packed), len(packed), "sha256:" + hashlib.sha256(layer).hexdigest()


def image(layers, **config):
    """Stores an image and returns the digest of its manifest."""
    stored = [stored_layer(layer) for layer in layers]
    document = {
        "architecture": ARCH,
        "os": "linux",
        "created": "2020-01-01T00:00:00Z",
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"], **config},
        "rootfs": {"type": "layers", "diff_ids": [diff for _, _, diff in stored]},
    }
    config_bytes = json.dumps(document).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": put(config_bytes), "size": len(config_bytes)},
        "layers": [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size}
            for digest, size, _ in stored
        ],
    }
    return put(json.dumps(manifest).encode())


def name(repository, tag, digest):
    manifests[(repository, tag)] = digest
    manifests[(repository, digest)] = digest


def make_images():
    base = tar_of(busybox_entries())
    marker = lambda text: tar_of([("marker", "file", text.encode(), 0o644, 0, 0)])
    name(E2E + "busybox", "1.29-2", image([base]))
    page = tar_of([("www", "dir", None, 0o755, 0, 0), ("www/index.html", "file", b"<h1>Welcome to nginx!</h1>\n", 0o644, 0, 0)])
    web = lambda port: ["httpd", "-f", "-v", "-p", str(port), "-h", "/www"]
    nginx = tar_of([("var/run", "dir", None, 0o755, 0, 0), ("usr/sbin/nginx", "file", NGINX.encode(), 0o755, 0, 0)])
    title = ["nginx", "master process", "daemon off"]
    name(E2E + "nginx", "1.14-2", image([base, page, nginx], Cmd=title, ExposedPorts={"80/tcp": {}}))
    # The log has to name the server.
    name(E2E + "httpd", "2.4.39-4", image([base, page], Cmd=["sh", "-c", "echo httpd starts; exec " + " ".join(web(80))]))
    setuid = tar_of([("nnp", "file", elf(EFFECTIVE_UID), 0o4755, 0, 0)])
    name(E2E + "nonewprivs", "1.3", image([base, setuid], Entrypoint=["/nnp"], Cmd=[]))
    name(STAGING + "hostnet-nginx-" + ARCH, "latest", image([base, page], Cmd=web(12003)))
    pause = tar_of([("pause", "file", b"#!/bin/sh\nexec sleep 1000000\n", 0o755, 0, 0)])
    name("pause", "3.9", image([base, pause], Entrypoint=["/pause"], Cmd=[]))
    for repository, tag in [("test-image-latest", "latest"), ("test-image-tag", "test"), ("test-image-tag", "all")]:
        name(STAGING + repository, tag, image([base, marker(f"{repository}:{tag}")]))
    name(STAGING + "test-image-digest", "latest", image([base, marker("digest")]))
    for number in "123":
        name(STAGING + "test-image-" + number, "latest", image([base, marker(number)]))
        name(STAGING + "test-image-tags", number, image([base, marker("tags")]))
    for suffix, user in [("uid", "1002"), ("username", "www-data"), ("uid-group", "1003:1004"), ("username-group", "www-data:100")]:
        name(STAGING + "test-image-user-" + suffix, "latest", image([base, marker(user)], User=user))
    name(STAGING + "test-image-predefined-group", "latest", image([base, marker("group")], User="1000"))


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer(head=False)

    def answer(self, head):
        path = self.path.split("?")[0]
        body, kind, digest = b"{}", "application/json", None
        parts = path.split("/")
        if path in ("/v2", "/v2/"):
            pass
        elif len(parts) > 4 and parts[-2] == "manifests":
            digest = manifests.get(("/".join(parts[2:-2]), parts[-1]))
            kind = "application/vnd.oci.image.manifest.v1+json"
        elif len(parts) > 4 and parts[-2] == "blobs":
            digest = parts[-1]
            kind = "application/octet-stream"
        if path not in ("/v2", "/v2/"):
            body = blobs.get(digest)
        if body is None:
            body, status = b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}', 404
        else:
            status = 200
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if digest and status == 200:
            self.send_header("Docker-Content-Digest", digest)
        self.end_headers()
        if not head:
            try:
                self.wfile.write(body)
            except ConnectionError:
                pass  # A pull that was cancelled.


def main():
    port_file, certs = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    make_images()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port = server.server_address[1]
    for host in MIRRORED:
        folder = certs / host
        folder.mkdir(parents=True, exist_ok=True)
        text = f'server = "https://{host}"\n[host."http://127.0.0.1:{port}"]\ncapabilities = ["pull", "resolve"]\n'
        (folder / "hosts.toml").write_text(text)
    port_file.write_text(str(port))
    parent = os.getppid()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while os.getppid() == parent:
        threading.Event().wait(1)


if __name__ == "__main__":
    main()
