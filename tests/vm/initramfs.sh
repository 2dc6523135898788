#!/bin/busybox sh
# The first process of the initramfs: loads what a disk needs, mounts both disks and hands over to the root's own init.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
while read -r module; do $b insmod "/lib/modules/$module"; done </lib/modules/order
tries=0
until [ -b /dev/vda ] && [ -b /dev/vdb ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 300 ] || { echo "vm: no disks" >/dev/console; $b poweroff -f; }
    $b sleep 0.1
done
$b mount -t ext4 -o noatime,barrier=0 /dev/vda /root || $b poweroff -f
$b mount -t ext4 -o ro /dev/vdb /root/brig || $b poweroff -f
for dir in dev proc sys; do $b mount --move "/$dir" "/root/$dir"; done
exec $b switch_root /root /sbin/init </root/dev/console >/root/dev/console 2>&1
