#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Every program of ibverbs-utils and of perftest between guest 0 and guest 1, over every transport that
# it has, with the options that use other verbs: events, inline data, SRQs, several QPs, timestamps.
# Given words choose: only what has one of them in its name is run.
set -euo pipefail
source ./rdma.sh

index=$(gid_index "$RDMA_DEVICE")
words=("$@")

chosen() {
    local word
    ((${#words[@]})) || return 0
    for word in "${words[@]}"; do
        [[ $1 != *$word* ]] || return 0
    done
    return 1
}

# pingpong NAME PROGRAM OPTIONS...
pingpong() {
    local name=$1 program=$2
    shift 2
    chosen "$name" || return 0
    try "$name" pair "$name" "$program" -d "$RDMA_DEVICE" -g "$index" "$@"
}

# perf NAME PROGRAM OPTIONS...
perf() {
    local name=$1 program=$2
    shift 2
    chosen "$name" || return 0
    try "$name" pair "$name" "$program" -F -d "$RDMA_DEVICE" -x "$index" "$@"
}

if chosen devices; then
    try devices eval 'ibv_devices > /tmp/output 2>&1 && grep -q "$RDMA_DEVICE" /tmp/output'
    try devinfo eval 'ibv_devinfo -v -d "$RDMA_DEVICE" > /tmp/output 2>&1'
fi

pingpong rc_pingpong ibv_rc_pingpong -n 100 -c
pingpong rc_pingpong-events ibv_rc_pingpong -n 100 -c -e
pingpong rc_pingpong-new-send ibv_rc_pingpong -n 100 -c -N
pingpong rc_pingpong-timestamps ibv_rc_pingpong -n 100 -c -t
pingpong uc_pingpong ibv_uc_pingpong -n 100 -c
pingpong uc_pingpong-events ibv_uc_pingpong -n 100 -c -e
pingpong ud_pingpong ibv_ud_pingpong -n 100 -c -s 2048
pingpong ud_pingpong-events ibv_ud_pingpong -n 100 -c -s 2048 -e
pingpong srq_pingpong ibv_srq_pingpong -n 100 -c
pingpong srq_pingpong-events ibv_srq_pingpong -n 100 -c -e -q 4
pingpong xsrq_pingpong ibv_xsrq_pingpong -n 20
pingpong xsrq_pingpong-events ibv_xsrq_pingpong -n 20 -e

for kind in lat bw; do
    for transport in RC UC UD XRC; do
        perf send_$kind-$transport ib_send_$kind -c $transport -n 100 -s 1024
        [[ $transport == UD ]] || perf write_$kind-$transport ib_write_$kind -c $transport -n 100
        [[ $transport == U* ]] || perf read_$kind-$transport ib_read_$kind -c $transport -n 100
        [[ $transport == U* ]] || perf atomic_$kind-$transport ib_atomic_$kind -c $transport -n 100
    done
    perf send_$kind-events ib_send_$kind -n 100 -s 64 -e
    perf read_$kind-events ib_read_$kind -n 100 -s 64 -e
    perf atomic_$kind-events ib_atomic_$kind -n 100 -e -A FETCH_AND_ADD
    perf send_$kind-srq ib_send_$kind -n 100 -s 64 --use-srq
    perf send_$kind-inline ib_send_$kind -n 100 -s 512 -I 512
    perf write_$kind-inline ib_write_$kind -n 100 -s 512 -I 512
    perf write_$kind-old-post ib_write_$kind -n 100 -s 512 --use_old_post_send
done
perf send_bw-qps ib_send_bw -n 200 -s 4096 -q 16
perf send_bw-qps-srq ib_send_bw -n 200 -s 4096 -q 16 --use-srq
perf write_bw-qps ib_write_bw -n 200 -s 4096 -q 16
perf read_bw-qps ib_read_bw -n 200 -s 4096 -q 16
perf write_bw-both-ways ib_write_bw -n 200 -s 4096 -b
perf send_bw-both-ways-UD ib_send_bw -n 200 -s 1024 -b -c UD
perf write_bw-lists ib_write_bw -n 256 -s 64 -l 16
perf write_bw-large ib_write_bw -n 5 -s 8388608
perf send_bw-many-mrs ib_send_bw -n 200 -s 4096 -q 4 --mr_per_qp
verdict
