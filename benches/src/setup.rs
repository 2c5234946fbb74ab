// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is done once: making QPs and MRs, registering memory, doing nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use front_end::abi::control::{self, *};
use front_end::{Cq, PAGE, PageTables, QpEndpoint, QpOptions, Uar, access};
use zerocopy::{FromBytes, IntoBytes};

use crate::pair::Guest;
use crate::sys::{self, ThreadId};

/// Commands in the control virtqueue at once.
const PIPELINE: usize = 64;

/// Open QPs that nobody uses.
pub struct IdleQps {
    /// How long it took from the first create to the last QP's RTS.
    pub took: Duration,
    /// Bytes of the process's own memory that came with each.
    pub bytes_each: f64,
    _keep: (Cq, Vec<Uar>),
}

/// Brings `count` QPs to RTS, pipelined, on a page of guest memory each.
///
/// # Errors
/// What the device answers.
pub fn open_qps(guest: &Guest, peer: QpEndpoint, count: usize) -> Result<IdleQps> {
    let driver = &guest.driver;
    let cq = driver.create_cq(64, 0)?;
    let mut uars = vec![driver.create_uar(PAGE)?];
    let pages = driver.memory().alloc_contiguous(count * PAGE)?;
    let options = QpOptions {
        sq_entries: 16,
        rq_entries: 16,
        max_send_sge: 1,
        max_recv_sge: 1,
        max_inline: 0,
        ..QpOptions::default()
    };
    let template = driver.prepare_qp(&guest.pd, &cq, &cq, &options)?;
    pages.set_with_device(true);
    let before = anonymous_memory();
    let begin = Instant::now();
    let mut made = 0;
    while made < count {
        let batch = PIPELINE.min(count - made);
        let mut requests = Vec::with_capacity(batch);
        for n in made..made + batch {
            let uar = uars.last().context("a UAR")?;
            let (uar, slot) = match uar.take_slot() {
                Some(slot) => (uar.number(), slot),
                None => {
                    let uar = driver.create_uar(PAGE)?;
                    let slot = uar.take_slot().context("a new UAR has slots")?;
                    let number = uar.number();
                    uars.push(uar);
                    (number, slot)
                }
            };
            let mut request = template.request;
            (request.uarn, request.slot) = (uar.into(), slot.into());
            request.pages = page_list(pages.guest_address(n * PAGE));
            requests.push(request);
        }
        let answers: Vec<NumberAnswer> = all_at_once(guest, CMD_CREATE_QP, &requests)?;
        let qpns: Vec<u32> = answers.iter().map(|answer| answer.number.get()).collect();
        for (mask, attr) in way_to_rts(&peer) {
            let requests: Vec<_> = qpns
                .iter()
                .map(|&qpn| ModifyQpRequest { qpn: qpn.into(), attr_mask: mask.into(), attr })
                .collect();
            let _: Vec<[u8; 0]> = all_at_once(guest, CMD_MODIFY_QP, &requests)?;
        }
        made += batch;
    }
    let took = begin.elapsed();
    let bytes_each = anonymous_memory().saturating_sub(before) as f64 / count as f64;
    Ok(IdleQps { took, bytes_each, _keep: (cq, uars) })
}

/// MRs that are there to be looked up.
pub struct Keys {
    /// Their remote keys; each MR is the same page, from address 0 on.
    pub rkeys: Vec<u32>,
    /// How long it took to register them.
    pub took: Duration,
    /// Bytes of the process's own memory that came with each.
    pub bytes_each: f64,
}

/// Registers one page of guest memory `count` times, pipelined.
///
/// # Errors
/// What the device answers.
pub fn register_many(guest: &Guest, count: usize) -> Result<Keys> {
    let page = guest.driver.memory().alloc_contiguous(PAGE)?;
    page.set_with_device(true);
    let request = RegMrRequest {
        pdn: guest.pd.number.into(),
        access: access::ALL.into(),
        iova: 0.into(),
        length: (PAGE as u64).into(),
        offset: 0.into(),
        pages: page_list(page.guest_address(0)),
    };
    let mut rkeys = Vec::with_capacity(count);
    let before = anonymous_memory();
    let begin = Instant::now();
    while rkeys.len() < count {
        let requests = vec![request; PIPELINE.min(count - rkeys.len())];
        let answers: Vec<MrAnswer> = all_at_once(guest, CMD_REG_MR, &requests)?;
        rkeys.extend(answers.iter().map(|answer| answer.rkey.get()));
    }
    let took = begin.elapsed();
    let bytes_each = anonymous_memory().saturating_sub(before) as f64 / count as f64;
    Ok(Keys { rkeys, took, bytes_each })
}

fn page_list(root: u64) -> PageList {
    PageList {
        root: root.into(),
        num_pages: 1.into(),
        page_shift: 12,
        depth: 0,
        reserved: 0.into(),
    }
}

