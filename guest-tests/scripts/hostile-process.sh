#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# A process that tries what it may not do to the driver and the device is refused, and the device
# serves the next one as before.
set -euo pipefail

device=/dev/infiniband/$(basename /sys/class/infiniband/"$RDMA_DEVICE"/device/infiniband_verbs/*)
# The kernel has objects of its own (QP1).
before=$(rdma resource show "$RDMA_DEVICE")
for round in 1 2; do
    ./uverbs_hostile "$device"
done
# Nothing of the two processes is left.
after=$(rdma resource show "$RDMA_DEVICE")
[[ $after == "$before" ]] || { echo "before: $before"; echo "after: $after"; exit 1; }
