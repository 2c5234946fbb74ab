#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Every perftest program of the demonstration once, briefly, polled and with events: each must end
# with success and give a figure.
set -euo pipefail
source ./rdma.sh

index=$(gid_index "$RDMA_DEVICE")
failed=0
for option in '' -e; do
    for program in ib_write_bw ib_read_bw ib_send_bw ib_write_lat ib_send_lat; do
        # perftest: "Events feature not available on WRITE verb".
        [[ $program$option != ib_write_*-e ]] || continue
        for bytes in 2 4096 65536; do
            status=0
            # shellcheck disable=SC2086 # no option is no argument
            pair "$program$option$bytes" $program -F -d "$RDMA_DEVICE" -x "$index" -n 200 \
                -s $bytes $option || status=$?
            if [[ $status == 0 ]] && grep -qE "^ *$bytes +[0-9]+ +[0-9.]+" /tmp/output; then
                echo "$program $option $(grep -E "^ *$bytes +[0-9]+ +[0-9.]+" /tmp/output)"
            else
                echo "$program $option, $bytes bytes: status $status"
                tail -n 15 /tmp/output
                failed=1
            fi
        done
    done
done
exit $failed
