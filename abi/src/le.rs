// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Little-endian integers with natural alignment, as the device's structures hold them.
//!
//! Not zerocopy's byte-order types: those have alignment 1, and a C compiler lays `__le32` out
//! with alignment 4; the two sides must agree on alignment too.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! le {
    ($(#[$doc:meta])* $name:ident, $int:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(transparent)]
        pub struct $name($int);

        impl $name {
            /// The little-endian form of a native value.
            pub const fn new(value: $int) -> Self {
                Self(value.to_le())
            }

            /// The native value.
            pub const fn get(self) -> $int {
                <$int>::from_le(self.0)
            }
        }

        impl From<$int> for $name {
            fn from(value: $int) -> Self {
                Self::new(value)
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Debug::fmt(&self.get(), f)
            }
        }
    };
}

le!(
    /// 16 bits, little-endian, aligned to 2.
    Le16,
    u16
);
le!(
    /// 32 bits, little-endian, aligned to 4.
    Le32,
    u32
);
le!(
    /// 64 bits, little-endian, aligned to 8.
    Le64,
    u64
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_little_endian_and_alignment_is_natural() {
        assert_eq!(Le16::new(0x0102).as_bytes(), [2, 1]);
        assert_eq!(Le32::new(0x0102_0304).as_bytes(), [4, 3, 2, 1]);
        assert_eq!(Le64::new(1).as_bytes(), [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(align_of::<Le64>(), 8);
        assert_eq!(align_of::<Le32>(), 4);
        assert_eq!(align_of::<Le16>(), 2);
    }
}
