#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Test programs of the verbs HCA, given by name after the MiB that some of them register, with rxe as the host's RDMA device: over one end of a
# pair of network devices, so that the real driver of the kernel and the real libibverbs answer.
set -euo pipefail
source ./rdma.sh

ip link add veth0 mtu 4200 type veth peer name veth1 mtu 4200
ip link set veth1 up
ip link set veth0 up
ip address add 10.9.0.1/24 dev veth0
modprobe -q rdma_rxe || true
rdma link add rxe0 type rxe netdev veth0
wait_gid rxe0
# What is registered stays in memory, and may lie in single pages.
ulimit -l unlimited
echo 1048576 > /proc/sys/vm/max_map_count
export VERBS_TEST_DEVICE=rxe0 VERBS_TEST_MIB=$1
shift
for program in "$@"; do
    "./$program" --test-threads=1 --nocapture
done
