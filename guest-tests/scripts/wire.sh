#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# What `cargo lab wire SERVER` runs in both guests: perftest from one to the other, over our device, or over
# rxe where a guest has none. Lines that begin with RESULT are for the lab, which makes the table.
set -euo pipefail
source ./rdma.sh

SERVER=$1
device=$RDMA_DEVICE
if [[ -z $device ]]; then
    add_rxe
    device=rxe0
fi
index=$(gid_index "$device")
lab-barrier up
ping -q -c 1 -W 20 "$PEER_ADDR" > /dev/null

# measure PROGRAM BYTES COUNT OPTION…
measure() {
    local program=$1 bytes=$2 count=$3 status=0 value
    shift 3
    pair "$program-$bytes" "$program" -F -d "$device" -x "$index" -m 4096 -s "$bytes" -n "$count" "$@" \
        || status=$?
    value=$(figure "$program")
    # Some servers print no figure.
    [[ $GUEST_INDEX != "$SERVER" ]] || value=none
    if [[ $status != 0 || -z $value ]]; then
        echo "$program, $bytes bytes, failed ($status):"
        tail -n 12 /tmp/output
        failed=1
    elif [[ $value != none ]]; then
        echo "RESULT $program $bytes $value"
    fi
}

failed=0
for program in ib_write_bw ib_read_bw ib_send_bw; do
    measure $program 64 4000
    measure $program 4096 2000
    measure $program 65536 500
done
measure ib_write_lat 64 1000
measure ib_read_lat 64 1000
measure ib_send_lat 64 1000
exit "$failed"
