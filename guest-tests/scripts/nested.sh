#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Guests inside of a guest, which is their host: daemon and soft HCA in guest 0, the VMs 1 and 2 in it.
# perftest and the verifier between these two; then the daemon is killed, and they go again.
# Argument: `long` for more of it.
set -euo pipefail
source ./rdma.sh

SERVER=1 CLIENT=2
if [[ $GUEST_LEVEL == 1 ]]; then
    source ./nested-host.sh
    host_needs
    host_network
    start_daemon --hca soft
    start_inner 1
    start_inner 2
    watch_inner 380
else
    lab-barrier up
fi

long=${1:-}

# Each takes its time: two layers of emulation.
perftests() {
    local device=$1 index=0 program programs=(ib_write_bw)
    [[ $long != long ]] || programs+=(ib_read_bw ib_send_bw ib_write_lat ib_send_lat)
    [[ $GUEST_LEVEL == 1 ]] || index=$(gid_index "$device")
    for program in "${programs[@]}"; do
        pair "$program" $program -F -d "$device" -x "$index" -n 100 -s 4096 \
            || { cat /tmp/output; exit 1; }
        [[ $GUEST_INDEX != "$CLIENT" ]] || grep -E '^ *4096 ' /tmp/output | sed "s/^/$program: /"
    done
}

verify() {
    [[ $GUEST_LEVEL == 2 ]] || return 0
    local device=$1 option peer=() options=(--port=18600)
    [[ $long != long ]] || options+=(--events)
    [[ $GUEST_INDEX == "$SERVER" ]] || peer=("$ADDR_1")
    for option in "${options[@]}"; do
        verifier --device "$device" --max-length 20000 "$option" "${peer[@]}"
    done
}

perftests "${RDMA_DEVICE:-none}"
verify "${RDMA_DEVICE:-none}"
lab-barrier measured
# The daemon dies without a word, and another one takes its place.
if [[ $GUEST_LEVEL == 1 ]]; then
    kill -9 $daemon
    wait $daemon || true
    start_daemon --hca soft
    ctl device list
    echo "the daemon was killed and started again"
else
    # It finds QPs that it knows nothing of, so the device goes and comes.
    until [[ $(dmesg | grep -c 'HCA generation') -ge 2 ]]; do sleep 0.5; done
    RDMA_DEVICE=$(ls /sys/class/infiniband)
    wait_gid "$RDMA_DEVICE"
fi
lab-barrier back
verify "${RDMA_DEVICE:-none}"
lab-barrier done
[[ $GUEST_LEVEL == 2 ]] || end_inner
