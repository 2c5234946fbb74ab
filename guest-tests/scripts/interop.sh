#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Programs between guest 0, which is outside of the daemon and has rxe, and guest 1: over our device, or
# over rxe too where guest 1 has no device. Each program once with each of them as server.
#
#   interop.sh programs [MTU…]   ibv_*_pingpong and perftest, also by IPv6, and in a VLAN where the guests'
#                                kernel has them
#   interop.sh verifier [MTU…]   every byte of SEND, WRITE and READ
#   interop.sh cm                the connection manager (rping)
#   interop.sh cm-perftest       perftest by the connection manager
#   interop.sh loss [EVERY]      what must be right also when frames are lost; of the verifier's operations
#                                only every so-manieth
set -euo pipefail
source ./rdma.sh

device=$RDMA_DEVICE
if [[ -z $device ]]; then
    add_rxe
    device=rxe0
fi
index=$(gid_index "$device")
what=$1
shift
mtus=("$@")
case $what in
    loss)
        every=${1:-1}
        # The programs' own talk is by TCP, which would wait for 200 ms after each loss.
        ip route change "${ADDR%.*}.0/24" dev eth0 src "$ADDR" rto_min 10ms
        ;;
    *) ((${#mtus[@]})) || mtus=(256 512 1024 2048 4096) ;;
esac

# The guests find each other before a program waits for an answer.
lab-barrier up
ping -q -c 1 -W 20 "$PEER_ADDR" > /dev/null

# try NAME COMMAND…: runs a command as server in guest $SERVER and as client in the other, whatever figure
# it finds, and says what it said if it failed. All are run, also after a failure.
failed=0
try() {
    local name=$1 status=0 begin
    shift
    begin=$(date +%s%N)
    pair_once "$name-$SERVER" "$@" || status=$?
    lab-barrier "$name-$SERVER-end"
    if [[ $status != 0 ]]; then
        echo "FAILED ($status) with guest $SERVER as server: $*"
        tail -n 12 /tmp/output
        failed=1
    else
        echo "ok, guest $SERVER as server, $((($(date +%s%N) - begin) / 1000000)) ms: $*"
    fi
}

pingpongs() {
    local mtu=$1
    try rc-$mtu ibv_rc_pingpong -d "$device" -g "$index" -c -n 40 -s 10000 -m $mtu
    # Unreliable: with more than a few messages under way a slow receiver loses some.
    try uc-$mtu ibv_uc_pingpong -d "$device" -g "$index" -c -n 40 -s 3000 -m $mtu
}

perftests() {
    local mtu=$1 program
    for program in ib_send_bw ib_write_bw ib_read_bw; do
        try $program-$mtu $program -F -d "$device" -x "$index" -n 200 -s 10000 -m $mtu
    done
}

# What has no path MTU to choose, or does not depend on it.
once() {
    try ud ibv_ud_pingpong -d "$device" -g "$index" -c -n 40 -s 1024
    try send-ud ib_send_lat -F -c UD -d "$device" -x "$index" -n 50 -s 1000
    try send-uc ib_send_lat -F -c UC -d "$device" -x "$index" -n 50 -s 6000
    try write-uc ib_write_lat -F -c UC -d "$device" -x "$index" -n 50 -s 6000
    try atomic-lat ib_atomic_lat -F -A CMP_AND_SWAP -d "$device" -x "$index" -n 50
    try atomic-bw ib_atomic_bw -F -A FETCH_AND_ADD -d "$device" -x "$index" -n 200
    try read-lat ib_read_lat -F -d "$device" -x "$index" -n 50 -s 6000
    try inline ib_write_lat -F -d "$device" -x "$index" -n 50 -s 64 -I 64
    try send-lat ib_send_lat -F -d "$device" -x "$index" -n 50 -s 6000
    try events ib_send_bw -F -e -d "$device" -x "$index" -n 100 -s 10000
}

# The GIDs of other addresses than the one of IPv4.
other_addresses() {
    ip address add "fd00:5::$((GUEST_INDEX + 1))/64" dev eth0 nodad
    ipv6=$(gid_of "$device" "$(printf 'fd0000050000000000000000%08x' $((GUEST_INDEX + 1)))")
    vlan=
    if modprobe -q 8021q; then
        ip link add link eth0 name eth0.5 type vlan id 5
        ip link set eth0.5 up
        ip address add "10.99.5.$((GUEST_INDEX + 1))/24" dev eth0.5
        vlan=$(gid_of "$device" "$(printf 'ffff0a6305%02x' $((GUEST_INDEX + 1)))")
    fi
    lab-barrier other-addresses
}

by_other_addresses() {
    try ipv6-rc ibv_rc_pingpong -d "$device" -g "$ipv6" -c -n 40 -s 10000 -m 1024
    try ipv6-ud ibv_ud_pingpong -d "$device" -g "$ipv6" -c -n 40 -s 1024
    [[ -z $vlan ]] || try vlan-rc ibv_rc_pingpong -d "$device" -g "$vlan" -c -n 40 -s 10000 -m 1024
}

verify() {
    local option name=verify-$SERVER-$1 address=ADDR_$SERVER peer=()
    shift
    [[ $GUEST_INDEX == "$SERVER" ]] || peer=("${!address}")
    lab-barrier "$name"
    verifier --device "$device" "$@" "${peer[@]}" || failed=1
}

# cm_once NAME SECONDS SERVER-COMMAND CLIENT-COMMAND: programs that meet by the connection manager.
cm_once() {
    local name=$1-$SERVER seconds=$2 server=$3 client=$4 status=0 pid
    if [[ $GUEST_INDEX == "$SERVER" ]]; then
        # shellcheck disable=SC2086 # these are words
        timeout "$seconds" $server > /tmp/output 2>&1 &
        pid=$!
        wait_cm_listening "$pid" || true
        lab-barrier "$name-start"
        wait "$pid" || status=$?
    else
        lab-barrier "$name-start"
        # shellcheck disable=SC2086
        timeout "$seconds" $client > /tmp/output 2>&1 || status=$?
    fi
    return "$status"
}

# report STATUS COMMAND
report() {
    if [[ $1 != 0 ]]; then
        echo "FAILED ($1) with guest $SERVER as server: $2"
        tail -n 12 /tmp/output
        failed=1
    else
        echo "ok, guest $SERVER as server: $2"
    fi
}

# cm NAME SERVER-COMMAND CLIENT-COMMAND
cm() {
    local status=0
    cm_once "$1" 90 "$2" "$3" || status=$?
    report "$status" "$2"
    lab-barrier "$1-$SERVER-end"
}

# cm_perftest NAME COMMAND: perftest's server listens anew for the connection that it measures; a client
# that comes before it does is refused, and gives up, between two rxe as well. So there are some attempts.
cm_perftest() {
    local name=$1 command=$2 address=ADDR_$SERVER try status verdict
    for try in 1 2 3 4 5 6; do
        status=0
        cm_once "$name-$try" 20 "$command" "$command ${!address}" || status=$?
        verdict=fine
        [[ $status == 0 ]] || verdict=again
        verdict=$(lab-barrier "$name-$try-$SERVER-end" "$verdict")
        [[ $verdict == *again* ]] || break
    done
    report "$status" "$command (attempt $try)"
}

[[ $what != programs ]] || other_addresses
for SERVER in 0 1; do
    case $what in
        programs)
            for mtu in "${mtus[@]}"; do
                pingpongs "$mtu"
                perftests "$mtu"
            done
            once
            by_other_addresses
            ;;
        verifier)
            for mtu in "${mtus[@]}"; do
                verify "$mtu" --path-mtu "$mtu" --max-length 20000
            done
            verify events --events --max-length 20000
            ;;
        cm)
            address=ADDR_$SERVER
            address=${!address}
            cm rping "rping -s -V -C 10 -a $address" "rping -c -V -C 10 -a $address"
            ;;
        cm-perftest)
            cm_perftest write-cm "ib_write_bw -F -R -d $device -n 100 -s 4096"
            cm_perftest send-cm "ib_send_lat -F -R -d $device -n 50 -s 100"
            ;;
        loss)
            try rc-loss ibv_rc_pingpong -d "$device" -g "$index" -c -n 100 -s 10000 -m 1024
            verify loss --path-mtu 1024 --max-length 20000 --lossy --every "$every"
            ;;
    esac
done
exit $failed
