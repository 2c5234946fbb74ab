// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Breaks the crate on purpose, one rule at a time, and shows that the test named for the rule fails.
//!
//! Takes minutes, since each mutant is built: `cargo test -p rdma-midlayer --test mutations --
//! --ignored --nocapture`. What it printed last is recorded in `docs/midlayer.md`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

struct Mutation {
    rule: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
    /// Test target, and the test in it.
    target: &'static str,
    test: &'static str,
}

const fn mutation(
    rule: &'static str,
    file: &'static str,
    [from, to]: [&'static str; 2],
    target: &'static str,
    test: &'static str,
) -> Mutation {
    Mutation { rule, file, from, to, target, test }
}

#[rustfmt::skip]
const MUTATIONS: &[Mutation] = &[
    mutation("a token stays on its thread", "context.rs",
        ["_neither_send_nor_sync: PhantomData<*mut ()>", "_neither_send_nor_sync: PhantomData<()>"],
        "compile_fail", "a_verb_that_may_sleep_does_not_build_in_a_handler_and_a_token_stays_on_its_thread"),
    mutation("a handler can't claim a token", "context.rs",
        ["if in_handler() {\n            return None;", "if false {\n            return None;"],
        "callbacks", "a_handler_may_call_every_verb_that_never_sleeps_and_none_that_may"),
    mutation("a smuggled token is refused", "context.rs",
        ["if in_handler() {\n            return Err", "if false {\n            return Err"],
        "callbacks", "a_token_smuggled_into_a_handler_is_refused_by_every_verb_that_may_sleep"),
    mutation("the data path never sleeps", "object.rs",
        ["let guard = rcu::enter();", "let guard = rcu::enter(); std::fs::metadata(\"/\").ok();"],
        "never_sleep", "the_data_path_makes_no_call_that_may_block"),
    mutation("verbs of AHs never sleep", "verbs/ah.rs",
        ["let _inside = self.enter()?;\n        self.driver.query()", "let _inside = self.enter()?;\n        std::fs::metadata(\"/\").ok();\n        self.driver.query()"],
        "never_sleep", "address_handles_windows_and_fast_regions_make_no_call_that_may_block"),
    mutation("dispatch_event never sleeps", "event.rs",
        ["self.posted.fetch_add(1, Ordering::AcqRel);", "self.posted.fetch_add(1, Ordering::AcqRel); std::fs::metadata(\"/\").ok();"],
        "never_sleep", "dispatch_event_and_completion_reports_make_no_call_that_may_block"),
    mutation("no verb reaches the driver after destroy", "object.rs",
        ["rcu::synchronize(cx);\n        object.driver_destroy", "object.driver_destroy"],
        "stress", "create_and_destroy_race_with_use_and_the_driver_never_sees_a_dead_object"),
    mutation("destroy waits for verbs that may sleep", "life.rs",
        ["while self.word.load(Ordering::Acquire) & INSIDE != 0 {", "while false {"],
        "models", "an_object_closes_only_without_dependents_and_with_no_verb_inside"),
    mutation("what is used is busy", "life.rs",
        ["self.close_if(|word| word & !INSIDE == 0)", "self.close_if(|word| word & CLOSED == 0)"],
        "objects", "what_others_depend_on_is_busy_until_they_end_and_then_gone"),
    mutation("an AH is ended by the last one out", "life.rs",
        ["(before & CLOSED == 0).then_some(before & INSIDE == 0)", "(before & CLOSED == 0).then_some(true)"],
        "models", "an_object_that_nobody_can_wait_for_is_ended_once_by_the_last_one_out"),
    mutation("no handler in the call chain of a verb", "run_queue.rs",
        ["if before & (QUEUED | RUNNING | DEAD) == 0 {\n            self.queue.push(self.clone());", "if before & (QUEUED | RUNNING | DEAD) == 0 {\n            self.clone().run();"],
        "callbacks", "no_handler_runs_inside_a_verb_but_when_the_worker_drains"),
    mutation("one handler of a CQ at a time", "run_queue.rs",
        ["before & (QUEUED | RUNNING | DEAD) == 0", "before & (QUEUED | DEAD) == 0"],
        "models", "a_handler_never_runs_twice_at_once_and_sees_what_was_done_before_each_schedule"),
    mutation("a wake-up while the handler runs is kept", "run_queue.rs",
        ["if before & (QUEUED | DEAD) == QUEUED {", "if false {"],
        "models", "a_handler_that_arms_again_itself_gets_every_completion"),
    mutation("handlers of different vectors run in parallel", "verbs/context.rs",
        ["&self.run_queues[vector as usize % self.run_queues.len()]", "&self.run_queues[(vector as usize % self.run_queues.len()) & 0]"],
        "callbacks", "handlers_of_different_vectors_run_in_parallel"),
    mutation("arming fences before the look", "completion.rs",
        ["self.armed.fetch_max(level, Ordering::AcqRel);", "self.armed.fetch_max(level, Ordering::AcqRel); return; #[allow(unreachable_code)]"],
        "models", "no_completion_is_lost_between_arming_and_the_look_that_follows"),
    mutation("a completion fences before it looks for the arm", "completion.rs",
        ["full_fence();\n        let fits", "let fits"],
        "models", "no_completion_is_lost_between_arming_and_the_look_that_follows"),
    mutation("one arm makes one event", "completion.rs",
        ["NEXT => Some(NOT_ARMED),", "NEXT => Some(NEXT),"],
        "callbacks", "no_handler_runs_inside_a_verb_but_when_the_worker_drains"),
    mutation("a solicited arm waits for a solicited completion", "completion.rs",
        ["SOLICITED if solicited => ", "SOLICITED => "],
        "callbacks", "a_solicited_arm_lets_only_a_solicited_completion_through"),
    mutation("a sleeping owner is woken", "run_queue.rs",
        ["full_fence();\n        if self.asleep", "if self.asleep"],
        "models", "an_owner_that_goes_to_sleep_is_woken_for_what_comes"),
    mutation("destroy_cq waits for the handler", "run_queue.rs",
        ["self.state.fetch_or(DEAD, Ordering::AcqRel);\n        rcu::synchronize(cx);", "self.state.fetch_or(DEAD, Ordering::AcqRel);\n        let _ = cx;"],
        "models", "destroy_returns_only_when_no_handler_runs_or_will_run"),
    mutation("no handler after destroy_cq", "run_queue.rs",
        ["self.state.fetch_or(DEAD, Ordering::AcqRel);\n        rcu::synchronize(cx);", "rcu::synchronize(cx);"],
        "models", "destroy_returns_only_when_no_handler_runs_or_will_run"),
    mutation("events come in order", "run_queue.rs",
        ["backlog.push_front(task);", "backlog.push_back(task);"],
        "callbacks", "events_reach_every_handler_in_the_order_of_dispatch"),
    mutation("no event after its object's end", "event.rs",
        ["while (self.delivered", "while false && (self.delivered"],
        "callbacks", "an_event_is_not_delivered_in_the_call_chain_of_dispatch_nor_after_its_object_has_ended"),
    mutation("events reach device-wide handlers", "event.rs",
        ["(end.handler)(from.map(|end| end.id), event);", "let _ = (&end.handler, event);"],
        "callbacks", "events_reach_every_handler_in_the_order_of_dispatch"),
    mutation("events of the device reach every context", "event.rs",
        ["ends.iter().for_each(|end| end.deliver(event));", "ends.iter().take(1).for_each(|end| end.deliver(event));"],
        "callbacks", "an_event_of_the_device_reaches_every_context"),
    mutation("remove in reverse order", "registry.rs",
        ["state.pairs.iter_mut().rfind(", "state.pairs.iter_mut().find("],
        "registry", "clients_get_add_for_present_and_future_devices_and_remove_in_reverse_order"),
    mutation("a late client gets add for every device", "registry.rs",
        ["due.into_iter().for_each(|pair| self.add(cx, pair));\n        Ok(ClientRegistration", "drop(due);\n        Ok(ClientRegistration"],
        "registry", "clients_get_add_for_present_and_future_devices_and_remove_in_reverse_order"),
    mutation("a leaving device waits for add, then calls remove", "registry.rs",
        ["Stage::Due => {", "Stage::Due | Stage::Adding => {"],
        "registry", "a_device_that_leaves_during_a_clients_add_waits_for_it_and_then_calls_remove"),
    mutation("a client that leaves before its add gets none", "registry.rs",
        ["Stage::Due => {\n                    state.pairs.remove(&id);", "Stage::Due => {\n                    if state.next_id > 0 { return; }\n                    state.pairs.remove(&id);"],
        "registry", "a_client_that_leaves_during_its_add_gets_remove_after_it_and_one_that_is_due_gets_nothing"),
    mutation("the device works until unregister_device has called remove", "registry.rs",
        ["self.part(cx, |(device, _)| device == id);\n        device.shut(cx);", "device.shut(cx);\n        self.part(cx, |(device, _)| device == id);"],
        "registry", "a_device_that_leaves_during_a_clients_add_waits_for_it_and_then_calls_remove"),
    mutation("no lock across callbacks", "registry.rs",
        ["drop(state);\n        let _callback = Callback::enter(self, id, Some(Stage::Added));", "let _callback = Callback::enter(self, id, Some(Stage::Added));"],
        "registry", "callbacks_hold_no_lock_they_may_register_and_unregister_others"),
    mutation("a callback that would wait for itself is refused", "registry.rs",
        ["inside.iter().any(|id| meant(*id))", "inside.iter().any(|id| meant(*id) && false)"],
        "registry", "a_callback_that_would_wait_for_itself_is_refused_and_keeps_the_registration"),
    mutation("a client that leaks is named", "object.rs",
        ["if object.base().life.is_open() {", "if false {"],
        "registry", "a_client_that_leaves_objects_behind_is_named_and_its_handles_answer_gone"),
    mutation("a device's objects are gone when it is", "object.rs",
        ["if let Err(error) = object.driver_destroy(cx) {", "if let Err(error) = Ok::<(), Error>(()) {"],
        "registry", "an_unregistered_device_has_ended_what_was_left_behind_in_the_driver"),
    mutation("unregister_device waits for verbs inside", "object.rs",
        ["let _ = self.gate.force_close(cx);", ""],
        "registry", "unregister_device_waits_for_a_verb_that_is_inside"),
    mutation("a device that is gone answers so", "object.rs",
        ["if self.gate.enter() { Ok(DeviceVerb(self)) } else { Err(Error::Gone) }", "{ self.gate.enter(); Ok(DeviceVerb(self)) }"],
        "registry", "a_device_whose_hardware_is_lost_answers_gone_and_remove_can_still_clean_up"),
    mutation("readers fence when they come in", "rcu.rs",
        ["        fence(Ordering::SeqCst);\n    }\n}\n\n/// A writer's half", "    }\n}\n\n/// A writer's half"],
        "models", "a_reader_never_sees_what_was_freed"),
    mutation("a writer waits for readers", "rcu.rs",
        ["if since == 0 || since >= epoch {", "if since == 0 || since <= epoch {"],
        "models", "a_reader_never_sees_what_was_freed"),
    mutation("the QP's transitions are IBA's", "qp_state.rs",
        ["row(&[Rtr], Rts, &[Rc], SQ_PSN | REQUESTER, LIVE | RNR_TIMER),", "row(&[Rtr], Rts, &[Rc], SQ_PSN | REQUESTER, LIVE),"],
        "qp_state", "every_transition_of_every_transport_is_as_specified"),
    mutation("modify_qp asks the table", "verbs/qp.rs",
        ["qp_state::check(self.qp_type, found, to, mask)?;", ""],
        "objects", "a_qp_takes_only_the_transitions_and_ranges_that_iba_has"),
    mutation("no lock across a method of a driver", "object.rs",
        ["let made = make().inspect_err(|_| release(uses))?;", "let made = { let _held = lock(&device.objects); make().inspect_err(|_| release(uses))? };"],
        "stress", "a_verb_that_takes_long_in_the_driver_holds_up_no_other"),
];

#[test]
#[ignore = "builds the crate once for each mutation"]
fn every_rule_has_a_test_that_fails_when_the_rule_is_broken() {
    let only = std::env::var("MUTATION").unwrap_or_default();
    let workspace = prepare();
    let mut missed = Vec::new();
    let numbered = || MUTATIONS.iter().zip(1..);
    // The first one takes longest: it comes last.
    for (mutation, number) in numbered().skip(1).chain(numbered().take(1)) {
        if !mutation.rule.contains(&only) {
            continue;
        }
        let start = Instant::now();
        let file = workspace.join("midlayer/src").join(mutation.file);
        let source = fs::read_to_string(&file).unwrap();
        assert_eq!(source.matches(mutation.from).count(), 1, "{}: not once there", mutation.rule);
        fs::write(&file, source.replacen(mutation.from, mutation.to, 1)).unwrap();
        let outcome = run(&workspace, mutation);
        fs::write(&file, source).unwrap();
        let seconds = start.elapsed().as_secs();
        println!("{number:2} {outcome:?} in {seconds} s: {}", mutation.rule);
        if !matches!(outcome, Outcome::Failed | Outcome::Hung) {
            missed.push((mutation.rule, outcome));
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
}

#[derive(Debug)]
enum Outcome {
    /// The test failed, as it should.
    Failed,
    /// The test hung, which is a failure too.
    Hung,
    /// The test passed: the rule can be broken unseen.
    Passed,
    /// The mutant does not build: it says nothing.
    NotBuilt,
}

fn run(workspace: &Path, mutation: &Mutation) -> Outcome {
    let cargo = |extra: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command
            .current_dir(workspace)
            .env("CARGO_TARGET_DIR", workspace.join("target"))
            .env_remove("RUSTFLAGS")
            .args(["test", "--offline", "--quiet", "-p", "rdma-midlayer", "--test"])
            .arg(mutation.target)
            .args(extra)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    };
    if !cargo(&["--no-run"]).status().unwrap().success() {
        return Outcome::NotBuilt;
    }
    let mut child = cargo(&["--", "--exact", mutation.test]).spawn().unwrap();
    let end = Instant::now()
        + Duration::from_secs(if mutation.target == "compile_fail" { 500 } else { 60 });
    loop {
        match child.try_wait().unwrap() {
            Some(status) if status.success() => return Outcome::Passed,
            Some(_) => return Outcome::Failed,
            None if Instant::now() > end => {
                end_tree(child.id());
                let _ = child.wait();
                return Outcome::Hung;
            }
            None => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Ends a process and what it started: cargo's test binary would live on.
fn end_tree(pid: u32) {
    let children = format!("/proc/{pid}/task/{pid}/children");
    for child in fs::read_to_string(children).unwrap_or_default().split_whitespace() {
        end_tree(child.parse().unwrap());
    }
    let _ = Command::new("kill").arg("-9").arg(pid.to_string()).status();
}

/// A workspace with a copy of this crate and nothing else.
fn prepare() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.parent().unwrap();
    let workspace = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants");
    let _ = fs::remove_dir_all(workspace.join("midlayer"));
    copy(here, &workspace.join("midlayer"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let (before, rest) = manifest.split_once("members = [").unwrap();
    let (_, after) = rest.split_once(']').unwrap();
    let manifest = format!("{before}members = [\"midlayer\"]{after}");
    fs::write(workspace.join("Cargo.toml"), manifest).unwrap();
    fs::copy(root.join("Cargo.lock"), workspace.join("Cargo.lock")).unwrap();
    workspace
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
