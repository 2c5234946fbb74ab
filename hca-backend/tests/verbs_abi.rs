// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The binary interface of libibverbs as the driver and the stub declare it, held against the real
//! header: sizes, offsets and codes, by a C program that prints them. Where the header is not installed
//! (Debian: libibverbs-dev) the test says so and only compares the driver with the stub.

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::path::Path;
use std::process::Command;

use hca_backend::verbs::ffi::*;

type Facts = BTreeMap<String, usize>;

/// For each structure: whether the driver makes such structures itself, so that the size counts, and
/// the members, by their names in C and in Rust.
macro_rules! facts {
    ($rust:ident, $c:ident; $( $size:ident $type:ident { $($member:literal = $($path:tt).+),* $(,)? } )*) => {
        let mut $rust = Facts::new();
        let mut $c = String::new();
        $(
            if stringify!($size) == "whole" {
                $rust.insert(concat!("sizeof ", stringify!($type)).into(), size_of::<$type>());
                $c += concat!("printf(\"sizeof ", stringify!($type), " %zu\\n\", sizeof(struct ", stringify!($type), "));\n");
            }
            $(
                $rust.insert(concat!(stringify!($type), ".", $member).into(), offset_of!($type, $($path).+));
                $c += concat!("printf(\"", stringify!($type), ".", $member, " %zu\\n\", offsetof(struct ", stringify!($type), ", ", $member, "));\n");
            )*
        )*
    };
}

