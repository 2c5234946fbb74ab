#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Polled RDMA needs no doorbells: many messages, few kicks, and no interrupt at all.
set -euo pipefail
source ./rdma.sh

index=$(gid_index "$RDMA_DEVICE")
sent=$(counter "$RDMA_DEVICE" send_wqes)
kicks=$(counter "$RDMA_DEVICE" doorbell_kicks)
interrupts=$(counter "$RDMA_DEVICE" cq_interrupts)
pair kicks ib_write_bw -F -d "$RDMA_DEVICE" -x "$index" -n 20000 -s 64 || { cat /tmp/output; exit 1; }
sent=$(($(counter "$RDMA_DEVICE" send_wqes) - sent))
kicks=$(($(counter "$RDMA_DEVICE" doorbell_kicks) - kicks))
interrupts=$(($(counter "$RDMA_DEVICE" cq_interrupts) - interrupts))
echo "$sent messages, $kicks kicks, $interrupts interrupts"
if [[ $GUEST_INDEX == 1 ]]; then
    ((sent >= 20000)) || { echo "too few messages were counted"; exit 1; }
    # A handful on a quiet machine; one for each pause that a busy one makes the sender take.
    ((kicks * 4 < sent)) || { echo "too many kicks"; exit 1; }
    ((interrupts == 0)) || { echo "interrupts without an armed CQ"; exit 1; }
fi
