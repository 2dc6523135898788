#!/usr/bin/env bash
# Installs what building and testing need from Debian's or Ubuntu's packages, as far as it is missing. The one thing
# expected on a bare machine is a Rust toolchain. Does nothing, and needs no privilege, when everything is there.
set -euo pipefail

missing=()
need() { # PACKAGE TEST…: the package is missing when the test fails.
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

# Building: the C compiler links, and compiles the C parts of zstd and ring.
need gcc command -v cc
need libc6-dev test -e /usr/include/stdio.h
need make command -v make
# Tests and demo: an image, a second OCI runtime, real CNI plugins, and tools to look at what is left behind.
need busybox-static sh -c 'command -v busybox && ! ldd "$(command -v busybox)"'
need runc command -v runc
need containernetworking-plugins sh -c 'test -x /usr/lib/cni/bridge || test -x /opt/cni/bin/bridge'
need nftables sh -c 'PATH=$PATH:/usr/sbin:/sbin command -v nft'
need iproute2 sh -c 'PATH=$PATH:/usr/sbin:/sbin command -v ip'
need util-linux command -v unshare
need procps command -v ps
# Sessions in a real terminal.
need tmux command -v tmux
# The published CRI types of the compatibility tests are compiled with protoc; our own are not.
need protobuf-compiler command -v protoc
need ca-certificates test -s /etc/ssl/certs/ca-certificates.crt

command -v cargo >/dev/null || { echo "setup: no cargo; install a Rust toolchain first: https://rustup.rs" >&2; exit 1; }

# gVisor, for the tests and the isolation table of its handler. Debian 12 has it; elsewhere they leave it out. The newer
# one of bookworm-backports panics when a task blocks.
if ! command -v runsc >/dev/null && grep -qs '^VERSION_ID="12"' /etc/os-release && grep -qs '^ID=debian' /etc/os-release; then
    missing+=(runsc/bookworm)
fi

if [ ${#missing[@]} -gt 0 ]; then
    echo "setup: installing ${missing[*]}"
    command -v apt-get >/dev/null || { echo "setup: no apt-get; install these yourself: ${missing[*]}" >&2; exit 1; }
    sudo=()
    [ "$(id -u)" -eq 0 ] || sudo=(sudo)
    export DEBIAN_FRONTEND=noninteractive
    "${sudo[@]}" apt-get update -q
    "${sudo[@]}" apt-get install -q -y --no-install-recommends "${missing[@]}"
fi
