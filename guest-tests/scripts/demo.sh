#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# What `cargo lab demo` runs in both guests. Lines that begin with RESULT, COUNT or STEP are for
# the lab, which makes the table; others are shown.
set -euo pipefail
source ./rdma.sh

ours=$RDMA_DEVICE
add_rxe
failed=0

# measure LABEL BYTES MODE COMMAND…: the same command over our device and over rxe.
measure() {
    local label=$1 bytes=$2 mode=$3
    shift 3
    echo "STEP $label, $bytes bytes, $mode"
    # perftest: "Events feature not available on WRITE verb".
    if [[ $1-$mode == ib_write_*-events ]]; then
        [[ $GUEST_INDEX == 0 ]] || printf 'RESULT %s none\n' "ours $label $bytes $mode" \
            "rxe $label $bytes $mode"
        return
    fi
    local device
    for device in "$ours" rxe0; do
        local before after status=0 value
        before=$(counters "$device")
        # shellcheck disable=SC2046 # an option and its value
        pair "$label-$bytes-$mode-$device" "$@" $(amount "$1" "$bytes" "$mode" "$device") -d "$device" \
            $(gid_option "$1") "$(gid_index "$device")" || status=$?
        after=$(counters "$device")
        value=$(figure "$1")
        if [[ $status != 0 || -z $value ]]; then
            value=failed
            failed=1
            echo "$label, $bytes bytes, $mode, over $device failed ($status):"
            tail -n 12 /tmp/output
        fi
        [[ $GUEST_INDEX == 0 ]] || echo "RESULT $(side "$device") $label $bytes $mode $value"
        # shellcheck disable=SC2086 # three numbers each
        [[ $device == rxe0 ]] || echo "COUNT $label $bytes $mode $(difference $before $after)"
    done
}

side() { if [[ $1 == rxe0 ]]; then echo rxe; else echo ours; fi; }

gid_option() { if [[ $1 == ibv_rc_pingpong ]]; then echo -g; else echo -x; fi; }

# amount PROGRAM BYTES MODE DEVICE: how much to do. Bandwidth over our device is measured for two
# seconds. rxe under emulation may finish nothing in that time, and perftest can't measure a time
# with events: there some messages are counted off.
amount() {
    case $1-$3-$4 in
        *_bw-*-rxe0) echo "-n $((200000 / ($2 + 400) + 60))" ;;
        *_bw-polled-*) echo "-D 2" ;;
        *_bw-events-*) echo "-n 3000" ;;
        *-rxe0) echo "-n 200" ;;
        *) echo "-n 1000" ;;
    esac
}

counters() {
    echo "$(counter "$1" send_wqes) $(counter "$1" doorbell_kicks) $(counter "$1" cq_interrupts)"
}

difference() { echo "$(($4 - $1)) $(($5 - $2)) $(($6 - $3))"; }

if [[ $GUEST_INDEX == 0 ]]; then
    ibv_devinfo -d "$ours"
fi
for mode in polled events; do
    option=()
    [[ $mode == polled ]] || option=(-e)
    measure ibv_rc_pingpong 4096 $mode ibv_rc_pingpong -c -s 4096 "${option[@]}"
    for program in ib_write_bw ib_read_bw ib_send_bw; do
        for bytes in 64 4096 65536; do
            measure $program $bytes $mode $program -F -s $bytes "${option[@]}"
        done
    done
    for program in ib_write_lat ib_read_lat ib_send_lat; do
        measure $program 2 $mode $program -F -s 2 "${option[@]}"
    done
done
exit "$failed"
