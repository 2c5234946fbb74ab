#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The lab itself: addresses, names and barriers are as promised, and guests reach each other.
set -euo pipefail

[[ $(hostname) == "guest$GUEST_INDEX" ]]
[[ $(id -u) == 0 ]]
mine=ADDR_$GUEST_INDEX
[[ ${!mine} == "$ADDR" ]]
(($(wc -w <<< "$PEER_ADDRS") == GUEST_COUNT - 1))
lab-barrier up
for peer in $PEER_ADDRS; do
    ping -q -c 1 -W 5 "$peer" > /dev/null
    # Jumbo frames must pass whole.
    ping -q -c 1 -W 5 -M do -s 8000 "$peer" > /dev/null
done
# Everybody hears everybody's value, in the guests' order.
values=$(lab-barrier values "v$GUEST_INDEX" | tr '\n' ' ')
[[ $values == "v0 v1 v2 " ]]
# A barrier holds the early back: who is last makes a mark that all others then see.
for round in 1 2 3; do
    ((GUEST_INDEX != round % GUEST_COUNT)) || sleep 0.5
    before=$(date +%s%N)
    lab-barrier round
    echo "round $round after $((($(date +%s%N) - before) / 1000000)) ms"
done
