#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The device is there as a user sees it: one RoCE port, active, bound to the network device, with
# GIDs; it takes dma-bufs; and the kernel has nothing to complain of.
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
# The device's capabilities as libibverbs names them, its counters, and the kernel's own QP1.
for flag in MEM_WINDOW MEM_MGT_EXTENSIONS MEM_WINDOW_TYPE_2B RC_RNR_NAK_GEN; do
    grep -qwE "$flag" info
done
rdma statistic show link "$RDMA_DEVICE/1" | grep -qw retry_exceeded_err
rdma resource show -dd qp link "$RDMA_DEVICE/1" lqpn 1 | grep -qw drv_rq_posted
# dma-bufs as memory regions: here, where there are guests of QEMU; UML has none. One guest is enough.
[[ $GUEST_INDEX != 0 ]] || python3 dmabuf.py
if dmesg | grep -E 'BUG:|WARNING:|Oops|rcu.*stall|Call Trace'; then
    echo "the kernel complains"
    exit 1
fi
