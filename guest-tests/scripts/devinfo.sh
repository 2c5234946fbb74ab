#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The device is there as a user sees it: one RoCE port, active, bound to the network device, with
# GIDs; and the kernel has nothing to complain of.
set -euo pipefail
source ./rdma.sh

ibv_devinfo -v -d "$RDMA_DEVICE" > info
grep -qE 'transport:[[:space:]]+InfiniBand' info
grep -qE 'state:[[:space:]]+PORT_ACTIVE' info
grep -qE 'link_layer:[[:space:]]+Ethernet' info
grep -qE 'active_mtu:[[:space:]]+4096' info
[[ $(cat "/sys/class/infiniband/$RDMA_DEVICE/ports/1/gid_attrs/ndevs/0") == eth0 ]]
rdma link show | grep "$RDMA_DEVICE/1 .*state ACTIVE.* netdev eth0"
index=$(gid_index "$RDMA_DEVICE")
echo "$RDMA_DEVICE, GID $index, $(grep -c 'GID\[' info) GIDs"
ibv_devices | grep -q "$RDMA_DEVICE"
if dmesg | grep -E 'BUG:|WARNING:|Oops|rcu.*stall|Call Trace'; then
    echo "the kernel complains"
    exit 1
fi