fn declared() -> (Facts, String) {
    facts! { rust, c;
        part ibv_context {
            "device" = device, "ops.alloc_mw" = ops.alloc_mw, "ops.bind_mw" = ops.bind_mw,
            "ops.dealloc_mw" = ops.dealloc_mw, "ops.poll_cq" = ops.poll_cq,
            "ops.req_notify_cq" = ops.req_notify_cq, "ops.post_srq_recv" = ops.post_srq_recv,
            "ops.post_send" = ops.post_send, "ops.post_recv" = ops.post_recv, "cmd_fd" = cmd_fd,
            "async_fd" = async_fd, "num_comp_vectors" = num_comp_vectors,
        }
        whole ibv_context_ops {}
        part ibv_pd { "context" = context, "handle" = handle }
        part ibv_mr { "pd" = pd, "addr" = addr, "length" = length, "lkey" = lkey, "rkey" = rkey }
        part ibv_mw { "pd" = pd, "rkey" = rkey, "handle" = handle, "type" = mw_type }
        whole ibv_mw_bind_info { "mr" = mr, "addr" = addr, "length" = length, "mw_access_flags" = mw_access_flags }
        whole ibv_mw_bind { "wr_id" = wr_id, "send_flags" = send_flags, "bind_info" = bind_info }
        part ibv_qp { "qp_context" = qp_context, "pd" = pd, "srq" = srq, "handle" = handle, "qp_num" = qp_num }
        part ibv_cq { "channel" = channel, "cq_context" = cq_context, "handle" = handle, "cqe" = cqe }
        part ibv_comp_channel { "context" = context, "fd" = fd }
        whole ibv_device_attr {
            "node_guid" = node_guid, "max_mr_size" = max_mr_size, "vendor_id" = vendor_id,
            "hw_ver" = hw_ver, "max_qp" = max_qp, "max_qp_wr" = max_qp_wr,
            "device_cap_flags" = device_cap_flags, "max_sge" = max_sge, "max_cqe" = max_cqe,
            "max_mr" = max_mr, "max_qp_rd_atom" = max_qp_rd_atom,
            "max_qp_init_rd_atom" = max_qp_init_rd_atom, "atomic_cap" = atomic_cap, "max_mw" = max_mw,
            "max_ah" = max_ah, "max_srq" = max_srq, "max_srq_wr" = max_srq_wr,
            "max_srq_sge" = max_srq_sge, "max_pkeys" = max_pkeys,
            "local_ca_ack_delay" = local_ca_ack_delay, "phys_port_cnt" = phys_port_cnt,
        }
        part ibv_port_attr {
            "state" = state, "max_mtu" = max_mtu, "active_mtu" = active_mtu, "gid_tbl_len" = gid_tbl_len,
            "max_msg_sz" = max_msg_sz, "pkey_tbl_len" = pkey_tbl_len, "lid" = lid,
            "active_width" = active_width, "active_speed" = active_speed, "phys_state" = phys_state,
            "link_layer" = link_layer,
        }
        whole ibv_gid_entry {
            "gid_index" = gid_index, "port_num" = port_num, "gid_type" = gid_type,
            "ndev_ifindex" = ndev_ifindex,
        }
        whole ibv_sge { "addr" = addr, "length" = length, "lkey" = lkey }
        whole ibv_send_wr {
            "wr_id" = wr_id, "next" = next, "sg_list" = sg_list, "num_sge" = num_sge, "opcode" = opcode,
            "send_flags" = send_flags, "imm_data" = imm_data,
            "wr.rdma.remote_addr" = wr.rdma.remote_addr, "wr.rdma.rkey" = wr.rdma.rkey,
            "wr.atomic.remote_addr" = wr.atomic.remote_addr,
            "wr.atomic.compare_add" = wr.atomic.compare_add, "wr.atomic.swap" = wr.atomic.swap,
            "wr.atomic.rkey" = wr.atomic.rkey, "wr.ud.ah" = wr.ud.ah,
            "wr.ud.remote_qpn" = wr.ud.remote_qpn, "wr.ud.remote_qkey" = wr.ud.remote_qkey,
            "qp_type.xrc.remote_srqn" = xrc_remote_srqn, "bind_mw.mw" = bind_mw.mw,
            "bind_mw.rkey" = bind_mw.rkey, "bind_mw.bind_info" = bind_mw.bind_info,
        }
        whole ibv_recv_wr { "wr_id" = wr_id, "next" = next, "sg_list" = sg_list, "num_sge" = num_sge }
        whole ibv_wc {
            "wr_id" = wr_id, "status" = status, "opcode" = opcode, "vendor_err" = vendor_err,
            "byte_len" = byte_len, "imm_data" = imm_data, "qp_num" = qp_num, "src_qp" = src_qp,
            "wc_flags" = wc_flags,
        }
        whole ibv_global_route {
            "dgid" = dgid, "flow_label" = flow_label, "sgid_index" = sgid_index,
            "hop_limit" = hop_limit, "traffic_class" = traffic_class,
        }
        whole ibv_ah_attr {
            "grh" = grh, "dlid" = dlid, "sl" = sl, "static_rate" = static_rate,
            "is_global" = is_global, "port_num" = port_num,
        }
        whole ibv_qp_cap {
            "max_send_wr" = max_send_wr, "max_recv_wr" = max_recv_wr, "max_send_sge" = max_send_sge,
            "max_recv_sge" = max_recv_sge, "max_inline_data" = max_inline_data,
        }
        whole ibv_qp_init_attr {
            "qp_context" = qp_context, "send_cq" = send_cq, "recv_cq" = recv_cq, "srq" = srq,
            "cap" = cap, "qp_type" = qp_type, "sq_sig_all" = sq_sig_all,
        }
        whole ibv_qp_attr {
            "qp_state" = qp_state, "cur_qp_state" = cur_qp_state, "path_mtu" = path_mtu, "qkey" = qkey,
            "rq_psn" = rq_psn, "sq_psn" = sq_psn, "dest_qp_num" = dest_qp_num,
            "qp_access_flags" = qp_access_flags, "cap" = cap, "ah_attr" = ah_attr,
            "alt_ah_attr" = alt_ah_attr, "pkey_index" = pkey_index,
            "en_sqd_async_notify" = en_sqd_async_notify, "sq_draining" = sq_draining,
            "max_rd_atomic" = max_rd_atomic, "max_dest_rd_atomic" = max_dest_rd_atomic,
            "min_rnr_timer" = min_rnr_timer, "port_num" = port_num, "timeout" = timeout,
            "retry_cnt" = retry_cnt, "rnr_retry" = rnr_retry, "rate_limit" = rate_limit,
        }
        whole ibv_srq_attr { "max_wr" = max_wr, "max_sge" = max_sge, "srq_limit" = srq_limit }
        whole ibv_srq_init_attr { "srq_context" = srq_context, "attr" = attr }
        whole ibv_async_event { "element" = element, "event_type" = event_type }
    }
    (rust, c)
}

