#!/bin/busybox sh
# The service under systemd: a pod and its monitor live through a restart of brigd and through its stop, and systemd knows
# the container as a scope. Prints what went wrong and fails, or is silent. Part of guest.sh, on the machine with systemd.
set -e
b=/bin/busybox
work=$($b mktemp -d)
trap 'echo "the service: line $LINENO"; systemctl status --no-pager brig | $b tail -n 20' EXIT

$b mkdir -p "$work/root/bin"
$b cp "$(readlink -f /bin/busybox)" "$work/root/bin/busybox"
$b ln -s busybox "$work/root/bin/sleep"
$b tar -C "$work/root" -cf "$work/layer.tar" .
id=$($b sha256sum "$work/layer.tar" | $b cut -d' ' -f1)
echo "{\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:$id\"]}}" >"$work/config.json"
echo '[{"Config":"config.json","RepoTags":["localhost/busybox:latest"],"Layers":["layer.tar"]}]' >"$work/manifest.json"
$b tar -C "$work" -cf "$work/image.tar" manifest.json config.json layer.tar

$b sed 's|@BINDIR@|/brig/bin|' /brig/brig.service >/run/systemd/system/brig.service
systemctl daemon-reload
systemctl start brig
brig load "$work/image.tar" >/dev/null
brig run -d --name kept localhost/busybox:latest /bin/sleep 100000 >/dev/null
monitor=$($b pidof brig-monitor)
scopes() { systemctl list-units --plain --no-legend 'brig-*.scope' | $b wc -l; }
[ "$(scopes)" -eq 1 ]
# systemd writes all that it was told again, and the device filter stays.
systemctl daemon-reload
systemctl restart brig
[ "$($b pidof brig-monitor)" = "$monitor" ]
brig exec kept /bin/busybox true
systemctl stop brig
[ "$($b pidof brig-monitor)" = "$monitor" ]
systemctl start brig
brig exec kept /bin/busybox true
brig rm --force kept >/dev/null
tries=0
while $b pidof brig-monitor >/dev/null; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ]
    $b sleep 0.1
done
[ "$(scopes)" -eq 0 ]
systemctl stop brig
trap - EXIT
