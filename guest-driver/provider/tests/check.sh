#!/bin/sh
# SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
# Runs the ring tests as they are, under the sanitizers, and with parts of the protocol broken on
# purpose, which they must notice. Argument: the folder with the programs. Called by `make check`.
# VRDMA_TEST_ROUNDS sets the WQEs of each case (default 200000: a million in all).
set -eu
build=$1

"$build/ring_stress" "${VRDMA_TEST_ROUNDS:-200000}"
"$build/srq_stress" 50000
for variant in asan tsan; do
	echo "-- $variant"
	"$build/ring_stress_$variant" 20000
done
"$build/srq_stress_tsan" 20000
# variant:case, the case being one in which it shows soon.
for broken in fence:1 pending:1 give_back:5; do
	echo "-- broken on purpose: ${broken%:*}"
	if "$build/ring_stress_broken_${broken%:*}" 10000000 "${broken#*:}"; then
		echo "the test did not notice" >&2
		exit 1
	fi
done
echo "all as it should be"