/// What a header says.
fn of_header(include: &str, more: &str, facts: &str, compiler_flags: &[&str]) -> Facts {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let name = format!("verbs_abi_{}", if more.is_empty() { "stub" } else { "real" });
    let (source, program) = (dir.join(format!("{name}.c")), dir.join(&name));
    let text = format!(
        "#include <stddef.h>\n#include <stdio.h>\n#include {include}\nint main(void) {{\n{facts}{more}return 0;\n}}\n"
    );
    std::fs::write(&source, text).unwrap();
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let status =
        Command::new(compiler).args(compiler_flags).arg(&source).arg("-o").arg(&program).status();
    assert!(status.unwrap().success(), "{} does not compile", source.display());
    let output = Command::new(&program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[test]
fn the_stub_has_the_layouts_that_the_driver_has() {
    let (rust, c) = declared();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("stub/src");
    let flag = format!("-I{}", dir.display());
    assert_eq!(of_header("\"verbs.h\"", "", &c, &[&flag]), rust);
    assert!(rust.len() > 120, "{} facts", rust.len());
}

#[test]
fn the_real_header_has_the_layouts_and_codes_that_the_driver_has() {
    let header = Path::new("/usr/include/infiniband/verbs.h");
    if !header.exists() {
        eprintln!("not compared: {} is not installed (libibverbs-dev)", header.display());
        return;
    }
    let (mut rust, c) = declared();
    let codes: &[(&str, u32)] = &[
        ("IBV_SEND_FENCE", SEND_FENCE),
        ("IBV_SEND_SIGNALED", SEND_SIGNALED),
        ("IBV_SEND_SOLICITED", SEND_SOLICITED),
        ("IBV_SEND_INLINE", SEND_INLINE),
        ("IBV_WC_GRH", WC_GRH),
        ("IBV_WC_WITH_IMM", WC_WITH_IMM),
        ("IBV_WC_WITH_INV", WC_WITH_INV),
        ("IBV_DEVICE_MEM_WINDOW", DEVICE_MEM_WINDOW),
        ("IBV_DEVICE_MEM_WINDOW_TYPE_2B", DEVICE_MEM_WINDOW_TYPE_2B),
        ("IBV_GID_TYPE_ROCE_V2", GID_TYPE_ROCE_V2),
        ("IBV_EVENT_CQ_ERR", EVENT_CQ_ERR),
        ("IBV_EVENT_QP_FATAL", EVENT_QP_FATAL),
        ("IBV_EVENT_QP_REQ_ERR", EVENT_QP_REQ_ERR),
        ("IBV_EVENT_QP_ACCESS_ERR", EVENT_QP_ACCESS_ERR),
        ("IBV_EVENT_COMM_EST", EVENT_COMM_EST),
        ("IBV_EVENT_SQ_DRAINED", EVENT_SQ_DRAINED),
        ("IBV_EVENT_DEVICE_FATAL", EVENT_DEVICE_FATAL),
        ("IBV_EVENT_PORT_ACTIVE", EVENT_PORT_ACTIVE),
        ("IBV_EVENT_PORT_ERR", EVENT_PORT_ERR),
        ("IBV_EVENT_SRQ_ERR", EVENT_SRQ_ERR),
        ("IBV_EVENT_SRQ_LIMIT_REACHED", EVENT_SRQ_LIMIT_REACHED),
        ("IBV_EVENT_QP_LAST_WQE_REACHED", EVENT_QP_LAST_WQE_REACHED),
        ("IBV_EVENT_GID_CHANGE", EVENT_GID_CHANGE),
        // Those that the midlayer numbers as the library does.
        ("IBV_WR_LOCAL_INV", 7),
        ("IBV_WR_BIND_MW", 8),
        ("IBV_WR_SEND_WITH_INV", 9),
        ("IBV_WC_GENERAL_ERR", 21),
        ("IBV_WC_RECV_RDMA_WITH_IMM", 129),
        ("IBV_QPS_ERR", 6),
        ("IBV_QPT_UD", 4),
        ("IBV_QP_DEST_QPN", 0x10_0000),
        ("IBV_ACCESS_MW_BIND", 16),
    ];
    let mut more = String::new();
    for (name, value) in codes {
        rust.insert(format!("code {name}"), *value as usize);
        more += &format!("printf(\"code {name} %u\\n\", (unsigned){name});\n");
    }
    assert_eq!(of_header("<infiniband/verbs.h>", &more, &c, &[]), rust);
}
