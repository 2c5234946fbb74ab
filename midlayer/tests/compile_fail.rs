// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What must not build: a call that may sleep where one may not.

#[test]
fn a_verb_that_may_sleep_does_not_build_in_a_handler_and_a_token_stays_on_its_thread() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/compile_fail/*.rs");
    cases.pass("tests/compile_pass/*.rs");
}
