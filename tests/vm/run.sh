#!/usr/bin/env bash
# `make test-vm`: the integration tests in a small virtual machine whose cgroups are v2 and nothing else.
#
#   tests/vm/run.sh [cgroup-v2|systemd] [WORDS]
#
# Both machines run Debian's cloud kernel under qemu's software emulation, so that no /dev/kvm is needed. Their roots
# differ: `cgroup-v2` is made of this machine's own tools, with a shell script as its first process; `systemd` is a
# minimal Debian whose first process is systemd, and there the tests use the systemd cgroup driver. The first has SELinux
# with the policy of selinux.cil, the second AppArmor; both are enforced.
#
#   initramfs      busybox, the few modules a disk needs, initramfs.sh
#   /dev/vda       the root, made once and kept in target/vm; changes of a run are thrown away
#   /dev/vdb       the tests: binaries and guest.sh, made anew for each run
#   ttyS0, ttyS1   the kernel's messages (target/vm/FLAVOUR.console), and the tests' lines, which are printed here
#
# WORDS: only tests whose names hold them. JOBS (2) tests run at a time; after LIMIT (3600) seconds the machine is
# ended. BUILD=0 takes the binaries as an earlier run has built them. Needs root, as `make test` does.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=tests/vm
flavour=${1:-cgroup-v2}
words=${2:-}
cache=$PWD/target/vm
export PATH=$PATH:/usr/sbin:/sbin

case $flavour in
    cgroup-v2 | systemd) ;;
    *) echo "vm: no machine is called $flavour; there are cgroup-v2 and systemd" >&2; exit 2 ;;
esac
[ "$(id -u)" -eq 0 ] || { echo "vm: needs root" >&2; exit 1; }

# shellcheck source=tests/vm/roots.sh
. "$here/roots.sh"

