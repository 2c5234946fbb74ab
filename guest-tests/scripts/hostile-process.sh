#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# A process that tries what it may not do to the driver and the device is refused, and the device
# serves the next one as before.
set -euo pipefail

device=/dev/infiniband/$(basename /sys/class/infiniband/"$RDMA_DEVICE"/device/infiniband_verbs/*)
for round in 1 2; do
    ./uverbs_hostile "$device"
done
# Nothing of the two processes is left.
rdma resource show "$RDMA_DEVICE"
left=$(rdma resource show qp link "$RDMA_DEVICE")
[[ -z $left ]]
