#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Guests inside of a guest, which is their host: the daemon is in guest 0, with `soft` or with `verbs`,
# rxe of that host, as its HCA (the first argument). Then steps:
#   programs  perftest and the verifier between the first guest inside and: rxe of its host, another
#             guest inside, rxe of another host, as far as there are such
#   replug=N  rxe goes and comes N times under load (`verbs` only)
#   kill      the daemon dies under load, and another one takes its place
#   touched   what the daemon touches of the guest's memory while rxe moves data
#   measure=N perftest between the first guest inside and rxe of its host, beside rxe alone, N times
#   long      for the steps that follow: more programs, longer messages
set -euo pipefail
source ./rdma.sh

hca=$1
shift
readonly FIRST=$HOST_COUNT
PAIR_SECONDS=300
programs=(ib_write_bw)
# Two layers of emulation take their time for each of the verifier's messages.
checks=(--max-length 3000 --every 20)

partners=()
[[ $hca != verbs ]] || partners+=(0)
((FIRST + 1 >= GUEST_COUNT)) || partners+=($((FIRST + 1)))
[[ $hca != verbs ]] || ((HOST_COUNT == 1)) || partners+=(1)

# perftest's options: with patience for a peer whose host runs others first.
options=(-F -u 18)

# On level 1 rxe.
device=${RDMA_DEVICE:-rxe0}
# Guests inside use two addresses for RDMA: that of their network is unknown outside, and the daemon
# renames it to their host's; this one their host has too, so that all may use it who know no names.
known() { echo "10.78.0.$(($1 + 1))"; }
# How many devices this guest has had.
devices=1

say() { echo "$(cut -d ' ' -f 1 /proc/uptime) s: $*"; }

fail() {
    echo "$*"
    if [[ ! -e daemon.log ]]; then dmesg | tail -n 20; else show_logs; fi
    exit 1
}

# until_true SECONDS WHAT COMMAND…
until_true() {
    local until=$((SECONDS + $1)) what=$2
    shift 2
    while ((SECONDS < until)); do
        if "$@" 2> /dev/null; then return 0; fi
        sleep 0.2
    done
    fail "$what"
}

boot_daemon() {
    if [[ $hca == verbs ]]; then start_daemon --hca verbs:rxe0,gids=/root/gids; else start_daemon; fi
}

link_rxe() {
    rdma link add rxe0 type rxe netdev eth0
    wait_gid rxe0 "$(known "$GUEST_INDEX")"
}

boot() {
    ip address add "$(known "$GUEST_INDEX")/24" dev eth0
    if [[ $GUEST_LEVEL == 2 ]]; then
        wait_gid "$device" "$(known "$GUEST_INDEX")"
        lab-barrier up
        return
    fi
    source ./nested-host.sh
    modprobe -q rdma_rxe || true
    [[ $hca != verbs ]] || link_rxe
    if [[ $GUEST_INDEX != 0 ]]; then
        lab-barrier up
        return
    fi
    local index address
    say "begin"
    host_needs
    host_network
    # On the wire all guests inside are their host; QPNs are the HCA's, so they don't meet.
    for ((index = FIRST; index < GUEST_COUNT; index++)); do
        address=ADDR_$index
        echo "0 ${!address} $ADDR_0" >> gids
        ip address add "$(known "$index")/24" dev eth0
    done
    boot_daemon
    say "the daemon runs"
    for ((index = FIRST; index < GUEST_COUNT; index++)); do start_inner "$index"; done
    watch_inner 380
    say "the guests inside are up"
}

takes_part() { [[ $GUEST_INDEX == "$SERVER" || $GUEST_INDEX == "$CLIENT" ]]; }

# my_gid: the index of that which this guest uses between $SERVER and $CLIENT.
my_gid() {
    if ((SERVER < HOST_COUNT)); then gid_index "$device" "$(known "$GUEST_INDEX")"; else gid_index "$device"; fi
}

