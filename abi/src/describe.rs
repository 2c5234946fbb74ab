// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One declaration, two languages: the macros that define a structure or a set of constants in
//! Rust also record a description of it, from which the C header is printed (`header.rs`).

/// A structure, as the C header needs to know it.
pub struct StructDesc {
    /// Rust name, in camel case.
    pub name: &'static str,
    /// The documentation, a line an entry.
    pub doc: &'static [&'static str],
    /// Bytes.
    pub size: usize,
    /// The members in order of address.
    pub fields: &'static [FieldDesc],
}

/// A member of a structure.
pub struct FieldDesc {
    /// Its name, the same in both languages.
    pub name: &'static str,
    /// The documentation, a line an entry.
    pub doc: &'static [&'static str],
    /// The Rust type as written: a scalar, an array of one, or another structure.
    pub ty: &'static str,
    /// Bytes from the start of the structure.
    pub offset: usize,
}

/// A group of constants.
pub struct ConstDesc {
    /// What the group is.
    pub title: &'static str,
    /// Name, value and documentation of each.
    pub items: &'static [(&'static str, u64, &'static [&'static str])],
}

/// Defines `repr(C)` structures that have no padding, any bit pattern of which is valid, and a
/// `STRUCTS` table that describes them.
macro_rules! abi_structs {
    ($( $(#[doc = $doc:literal])* pub struct $name:ident {
        $( $(#[doc = $fdoc:literal])* pub $field:ident : $ty:ty, )*
    } )*) => {
        $(
            $(#[doc = $doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq,
                zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
            #[repr(C)]
            pub struct $name {
                $( $(#[doc = $fdoc])* pub $field : $ty, )*
            }

            impl Default for $name {
                /// All zero.
                fn default() -> Self {
                    zerocopy::FromZeros::new_zeroed()
                }
            }
        )*

        /// What this module defines, for the C header.
        pub const STRUCTS: &[$crate::describe::StructDesc] = &[
            $( $crate::describe::StructDesc {
                name: stringify!($name),
                doc: &[$($doc),*],
                size: core::mem::size_of::<$name>(),
                fields: &[
                    $( $crate::describe::FieldDesc {
                        name: stringify!($field),
                        doc: &[$($fdoc),*],
                        ty: stringify!($ty),
                        offset: core::mem::offset_of!($name, $field),
                    }, )*
                ],
            }, )*
        ];
    };
}

/// Defines a group of constants and its `ConstDesc` under the given name.
macro_rules! abi_consts {
    ($table:ident, $title:literal, $ty:ty;
     $( $(#[doc = $doc:literal])* $name:ident = $value:expr; )*) => {
        $( $(#[doc = $doc])* pub const $name: $ty = $value; )*

        #[doc = concat!("For the C header: ", $title, ".")]
        pub const $table: $crate::describe::ConstDesc = $crate::describe::ConstDesc {
            title: $title,
            items: &[ $( (stringify!($name), $value as u64, &[$($doc),*]), )* ],
        };
    };
}

pub(crate) use {abi_consts, abi_structs};
