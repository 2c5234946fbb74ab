# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Functions for scripts of lab guests that are hosts to others (level 1): a bridge, the daemon, and
# QEMU with KVM for the guests inside (level 2). Sourced, not run. Works with bash.

readonly CONTROL=/run/vhost-rdma.sock
declare -A inner_pids=()

# host_needs: says what of nesting is missing here, and fails.
host_needs() {
    grep -qw svm /proc/cpuinfo || { echo "this guest's processor has no SVM (QEMU's -cpu max has)"; return 1; }
    modprobe kvm_amd || { echo "kvm_amd can't be loaded"; return 1; }
    [[ -e /dev/kvm ]] || { echo "there is no /dev/kvm"; return 1; }
    mkdir -p /nested
    mount -t erofs -o ro /dev/vdc /nested
}

# host_network: a bridge in the place of eth0, with its addresses, for the guests inside.
host_network() {
    modprobe -a bridge tun
    ip link add br0 type bridge forward_delay 0 mcast_snooping 0
    ip link set br0 address "$(cat /sys/class/net/eth0/address)" mtu 9000
    ip address flush dev eth0
    ip link set eth0 master br0
    ip link set br0 up
    ip address add "$ADDR/24" dev br0
}

# start_daemon ARGUMENT…: the daemon with a socket for each guest inside.
start_daemon() {
    local index sockets=()
    for ((index = GUEST_COUNT - 1; index > 0; index--)); do
        [[ -e /root/ramdisk$index ]] || continue
        mac=MAC_$index
        sockets+=(--socket-path "/run/vm$index.sock,mac=${!mac},vectors=2")
    done
    vhost-rdma --control $CONTROL "${sockets[@]}" "$@" > /root/daemon.log 2>&1 &
    daemon=$!
    for ((try = 0; try < 300; try++)); do
        vhost-rdma-ctl --control $CONTROL hca list > /dev/null 2>&1 && return 0
        kill -0 $daemon 2> /dev/null || break
        sleep 0.1
    done
    echo "the daemon does not start:"
    cat /root/daemon.log
    return 1
}

ctl() { vhost-rdma-ctl --control $CONTROL "$@"; }

# start_inner INDEX: boots a guest inside, whose line goes straight to the lab.
start_inner() {
    local index=$1 mac=MAC_$1 line='' port
    for port in /sys/class/virtio-ports/*; do
        [[ $(cat "$port/name") != "inner$index" ]] || line=/dev/$(basename "$port")
    done
    [[ -n $line ]] || { echo "there is no line for guest $index"; return 1; }
    ip tuntap add "tap$index" mode tap
    ip link set "tap$index" mtu 9000 master br0 up
    LD_LIBRARY_PATH=/nested/lib /nested/bin/qemu-system-x86_64 \
        -nodefaults -no-user-config -no-reboot -display none \
        -machine q35,memory-backend=mem0 -accel kvm -cpu host -smp 1 -m "$INNER_MEMORY_MIB" \
        -object "memory-backend-memfd,id=mem0,size=${INNER_MEMORY_MIB}M,share=on" \
        -drive if=none,id=root,format=raw,readonly=on,file=/dev/vda -device virtio-blk-pci,drive=root \
        -drive if=none,id=modules,format=raw,readonly=on,file=/dev/vdb -device virtio-blk-pci,drive=modules \
        -netdev "tap,id=net0,ifname=tap$index,script=no,downscript=no" \
        -device "virtio-net-pci,netdev=net0,mac=${!mac},host_mtu=9000" \
        -device virtio-serial-pci -chardev "pipe,id=line,path=$line" \
        -device virtserialport,chardev=line,name=lab \
        -chardev "socket,id=rdma,path=/run/vm$index.sock,reconnect-ms=500" \
        -device "vhost-user-rdma-pci,chardev=rdma,num-comp-vectors=2,mac=${!mac},page-per-vq=on" \
        -serial "file:/root/console$index" \
        -kernel /nested/vmlinux -initrd "/root/ramdisk$index" -append "$INNER_KERNEL_ARGUMENTS" \
        > "/root/qemu$index.log" 2>&1 &
    inner_pids[$index]=$!
}

# watch_inner SECONDS: fails, and shows why, when a guest inside ends before it has given a sign of life
# at the barrier `up`, which all guests pass.
watch_inner() {
    local index try
    lab-barrier up &
    local barrier=$!
    for ((try = 0; try < $1; try++)); do
        kill -0 $barrier 2> /dev/null || { wait $barrier; return; }
        for index in "${!inner_pids[@]}"; do
            kill -0 "${inner_pids[$index]}" 2> /dev/null && continue
            local status=0
            wait "${inner_pids[$index]}" || status=$?
            echo "guest $index ended while it booted, its QEMU with status $status:"
            tail -n 20 "/root/qemu$index.log" "/root/console$index" /root/daemon.log
            return 1
        done
        sleep 1
    done
    echo "the guests inside are not up after $1 s:"
    tail -n 20 /root/console* /root/daemon.log
    return 1
}

# end_inner: waits until all guests inside have switched themselves off.
end_inner() { wait "${inner_pids[@]}" || true; }
