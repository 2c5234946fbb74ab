# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Functions for scripts that run in lab guests; the lab lays this file into the guests' /root.
# Sourced, not run: `source ./rdma.sh`. Works with bash.

# Under `set -e`, tells which command a script stopped at.
trap 'echo "$0 line $LINENO failed: $BASH_COMMAND"' ERR

# Where servers listen: ibv_rc_pingpong and perftest have the same default.
readonly RDMA_PORT_HEX=4853

# gid_index DEVICE [ADDRESS]: the first RoCEv2 GID made of an IPv4 address, or of this one.
gid_index() {
    local port=/sys/class/infiniband/$1/ports/1 index gid kind wanted='????:????'
    # shellcheck disable=SC2046,SC2086 # these are four words
    [[ -z ${2:-} ]] || wanted=$(printf '%02x%02x:%02x%02x' ${2//./ })
    for ((index = 0; index < 256; index++)); do
        gid='' kind=''
        read -r gid 2>/dev/null < "$port/gids/$index" || return 1
        # shellcheck disable=SC2053 # this is a pattern
        [[ $gid == 0000:0000:0000:0000:0000:ffff:$wanted ]] || continue
        read -r kind 2>/dev/null < "$port/gid_attrs/types/$index" || continue
        if [[ $kind == "RoCE v2" ]]; then
            echo "$index"
            return 0
        fi
    done
    return 1
}

# wait_gid DEVICE [ADDRESS]: waits until that GID is there, for 30 seconds at most.
wait_gid() {
    local try
    for ((try = 0; try < 300; try++)); do
        gid_index "$@" > /dev/null && return 0
        sleep 0.1
    done
    echo "$1 got no GID ${2:-}" >&2
    return 1
}

# gid_of DEVICE ADDRESS: waits for the RoCEv2 GID of an address, and prints its index. The address is
# given as it stands in the GID, without colons.
gid_of() {
    local port=/sys/class/infiniband/$1/ports/1 round index gid kind
    for ((round = 0; round < 100; round++)); do
        for ((index = 0; index < 64; index++)); do
            gid='' kind=''
            read -r gid 2> /dev/null < "$port/gids/$index" || break
            [[ ${gid//:/} == *"$2" ]] || continue
            read -r kind 2> /dev/null < "$port/gid_attrs/types/$index" || continue
            [[ $kind != "RoCE v2" ]] || { echo "$index"; return 0; }
        done
        sleep 0.2
    done
    echo "no GID ends with $2" >&2
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

# The guest in which `pair` runs servers, and that with the clients: all others if it is empty.
SERVER=0 CLIENT=
# How long one of them may take.
PAIR_SECONDS=90

# no_figure: whether perftest's output is of a run that it could not measure.
no_figure() { grep -qE '[ -](inf|nan) |^ *[0-9]+ +[0-9]+ +0\.00 +0\.00 ' /tmp/output; }

# pair NAME COMMAND [ARGUMENT…]: runs a command as server in guest $SERVER and as client, with the
# server's address as last argument, in $CLIENT. NAME is that of the barriers. Output: /tmp/output.
# On a busy host perftest may find no clock rate and print "inf" times, or see nothing of a transfer
# in the seconds that it looks, and print 0: then both try again.
pair() {
    local name=$1 status try verdict
    shift
    for ((try = 1; ; try++)); do
        status=0
        pair_once "$name-$try" "$@" || status=$?
        verdict=fine
        ! no_figure || verdict=again
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
        timeout "$PAIR_SECONDS" "$@" > /tmp/output 2>&1 &
        local server=$!
        wait_listening "$server" || true
        lab-barrier "$name-start"
        wait "$server" || status=$?
    elif [[ $GUEST_INDEX != "${CLIENT:-$GUEST_INDEX}" ]]; then
        : > /tmp/output
        lab-barrier "$name-start"
    else
        lab-barrier "$name-start"
        timeout "$PAIR_SECONDS" "$@" "${!address}" > /tmp/output 2>&1 || status=$?
    fi
    return "$status"
}

# figure PROGRAM: the figure in /tmp/output: MiB/s on average, or microseconds, typically.
figure() {
    case $1 in
        ibv_rc_pingpong) sed -n 's/.*= *\([0-9.]*\) usec\/iter.*/\1/p' /tmp/output ;;
        *_bw) awk '/^ *[0-9]+ +[0-9]+ +[0-9.]+ +[0-9.]+/ { value = $4 } END { print value }' /tmp/output ;;
        *_lat) awk '/^ *[0-9]+ +[0-9]+ +[0-9.]+ +[0-9.]+/ { value = $5 } END { print value }' /tmp/output ;;
    esac
}

# wait_cm_listening PID: waits until the connection manager has a listener (or mckey has joined its
# group), or the program has ended.
wait_cm_listening() {
    local try
    for ((try = 0; try < 200; try++)); do
        rdma resource show cm_id 2> /dev/null | grep -q LISTEN && return 0
        grep -q 'mckey: joined' /tmp/output && return 0
        kill -0 "$1" 2> /dev/null || return 1
        sleep 0.1
    done
    return 1
}

# cm_pair NAME SERVER-COMMAND CLIENT-COMMAND: likewise for programs that meet by the connection
# manager. The commands are words for the shell. A server that does not end by itself is one that
# begins with `forever`, and is ended when the client has.
cm_pair() {
    local name=$1 server=$2 client=$3 status=0 pid
    if [[ $GUEST_INDEX == 0 ]]; then
        # shellcheck disable=SC2086 # these are words
        timeout 90 stdbuf -oL ${server#forever } > /tmp/output 2>&1 &
        pid=$!
        wait_cm_listening "$pid" || true
        lab-barrier "$name-start"
        [[ $server == forever* ]] || wait "$pid" || status=$?
    else
        lab-barrier "$name-start"
        # shellcheck disable=SC2086
        timeout 90 stdbuf -oL $client > /tmp/output 2>&1 || status=$?
    fi
    lab-barrier "$name-end"
    if [[ $GUEST_INDEX == 0 && $server == forever* ]]; then
        kill "$pid" 2> /dev/null || true
        wait "$pid" 2> /dev/null || true
    fi
    return "$status"
}

# try NAME COMMAND...: runs a command, counts whether it succeeded, and goes on. With `verdict` at the
# end of the script.
tried=0 failures=()
try() {
    local name=$1 status=0 begun=$EPOCHREALTIME
    shift
    "$@" || status=$?
    tried=$((tried + 1))
    if [[ $status == 0 ]]; then
        echo "ok      $name ($(((${EPOCHREALTIME/./} - ${begun/./}) / 1000)) ms)"
    else
        echo "FAILED  $name: status $status"
        tail -n 12 /tmp/output
        failures+=("$name")
    fi
}

verdict() {
    echo "programs: $((tried - ${#failures[@]})) ok, ${#failures[@]} failed ${failures[*]}"
    [[ ${#failures[@]} == 0 ]]
}

# device_says TEXT: whether ibv_devinfo -v has a line with that (an extended regular expression).
device_says() {
    ibv_devinfo -v -d "$RDMA_DEVICE" | grep -qE "$1"
}

# counter DEVICE NAME: one of the device's hardware counters; 0 for a device that lacks it.
counter() {
    local value=0
    read -r value 2> /dev/null < "/sys/class/infiniband/$1/ports/1/hw_counters/$2" || true
    echo "${value:-0}"
}
