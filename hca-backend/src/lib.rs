// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! HCA drivers under the midlayer: the soft HCA, and the verbs HCA.
//!
//! Nothing here knows how a consumer's work requests reach it.

#![deny(unsafe_code)]

pub mod soft;
pub mod verbs;
