#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The verifier between guest 0 and guest 1, polled and with events; over rxe with `rxe` as
# argument. Further arguments go to the verifier.
set -euo pipefail
source ./rdma.sh

device=$RDMA_DEVICE
if [[ ${1:-} == rxe ]]; then
    shift
    add_rxe
    device=rxe0
fi
peer=()
[[ $GUEST_INDEX == 0 ]] || peer=("$ADDR_0")
for option in --port=18600 --events; do
    lab-barrier "verify$option"
    verifier --device "$device" "$option" "$@" "${peer[@]}"
done