fn all_at_once<A: FromBytes>(
    guest: &Guest,
    command: u16,
    requests: &[impl IntoBytes + zerocopy::Immutable],
) -> Result<Vec<A>> {
    let head = size_of::<ControlStatus>();
    let raw: Vec<_> = requests
        .iter()
        .map(|request| {
            let header = guest.driver.next_header(command);
            ([header.as_bytes(), request.as_bytes()].concat(), head + size_of::<A>())
        })
        .collect();
    let (answers, _) = guest.driver.commands_at_once(&raw)?;
    answers
        .iter()
        .map(|bytes| {
            let (status, rest) = ControlStatus::read_from_prefix(bytes).ok().context("a status")?;
            ensure!(
                status.status.get() == 0,
                "command {command:#x}: status {}",
                status.status.get()
            );
            Ok(A::read_from_prefix(rest).ok().context("an answer")?.0)
        })
        .collect()
}

/// Masks and attributes from RESET to RTS.
fn way_to_rts(peer: &QpEndpoint) -> [(u32, QpAttr); 3] {
    let init = QpAttr {
        qp_state: control::QP_STATE_INIT,
        port: 1,
        access: access::ALL.into(),
        ..QpAttr::default()
    };
    let mut rtr = QpAttr {
        qp_state: control::QP_STATE_RTR,
        path_mtu: 5,
        dest_qpn: peer.qpn.into(),
        max_dest_rd_atomic: 1,
        min_rnr_timer: 12,
        ..QpAttr::default()
    };
    rtr.av.dgid = peer.gid;
    rtr.av.dmac = peer.mac;
    rtr.av.vlan = 0xffff.into();
    rtr.av.hop_limit = 64;
    rtr.av.port = 1;
    let rts = QpAttr {
        qp_state: control::QP_STATE_RTS,
        timeout: 14,
        retry_cnt: 7,
        rnr_retry: 7,
        max_rd_atomic: 1,
        ..QpAttr::default()
    };
    let init_mask = QP_ATTR_STATE | QP_ATTR_PKEY_INDEX | QP_ATTR_PORT | QP_ATTR_ACCESS_FLAGS;
    let rtr_mask = QP_ATTR_STATE
        | QP_ATTR_AV
        | QP_ATTR_PATH_MTU
        | QP_ATTR_DEST_QPN
        | QP_ATTR_RQ_PSN
        | QP_ATTR_MAX_DEST_RD_ATOMIC
        | QP_ATTR_MIN_RNR_TIMER;
    let rts_mask = QP_ATTR_STATE
        | QP_ATTR_TIMEOUT
        | QP_ATTR_RETRY_CNT
        | QP_ATTR_RNR_RETRY
        | QP_ATTR_SQ_PSN
        | QP_ATTR_MAX_QP_RD_ATOMIC;
    [(init_mask, init), (rtr_mask, rtr), (rts_mask, rts)]
}

/// Bytes of memory that is neither shared nor of a file: the guests' is both.
fn anonymous_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Threads of the daemon that carry out commands, by their name: one a device.
const CONTROL: &str = "vring_worker";

/// Registers 1 GiB of guest memory of pages of `2^shift` bytes in falling order, `times` times: the
/// times it took. The caller's thread and those that carry out commands go before others of the machine
/// meanwhile, if they may be `first`.
///
/// # Errors
/// What the device or the system answers.
pub fn register_gib(guest: &Guest, shift: u8, times: usize, first: bool) -> Result<Vec<Duration>> {
    const LENGTH: u64 = 1 << 30;
    let driver = &guest.driver;
    // The VM's one region begins at a multiple of 4 GiB, and is longer than 1 GiB.
    let start = driver.memory().alloc_contiguous(PAGE)?.guest_address(0) & !((1 << 32) - 1);
    let pages: Vec<u64> = (0..LENGTH >> shift).rev().map(|n| start + (n << shift)).collect();
    let tables = PageTables::new(driver.memory(), &pages, shift)?;
    let request = RegMrRequest {
        pdn: guest.pd.number.into(),
        access: access::ALL.into(),
        iova: 0.into(),
        length: LENGTH.into(),
        offset: 0.into(),
        pages: tables.list,
    };
    let mut threads = ThreadId::named(CONTROL);
    // The caller last: it must not wait for a thread that others keep from running.
    threads.push(ThreadId::SELF);
    let set_first = |first| threads.iter().try_for_each(|thread| thread.set_first(first));
    let register = || -> Result<(Duration, front_end::Mr)> {
        let begin = Instant::now();
        let mr = driver.reg_mr_request(&request)?;
        Ok((begin.elapsed(), mr))
    };
    (0..times)
        .map(|_| {
            if first {
                set_first(true)?;
            }
            let registered = register();
            set_first(false)?;
            let (took, mr) = registered?;
            driver.dereg_mr(&mr)?;
            std::thread::sleep(Duration::from_millis(7));
            Ok(took)
        })
        .collect()
}

/// Lets everything rest for `time`: the share of a CPU that the threads other than the caller's
/// take meanwhile.
pub fn idle(time: Duration) -> f64 {
    std::thread::sleep(Duration::from_millis(200));
    let before = sys::cpu_time_of_others();
    let begin = Instant::now();
    std::thread::sleep(time);
    (sys::cpu_time_of_others() - before) as f64 / begin.elapsed().as_nanos() as f64
}
