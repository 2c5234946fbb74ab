# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Runs inside the bookworm build root while it is made: kernel 6.1's headers with their image.
set -eu
export DEBIAN_FRONTEND=noninteractive
mkdir -p /mnt/work /mnt/source /mnt/uml /srv/kernels/6.1
version=$(apt-cache show linux-headers-amd64/bookworm | sed -n 's/^Depends: *//p' | tr ',' '\n' |
    sed -n 's/^ *linux-headers-\([0-9][^ ]*\).*/\1/p' | head -n 1)
apt-get install -y --no-install-recommends "linux-headers-$version"
cd /srv/kernels/6.1
echo "$version" > release
apt-get download "linux-image-$version"
