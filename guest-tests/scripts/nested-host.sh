# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Functions for scripts of lab guests that are hosts to others (level 1): the daemon, and QEMU for the
# guests inside (level 2), with KVM, or in UML with TCG. Sourced, not run. Works with bash.

readonly CONTROL=/run/vhost-rdma.sock
declare -A inner_pids=()

# host_needs: lays out what guests inside need; says what is missing here, and fails.
host_needs() {
    mkdir -p /nested
    if [[ $GUEST_KIND == uml ]]; then
        local name image
        mount -t hostfs -o "ro,hostfs=$NESTED_TREE" none /nested
        inner_disks=()
        for name in INNER_ROOT INNER_MODULES; do
            image=${!name}
            mkdir -p "/images/$name"
            mount -t hostfs -o "ro,hostfs=${image%/*}" none "/images/$name"
            inner_disks+=("/images/$name/${image##*/}")
        done
        # UML's processor is this host's, and it has no KVM.
        inner_processor=(-accel tcg -cpu max)
        return
    fi
    grep -qw svm /proc/cpuinfo || { echo "this guest's processor has no SVM (QEMU's -cpu max has)"; return 1; }
    modprobe kvm_amd || { echo "kvm_amd can't be loaded"; return 1; }
    [[ -e /dev/kvm ]] || { echo "there is no /dev/kvm"; return 1; }
    mount -t erofs -o ro /dev/vdc /nested
    inner_disks=(/dev/vda /dev/vdb)
    inner_processor=(-accel kvm -cpu host)
}

# host_network: the guests inside have their network at a port of the daemon's, whose other end is
# veth0; this host routes between that and eth0, and answers ARP for both sides.
host_network() {
    local index address name
    modprobe -q veth || true
    ip link add veth0 mtu 9000 type veth peer name veth1 mtu 9000
    ip link set veth1 up
    ip link set veth0 up
    echo 1 > /proc/sys/net/ipv4/ip_forward
    # Guests may have addresses that this host has too, and ask with them.
    echo 1 > /proc/sys/net/ipv4/conf/veth0/accept_local
    echo 512 > /proc/sys/net/unix/max_dgram_qlen
    for name in eth0 veth0; do
        echo 1 > "/proc/sys/net/ipv4/conf/$name/proxy_arp"
        echo 0 > "/proc/sys/net/ipv4/neigh/$name/proxy_delay"
    done
    for ((index = HOST_COUNT; index < GUEST_COUNT; index++)); do
        address=ADDR_$index
        ip route add "${!address}/32" dev veth0
    done
}

# start_daemon ARGUMENT…: the daemon with a socket for each guest inside.
start_daemon() {
    local index mac sockets=() try
    for ((index = HOST_COUNT; index < GUEST_COUNT; index++)); do
        mac=MAC_$index
        sockets+=(--socket-path "/run/vm$index.sock,mac=${!mac},vectors=2,net-local=/run/net$index,net-remote=/run/qemu$index")
    done
    vhost-rdma --control $CONTROL --port packet:veth1 "${sockets[@]}" "$@" >> /root/daemon.log 2>&1 &
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

# line_of INDEX: the character device that is the line of a guest inside to the lab, for QEMU.
line_of() {
    local port
    if [[ $GUEST_KIND == uml ]]; then
        echo "serial,id=line,path=/dev/ttyS$1"
        return
    fi
    for port in /sys/class/virtio-ports/*; do
        [[ $(cat "$port/name") != "inner$1" ]] || echo "pipe,id=line,path=/dev/${port##*/}"
    done
}

# start_inner INDEX: boots a guest inside, whose line goes straight to the lab.
start_inner() {
    local index=$1 mac=MAC_$1 line
    line=$(line_of "$index")
    [[ -n $line ]] || { echo "there is no line for guest $index"; return 1; }
    LD_LIBRARY_PATH=/nested/lib /nested/bin/qemu-system-x86_64 \
        -nodefaults -no-user-config -no-reboot -display none \
        -machine q35,memory-backend=mem0 "${inner_processor[@]}" -smp 1 -m "$INNER_MEMORY_MIB" \
        -object "memory-backend-memfd,id=mem0,size=${INNER_MEMORY_MIB}M,share=on" \
        -drive "if=none,id=root,format=raw,readonly=on,file=${inner_disks[0]}" \
        -device virtio-blk-pci,drive=root \
        -drive "if=none,id=modules,format=raw,readonly=on,file=${inner_disks[1]}" \
        -device virtio-blk-pci,drive=modules \
        -netdev "dgram,id=net0,local.type=unix,local.path=/run/qemu$index,remote.type=unix,remote.path=/run/net$index" \
        -device "virtio-net-pci,netdev=net0,mac=${!mac},host_mtu=9000" \
        -device virtio-serial-pci -chardev "$line" -device virtserialport,chardev=line,name=lab \
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
            show_logs
            return 1
        done
        sleep 1
    done
    echo "the guests inside are not up after $1 s:"
    show_logs
    return 1
}

# show_logs: what the daemon, the guests inside, their QEMUs and this host's kernel said last.
show_logs() {
    tail -n 20 /root/qemu*.log /root/console* /root/daemon.log
    dmesg | tail -n 20
}

# end_inner: waits until all guests inside have switched themselves off.
end_inner() {
    local index try
    for index in "${!inner_pids[@]}"; do
        for ((try = 0; try < 100; try++)); do
            kill -0 "${inner_pids[$index]}" 2> /dev/null || continue 2
            sleep 0.2
        done
        echo "guest $index does not switch itself off"
        kill -9 "${inner_pids[$index]}"
    done
}