# What a run needs beyond deploy/setup.sh.
setup() {
    local missing=()
    command -v qemu-system-x86_64 >/dev/null || missing+=(qemu-system-x86)
    command -v cpio >/dev/null || missing+=(cpio)
    command -v depmod >/dev/null || missing+=(kmod)
    command -v mke2fs >/dev/null || missing+=(e2fsprogs)
    command -v strip >/dev/null || missing+=(binutils)
    case $flavour in
        systemd) command -v mmdebstrap >/dev/null || missing+=(mmdebstrap) ;;
        cgroup-v2) command -v secilc >/dev/null || missing+=(secilc) ;;
    esac
    [ ${#missing[@]} -gt 0 ] || return 0
    echo "vm: installing ${missing[*]}"
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" >/dev/null
}

# Debian's cloud kernel, unpacked and never installed. Prints nothing; sets `kernel` and `modules`.
kernel() {
    if ! ls "$cache"/kernel/boot/vmlinuz-* >/dev/null 2>&1; then
        local package
        newest() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image/ { print $2; exit }'; }
        package=$(newest)
        # A machine on which nobody has asked for a package yet.
        [ -n "$package" ] || { apt-get update -q >/dev/null && package=$(newest); }
        [ -n "$package" ] || { echo "vm: no package linux-image-cloud-amd64 here; this test needs Debian on x86-64" >&2; return 1; }
        rm -rf "$cache/kernel" "$cache/kernel.new"
        mkdir -p "$cache/kernel.new/deb"
        # As root in a folder of ours: apt's own user may not be able to write there.
        (cd "$cache/kernel.new/deb" && apt-get -o APT::Sandbox::User=root download -q "$package" >/dev/null)
        dpkg -x "$cache"/kernel.new/deb/*.deb "$cache/kernel.new"
        rm -r "$cache/kernel.new/deb"
        local version
        version=$(basename "$cache"/kernel.new/lib/modules/*)
        depmod -b "$cache/kernel.new" "$version"
        mv "$cache/kernel.new" "$cache/kernel"
    fi
    kernel=$(echo "$cache"/kernel/boot/vmlinuz-*)
    modules=$(echo "$cache"/kernel/lib/modules/*)
}

# An ext4 file system with the content of a folder.
disk() { # FOLDER FILE SIZE
    rm -f "$2"
    mke2fs -q -t ext4 -O ^has_journal -E lazy_itable_init=1 -d "$1" "$2" "$3" >/dev/null
}

# The root's disk, made again when what it is made of has changed.
root_disk() {
    local stamp
    stamp=$(cat "$here/roots.sh" "$here/init.sh" "$here/selinux.cil" "$here/brig-tests.service" "$(command -v busybox)" "$(command -v runc)" \
        | cat - <(basename "$modules") | sha256sum | cut -c1-16)
    root_image=$cache/$flavour-$stamp.ext4
    [ ! -f "$root_image" ] || return 0
    echo "vm: making the root of $flavour"
    rm -f "$cache/$flavour"-*.ext4
    rm -rf "$cache/root.new"
    if [ "$flavour" = systemd ]; then debian_root "$cache/root.new"; else small_root "$cache/root.new"; fi
    mkdir -p "$cache/root.new/usr/lib/modules"
    cp -a "$modules" "$cache/root.new/usr/lib/modules/"
    disk "$cache/root.new" "$root_image.new" 3G
    rm -rf "$cache/root.new"
    mv "$root_image.new" "$root_image"
}

initramfs() { # FILE
    local tree=$run/initramfs version name
    version=$(basename "$modules")
    mkdir -p "$tree"/{bin,dev,proc,sys,root,lib/modules}
    cp "$(command -v busybox)" "$tree/bin/busybox"
    cp "$here/initramfs.sh" "$tree/init" && chmod 0755 "$tree/init"
    # In the order they have to be loaded.
    for name in virtio_pci virtio_blk; do
        modprobe -d "$cache/kernel" -S "$version" --show-depends "$name" | awk '$1 == "insmod" { print $2 }'
    done | awk '!seen[$0]++' | while read -r file; do
        cp "$file" "$tree/lib/modules/"
        basename "$file" >>"$tree/lib/modules/order"
    done
    (cd "$tree" && find . | cpio --quiet -o -H newc) >"$1"
}

payload() { # FILE
    local tree=$run/payload
    mkdir -p "$tree/bin"
    # Debug information is most of their size and of no use in there.
    for name in brigd brig brig-monitor brig-sandbox; do strip -S -o "$tree/bin/$name" "target/test-bin/$name"; done
    strip -S -o "$tree/it" "$it"
    # As tests/it/escape does where there is a compiler.
    rustc --edition 2024 -O -C target-feature=+crt-static -C panic=abort -C strip=symbols -o "$tree/probe" tests/escape/probe.rs
    cp "$here/guest.sh" "$tree/" && chmod 0755 "$tree/guest.sh"
    cp "$here/service.sh" "$here/skip.txt" deploy/systemd/brig.service "$tree/"
    printf 'FLAVOUR=%q\nWORDS=%q\nJOBS=%q\n' "$flavour" "$words" "${JOBS:-2}" >"$tree/settings"
    disk "$tree" "$1" "$(($(du -sm "$tree" | cut -f1) * 5 / 4 + 32))M"
}

started=$SECONDS
deploy/setup.sh
setup
mkdir -p "$cache"
if [ "${BUILD:-1}" != 0 ]; then
    STAGES=helpers tests/run.sh
    cargo test --quiet --no-run --test it --message-format=json 2>/dev/null \
        | grep -oE '"executable":"[^"]+/it-[^"]+"' | cut -d'"' -f4 >"$cache/it"
fi
it=$(cat "$cache/it")
[ -x "$it" ] || { echo "vm: the integration tests were not built" >&2; exit 1; }
kernel
root_disk

case $flavour in
    systemd) security="security=apparmor apparmor=1" ;;
    cgroup-v2) security="security=selinux selinux=1 enforcing=1" ;;
esac
machine=
run=$(mktemp -d "$cache/run.XXXXXX")
# Ends the machine on every way out: timeout(1) passes the signal on.
end() {
    [ -z "$machine" ] || { kill "$machine" 2>/dev/null && wait "$machine" || true; }
    rm -rf "$run"
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

initramfs "$run/initramfs.cpio"
payload "$run/payload.ext4"
echo "vm: ready after $((SECONDS - started)) s, booting"
booted=$SECONDS
: >"$run/tests"
TMPDIR=$run timeout --kill-after=10 "${LIMIT:-3600}" qemu-system-x86_64 \
    -machine q35 -accel tcg,thread=multi -cpu max -smp 2 -m 4096 \
    -nodefaults -no-user-config -display none -no-reboot \
    -kernel "$kernel" -initrd "$run/initramfs.cpio" \
    -append "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nokaslr random.trust_cpu=on cgroup_no_v1=all systemd.show_status=0 $security" \
    -drive "file=$root_image,format=raw,if=virtio,snapshot=on,cache=unsafe" \
    -drive "file=$run/payload.ext4,format=raw,if=virtio,readonly=on" \
    -serial "file:$cache/$flavour.console" -serial "file:$run/tests" </dev/null 2>"$run/qemu" &
machine=$!
# In the background, for bash runs a trap only between commands, and `wait` is one that a signal interrupts.
tail --pid="$machine" -n +1 -f "$run/tests" | sed -u 's|\r||' &
printer=$!
code=0
wait "$machine" || code=$?
machine=
wait "$printer"
echo "vm: $flavour ran for $((SECONDS - booted)) s"
# The line that guest.sh ends with; whatever else ended the machine is a failure.
if ! grep -q '^vm-result: passed' "$run/tests"; then
    [ "$code" -ne 124 ] || echo "vm: the machine was ended after ${LIMIT:-3600} s" >&2
    cat "$run/qemu" >&2
    tail -n 30 "$cache/$flavour.console" >&2
    echo "vm: $flavour FAILED; the kernel's messages are in $cache/$flavour.console" >&2
    exit 1
fi
