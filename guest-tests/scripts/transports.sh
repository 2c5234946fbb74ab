#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The transports beside RC by libibverbs's own programs, perftest over them, and the connection
# manager over QP1 (rping, and perftest's -R).
set -euo pipefail
source ./rdma.sh

index=$(gid_index "$RDMA_DEVICE")
show() { cat /tmp/output; exit 1; }

for transport in uc ud; do
    bytes=4096
    [[ $transport == ud ]] && bytes=2048
    for option in '' -e; do
        # shellcheck disable=SC2086 # no option is no argument
        pair "$transport$option" "ibv_${transport}_pingpong" -d "$RDMA_DEVICE" -g "$index" -c \
            -n 100 -s $bytes $option || show
        grep -q '100 iters in' /tmp/output || show
        echo "$transport $option: $(grep 'iters in' /tmp/output)"
    done
    pair "send-$transport" ib_send_lat -d "$RDMA_DEVICE" -x "$index" -c "${transport^^}" -n 100 \
        -s 64 || show
    echo "ib_send_lat over $transport: done"
done

# The server listens for the connection manager, not for TCP: the client tries until it answers.
if [[ $GUEST_INDEX == 0 ]]; then
    timeout 90 rping -s -V -C 10 -a "$ADDR_0" > /tmp/output 2>&1 &
    server=$!
    sleep 1
    lab-barrier rping-start
    wait "$server" || show
else
    lab-barrier rping-start
    timeout 90 rping -c -V -C 10 -a "$ADDR_0" > /tmp/output 2>&1 || show
fi
lab-barrier rping-end
echo "rping: done"

pair write-cm ib_write_bw -R -d "$RDMA_DEVICE" -n 100 -s 4096 || show
echo "ib_write_bw over the connection manager: done"
