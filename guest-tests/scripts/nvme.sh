#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# NVMe over RDMA, both ends in kernels: a ramdisk of guest 0 is guest 1's disk, with a file system on
# it. What guest 1 wrote is compared after the caches were dropped, after another connection, and
# at last where it lies. Twice: the target with receive queues of its own, and with shared ones.
# nvme.sh [rxe]
set -euo pipefail
source ./rdma.sh

readonly PORT=4420 NQN=nqn.2026-11.example:ramdisk CONFIG=/sys/kernel/config/nvmet
readonly FILES=8

[[ ${1:-} != rxe ]] || add_rxe

# present_disk SHARED: the target, whose queue pairs share receive queues or not (Y or N).
present_disk() {
    local subsystem=$CONFIG/subsystems/$NQN port=$CONFIG/ports/1
    modprobe brd rd_nr=1 rd_size=196608
    modprobe nvmet-rdma use_srq="$1"
    mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
    mkdir "$subsystem"
    echo 1 > "$subsystem/attr_allow_any_host"
    mkdir "$subsystem/namespaces/1"
    echo -n /dev/ram0 > "$subsystem/namespaces/1/device_path"
    echo 1 > "$subsystem/namespaces/1/enable"
    mkdir "$port"
    echo rdma > "$port/addr_trtype"
    echo ipv4 > "$port/addr_adrfam"
    echo "$ADDR" > "$port/addr_traddr"
    echo $PORT > "$port/addr_trsvcid"
    ln -s "$subsystem" "$port/subsystems/$NQN"
}

withdraw_disk() {
    rm "$CONFIG/ports/1/subsystems/$NQN"
    rmdir "$CONFIG/ports/1" "$CONFIG/subsystems/$NQN/namespaces/1" "$CONFIG/subsystems/$NQN"
    modprobe -r nvmet-rdma
}

connect() {
    local try
    echo "transport=rdma,traddr=$ADDR_0,trsvcid=$PORT,nqn=$NQN,nr_io_queues=2" > /dev/nvme-fabrics
    for ((try = 0; try < 600; try++)); do
        disk=$(echo /dev/nvme*n1)
        [[ ! -b $disk ]] || return 0
        sleep 0.1
    done
    echo "no disk appeared"
    return 1
}

disconnect() {
    local controller
    for controller in /sys/class/nvme/nvme*; do
        echo 1 > "$controller/delete_controller"
    done
}

# check_files DEVICE SUMS: mounts the file system and compares what is in it.
check_files() {
    mount -o ro "$1" /mnt
    (cd /mnt && sha256sum --quiet --check "$2")
    umount /mnt
}

for shared in N Y; do
    if [[ $GUEST_INDEX == 0 ]]; then
        present_disk $shared
        lab-barrier "present-$shared"
        lab-barrier "written-$shared" > /dev/null
        withdraw_disk
        # Not the file system but the files, by the sums that guest 1 left among them.
        check_files /dev/ram0 ./SUMS
        modprobe -r brd
    else
        lab-barrier "present-$shared"
        modprobe nvme-rdma
        connect
        mke2fs -q -t ext4 -F "$disk"
        mount "$disk" /mnt
        for ((file = 0; file < FILES; file++)); do
            head -c $((1 + file * 1234567)) /dev/urandom > "/mnt/$file"
        done
        (cd /mnt && sha256sum [0-9]* > /tmp/sums && cp /tmp/sums SUMS)
        umount /mnt
        echo 3 > /proc/sys/vm/drop_caches
        check_files "$disk" /tmp/sums
        # One that is larger than any request, read and written past the file system's cache.
        dd if=/dev/urandom of=/tmp/raw bs=1M count=24 status=none
        mount "$disk" /mnt
        dd if=/tmp/raw of=/mnt/raw bs=4M oflag=direct status=none
        dd if=/mnt/raw bs=3M iflag=direct status=none | cmp - /tmp/raw
        umount /mnt
        disconnect
        connect
        check_files "$disk" /tmp/sums
        e2fsck -f -n "$disk" &> /tmp/fsck || { cat /tmp/fsck; exit 1; }
        disconnect
        lab-barrier "written-$shared" > /dev/null
        echo "NVMe over RDMA, shared receive queues $shared: $(du -cb /tmp/raw | tail -n 1 | cut -f 1) bytes and $FILES files are right"
    fi
done
