#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The device as a consumer in the kernel uses it: all that the self-test knows, nothing left out.
set -euo pipefail

if ! insmod ./rdma_selftest.ko device="$RDMA_DEVICE"; then
    dmesg | tail -n 30
    exit 1
fi
dmesg | grep rdma_selftest | tail -n 20
! dmesg | grep -q 'rdma_selftest: skipped'
