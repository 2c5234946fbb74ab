// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Unit tests of `context`.

use crate::context::*;
use crate::error::Error;

#[test]
fn a_thread_has_one_token_at_a_time() {
    let first = MaySleep::claim().unwrap();
    assert!(MaySleep::claim().is_none());
    drop(first);
    assert!(MaySleep::claim().is_some());
}

#[test]
fn a_handler_can_neither_make_nor_use_a_token() {
    let cx = MaySleep::claim().unwrap();
    let inside = InHandler::enter();
    assert!(matches!(cx.check(), Err(Error::NotPermitted(_))));
    drop(cx);
    assert!(MaySleep::claim().is_none());
    drop(inside);
    MaySleep::claim().unwrap().check().unwrap();
}
