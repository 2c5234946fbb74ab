#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The RDMA device goes while programs use it, polled and with events, and comes back: the programs are
# told and can end, nothing of the old device is left, and the new one moves every byte right.
# Arguments: `hca` (the operator takes the HCA away from the daemon, so from both guests) or `pci` (the
# whole device is pulled out of guest 1), and how many rounds.
set -euo pipefail
source ./rdma.sh

how=$1
rounds=$2
device=$RDMA_DEVICE
# Whose device goes.
mine=yes
[[ $how == hca || $GUEST_INDEX == 1 ]] || mine=no

fail() {
    echo "$*"
    tail -n 20 /tmp/load-* /tmp/watch || true
    dmesg | tail -n 20
    exit 1
}

# until_true SECONDS WHAT COMMAND…
until_true() {
    local tries=$(($1 * 10)) what=$2 try
    shift 2
    for ((try = 0; try < tries; try++)); do
        if "$@" 2> /dev/null; then return 0; fi
        sleep 0.1
    done
    fail "$what"
}

listens() { grep -qs ":$(printf %04X "$1") .* 0A " /proc/net/tcp /proc/net/tcp6; }
more_than() { (($(counter "$device" send_wqes) + $(counter "$device" recv_wqes) > $1)); }
is_gone() { [[ ! -e /sys/class/infiniband/$device ]]; }
any_device() { [[ -n $(ls /sys/class/infiniband) ]]; }
told() { grep -q DEVICE_FATAL /tmp/watch; }
has_ended() { ! kill -0 "$1"; }

# load NAME PORT COMMAND…: a program that goes on until the device goes.
load() {
    local name=$1 port=$2 server=()
    shift 2
    [[ $GUEST_INDEX == 0 ]] || server=("$ADDR_0")
    "$@" -p "$port" "${server[@]}" > "/tmp/load-$name" 2>&1 &
    loads+=($!)
}

# A consumer in the kernel that holds the device, each time anew.
insmod ./rdma_hold.ko
let_go() { (($(dmesg | grep -c 'rdma_hold: .*let go') >= $1)); }

for ((round = 1; round <= rounds; round++)); do
    index=$(gid_index "$device")
    stdbuf -oL ibv_asyncwatch -d "$device" > /tmp/watch 2>&1 &
    watch=$!
    before=$(($(counter "$device" send_wqes) + $(counter "$device" recv_wqes)))
    loads=()
    start() {
        load polled 18515 ib_write_bw -F -d "$device" -x "$index" --run_infinitely -s 4096
        load events 18516 ib_send_bw -F -d "$device" -x "$index" -e -N -n 50000000 -s 4096
    }
    if [[ $GUEST_INDEX == 0 ]]; then
        start
        until_true 30 "a server does not listen" listens 18515
        until_true 30 "a server does not listen" listens 18516
    fi
    lab-barrier listening
    [[ $GUEST_INDEX == 0 ]] || start
    until_true 60 "no load" more_than $((before + 200))
    until_true 30 "nobody watches" test -s /tmp/watch
    lab-barrier loaded

    if [[ $GUEST_INDEX == 1 ]]; then
        if [[ $how == hca ]]; then lab-host ctl hca remove soft0; else lab-host unplug; fi
    fi
    if [[ $mine == yes ]]; then
        until_true 60 "the device stays" is_gone
        # Told, and thrown out of every wait that can't end.
        until_true 30 "nobody was told that the device failed" told
        until_true 30 "a program that waits for an event hangs" has_ended "${loads[1]}"
        grep 'event_type' /tmp/watch | head -n 1
        until_true 30 "a consumer in the kernel does not let go" let_go $round
    fi
    # One that polls for ever is not to blame; it must be possible to end it.
    kill -9 "${loads[@]}" $watch 2> /dev/null || true
    wait "${loads[@]}" $watch 2> /dev/null || true
    lab-barrier gone

    if [[ $GUEST_INDEX == 1 ]]; then
        if [[ $how == hca ]]; then lab-host ctl hca add soft; else lab-host plug; fi
    fi
    until_true 60 "no device comes back" any_device
    device=$(ls /sys/class/infiniband)
    wait_gid "$device"
    lab-barrier back
    peer=()
    [[ $GUEST_INDEX == 0 ]] || peer=("$ADDR_0")
    verifier --device "$device" --max-length 20000 "${peer[@]}"
    lab-barrier verified
    echo "round $round: $device is back"
done

dmesg | grep 'rdma_hold: .*let go' || [[ $mine == no ]]
if [[ $how == hca ]]; then
    # All its work came back, and it had been told before.
    all=$(dmesg | grep -c 'rdma_hold: .*let go, 16 of 16 receives flushed, 0 otherwise, told')
    ((all == rounds)) || fail "work of the kernel was not flushed"
fi
rmmod rdma_hold
# A consumer in the kernel finds the new one good, too.
insmod ./rdma_selftest.ko device="$device" || fail "rdma_selftest fails"
if dmesg | grep -E 'BUG:|WARNING:|Oops|rcu.*stall|Call Trace|hung'; then
    fail "the kernel complains"
fi
