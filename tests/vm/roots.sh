# The root file systems of the machines, as folders. Read by run.sh, which has set `here`, `cache` and `it`.
# shellcheck shell=bash disable=SC2154

# Copies a program of this machine, and the libraries it is linked with, to where they are here.
take() { # ROOT FILE…
    local root=$1 file
    shift
    for file in "$@"; do
        install -D -m 0755 "$(readlink -f "$file")" "$root$file"
        ldd "$file" 2>/dev/null | grep -oE '/[^ ]+' | while read -r library; do
            [ -e "$root$library" ] || install -D -m 0755 "$(readlink -f "$library")" "$root$library"
        done || true
    done
}

# The root of the machine without systemd. Directories stand where a merged /usr has links.
small_root() { # FOLDER
    local root=$1 tool name
    mkdir -p "$root"/{usr/bin,usr/sbin,usr/lib,usr/lib64,etc,proc,sys,dev,run,tmp,root,var/tmp,var/lib,brig,opt}
    for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
    chmod 1777 "$root/tmp" "$root/var/tmp"
    cp "$(command -v busybox)" "$root/usr/bin/busybox"
    busybox --list | while read -r name; do [ "$name" = busybox ] || ln -s busybox "$root/usr/bin/$name"; done
    # The real ones where busybox's do less.
    for name in ip nft runc unshare mount umount ps kill; do
        tool=$(type -P "$name") || { echo "vm: $name is missing; run deploy/setup.sh first" >&2; return 1; }
        rm -f "$root/usr/bin/$name"
        take "$root" "$tool"
    done
    for tool in /usr/lib/cni /opt/cni/bin; do
        [ ! -d "$tool" ] || take "$root" "$tool"/*
    done
    # The test binary's own.
    take "$root" "$it" && rm -f "$root$it"
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
    printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
    [ ! -d /etc/ssl/certs ] || install -D -m 0644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    selinux_policy "$root/etc/selinux.policy"
    cp "$here/init.sh" "$root/usr/sbin/init" && chmod 0755 "$root/usr/sbin/init"
}

# selinux.cil as the kernel reads it: version 33 is the newest that Debian 12's compiler and kernel both know.
selinux_policy() { # FILE
    local source=$1.cil number
    # A thousand lines that say nothing.
    {
        cat "$here/selinux.cil"
        echo "(categoryorder ($(seq -f 'c%g' -s ' ' 0 1023)))"
        for number in $(seq 0 1023); do echo "(category c$number)"; done
    } >"$source"
    secilc -c 33 -o "$1" -f /dev/null "$source"
    rm "$source"
}

# The root of the machine with systemd: Debian's packages, of this machine's release, for its libraries must fit the tests.
debian_root() { # FOLDER
    local root=$1 release packages base units
    release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    packages=systemd,systemd-sysv,dbus,apparmor,kmod,iproute2,nftables,busybox-static,runc,containernetworking-plugins,procps
    # Downloading and installing takes minutes, all the rest seconds.
    base=$cache/debian-$(echo "$release $packages" | sha256sum | cut -c1-8).tar
    if [ ! -f "$base" ]; then
        mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" \
            --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
            --dpkgopt='path-exclude=/usr/share/locale/*' "$release" "$base.new.tar"
        mv "$base.new.tar" "$base"
    fi
    mkdir -p "$root"
    tar -C "$root" -xpf "$base" --exclude='./dev/*'
    mkdir -p "$root/brig"
    echo brig >"$root/etc/hostname"
    # Nothing but the tests: no consoles to log in at and no timers.
    units=$root/etc/systemd/system
    ln -s /dev/null "$units/getty.target"
    ln -s /dev/null "$units/timers.target"
    # Debian's own profiles, whose loading takes a while here. brigd loads its own.
    ln -s /dev/null "$units/apparmor.service"
    cp "$here/brig-tests.service" "$units/"
    mkdir -p "$units/multi-user.target.wants"
    ln -s ../brig-tests.service "$units/multi-user.target.wants/"
    ln -sf /lib/systemd/system/multi-user.target "$units/default.target"
}
