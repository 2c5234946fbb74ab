#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Builds QEMU with the vhost-user-rdma device from Debian's source package
# and patches/ beside this file, into a directory that can be used as it is.
# What it builds is small: x86_64 with TCG and KVM, and the devices of lab.mak.
set -euo pipefail

usage() {
    cat <<EOF
usage: build.sh DEST     build QEMU and install it as DEST/bin, DEST/share/qemu
       build.sh --key    print the name of what would be built: a hash of its
                         inputs, to keep DEST under
       build.sh --path   print \$VHOST_RDMA_CACHE/qemu-KEY, where the lab keeps it

DEST is made at the end, in one step; when it is already there, nothing is done.

environment:
  QEMU_SOURCE_SUITE   Debian suite to take QEMU's source from: trixie (QEMU
                      10.0, the default) or sid (QEMU 10.2)
  VHOST_RDMA_CACHE    default /var/cache/vhost-rdma
  QEMU_BUILD_DIR      build here and leave it there, instead of in a temporary
                      directory that is removed
EOF
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
suite=${QEMU_SOURCE_SUITE:-trixie}
cache=${VHOST_RDMA_CACHE:-/var/cache/vhost-rdma}

# meson, SeaBIOS and iPXE come from here: Debian 12's meson is too old.
tools_suite=trixie

host_packages=(
    binutils ca-certificates dpkg-dev gcc libc6-dev libfdt-dev libglib2.0-dev
    make ninja-build patch pkg-config python3 python3-venv xz-utils zlib1g-dev
)

say() { echo "qemu: $*"; }

die() {
    echo "qemu: error: $1" >&2
    shift
    for line in "$@"; do echo "qemu:   $line" >&2; done
    exit 1
}

case $suite in
    trixie) series=10.0 ;;
    sid) series=10.2 ;;
    *) die "QEMU_SOURCE_SUITE=$suite: no patches for that suite's QEMU" \
        "Use trixie (QEMU 10.0) or sid (QEMU 10.2), or port the patches: see README.md." ;;
esac

