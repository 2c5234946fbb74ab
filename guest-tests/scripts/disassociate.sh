#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The driver leaves its device while a program has a context open, and comes back: the open
# program gets an error instead of hanging, and the new device works.
set -euo pipefail
source ./rdma.sh

driver=/sys/bus/virtio/drivers/virtio_rdma
device=$(basename "$(readlink -f "/sys/class/infiniband/$RDMA_DEVICE/device/")")
[[ -e $driver/$device ]] || device=$(ls "$driver" | grep '^virtio' | head -n 1)
index=$(gid_index "$RDMA_DEVICE")

# A server that waits for ever holds the context open.
ib_send_bw -F -d "$RDMA_DEVICE" -x "$index" > /tmp/server 2>&1 &
server=$!
wait_listening $server
echo "$device" > "$driver/unbind"
[[ ! -e /sys/class/infiniband/$RDMA_DEVICE ]]
kill $server
wait $server || true
echo "$device" > "$driver/bind"
for ((try = 0; try < 100; try++)); do
    name=$(ls /sys/class/infiniband)
    [[ -z $name ]] || break
    sleep 0.1
done
wait_gid "$name"
echo "$name came back"
lab-barrier back
index=$(gid_index "$name")
pair again ibv_rc_pingpong -d "$name" -g "$index" -c -n 100 || { cat /tmp/output; exit 1; }
