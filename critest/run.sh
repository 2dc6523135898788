#!/bin/bash
# Runs critest against a fresh, private brigd with an offline registry, and leaves nothing behind.
#
# usage: critest/run.sh [options]
#   --handler NAME         the runtime handler that pods ask for (default: brig)
#   --runtime PATH         that handler's OCI runtime, where it is not the one on PATH
#   --transport KIND       spdy or websocket, for exec, attach and port-forward (default: spdy)
#   --nri-socket PATH      an NRI socket, for the specs that critest leaves out without one
#   --focus REGEX          only the specs whose names match
#   --parallel N           N specs at a time; needs ginkgo beside critest or on PATH
#   --seed N               the order of an earlier run (default: a new one, which is printed)
#   --config FILE          lines added to brigd's configuration
#   --bin DIR              where brigd and its siblings are (default: target/debug)
#   --out DIR              where junit.xml, table.txt, critest.log and brigd.log go (default: target/critest/NAME)
#
# Needs root, python3, busybox-static, and critest on PATH (or its path in CRITEST). Every spec runs, those of skip.txt
# too: the run fails when one fails that is not there, and when one passes that is. No spec gets a second attempt.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
arguments=("$@")
handler=brig runtime="" transport=spdy nri="" focus="" parallel=1 seed=$RANDOM config="" bin=$here/../target/debug out=""
usage() { sed -n '3,15s/^# \{0,1\}//p' "$here/run.sh" >&2; exit 2; }
while [ $# -gt 0 ]; do
    [ $# -gt 1 ] || usage
    case $1 in
        --handler) handler=$2 ;;
        --runtime) runtime=$2 ;;
        --transport) transport=$2 ;;
        --nri-socket) nri=$2 ;;
        --focus) focus=$2 ;;
        --parallel) parallel=$2 ;;
        --seed) seed=$2 ;;
        --config) config=$2 ;;
        --bin) bin=$2 ;;
        --out) out=$2 ;;
        *) usage ;;
    esac
    shift 2
done
case $transport in spdy | websocket) ;; *) usage ;; esac
critest=$(command -v "${CRITEST:-critest}") || { echo "critest is not installed; the README says how to get it" >&2; exit 2; }
PATH=$PATH:$(dirname "$critest"):/usr/sbin:/sbin
if [ "$parallel" -gt 1 ] && ! command -v ginkgo >/dev/null; then
    echo "--parallel needs ginkgo; the README says how to get it" >&2
    exit 2
fi
out=${out:-$here/../target/critest/$handler}

if [ -z "${BRIG_CRITEST_INSIDE:-}" ]; then
    # Private namespaces: the bridge, the rules, the mounts and everything on /run go away with them.
    # The root is shared inside, as on a node that systemd booted, since mount propagation is tested.
    BRIG_CRITEST_INSIDE=yes exec unshare --net --mount --ipc --propagation private "$here/run.sh" ${arguments[@]+"${arguments[@]}"}
fi

mkdir -p "$out"
out=$(cd "$out" && pwd)
rm -f "$out"/junit.xml "$out"/table.txt
mount -t tmpfs tmpfs /run
mount --make-rshared /
ip link set lo up
work=$(mktemp -d /run/critest.XXXXXX)
# On the way to the rootfs of containers whose root owns nothing here.
chmod 711 "$work"
# What the specs make for themselves below the temporary directory has to be on a mount of these namespaces.
export TMPDIR=$work/tmp
mkdir "$TMPDIR"

python3 "$here/registry.py" "$work/port" "$work/certs" &
registry=$!
brigd=
finish() {
    # What a spec that failed has left: monitors would outlive the daemon.
    if [ -n "$brigd" ]; then
        "$bin/brig" --address "$socket" pods --quiet 2>/dev/null | xargs -r "$bin/brig" --address "$socket" rm --force >/dev/null || true
    fi
    [ -n "$brigd" ] && kill "$brigd" 2>/dev/null && wait "$brigd" || true
    kill "$registry" 2>/dev/null || true
}
trap finish EXIT
for _ in $(seq 600); do [ -s "$work/port" ] && break; sleep 0.1; done
[ -s "$work/port" ] || { echo "the registry did not start" >&2; exit 1; }

{
    printf '[registries]\ncerts_dir = ["%s"]\n' "$work/certs"
    [ -z "$runtime" ] || printf '[handlers.%s]\npath = "%s"\n' "$handler" "$runtime"
    # What the handler needs besides.
    [ -n "$runtime" ] || [ ! -e "$here/config-$handler.toml" ] || cat "$here/config-$handler.toml"
    [ -z "$config" ] || cat "$config"
} >"$work/config.toml"
socket=unix://$work/brig.sock
"$bin/brigd" --config "$work/config.toml" --root "$work/root" --run "$work/run" --listen "$socket" \
    --log-level debug >"$out/brigd.log" 2>&1 &
brigd=$!
for _ in $(seq 300); do
    [ -S "$work/brig.sock" ] && break
    kill -0 "$brigd" 2>/dev/null || break
    sleep 0.1
done
[ -S "$work/brig.sock" ] || { echo "brigd did not start:" >&2; tail -n 5 "$out/brigd.log" >&2; exit 1; }

flags=(-runtime-endpoint "$socket" -image-endpoint "$socket" -runtime-handler "$handler")
[ "$parallel" -eq 1 ] || flags+=(-parallel "$parallel")
[ "$transport" = spdy ] || flags+=(-websocket-exec -websocket-attach -websocket-portforward)
[ -z "$nri" ] || flags+=(-nri-socket "$nri")
flags+=(-ginkgo.randomize-all -ginkgo.seed "$seed" -ginkgo.flake-attempts 0 -ginkgo.no-color -ginkgo.v -ginkgo.junit-report junit.xml)
[ -z "$focus" ] || flags+=(-ginkgo.focus "$focus")
began=$SECONDS
# Whether it counts as passed is said below: skip.txt names specs that have to fail.
(cd "$work" && "$critest" "${flags[@]}") >"$out/critest.log" 2>&1 || true
took=$((SECONDS - began))
# With several processes ginkgo writes the report beside the program, which critest links into TMPDIR.
junit=$(find "$work" -maxdepth 3 -name junit.xml -not -path "$work/root/*" | head -n 1)
[ -n "$junit" ] || { echo "critest did not end; see $out/critest.log" >&2; tail -n 20 "$out/critest.log" >&2; exit 1; }
cp "$junit" "$out/junit.xml"
echo "critest: handler $handler, $transport, $parallel at a time, seed $seed, $took s"
# The first line that fits holds, and what is said of this handler goes before what is said of all.
skips=()
[ ! -e "$here/skip-$handler.txt" ] || skips+=("$here/skip-$handler.txt")
skips+=("$here/skip.txt")
cat "${skips[@]}" >"$work/skip.txt"
python3 "$here/report.py" "$out/junit.xml" "$work/skip.txt" | tee "$out/table.txt"
