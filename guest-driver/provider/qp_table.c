// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Finding a QP by its number, as polling does for each CQE of another QP than the last one's.
 */
#include <errno.h>
#include <stdlib.h>

#include "vrdma.h"

struct vrdma_qp *vrdma_find_qp(struct vrdma_context *ctx, uint32_t qpn)
{
	_Atomic(struct vrdma_qp *) *table;

	if (qpn >> VRDMA_QPN_BITS)
		return NULL;
	table = atomic_load_explicit(&ctx->qp_tables[qpn >> VRDMA_QP_TABLE_SHIFT],
				     memory_order_acquire);
	if (!table)
		return NULL;
	return atomic_load_explicit(&table[qpn % VRDMA_QP_TABLE_SIZE], memory_order_acquire);
}

int vrdma_set_qp(struct vrdma_context *ctx, uint32_t qpn, struct vrdma_qp *qp)
{
	_Atomic(struct vrdma_qp *) *table;

	if (qpn >> VRDMA_QPN_BITS)
		return EPROTO;
	table = atomic_load_explicit(&ctx->qp_tables[qpn >> VRDMA_QP_TABLE_SHIFT],
				     memory_order_relaxed);
	if (!table) {
		table = calloc(VRDMA_QP_TABLE_SIZE, sizeof(*table));
		if (!table)
			return ENOMEM;
		atomic_store_explicit(&ctx->qp_tables[qpn >> VRDMA_QP_TABLE_SHIFT], table,
				      memory_order_release);
	}
	atomic_store_explicit(&table[qpn % VRDMA_QP_TABLE_SIZE], qp, memory_order_release);
	return 0;
}

void vrdma_free_qp_tables(struct vrdma_context *ctx)
{
	for (size_t i = 0; i < sizeof(ctx->qp_tables) / sizeof(ctx->qp_tables[0]); i++)
		free((void *)atomic_load_explicit(&ctx->qp_tables[i], memory_order_relaxed));
}
