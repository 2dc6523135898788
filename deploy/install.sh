#!/usr/bin/env bash
# Puts binaries, configuration, service, completions and examples in place, or takes them away again.
# Called by `make install` and `make uninstall`; DESTDIR and PREFIX as everywhere. Configuration that is already there
# is never overwritten, and neither it nor data is ever removed.
set -euo pipefail
cd "$(dirname "$0")/.."

prefix=${PREFIX:-/usr/local}
destdir=${DESTDIR:-}
bindir=$prefix/bin
units=/etc/systemd/system
[ "$prefix" = /usr ] && units=/lib/systemd/system
share=$prefix/share/brig
binaries=(brigd brig brig-monitor brig-sandbox)

installed() {
    printf '%s\n' "${binaries[@]/#/$bindir/}" "$units/brig.service" "$share" \
        "$prefix/share/bash-completion/completions/brig" \
        "$prefix/share/zsh/site-functions/_brig" \
        "$prefix/share/fish/vendor_completions.d/brig.fish"
}

install_all() {
    for binary in "${binaries[@]}"; do
        # Written beside and renamed over: a running binary cannot be written to, and monitors outlive an upgrade.
        install -D -m 0755 "target/dist/$binary" "$destdir$bindir/.$binary.new"
        mv -f "$destdir$bindir/.$binary.new" "$destdir$bindir/$binary"
    done
    install -d -m 0755 "$destdir/etc/brig/config.d" "$destdir/etc/brig/certs.d" "$destdir$units"
    if [ ! -e "$destdir/etc/brig/config.toml" ]; then
        # Every key as a comment: what is not set follows the defaults of later versions.
        sed 's/^[a-z_]* = /# &/' deploy/config.toml >"$destdir/etc/brig/config.toml"
        chmod 0644 "$destdir/etc/brig/config.toml"
    fi
    sed "s|@BINDIR@|$bindir|" deploy/systemd/brig.service >"$destdir$units/brig.service"
    chmod 0644 "$destdir$units/brig.service"
    install -D -m 0644 -t "$destdir$share/apparmor" deploy/apparmor/brig-default
    install -D -m 0644 -t "$destdir$share" deploy/config.toml deploy/crictl.yaml deploy/cni/10-brig.conflist.example \
        deploy/kubernetes/*.yaml
    local shell target
    for shell in bash:bash-completion/completions/brig zsh:zsh/site-functions/_brig fish:fish/vendor_completions.d/brig.fish; do
        target=$destdir$prefix/share/${shell#*:}
        install -d -m 0755 "$(dirname "$target")"
        ./target/dist/brig completions "${shell%%:*}" >"$target"
    done
    echo "installed into $destdir$prefix"
    if [ -z "$destdir" ] && [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        echo "start it: systemctl enable --now brig && brig status"
    else
        echo "start it: $bindir/brigd, then brig status"
    fi
}

uninstall_all() {
    if [ -z "$destdir" ] && [ -d /run/systemd/system ]; then
        systemctl disable --now brig 2>/dev/null || true
    fi
    installed | while read -r path; do rm -rf "$destdir$path"; done
    echo "removed; /etc/brig and /var/lib/brig are left as they are"
}

case "${1:-}" in
    install) install_all ;;
    uninstall) uninstall_all ;;
    *) echo "usage: deploy/install.sh install|uninstall" >&2; exit 2 ;;
esac
