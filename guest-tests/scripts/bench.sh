#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# What `cargo lab bench` runs in two UML guests: one-sided perftest programs, polled, some times each.
# Lines that begin with FIGURE are for the lab.
set -euo pipefail
source ./rdma.sh

index=$(gid_index "$RDMA_DEVICE")
for run in 1 2 3 4 5; do
    for what in "ib_read_lat 64 20000" "ib_write_bw 65536 20000" "ib_read_bw 65536 20000"; do
        read -r program bytes count <<< "$what"
        pair "$program-$run" "$program" -F -d "$RDMA_DEVICE" -x "$index" -s "$bytes" -n "$count"
        [[ $GUEST_INDEX == 0 ]] || case $program in
            # bytes, iterations, and then: least, most and typical microseconds; peak and average MiB/s.
            *_lat) awk -v of="$program" -v bytes="$bytes" \
                '$1 == bytes && NF > 4 { print "FIGURE", of, $5 * 1000 }' /tmp/output ;;
            *_bw) awk -v of="$program" -v bytes="$bytes" \
                '$1 == bytes && NF > 3 { print "FIGURE", of, bytes / ($4 * 1048576) * 1e9 }' /tmp/output ;;
        esac
    done
done
