// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Unit tests of `life`.

use crate::MaySleep;
use crate::life::*;
use std::sync::Arc;
use std::time::Duration;

#[test]
fn what_others_depend_on_does_not_close() {
    let cx = MaySleep::claim().unwrap();
    let life = Life::new();
    assert!(life.add_dependent());
    assert_eq!(life.close(&cx), Err(NotClosed::Used));
    life.drop_dependent();
    assert_eq!(life.close(&cx), Ok(()));
    assert_eq!(life.close(&cx), Err(NotClosed::Closed));
    assert!(!life.add_dependent() && !life.enter() && !life.is_open());
}

#[test]
fn close_waits_for_the_verb_inside() {
    let life = Arc::new(Life::new());
    assert!(life.enter());
    let closer = std::thread::spawn({
        let life = life.clone();
        move || life.close(&MaySleep::claim().unwrap())
    });
    std::thread::sleep(Duration::from_millis(30));
    assert!(!closer.is_finished());
    life.leave();
    assert_eq!(closer.join().unwrap(), Ok(()));
}
