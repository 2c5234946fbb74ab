// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Prints the C header of the guest driver from the descriptions of the structures.

use core::fmt::Write;

use crate::describe::{ConstDesc, StructDesc};
use crate::{config, control, doorbell, event, ring};

/// Everything in the header, in its order.
const STRUCTS: &[&[StructDesc]] = &[
    config::STRUCTS,
    control::STRUCTS,
    control::on_demand::STRUCTS,
    doorbell::STRUCTS,
    ring::STRUCTS,
    event::STRUCTS,
];

const CONSTS: &[ConstDesc] = &[
    config::DEVICE_CONSTS,
    control::COMMAND_CONSTS,
    control::STATUS_CONSTS,
    control::CAP_CONSTS,
    control::AH_CONSTS,
    control::DEVICE_CAP_CONSTS,
    control::ACCESS_CONSTS,
    control::KEY_CONSTS,
    control::REREG_CONSTS,
    control::MW_TYPE_CONSTS,
    control::CQ_FLAG_CONSTS,
    control::QP_TYPE_CONSTS,
    control::QP_FLAG_CONSTS,
    control::QP_CONSTS,
    control::QP_STATE_CONSTS,
    control::QP_ATTR_CONSTS,
    control::GID_TYPE_CONSTS,
    control::on_demand::PAGES_CONSTS,
    control::on_demand::ODP_CONSTS,
    control::on_demand::ODP_CAP_CONSTS,
    doorbell::MODE_CONSTS,
    doorbell::UAR_CONSTS,
    ring::RING_CONSTS,
    ring::WR_CONSTS,
    ring::SEND_FLAG_CONSTS,
    ring::FLUSH_CONSTS,
    ring::CQE_FLAG_CONSTS,
    ring::CQ_STATE_CONSTS,
    ring::WC_OP_CONSTS,
    ring::WC_STATUS_CONSTS,
    event::EVENT_CONSTS,
];

/// The whole header.
pub fn c_header() -> String {
    let mut out = String::from(
        "/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause OR Apache-2.0 OR BSD-3-Clause */\n\
         /* Generated from abi/ by `cargo run -p virtio-rdma-abi`: do not edit. */\n\
         #ifndef VIRTIO_RDMA_ABI_H\n#define VIRTIO_RDMA_ABI_H\n\n\
         #include <linux/types.h>\n#ifdef __KERNEL__\n#include <linux/build_bug.h>\n\
         #include <linux/stddef.h>\n#else\n#include <assert.h>\n#include <stddef.h>\n#endif\n",
    );
    for group in CONSTS {
        consts(&mut out, group);
    }
    for desc in STRUCTS.iter().copied().flatten() {
        structure(&mut out, desc);
    }
    out.push_str("\n#endif\n");
    out
}

fn consts(out: &mut String, group: &ConstDesc) {
    let _ = write!(out, "\n/* {}. */\n", group.title);
    for (name, value, doc) in group.items {
        comment(out, "", doc);
        let value = match value {
            0..=9 => format!("{value}"),
            v if *v > u64::from(u32::MAX) => format!("0x{v:x}ull"),
            v => format!("0x{v:x}u"),
        };
        let _ = writeln!(out, "#define VIRTIO_RDMA_{name} {value}");
    }
}

fn structure(out: &mut String, desc: &StructDesc) {
    let c_name = snake(desc.name);
    out.push('\n');
    comment(out, "", desc.doc);
    let _ = writeln!(out, "struct {c_name} {{");
    for field in desc.fields {
        comment(out, "\t", field.doc);
        let (ty, count) = c_type(field.ty);
        let _ = writeln!(out, "\t{ty} {}{count};", field.name);
    }
    out.push_str("};\n");
    let _ = writeln!(
        out,
        "static_assert(sizeof(struct {c_name}) == {}, \"size of {c_name}\");",
        desc.size
    );
    for field in desc.fields {
        let _ = writeln!(
            out,
            "static_assert(offsetof(struct {c_name}, {0}) == {1}, \"offset of {c_name}.{0}\");",
            field.name, field.offset
        );
    }
}

/// The C type of a Rust type as written, and the array suffix.
fn c_type(rust: &str) -> (String, String) {
    if let Some(inner) = rust.strip_prefix('[').and_then(|r| r.strip_suffix(']'))
        && let Some((element, count)) = inner.split_once(';')
    {
        return (c_type(element.trim()).0, format!("[{}]", count.trim()));
    }
    let scalar = match rust {
        "u8" => "__u8".into(),
        "Le16" => "__le16".into(),
        "Le32" => "__le32".into(),
        "Le64" => "__le64".into(),
        other => format!("struct {}", snake(other)),
    };
    (scalar, String::new())
}

/// `QpAttr` becomes `virtio_rdma_qp_attr`.
fn snake(camel: &str) -> String {
    let mut out = String::from("virtio_rdma");
    for c in camel.chars() {
        if c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

fn comment(out: &mut String, indent: &str, doc: &[&str]) {
    match doc {
        [] => {}
        [line] => {
            let _ = writeln!(out, "{indent}/*{line} */");
        }
        lines => {
            let _ = writeln!(out, "{indent}/*");
            for line in lines {
                let _ = writeln!(out, "{indent} *{line}");
            }
            let _ = writeln!(out, "{indent} */");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_no_padding_and_sizes_in_multiples_of_eight() {
        for desc in STRUCTS.iter().copied().flatten() {
            assert_eq!(desc.size % 8, 0, "{} has {} bytes", desc.name, desc.size);
            assert_eq!(desc.fields[0].offset, 0);
        }
    }

    #[test]
    fn configuration_space_fits_in_what_vhost_user_allows() {
        assert_eq!(size_of::<config::Config>(), 64);
    }

    #[test]
    fn a_c_compiler_agrees_with_every_size_and_offset() {
        let dir = std::env::temp_dir().join(format!("virtio-rdma-abi-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("abi.h"), c_header()).unwrap();
        std::fs::write(dir.join("abi.c"), "#include \"abi.h\"\nint main(void) { return 0; }\n")
            .unwrap();
        let status = std::process::Command::new("cc")
            .args(["-std=c11", "-Wall", "-Werror", "-fsyntax-only", "abi.c"])
            .current_dir(&dir)
            .status()
            .expect("a C compiler (package gcc)");
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(status.success());
    }
}
