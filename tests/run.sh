#!/usr/bin/env bash
# `make test`: lints, documentation, unit and property tests, integration tests, and a look for leftovers.
#
# Tests that need root make bridges, nftables rules, mounts and sysctls; they run in namespaces of their own with an
# own /run and /tmp-like scratch, so the host keeps none of it. What namespaces do not hold (processes, cgroups) is
# looked for afterwards, and whatever is left fails the run.
#
# STAGES="fmt unit" runs only those, FILTER=words only tests whose names hold them. Without root the stages that need it are
# refused, not skipped. BRIG_TEST_EXECS=100000 looks longer for what execs leave; the usual 1000 take a minute or two, so give
# nextest a longer `slow-timeout` too.
# `tests/run.sh isolation` prints what is within reach of a container of every handler.
# `tests/run.sh bench [PART…]` runs the benchmark instead, in namespaces of the same kind, with the binaries of target/dist.
set -euo pipefail
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TERM_PROGRESS_WHEN=never

# No `"$@" || …` here: bash would run a whole function on after a command in it that failed.
stage() { # NAME COMMAND…
    if [ -n "${STAGES:-}" ] && [[ " $STAGES " != *" $1 "* ]]; then return; fi
    at=$1 started=$SECONDS
    shift
    echo "=== $at"
    "$@"
    echo "=== $at: $((SECONDS - started)) s"
    at=
}
trap '[ -z "${at:-}" ] || echo "=== $at FAILED after $((SECONDS - started)) s" >&2' EXIT

lint() {
    cargo clippy --quiet --all-targets -- -D warnings
    cargo clippy --quiet --no-default-features --lib --bins -- -D warnings
}

doc() {
    RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps --document-private-items
}

deny() {
    if cargo deny --version >/dev/null 2>&1; then
        local checks="bans licenses sources"
        if cargo deny fetch db >/dev/null 2>&1; then
            checks="advisories $checks"
        else
            echo "the advisory database cannot be reached; advisories are not checked here"
        fi
        # shellcheck disable=SC2086 # One word each.
        cargo deny --all-features check --hide-inclusion-graph $checks
    else
        echo "cargo-deny is not installed; licences, bans and sources are not checked here"
    fi
}

# The monitor and the sandbox that the integration tests start: static, as they are shipped.
helpers() {
    RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --profile helper --no-default-features \
        --target "$host" --bin brig-monitor --bin brig-sandbox
    cargo build --quiet --bins
    mkdir -p target/test-bin
    install -m 0755 target/debug/brigd target/debug/brig target/test-bin/
    install -m 0755 "target/$host/helper/brig-monitor" "target/$host/helper/brig-sandbox" target/test-bin/
}

# cargo-nextest where it is installed (one process per test, a time limit each), else cargo's own runner.
run_tests() { # ARGUMENTS…: of `cargo test` and `cargo nextest run` alike.
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --no-tests=warn "$@"
    else
        cargo test --quiet "$@"
    fi
}

# Namespaces that vanish with the tests. The tmpfs over /run keeps sockets and locks away from the host's.
isolated() {
    [ "$(id -u)" -eq 0 ] || { echo "this stage needs root" >&2; return 1; }
    unshare --net --mount --ipc --uts --propagation private -- bash -euc '
        mount -t tmpfs -o mode=0755,size=1g tmpfs /run
        PATH=$PATH:/usr/sbin:/sbin
        ip link set lo up
        "$@"
    ' isolated "$@"
}

unit() { BRIG_TEST_BIN_DIR=$PWD/target/test-bin isolated_run --lib; }
integration() { BRIG_TEST_BIN_DIR=$PWD/target/test-bin isolated_run --test it; }
isolated_run() {
    # Built outside, so that a download still has the network.
    cargo test --quiet --no-run "$@"
    export -f run_tests
    CARGO_NET_OFFLINE=true isolated bash -euc 'run_tests "$@"' run_tests "$@" ${FILTER:+"$FILTER"}
}

# The official suite, where it is installed, with every handler that is; several specs at a time where ginkgo is installed too.
conformance() {
    local handler parallel=1
    if ! command -v "${CRITEST:-critest}" >/dev/null; then
        echo "critest is not installed; our own conformance tests have run among the integration tests"
        return
    fi
    PYTHONDONTWRITEBYTECODE=1 python3 critest/report_test.py
    ! command -v ginkgo >/dev/null || parallel=$(nproc)
    for handler in brig brig-hardened runc runsc; do
        [[ "$handler" = brig* ]] || command -v "$handler" >/dev/null || continue
        critest/run.sh --bin target/test-bin --handler "$handler" --parallel "$parallel"
    done
    for handler in brig runc; do
        [ "$handler" = brig ] || command -v "$handler" >/dev/null || continue
        critest/run.sh --bin target/test-bin --handler "$handler" --transport websocket --focus Streaming --out "target/critest/$handler-websocket"
    done
}

# Everything of ours that namespaces do not hold, one line each.
leftovers() {
    ps -eo pid=,args= | grep -E '(^|[ /])(brigd|brig-monitor|brig-sandbox)( |$)' | grep -v grep | sed 's/^/process /' || true
    grep -E ' [^ ]*/brig[-/][^ ]* ' /proc/self/mounts | sed 's/^/mount /' || true
    find /sys/fs/cgroup -maxdepth 6 -type d \( -name 'brig*' -o -name '*brig-test*' \) 2>/dev/null | sed 's/^/cgroup /' || true
    ip -o link 2>/dev/null | grep -oE ' (brig|veth)[^:@]*' | sed 's/^/link/' || true
    nft list tables 2>/dev/null | grep -i brig | sed 's/^/nftables /' || true
    find /run/brig* /tmp/brig* -maxdepth 0 2>/dev/null | sed 's/^/file /' || true
    sysctl net.ipv4.ip_forward 2>/dev/null | sed 's/^/sysctl /' || true
}

nothing_left() {
    local after
    after=$(PATH=$PATH:/usr/sbin:/sbin leftovers)
    # What was there before us is not ours.
    local added
    added=$(comm -13 <(sort <<<"$before") <(sort <<<"$after"))
    [ -z "$added" ] || { echo "left behind:"; echo "$added"; return 1; }
    echo "nothing left behind"
}

if [ "${1:-}" = bench ]; then
    cargo bench --quiet --no-run --bench bench
    shift
    BRIG_TEST_BIN_DIR=$PWD/target/dist isolated cargo bench --quiet --offline --bench bench -- "$@"
    exit
fi

# `make isolation`: the table of tests/it/escape/table.rs, with the binaries that the integration tests use.
if [ "${1:-}" = isolation ]; then
    [ -n "${STAGES:-}" ] || helpers
    cargo test --quiet --no-run --test it
    BRIG_TEST_BIN_DIR=$PWD/target/test-bin CARGO_NET_OFFLINE=true isolated \
        cargo test --quiet --test it -- --ignored --exact --nocapture escape::table::privileged_isolation_table
    exit
fi

before=$(PATH=$PATH:/usr/sbin:/sbin leftovers)
stage fmt cargo fmt --check
stage lint lint
stage doc doc
stage deny deny
stage helpers helpers
stage unit unit
stage integration integration
stage critest conformance
stage leftovers nothing_left
echo "=== all: $SECONDS s"
