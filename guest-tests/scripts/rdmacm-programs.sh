#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Every program of rdmacm-utils between guest 0 and guest 1, over IPv4, IPv6 and (where the guest's
# kernel has them) a VLAN, and what libibverbs's and perftest's programs do over such addresses.
# Given words choose: only what has one of them in its name is run.
set -euo pipefail
source ./rdma.sh

words=("$@")
ipv6() { echo "fd00:5::$(($1 + 1))"; }
vlan() { echo "10.99.5.$(($1 + 1))"; }

chosen() {
    local word
    ((${#words[@]})) || return 0
    for word in "${words[@]}"; do
        [[ $1 != *$word* ]] || return 0
    done
    return 1
}

# cm NAME SERVER CLIENT [TEXT]: see cm_pair; with TEXT, both must also say that.
cm() {
    ! chosen "$1" || try "$1" cm_says "$@"
}

cm_says() {
    cm_pair "$1" "$2" "$3" && { [[ -z ${4:-} ]] || grep -q "$4" /tmp/output; }
}

ip address add "$(ipv6 "$GUEST_INDEX")/64" dev eth0 nodad
with_vlan=no
if modprobe -q 8021q 2> /dev/null; then
    ip link add link eth0 name eth0.5 type vlan id 5
    ip link set eth0.5 up
    ip address add "$(vlan "$GUEST_INDEX")/24" dev eth0.5
    with_vlan=yes
fi
[[ $GUEST_KIND != qemu || $with_vlan == yes ]]
gid_of "$RDMA_DEVICE" "$(printf 'fd0000050000000000000000%08x' $((GUEST_INDEX + 1)))" > /dev/null
lab-barrier addresses

for family in 4 6; do
    [[ $family == 4 ]] && there=$ADDR_0 || there=$(ipv6 0)
    cm "rping-$family" "rping -s -V -v -C 10 -a $there" "rping -c -V -v -C 10 -a $there"
    cm "ucmatose-$family" "ucmatose -b $there" "ucmatose -s $there"
    cm "udaddy-$family" "udaddy -b $there" "udaddy -s $there"
    cm "rdma_server-$family" "rdma_server -s $there" "rdma_client -s $there"
    cm "rstream-$family" "rstream -b $there -S 4096 -C 100 -T v" "rstream -s $there -S 4096 -C 100 -T v"
done
if [[ $with_vlan == yes ]]; then
    there=$(vlan 0)
    cm rping-vlan "rping -s -V -v -C 10 -a $there" "rping -c -V -v -C 10 -a $there"
    cm udaddy-vlan "udaddy -b $there" "udaddy -s $there"
fi
cm rping-persistent "forever rping -s -P -a $ADDR_0" "rping -c -C 5 -a $ADDR_0"
cm ucmatose-many "ucmatose -c 20 -C 5 -S 2048" "ucmatose -s $ADDR_0 -c 20 -C 5 -S 2048"
cm udaddy-many "udaddy -c 4 -C 20" "udaddy -s $ADDR_0 -c 4 -C 20"
cm cmtime "cmtime -c 5" "cmtime -s $ADDR_0 -c 5"
cm rstream-nonblocking "rstream -S 1024 -C 100 -T n" "rstream -s $ADDR_0 -S 1024 -C 100 -T n"
cm rstream-resolve "rstream -S 1024 -C 100 -T r" "rstream -s $ADDR_0 -S 1024 -C 100 -T r"
cm mckey "mckey -m 230.1.2.3 -b $ADDR -C 10 -S 512" "mckey -m 230.1.2.3 -b $ADDR -s -C 10 -S 512" \
    "data transfers complete"
cm riostream "riostream -S 4096 -C 100 -T v" "riostream -s $ADDR_0 -S 4096 -C 100 -T v"
head -c 300000 /dev/urandom > /tmp/source
cm rcopy "forever rcopy" "rcopy /tmp/source $ADDR_0:/tmp/copy"
cm rdma_xserver "rdma_xserver -c r" "rdma_xclient -s $ADDR_0 -c r"
cm rdma_xserver-xrc "rdma_xserver -c x" "rdma_xclient -s $ADDR_0 -c x"
cm perftest-write "ib_write_bw -F -R -d $RDMA_DEVICE -n 100 -s 4096" \
    "ib_write_bw -F -R -d $RDMA_DEVICE -n 100 -s 4096 $ADDR_0"
cm perftest-send "ib_send_lat -F -R -d $RDMA_DEVICE -n 100 -s 64" \
    "ib_send_lat -F -R -d $RDMA_DEVICE -n 100 -s 64 $ADDR_0"
cm perftest-datagrams "ib_send_bw -F -R -c UD -d $RDMA_DEVICE -n 100 -s 1024" \
    "ib_send_bw -F -R -c UD -d $RDMA_DEVICE -n 100 -s 1024 $ADDR_0"
cm perftest-atomic "ib_atomic_lat -F -R -d $RDMA_DEVICE -n 100" \
    "ib_atomic_lat -F -R -d $RDMA_DEVICE -n 100 $ADDR_0"

# over NAME INDEX: what finds its peer by GID, over the one of that index.
over() {
    chosen "$1" || return 0
    try "rc_pingpong-$1" pair "rc-$1" ibv_rc_pingpong -d "$RDMA_DEVICE" -g "$2" -n 100 -c
    try "ud_pingpong-$1" pair "ud-$1" ibv_ud_pingpong -d "$RDMA_DEVICE" -g "$2" -n 100 -c -s 1024
    try "write_bw-$1" pair "write-$1" ib_write_bw -F -d "$RDMA_DEVICE" -x "$2" -n 100 -s 4096
}

over ipv6 "$(gid_of "$RDMA_DEVICE" "$(printf 'fd0000050000000000000000%08x' $((GUEST_INDEX + 1)))")"
if [[ $with_vlan == yes ]]; then
    over vlan "$(gid_of "$RDMA_DEVICE" "$(printf 'ffff0a6305%02x' $((GUEST_INDEX + 1)))")"
fi
verdict