# verify: between $SERVER and $CLIENT.
verify() {
    takes_part || return 0
    local address=ADDR_$SERVER peer=()
    [[ $GUEST_INDEX == "$SERVER" ]] || peer=("${!address}")
    verifier --device "$device" --gid-index "$(my_gid)" "${checks[@]}" "$@" "${peer[@]}"
}

programs() {
    local program index=0
    CLIENT=$FIRST
    for SERVER in "${partners[@]}"; do
        ! takes_part || index=$(my_gid)
        for program in "${programs[@]}"; do
            pair "$program-$SERVER" $program "${options[@]}" -d "$device" -x "$index" -n 100 -s 4096 \
                || fail "$program with guest $SERVER: $(cat /tmp/output)"
            [[ $GUEST_INDEX != "$CLIENT" ]] \
                || grep -E '^ *4096 ' /tmp/output | sed "s/^/$program with guest $SERVER: /"
        done
        verify
        verify --events --port 18601
        lab-barrier "verified-$SERVER"
        [[ $GUEST_INDEX != 0 ]] || say "the first guest inside and guest $SERVER: done"
    done
}

# load [SIZE]: perftest without an end between $SERVER and $CLIENT, until something is on its way. Guests
# inside listen to what their device says.
load() {
    local address=ADDR_$SERVER size=${1:-4096}
    load='' watch=''
    if [[ $GUEST_LEVEL == 2 ]]; then
        stdbuf -oL ibv_asyncwatch -d "$device" > watch.log 2>&1 &
        watch=$!
        until_true 60 "nobody watches" test -s watch.log
    fi
    if takes_part; then
        local command=(ib_write_bw "${options[@]}" -d "$device" -x "$(my_gid)" -p 18515 --run_infinitely -s "$size")
        if [[ $GUEST_INDEX == "$SERVER" ]]; then
            "${command[@]}" > load.log 2>&1 &
            load=$!
            wait_listening $load || fail "the load does not start: $(cat load.log)"
        fi
    fi
    lab-barrier listening
    if [[ $GUEST_INDEX == "$CLIENT" ]]; then
        "${command[@]}" "${!address}" > load.log 2>&1 &
        load=$!
        local before
        before=$(counter "$device" send_wqes)
        more() { (($(counter "$device" send_wqes) > before + 100)); }
        until_true 90 "there is no load: $(cat load.log)" more
    fi
    lab-barrier loaded
}

# shellcheck disable=SC2086 # there may be one, or none
unload() {
    [[ -n $load$watch ]] || return 0
    kill -9 $load $watch 2> /dev/null || true
    wait $load $watch 2> /dev/null || true
    load='' watch=''
}

generations() { dmesg | grep -c 'HCA generation'; }

# next_device: in a guest inside, programs hear that the device has gone, and there is one more than
# there has been.
next_device() {
    until_true 120 "nobody was told that the device failed" grep -q DEVICE_FATAL watch.log
    unload
    devices=$((devices + 1))
    registered() { (($(generations) >= devices)) && device=$(ls /sys/class/infiniband) && [[ -n $device ]]; }
    until_true 200 "the device does not come back" registered
    wait_gid "$device" "$(known "$GUEST_INDEX")"
}

# Partners as for the load: the host's rxe where there is one.
load_partners() {
    CLIENT=$FIRST
    SERVER=${partners[0]}
}

replug() {
    local round
    load_partners
    for ((round = 1; round <= $1; round++)); do
        load
        if [[ $GUEST_INDEX == 0 ]]; then
            # The kernel waits until all have let go of the device: the daemon, and the load.
            timeout 60 rdma link delete rxe0 &
            local deletion=$!
            unload
            wait $deletion || { echo "rxe0 does not go"; show_logs; exit 1; }
            ctl hca list
            lab-barrier gone
            link_rxe
        else
            lab-barrier gone
            [[ $GUEST_LEVEL == 2 ]] || unload
        fi
        [[ $GUEST_LEVEL == 1 ]] || next_device
        lab-barrier back
        verify
        lab-barrier verified
        [[ $GUEST_INDEX != 0 ]] || say "round $round: rxe0 went and came back"
    done
}

