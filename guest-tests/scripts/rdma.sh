# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Functions for scripts that run in lab guests; the lab lays this file into the guests' /root.
# Sourced, not run: `source ./rdma.sh`. Works with bash.

# Under `set -e`, tells which command a script stopped at.
trap 'echo "$0 line $LINENO failed: $BASH_COMMAND"' ERR

# Where servers listen: ibv_rc_pingpong and perftest have the same default.
readonly RDMA_PORT_HEX=4853

# gid_index DEVICE: the first RoCEv2 GID made of an IPv4 address.
gid_index() {
    local port=/sys/class/infiniband/$1/ports/1 index gid kind
    for ((index = 0; index < 256; index++)); do
        gid='' kind=''
        read -r gid 2>/dev/null < "$port/gids/$index" || return 1
        [[ $gid == 0000:0000:0000:0000:0000:ffff:* ]] || continue
        read -r kind 2>/dev/null < "$port/gid_attrs/types/$index" || continue
        if [[ $kind == "RoCE v2" ]]; then
            echo "$index"
            return 0
        fi
    done
    return 1
}

# wait_gid DEVICE: waits until that GID is there, for 30 seconds at most.
wait_gid() {
    local try
    for ((try = 0; try < 300; try++)); do
        gid_index "$1" > /dev/null && return 0
        sleep 0.1
    done
    echo "$1 got no GID" >&2
    return 1
}

# add_rxe: makes the software RoCE device rxe0 over the guest's network, for comparison.
add_rxe() {
    # Built into the UML kernel, a module elsewhere.
    modprobe -q rdma_rxe || true
    rdma link add rxe0 type rxe netdev eth0
    wait_gid rxe0
}

# wait_listening PID: waits until the program listens at the usual port, or has ended.
wait_listening() {
    local try
    for ((try = 0; try < 300; try++)); do
        grep -qs ":$RDMA_PORT_HEX .* 0A " /proc/net/tcp /proc/net/tcp6 && return 0
        kill -0 "$1" 2> /dev/null || return 1
        sleep 0.05
    done
    return 1
}

# The guest in which `pair` runs servers.
SERVER=0

# pair NAME COMMAND [ARGUMENT…]: runs a command as server in guest $SERVER and as client, with the
# server's address as last argument, in the other. NAME is that of the barriers. Output: /tmp/output.
# On a busy host perftest may find no clock rate and print "inf" times, or see nothing of a transfer
# in the seconds that it looks, and print 0: then both try again.
pair() {
    local name=$1 status try verdict
    shift
    for ((try = 1; ; try++)); do
        status=0
        pair_once "$name-$try" "$@" || status=$?
        verdict=fine
        ! grep -qE '[ -](inf|nan) |^ *[0-9]+ +[0-9]+ +0\.00 +0\.00 ' /tmp/output || verdict=again
        verdict=$(lab-barrier "$name-end" "$verdict")
        if [[ $verdict != *again* ]] || ((try == 5)); then
            return "$status"
        fi
        echo "$name: perftest gave no figure, once more"
    done
}

pair_once() {
    local name=$1 status=0 address=ADDR_$SERVER
    shift
    if [[ $GUEST_INDEX == "$SERVER" ]]; then
        timeout 90 "$@" > /tmp/output 2>&1 &
        local server=$!
        wait_listening "$server" || true
        lab-barrier "$name-start"
        wait "$server" || status=$?
    else
        lab-barrier "$name-start"
        timeout 90 "$@" "${!address}" > /tmp/output 2>&1 || status=$?
    fi
    return "$status"
}

# counter DEVICE NAME: one of the device's hardware counters; 0 for a device that lacks it.
counter() {
    local value=0
    read -r value 2> /dev/null < "/sys/class/infiniband/$1/ports/1/hw_counters/$2" || true
    echo "${value:-0}"
}
