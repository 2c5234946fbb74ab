#!/bin/sh
# SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
# Builds the provider out of rdma-core's tree and leaves in DEST:
#
#   libvirtio_rdma-rdmavNN.so    for /usr/lib/<multiarch>/libibverbs/
#   virtio_rdma.driver           for /etc/libibverbs.d/
#
#   build.sh DEST [RDMA_CORE]
#   build.sh --install [RDMA_CORE]      puts them there (below $DESTDIR, if it is set)
#
# RDMA_CORE (or $RDMA_CORE_TARBALL) is rdma-core's source, unpacked or as .tar.gz, of the very
# version of the libibverbs that is installed: providers use a private interface whose headers no
# distribution packages. Without it, the source is downloaded with apt-get (a deb-src entry is
# needed). Needs: a C compiler, make, python3, libibverbs-dev. Runs the tests of the verbs, too.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
	sed -n '3,15s/^# \{0,1\}//p' "$0" >&2
	exit 2
fi
case $1 in
--install) libraries=${DESTDIR:-}/usr/lib/$(${CC:-cc} -print-multiarch)/libibverbs
	drivers=${DESTDIR:-}/etc/libibverbs.d ;;
-*) echo "build.sh: unknown option $1" >&2; exit 2 ;;
*) libraries=$1 drivers=$1 ;;
esac
mkdir -p "$libraries" "$drivers"
source=${2:-${RDMA_CORE_TARBALL:-}}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ -z "$source" ]; then
	(cd "$work" && apt-get -q source --download-only rdma-core) >&2 || true
	source=$(find "$work" -maxdepth 1 -name 'rdma-core_*.orig.tar.*' | head -n 1)
	[ -n "$source" ] || { echo "build.sh: cannot download rdma-core's source" >&2; exit 1; }
fi
if [ -d "$source" ]; then
	core=$source
else
	core=$work/rdma-core
	mkdir "$core"
	tar -xf "$source" -C "$core" --strip-components=1
fi

# The private ABI's number stands in rdma-core's build files, and in the symbol that a provider
# registers itself with: linking fails if the source is not that of the library.
pabi=$(sed -n 's/^set(IBVERBS_PABI_VERSION "\([0-9]*\)").*/\1/p' "$core/CMakeLists.txt")
[ -n "$pabi" ] || { echo "build.sh: $core is not rdma-core's source" >&2; exit 1; }

# The part of rdma-core's build that makes headers.
include=$work/build/include
mkdir -p "$include/infiniband" "$include/kernel-abi"
for header in driver.h kern-abi.h cmd_ioctl.h; do
	cp "$core/libibverbs/$header" "$include/infiniband/"
done
cp -r "$core/kernel-headers/rdma" "$core/ccan" "$core/util" "$include/"
python3 "$core/buildlib/make_abi_structs.py" \
	"$core/kernel-headers/rdma/ib_user_verbs.h" "$include/kernel-abi/ib_user_verbs.h"
cat >"$include/config.h" <<END
#define HAVE_STATEMENT_EXPR 1
#define HAVE_BUILTIN_TYPES_COMPATIBLE_P 1
#define HAVE_TYPEOF 1
#define HAVE_ISBLANK 1
#define HAVE_BUILTIN_CLZ 1
#define HAVE_BUILTIN_CLZL 1
#define HAVE_FUNC_ATTRIBUTE_ALWAYS_INLINE 1
#define SIZEOF_LONG __SIZEOF_LONG__
#define VERBS_IOCTL_ONLY 0
#define VERBS_WRITE_ONLY 0
#define IBVERBS_PABI_VERSION $pabi
END

make -C "$here" --no-print-directory BUILD="$work/build" PABI="$pabi" provider check-verbs

install -m 644 "$work/build/libvirtio_rdma-rdmav$pabi.so" "$libraries/"
install -m 644 "$here/virtio_rdma.driver" "$drivers/"
echo "$libraries/libvirtio_rdma-rdmav$pabi.so"