kill_daemon() {
    load_partners
    load
    if [[ $GUEST_INDEX == 0 ]]; then
        kill -9 $daemon
        wait $daemon 2> /dev/null || true
        boot_daemon
        ctl device list
    fi
    lab-barrier again
    # The new daemon knows nothing of the QPs that it finds, so the device goes and comes.
    [[ $GUEST_LEVEL == 1 ]] || next_device
    unload
    lab-barrier back
    verify
    lab-barrier verified
    [[ $GUEST_INDEX != 0 ]] || say "the daemon was killed and started again"
}

# figure SIZE COLUMN: from perftest's output.
figure() { awk -v size="$1" -v column="$2" '$1 == size { print $column }' /tmp/output; }

# alone COMMAND…: both ends in this guest, by rxe itself.
alone() {
    local server try
    for ((try = 1; try <= 5; try++)); do
        "$@" > /tmp/server-output 2>&1 &
        server=$!
        wait_listening $server
        timeout 200 "$@" "$ADDR_0" > /tmp/output 2>&1 || fail "$* alone: $(cat /tmp/output)"
        wait $server
        no_figure || break
    done
}

# touched: how much of the memory of guests the daemon itself reads or writes while rxe moves messages of
# a MiB: if it copied one, it would touch as much.
touched() {
    SERVER=0
    CLIENT=$FIRST
    load 1048576
    # Where the kernel marks pages so (UML's does not).
    if [[ $GUEST_INDEX == 0 && -e /proc/$daemon/clear_refs ]]; then
        local packets
        echo 1 > "/proc/$daemon/clear_refs"
        packets=$(counter rxe0 rcvd_pkts)
        sleep 10
        awk -v packets=$(($(counter rxe0 rcvd_pkts) - packets)) '
            /^[0-9a-f]+-[0-9a-f]+ / { guest = /memfd/ }
            guest && $1 == "Referenced:" { kib += $2 }
            END {
                print "touched: " kib " KiB of the memory of guests while rxe got " packets " packets"
                exit(packets < 512 || kib >= 512)
            }
        ' "/proc/$daemon/smaps" || fail "the daemon touches what it does not move, or nothing moves"
    fi
    lab-barrier touched
    unload
    lab-barrier touched
}

# measure ROUNDS: in turns, since a busy host is never the same for long.
measure() {
    local round program size count column command here there
    SERVER=0
    CLIENT=$FIRST
    for ((round = 1; round <= $1; round++)); do
        while read -r program size count column; do
            command=("$program" "${options[@]}" -d "$device" -s "$size" -n "$count")
            ! takes_part || command+=(-x "$(my_gid)")
            here=-
            if [[ $GUEST_INDEX == 0 ]]; then
                alone "${command[@]}"
                here=$(figure "$size" "$column")
            fi
            pair "measure-$program" "${command[@]}" || fail "$program: $(cat /tmp/output)"
            there=$(lab-barrier figures "$(figure "$size" "$column" | grep . || echo -)" \
                | sed -n "$((FIRST + 1))p")
            [[ $GUEST_INDEX != 0 ]] || echo "measure: $program $size bytes, round $round: rxe $here, from inside $there"
        done <<- 'END'
			ib_write_bw 65536 1000 4
			ib_write_bw 1048576 100 4
			ib_read_bw 65536 1000 4
			ib_read_bw 1048576 100 4
			ib_send_lat 64 300 5
		END
    done
}

boot
for step in "$@"; do
    case $step in
        programs) programs ;;
        replug=*) replug "${step#*=}" ;;
        kill) kill_daemon ;;
        touched) touched ;;
        measure=*) measure "${step#*=}" ;;
        long)
            programs+=(ib_read_bw ib_send_bw ib_write_lat ib_send_lat)
            checks=(--max-length 20000 --every 5)
            ;;
        *) fail "unknown step $step" ;;
    esac
done
if [[ $GUEST_LEVEL == 1 ]] && dmesg | grep -E 'BUG:|Oops|general protection|hung_task'; then
    fail "the host's kernel complains"
fi
[[ $GUEST_LEVEL == 2 || $GUEST_INDEX != 0 ]] || end_inner
