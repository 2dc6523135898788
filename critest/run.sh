#!/bin/bash
# Runs critest against a fresh, private brigd with an offline registry, and leaves nothing behind.
#
# usage: critest/run.sh [--handler NAME] [--focus REGEX] [--bin DIR] [--out DIR] [--all]
#
# Needs root, python3, busybox-static, and critest on the PATH (or its path in CRITEST). --bin is where brigd and its
# siblings are (default: target/debug), --out is where junit.xml, critest.log and brigd.log go (default:
# target/critest/NAME), --all runs the specs of skip.txt too.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
handler=brig focus="" bin=$here/../target/debug out="" all=no
while [ $# -gt 0 ]; do
    case $1 in
        --handler) handler=$2; shift 2 ;;
        --focus) focus=$2; shift 2 ;;
        --bin) bin=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        --all) all=yes; shift ;;
        *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
out=${out:-$here/../target/critest/$handler}
critest=$(command -v "${CRITEST:-critest}") || { echo "critest is not installed; set CRITEST to its path" >&2; exit 2; }
mkdir -p "$out"
out=$(cd "$out" && pwd)

if [ -z "${BRIG_CRITEST_INSIDE:-}" ]; then
    # Private namespaces: the bridge, the rules, the mounts and everything on /run go away with them.
    # The root is shared inside, as on a node that systemd booted, since mount propagation is tested.
    arguments=(--handler "$handler" --bin "$bin" --out "$out")
    [ -n "$focus" ] && arguments+=(--focus "$focus")
    [ "$all" = yes ] && arguments+=(--all)
    BRIG_CRITEST_INSIDE=yes exec unshare --net --mount --ipc --propagation private "$0" "${arguments[@]}"
fi

mount -t tmpfs tmpfs /run
mount --make-rshared /
ip link set lo up
work=$(mktemp -d /run/critest.XXXXXX)
# What the specs make for themselves below the temporary directory has to be on a mount of these namespaces.
export TMPDIR=$work/tmp
mkdir "$TMPDIR"

python3 "$here/registry.py" "$work/port" "$work/certs" &
registry=$!
brigd=
finish() {
    [ -n "$brigd" ] && kill "$brigd" 2>/dev/null && wait "$brigd" || true
    kill "$registry" 2>/dev/null || true
}
trap finish EXIT
for _ in $(seq 300); do [ -s "$work/port" ] && break; sleep 0.1; done
[ -s "$work/port" ] || { echo "the registry did not start" >&2; exit 1; }

printf '[registries]\ncerts_dir = ["%s"]\n' "$work/certs" >"$work/config.toml"
# What the handler needs besides.
if [ -e "$here/config-$handler.toml" ]; then cat "$here/config-$handler.toml" >>"$work/config.toml"; fi
socket=unix://$work/brig.sock
"$bin/brigd" --config "$work/config.toml" --root "$work/root" --run "$work/run" --listen "$socket" \
    --log-level debug >"$out/brigd.log" 2>&1 &
brigd=$!
for _ in $(seq 100); do [ -S "$work/brig.sock" ] && break; sleep 0.1; done

skip=""
lists=("$here/skip.txt")
[ -e "$here/skip-$handler.txt" ] && lists+=("$here/skip-$handler.txt")
[ "$all" = no ] && skip=$(cat "${lists[@]}" | grep -v -e '^#' -e '^$' | cut -f1 | paste -sd'|')
status=0
"$critest" -runtime-endpoint "$socket" -image-endpoint "$socket" -runtime-handler "$handler" \
    -ginkgo.no-color -ginkgo.v -ginkgo.junit-report "$out/junit.xml" ${skip:+-ginkgo.skip "$skip"} ${focus:+-ginkgo.focus "$focus"} \
    >"$out/critest.log" 2>&1 || status=$?
grep -aE '^(\[FAIL\]|Ran |(SUCCESS|FAIL)!|  \[FAIL\])' "$out/critest.log" | sort -u || true
exit $status
