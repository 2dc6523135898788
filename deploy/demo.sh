#!/usr/bin/env bash
# `make demo [IMAGE=name]`: the main job from an image to nothing left behind, on a private brigd with embedded defaults.
#
# Everything happens in a mount, IPC and network namespace of its own and in a tmpfs that goes with it; the host's
# interfaces, firewall, sysctls, mounts and /run stay as they are. Without IMAGE no network is needed: the machine's own
# static busybox is made into an OCI image with tar and sha256sum.
#
# The script calls itself three times, once per layer of namespaces: host → mounts (pull) → network (pods).
set -euo pipefail
self=$(realpath "$0")
dist=$(realpath "$(dirname "$0")/../target/dist")
export PATH=$dist:$PATH:/usr/sbin:/sbin

title() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
show() { # COMMAND…: prints it as one would type it, then runs it.
    printf '\033[36m$ %s\033[0m\n' "$*"
    "$@"
}

# Starts brigd and waits until it answers; the pid is in $brigd.
start_brigd() {
    brigd --config "$WORK/brigd.toml" --root "$WORK/data" --run "$WORK/run" --listen "$BRIG_ADDRESS" \
        >>"$WORK/brigd.log" 2>&1 &
    brigd=$!
    for _ in $(seq 100); do
        brig version >/dev/null 2>&1 && return
        kill -0 "$brigd" 2>/dev/null || break
        sleep 0.05
    done
    echo "brigd did not start; its log:" >&2
    cat "$WORK/brigd.log" >&2
    return 1
}

stop_brigd() {
    kill -TERM "$brigd" 2>/dev/null || true
    wait "$brigd" 2>/dev/null || true
}

# An OCI layout in a tar, from the host's static busybox: one layer, one config, one manifest, one index.
make_image() { # TAR
    local layout=$WORK/layout root=$WORK/rootfs
    mkdir -p "$layout/blobs/sha256" "$root"/{bin,etc,root,tmp,var/www}
    local busybox
    busybox=$(command -v busybox) || { echo "no busybox; run deploy/setup.sh" >&2; return 1; }
    cp "$busybox" "$root/bin/busybox"
    "$busybox" --list | while read -r applet; do
        [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
    done
    chmod 1777 "$root/tmp"
    echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
    echo 'root:x:0:' >"$root/etc/group"
    echo 'Hello from a pod of Brig.' >"$root/var/www/index.html"

    blob() { # FILE: moves it among the blobs and prints digest and size.
        local digest size
        digest=$(sha256sum "$1" | cut -d' ' -f1)
        size=$(stat -c %s "$1")
        mv "$1" "$layout/blobs/sha256/$digest"
        echo "$digest $size"
    }
    local arch
    case $(uname -m) in
        x86_64) arch=amd64 ;;
        aarch64) arch=arm64 ;;
        *) arch=$(uname -m) ;;
    esac
    tar -C "$root" --owner=0 --group=0 --numeric-owner -cf "$WORK/layer.tar" .
    local diff_id layer config manifest
    diff_id=$(sha256sum "$WORK/layer.tar" | cut -d' ' -f1)
    gzip -n "$WORK/layer.tar"
    read -ra layer <<<"$(blob "$WORK/layer.tar.gz")"
    cat >"$WORK/config.json" <<JSON
{"architecture":"$arch","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:$diff_id"]}}
JSON
    read -ra config <<<"$(blob "$WORK/config.json")"
    cat >"$WORK/manifest.json" <<JSON
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:${config[0]}","size":${config[1]}},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:${layer[0]}","size":${layer[1]}}]}
JSON
    read -ra manifest <<<"$(blob "$WORK/manifest.json")"
    echo '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
    cat >"$layout/index.json" <<JSON
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:${manifest[0]}","size":${manifest[1]}}]}
JSON
    tar -C "$layout" -cf "$1" oci-layout index.json blobs
    rm -rf "$layout" "$root"
}

