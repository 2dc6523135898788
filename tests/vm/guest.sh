#!/bin/busybox sh
# Runs the integration tests inside the virtual machine, each in a process of its own, and prints a line for each.
#
# The last line is "vm-result: passed" or "vm-result: failed"; run.sh looks for it.
export PATH=/brig/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
export BRIG_TEST_BIN_DIR=/brig/bin RUST_BACKTRACE=1 TMPDIR=/tmp
export BRIG_TEST_PROBE=/brig/probe
# Emulated processors are some thirty times as slow.
export BRIG_TEST_PATIENCE=300
# The thousand execs of the test for leaks are slow here.
export BRIG_TEST_EXECS=200
. /brig/settings
case $FLAVOUR in
    systemd) export BRIG_TEST_SYSTEMD=1 BRIG_TEST_LSM=apparmor ;;
    *) export BRIG_TEST_LSM=selinux ;;
esac
logs=/run/brig-test-logs
b=/bin/busybox

# One test, in a network namespace of its own, where bridges and rules vanish with it; above twice its patience it hangs.
one() { # NAME
    start=$($b cut -d. -f1 /proc/uptime)
    if unshare --net $b timeout -s KILL 600 \
        sh -c 'ip link set lo up && exec /brig/it --exact "$1"' sh "$1" >"$logs/$1" 2>&1; then word=PASS; else word=FAIL; fi
    took=$(($($b cut -d. -f1 /proc/uptime) - start))
    $b printf '%s [%4d s] %s\n' "$word" "$took" "$1"
    [ "$word" = PASS ] || { echo "$1" >>"$logs/failed"; $b sed "s/^/    /" "$logs/$1"; }
}

# What a run must not leave: processes, cgroups, units and mounts of ours.
leftovers() {
    for dir in /proc/[0-9]*; do
        case $($b tr '\0' ' ' <"$dir/cmdline" 2>/dev/null) in
            /brig/bin/*) echo "process $($b tr '\0' ' ' <"$dir/cmdline")" ;;
        esac
    done
    $b find /sys/fs/cgroup -type d \( -name 'brig*' -o -name '*-brig*' \) ! -path '*brig-tests.service*' ! -name brig.slice ! -name brigtest.slice
    $b grep -E ' [^ ]*/brig[-/][^ ]* ' /proc/self/mounts
    # brig.slice itself stays, as every slice of slices does.
    [ "$FLAVOUR" != systemd ] || systemctl list-units --all --plain --no-legend 'brig*-*.scope' 'brig-*.slice'
}

if [ "$1" = one ]; then
    one "$2"
    exit
fi

$b mkdir -p "$logs"
: >"$logs/failed"
: >"$logs/chosen"
# What the kernel would load by itself when it is asked for; here, so that a missing one is seen.
for module in overlay veth bridge br_netfilter nf_tables nft_masq nft_nat nft_ct nft_fib_inet nft_chain_nat fuse; do
    modprobe "$module" || echo "vm: no module $module"
done
lsm=$($b cat /sys/kernel/security/lsm 2>/dev/null || $b cat /proc/self/attr/current)
echo "vm: $lsm"
echo "vm: Linux $($b uname -r), controllers $($b cat /sys/fs/cgroup/cgroup.controllers), up for $($b cut -d' ' -f1 /proc/uptime) s"
/brig/it --list --format terse | $b sed -n 's/: test$//p' | $b grep privileged_ | $b grep -e "$WORDS" | while read -r name; do
    # Lines of skip.txt: machine, test, reason.
    reason=$($b awk -v flavour="$FLAVOUR" -v name="$name" \
        '($1 == flavour || $1 == "both") && $2 == name { $1 = $2 = ""; print }' /brig/skip.txt)
    if [ -n "$reason" ]; then echo "SKIP          $name:$reason"; else echo "$name" >>"$logs/chosen"; fi
done
echo "vm: $($b wc -l <"$logs/chosen") tests"
$b xargs -r -P "$JOBS" -n 1 /brig/guest.sh one <"$logs/chosen"
if [ "$FLAVOUR" = systemd ]; then
    if said=$(/brig/service.sh 2>&1); then echo "PASS          the service"; else
        echo "FAIL          the service"
        echo "$said" | $b sed "s/^/    /" | $b tee -a "$logs/failed"
    fi
fi
left=$(leftovers)
failed=$($b wc -l <"$logs/failed")
echo "vm: $failed of $($b wc -l <"$logs/chosen") tests failed"
[ -z "$left" ] || { echo "left behind:"; echo "$left"; }
if [ "$failed" -eq 0 ] && [ -z "$left" ] && [ -s "$logs/chosen" ]; then echo "vm-result: passed"; else echo "vm-result: failed"; fi
