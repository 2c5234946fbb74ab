#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# ibv_rc_pingpong with its check of the data, polled and with events, over the device and, given
# `rxe` as argument, over rxe.
set -euo pipefail
source ./rdma.sh

device=$RDMA_DEVICE
if [[ ${1:-} == rxe ]]; then
    add_rxe
    device=rxe0
fi
index=$(gid_index "$device")
for option in '' -e; do
    for bytes in 64 4096 65536; do
        # shellcheck disable=SC2086 # no option is no argument
        pair "pingpong$option$bytes" ibv_rc_pingpong -d "$device" -g "$index" -c -n 100 \
            -s $bytes $option || { cat /tmp/output; exit 1; }
        grep -q '100 iters in' /tmp/output || { cat /tmp/output; exit 1; }
        echo "$bytes bytes $option: $(grep 'iters in' /tmp/output)"
    done
done
