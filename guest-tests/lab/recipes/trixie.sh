# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Runs inside the trixie build root while it is made. What must agree in version is fetched here
# at one time: the headers of both kernels with their images, and the sources that others are
# built from. Nothing is compiled here.
set -eu
export DEBIAN_FRONTEND=noninteractive
mkdir -p /mnt/work /mnt/source /srv/kernels /srv/sources

# version_of METAPACKAGE SUITE PREFIX: the versioned package that a metapackage stands for.
version_of() {
    apt-cache show "$1/$2" | sed -n 's/^Depends: *//p' | tr ',' '\n' |
        sed -n "s/^ *$3-\([0-9][^ ]*\).*/\1/p" | head -n 1
}

# fetch_kernel NAME SUITE: downloads the image (and where it is split, the modules) of a suite's
# kernel, whose headers are installed, into /srv/kernels/NAME.
fetch_kernel() {
    version=$(version_of linux-headers-amd64 "$2" linux-headers)
    test -n "$version"
    apt-get install -y --no-install-recommends -t "$2" "linux-headers-$version"
    mkdir "/srv/kernels/$1"
    cd "/srv/kernels/$1"
    echo "$version" > release
    for part in image binary modules; do
        if apt-cache show "linux-$part-$version" > /dev/null 2>&1; then
            apt-get download "linux-$part-$version"
        fi
    done
}

fetch_kernel 6.12 trixie
fetch_kernel newest trixie-backports

# The kernel source for User-Mode Linux.
cd /srv/sources
uml=$(version_of linux-source trixie-backports linux-source)
apt-get download "linux-source-$uml/trixie-backports"
mv linux-source-*.deb linux-source.deb

# rdma-core's private headers are in its source only. Its .dsc may have left the archive while the
# tarball is still there, so only the tarball counts.
apt-get source --download-only rdma-core || true
mv rdma-core_*.orig.tar.gz rdma-core.orig.tar.gz