key() {
    # The binary is linked against the host's libraries, so the host counts.
    {
        echo "$suite $series"
        (. /etc/os-release && echo "$ID ${VERSION_CODENAME:-${VERSION_ID:-}}")
        uname -m
        cd "$here"
        sha256sum build.sh lab.mak patches/"$series"/*.patch
    } | sha256sum | cut -c1-12 | sed "s/^/$series-/"
}

case ${1:-} in
    --help | -h) usage; exit 0 ;;
    --key) key; exit 0 ;;
    --path) echo "$cache/qemu-$(key)"; exit 0 ;;
    "" | -*) usage >&2; exit 2 ;;
esac
(($# == 1)) || { usage >&2; exit 2; }

dest=$(realpath -m "$1")
if [[ -x $dest/bin/qemu-system-x86_64 ]]; then
    say "$dest is already there"
    exit 0
fi
[[ ! -e $dest ]] || die "$dest exists, but has no bin/qemu-system-x86_64" \
    "Remove it, or name another directory."
[[ $(uname -m) == x86_64 ]] || die "this builds for x86_64 only, and runs on $(uname -m)"
command -v apt-get >/dev/null || die "there is no apt-get here" \
    "Run this on Debian 12 or later, or apply patches/$series to QEMU $series by hand: see README.md."

# One build of a directory at a time; who comes second finds it done.
mkdir -p "$(dirname "$dest")"
exec 9>"$dest.lock"
if ! flock -n 9; then
    say "waiting for another build of $dest"
    flock 9
    if [[ -x $dest/bin/qemu-system-x86_64 ]]; then
        say "$dest is there now"
        exit 0
    fi
fi

if [[ -n ${QEMU_BUILD_DIR:-} ]]; then
    work=$(realpath -m "$QEMU_BUILD_DIR")
    mkdir -p "$work"
else
    work=$(mktemp -d "${TMPDIR:-/var/tmp}/qemu-build.XXXXXX")
fi
log=$work/build.log
: >"$log"

finish() {
    local status=$?
    if ((status != 0)); then
        if [[ -s $log ]]; then
            echo "qemu: the last lines of the log:" >&2
            tail -n 30 "$log" | sed 's/^/qemu:   /' >&2
            cp "$log" "$dest.log" && echo "qemu: all of it: $dest.log" >&2
        fi
    else
        rm -f "$dest.log"
    fi
    rm -rf "$dest.new"
    [[ -n ${QEMU_BUILD_DIR:-} ]] || rm -rf "$work"
}
trap finish EXIT

step() {
    step_no=$((${step_no:-0} + 1))
    say "[$step_no/6] $*"
}

#
# 1. Build dependencies, by name, on this machine.
#
missing=()
for package in "${host_packages[@]}"; do
    [[ $(dpkg-query -Wf '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
        missing+=("$package")
done
if ((${#missing[@]})); then
    step "installing ${missing[*]}"
    ((EUID == 0)) || die "missing packages: ${missing[*]}" \
        "Install them, or run this as root."
    apt_get=(apt-get -o DPkg::Lock::Timeout=600)
    export DEBIAN_FRONTEND=noninteractive
    {
        "${apt_get[@]}" update &&
            "${apt_get[@]}" install -y --no-install-recommends "${missing[@]}"
    } >>"$log" 2>&1 </dev/null || die "cannot install ${missing[*]}" \
        "Is a Debian mirror configured and reachable?"
else
    step "build dependencies are installed"
fi

#
# 2. Source and tools, by name, from the mirror that this machine uses. The
#    suite isn't the machine's, so apt gets a configuration of its own.
#
step "fetching QEMU $series from Debian $suite"
mirror=$(apt-get indextargets --format '$(REPO_URI) $(LABEL) $(CODENAME)' 'Created-By: Packages' |
    awk '$2 == "Debian" && $3 !~ /-security|-updates|-backports/ { print $1; exit }')
# Lists that were never updated have no label and no code name.
[[ -n $mirror ]] || mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
    awk '/\/debian\/?$/ { print; exit }')
[[ -n $mirror ]] || die "apt knows no Debian mirror" \
    "Add one to /etc/apt/sources.list, and run apt-get update."
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[[ -r $keyring ]] || die "$keyring is missing" \
    "Install the package debian-archive-keyring."

apt=$work/apt
mkdir -p "$apt"/{lists/partial,cache/archives/partial,source,tools}
{
    echo "deb-src [signed-by=$keyring] $mirror $suite main"
    echo "deb [signed-by=$keyring arch=amd64] $mirror $tools_suite main"
} >"$apt/sources.list"
cat >"$apt/apt.conf" <<EOF
Dir::State::Lists "$apt/lists";
Dir::State::status "/var/lib/dpkg/status";
Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "-";
Dir::Etc::preferencesparts "-";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
EOF
private_apt() { APT_CONFIG=$apt/apt.conf "$@"; }

private_apt apt-get update >>"$log" 2>&1 || die "cannot read Debian $suite's package lists" \
    "Is the mirror reachable, and does it have $suite?"
version=$(private_apt apt-cache showsrc qemu 2>>"$log" |
    sed -n "s/^Version: \(1:$series\..*\)/\1/p" | sort -V | tail -n 1)
[[ -n $version ]] || die "Debian $suite has no QEMU $series any more" \
    "Its versions: $(private_apt apt-cache showsrc qemu 2>/dev/null | sed -n 's/^Version: //p' | xargs)" \
    "Port patches/$series to one of them: see README.md."
(cd "$apt/source" && private_apt apt-get source --download-only "qemu=$version") \
    >>"$log" 2>&1 || die "cannot download the source of QEMU $version"
(cd "$apt/tools" && private_apt apt-get download meson seabios ipxe-qemu) \
    >>"$log" 2>&1 || die "cannot download meson, seabios and ipxe-qemu from Debian $tools_suite"
for deb in "$apt"/tools/*.deb; do
    dpkg-deb -x "$deb" "$work/tools" >>"$log" 2>&1
done

#
# 3. Debian's patches, which make its tree build without what it leaves out,
#    then ours.
#
step "unpacking QEMU $version and applying patches/$series"
rm -rf "$work/src"
mkdir -p "$work/src"
tar -xf "$apt"/source/qemu_*.orig.tar.xz -C "$work/src" --strip-components=1 --no-same-owner
tar -xf "$apt"/source/qemu_*.debian.tar.xz -C "$work/src" --no-same-owner
cd "$work/src"
apply() {
    echo "applying $1" >>"$log"
    patch -p1 --forward --batch --fuzz=2 <"$1" >>"$log" 2>&1
}
while read -r name _; do
    [[ -z $name || $name == \#* ]] || apply "debian/patches/$name" ||
        die "Debian's own patch $name does not apply to its QEMU $version"
done <debian/patches/series
for file in "$here/patches/$series"/*.patch; do
    apply "$file" || die "${file##*/} does not apply to QEMU $version" \
        "Debian's source has moved on: port the patch, see README.md."
done
cp "$here/lab.mak" configs/devices/x86_64-softmmu/vhost-rdma-lab.mak

#
# 4. Configure. meson is Debian's, unpacked, not installed.
#
step "configuring"
export PYTHONPATH=$work/tools/usr/lib/python3/dist-packages
mkdir -p build
cd build
../configure \
    --python=/usr/bin/python3 --prefix=/usr --target-list=x86_64-softmmu \
    --without-default-features --without-default-devices \
    --with-devices-x86_64=vhost-rdma-lab \
    --with-pkgversion="Debian $version, vhost-user-rdma" \
    --enable-system --enable-tcg --enable-kvm --enable-vhost-user \
    --enable-fdt=system --enable-coroutine-pool --enable-malloc-trim \
    --audio-drv-list= --disable-pixman --disable-download --disable-docs \
    --disable-tools --disable-user --disable-guest-agent \
    --disable-install-blobs --disable-debug-info \
    >>"$log" 2>&1 </dev/null || die "QEMU's configure fails"

#
# 5. Compile. The option ROMs need no 32-bit C library, which is what
#    configure looks for before it builds them, so they are built by hand.
#
jobs=$(nproc)
steps=$(ninja -n qemu-system-x86_64 | sed -n 's|^\[1/\([0-9]*\)\].*|\1|p')
step "compiling, ${steps:-?} steps with $jobs jobs"
NINJA_STATUS='[%f/%t] ' nice ninja -j "$jobs" qemu-system-x86_64 2>&1 </dev/null | tee -a "$log" |
    awk -F'[][/]' '/^\[/ && int($2 / 200) > told { told = int($2 / 200); print "qemu:   " $2 " of " $3; fflush() }' ||
    die "QEMU does not compile"
{
    echo "TOPSRC_DIR=$work/src"
    echo "CC=gcc"
    echo "OBJCOPY=objcopy"
    echo "PYTHON=/usr/bin/python3"
} >pc-bios/optionrom/config.mak
make -C pc-bios/optionrom >>"$log" 2>&1 </dev/null || die "QEMU's option ROMs do not compile"

#
# 6. Install. The binary finds ../share/qemu by itself.
#
step "installing to $dest"
rm -rf "$dest.new"
mkdir -p "$dest.new/bin" "$dest.new/share/qemu"
cp qemu-system-x86_64 "$dest.new/bin/"
cp pc-bios/optionrom/*.bin "$dest.new/share/qemu/"
cp "$work"/tools/usr/share/seabios/{bios-256k,bios-microvm,vgabios-stdvga}.bin \
    "$work"/tools/usr/share/qemu/efi-virtio.rom "$dest.new/share/qemu/"
cat >"$dest.new/BUILD-INFO" <<EOF
source: qemu $version, Debian $suite
patches: $(cd "$here/patches/$series" && echo *.patch)
key: $(key)
EOF
"$dest.new/bin/qemu-system-x86_64" -device vhost-user-rdma-pci,help >>"$log" 2>&1 ||
    die "the new QEMU has no vhost-user-rdma-pci"
mv -T "$dest.new" "$dest"
say "done: $("$dest/bin/qemu-system-x86_64" --version | head -n 1) in $dest"
