#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Guests inside of a guest, which is their host: the daemon is in guest 0, the VMs 1 and 2 are in it.
# perftest and the verifier between these two; then the daemon is killed, and they go again. Arguments:
# the HCA, `soft` or `verbs` (rxe of the host); how often rxe is removed and added after that; `long` for
# more programs.
set -euo pipefail
source ./rdma.sh

SERVER=1 CLIENT=2 PAIR_SECONDS=300
hca=$1
replugs=$2
long=${3:-}
# Of the longest message that is checked; a layer more of emulation makes many small steps long.
length=3000
[[ $long != long ]] || length=20000

boot_daemon() {
    if [[ $hca == verbs ]]; then start_daemon --hca verbs:rxe0,gids=/root/gids; else start_daemon; fi
}

if [[ $GUEST_LEVEL == 1 ]]; then
    source ./nested-host.sh
    host_needs
    host_network
    if [[ $hca == verbs ]]; then
        modprobe rdma_rxe
        rdma link add rxe0 type rxe netdev br0
        wait_gid rxe0
        # On the wire both guests are their host; QPNs are the HCA's, so they don't meet.
        printf '0 %s %s\n' "$ADDR_1" "$ADDR_0" "$ADDR_2" "$ADDR_0" > gids
    fi
    boot_daemon
    start_inner 1
    start_inner 2
    watch_inner 380
else
    lab-barrier up
fi

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

# verify DEVICE [ARGUMENT…]
verify() {
    [[ $GUEST_LEVEL == 2 ]] || return 0
    local device=$1 peer=()
    shift
    [[ $GUEST_INDEX == "$SERVER" ]] || peer=("$ADDR_1")
    verifier --device "$device" --max-length "$length" "$@" "${peer[@]}"
}

generations() { dmesg | grep -c 'HCA generation'; }

# device_after N: waits for the device that was registered as the Nth.
device_after() {
    local try
    for ((try = 0; try < 600; try++)); do
        if (($(generations) >= $1)) && RDMA_DEVICE=$(ls /sys/class/infiniband) && [[ -n $RDMA_DEVICE ]]; then
            wait_gid "$RDMA_DEVICE"
            return
        fi
        sleep 0.5
    done
    echo "the device does not come back"
    dmesg | tail -n 20
    return 1
}

perftests "${RDMA_DEVICE:-none}"
verify "${RDMA_DEVICE:-none}"
[[ $long != long ]] || verify "${RDMA_DEVICE:-none}" --events --port 18601
lab-barrier measured
# The daemon dies without a word, and another one takes its place.
if [[ $GUEST_LEVEL == 1 ]]; then
    kill -9 $daemon
    wait $daemon || true
    boot_daemon
    ctl device list
    echo "the daemon was killed and started again"
else
    # It finds QPs that it knows nothing of, so the device goes and comes.
    device_after 2
fi
lab-barrier back
verify "${RDMA_DEVICE:-none}"
lab-barrier verified

# The HCA goes while the guests use it, and comes back.
for ((round = 1; round <= replugs; round++)); do
    if [[ $GUEST_LEVEL == 1 ]]; then
        lab-barrier listening
        lab-barrier loaded
        # The kernel waits until the daemon has let go of the device.
        timeout 60 rdma link delete rxe0 || { echo "rxe0 does not go"; tail -n 20 daemon.log; exit 1; }
        ctl hca list
        lab-barrier gone
        rdma link add rxe0 type rxe netdev br0
    else
        index=$(gid_index "$RDMA_DEVICE")
        load=(ib_write_bw -F -d "$RDMA_DEVICE" -x "$index" -p 18515 --run_infinitely -s 4096)
        if [[ $GUEST_INDEX == "$SERVER" ]]; then
            "${load[@]}" > load.log 2>&1 &
            load=$!
            wait_listening $load
            lab-barrier listening
        else
            lab-barrier listening
            "${load[@]}" "$ADDR_1" > load.log 2>&1 &
            load=$!
        fi
        for ((try = 0; try < 60; try++)); do
            (($(counter "$RDMA_DEVICE" send_wqes) + $(counter "$RDMA_DEVICE" rx_bytes) < 1000)) || break
            sleep 0.5
        done
        lab-barrier loaded
        lab-barrier gone
        kill -9 $load 2> /dev/null || true
        wait $load 2> /dev/null || true
        device_after $((round + 2))
    fi
    lab-barrier "replugged"
    verify "${RDMA_DEVICE:-none}"
    lab-barrier "verified"
    [[ $GUEST_LEVEL == 2 ]] || echo "round $round: rxe0 went and came back"
done
[[ $GUEST_LEVEL == 2 ]] || end_inner