# What pods would leave if they left anything. Ours only: the network namespace and the tmpfs are new.
leftovers() {
    ps -eo pid=,args= | grep -F "$WORK" | grep -E 'brig-(monitor|sandbox)' || true
    grep -F "$WORK/" /proc/self/mounts || true
    ip -o link | grep -v ': lo:' | grep -E 'veth' || true
    find /sys/fs/cgroup -maxdepth 6 -type d -newer "$WORK/brigd.toml" -name '*brig*' 2>/dev/null | while read -r dir; do
        # The parent of all pods' cgroups stays for the next pod; a pod's own does not.
        find "$dir" -mindepth 1 -type d
    done
    find "$WORK/run" -mindepth 2 \( -name '*.sock' -o -name '*.pid' \) 2>/dev/null || true
}

in_host() {
    [ "$(id -u)" -eq 0 ] || { echo "the demo makes namespaces and mounts: run it as root" >&2; exit 1; }
    WORK=$(mktemp -d /tmp/brig-demo.XXXXXX)
    export WORK BRIG_ADDRESS=unix://$WORK/run/brig.sock BRIG_LOG_DIR=$WORK/log IMAGE=${1:-}
    local code=0
    unshare --mount --ipc --propagation private -- "$self" --in-mounts || code=$?
    rmdir "$WORK"
    exit "$code"
}

in_mounts() {
    mount -t tmpfs -o mode=0755 tmpfs "$WORK"
    mkdir "$WORK/run"
    # The built-in network even where the host has a CNI configuration.
    printf '[network]\ncni_conf_dir = "%s/no-cni"\n' "$WORK" >"$WORK/brigd.toml"
    if [ -n "$IMAGE" ]; then
        # With the host's network; the image stays in the data directory for the brigd below.
        title "Pull $IMAGE"
        start_brigd
        trap stop_brigd EXIT
        show brig pull "$IMAGE"
        stop_brigd
        trap - EXIT
    fi
    exec unshare --net -- "$self" --in-network
}

in_network() {
    ip link set lo up
    title "A private brigd, embedded defaults"
    start_brigd
    # Whatever happens, no container outlives the demo.
    trap 'brig pods --quiet | xargs -r brig rm --force >/dev/null; stop_brigd; [ -z "${failed-yes}" ] || cat "$WORK/brigd.log"' EXIT
    show brig status || true

    if [ -z "$IMAGE" ]; then
        title "This machine's busybox as an OCI image"
        make_image "$WORK/busybox.tar"
        show brig load --name localhost/busybox:latest "$WORK/busybox.tar"
        IMAGE=localhost/busybox:latest
    fi
    show brig images

    title "A command in a pod: its log and its exit code"
    local code=0
    show brig run --rm --name hello "$IMAGE" sh -c 'echo "hello, I am PID $$ on $(hostname)"; exit 7' || code=$?
    echo "exit code: $code"
    [ "$code" -eq 7 ]

    title "A pod that stays"
    show brig run --detach --name web "$IMAGE" sh -c 'echo started; n=0; while sleep 1; do n=$((n+1)); echo tick $n; done'
    show brig pods
    show brig ps
    local address
    address=$(brig inspect web | sed -n '/"ips"/,/]/p' | grep -oE '[0-9]+(\.[0-9]+){3}' | head -n 1)
    echo "its address: $address"
    show ping -c 1 -W 2 "$address" 2>/dev/null || show busybox ping -c 1 -W 2 "$address"
    show brig exec web sh -c 'ps; df -h / | tail -n 1'
    show brig stats

    title "brigd is killed; the pod does not notice, and a new brigd finds it"
    show kill -9 "$brigd"
    wait "$brigd" 2>/dev/null || true
    sleep 2
    start_brigd
    show brig ps
    show brig logs --tail 3 web

    title "Stop, remove, and look for what is left"
    show brig stop --time 1 web
    show brig rm web
    local left
    left=$(leftovers)
    if [ -n "$left" ]; then
        echo "left behind:"
        echo "$left"
        exit 1
    fi
    echo "no process, mount, interface, cgroup or socket is left"
    failed=
}

case "${1:-}" in
    --in-mounts) in_mounts ;;
    --in-network) in_network ;;
    *) in_host "$@" ;;
esac
