// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two daemons in this process, joined by a pair of ports, with a VM each; and the bare ports, which
//! they are held against. One core a side: the driver and the worker of the sending daemon are one
//! thread, the worker of the other daemon is another.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use front_end::{Mr, QpOptions, RcOptions, SendWr, Vm, VmConfig, access, connect_rc};
use hca_backend::soft::port::{FrameBatch, Port, RxBuffer};
use rdma_midlayer::MaySleep;
use vhost_rdma::worker::{Loop, Workers};
use vhost_rdma::{
    Cpus, Daemon, DeviceConfig, PortSpec, SocketConfig, WireConfig, WorkerConfig, affinity,
};

use crate::pair::{DEPTH, End, POLL};
use crate::sys::{self, ThreadId};

/// Bytes of a frame with 4,096 bytes of a WRITE: Ethernet, IPv4, UDP, BTH, ICRC.
const FRAME: usize = 14 + 20 + 8 + 12 + 4096 + 4;
/// Bytes of a frame with 64 bytes of a WRITE.
const SMALL_FRAME: usize = 14 + 20 + 8 + 12 + 16 + 64 + 4;
/// Bytes of each VM's memory, and of the MRs.
const MEMORY: u64 = 64 << 20;
const REGION: usize = 8 << 20;
/// Bytes of a message of a stream.
const MESSAGE: u32 = 64 << 10;
/// Messages of a burst: 1 MiB in all.
const BURST: u64 = 16;
/// Bytes of a burst.
pub const BURST_BYTES: u64 = BURST * MESSAGE as u64;

/// What joins the two daemons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Unix datagrams.
    Dgram,
    /// Packet sockets on the two ends of a veth pair.
    Packet,
}

impl Kind {
    /// The two ends' ports, which lose some frames in a million, in each direction.
    ///
    /// # Errors
    /// When the veth pair can't be made.
    pub fn ports(self, folder: &Path, loss: u32) -> Result<[PortSpec; 2]> {
        let [a, b] = ["a", "b"].map(|end| folder.join(end).display().to_string());
        let texts = match self {
            Self::Dgram => [format!("dgram:{a},{b},mtu=9000"), format!("dgram:{b},{a},mtu=9000")],
            Self::Packet => {
                veth_pair()?;
                ["packet:vrdma0".to_owned(), "packet:vrdma1".to_owned()]
            }
        };
        // Each frame passes one of the ports that lose.
        let [a, b] = [format!("{},loss={loss},seed=11", texts[0]), texts[1].clone()];
        Ok([parse(&a)?, parse(&b)?])
    }
}

fn parse(text: &str) -> Result<PortSpec> {
    text.parse().map_err(|error: String| anyhow::anyhow!(error))
}

/// Gives the process, which must have one thread, a network of its own with long queues.
///
/// # Errors
/// When the process may not.
pub fn own_network() -> Result<()> {
    // SAFETY: unshare touches no memory.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(std::io::Error::last_os_error()).context("a network namespace (be root)");
    }
    std::fs::write("/proc/sys/net/unix/max_dgram_qlen", "512")?;
    Ok(())
}

fn veth_pair() -> Result<()> {
    let ip = |arguments: &str| -> Result<()> {
        let output = Command::new("ip").args(arguments.split(' ')).output().context("ip")?;
        ensure!(
            output.status.success(),
            "ip {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    };
    let _ = ip("link del vrdma0");
    ip("link add vrdma0 mtu 9000 type veth peer name vrdma1 mtu 9000")?;
    ip("link set vrdma0 up")?;
    ip("link set vrdma1 up")
}

/// The bare ports, and a thread at the far one, which counts long frames and sends short ones back.
pub struct Raw {
    here: Box<dyn Port>,
    buffer: RxBuffer,
    arrived: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    far: Option<JoinHandle<()>>,
}

/// The far thread's name: that of the worker whose place it has.
const FAR: &str = "worker0";

impl Raw {
    /// Opens both ends; the far one is served on a CPU.
    ///
    /// # Errors
    /// What the ports answer.
    pub fn open(ports: &[PortSpec; 2], cpu: usize) -> Result<Self> {
        let [here, there] = [ports[0].open(None)?, ports[1].open(None)?];
        let (arrived, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, stopped) = (arrived.clone(), stop.clone());
        let far = std::thread::Builder::new().name(FAR.to_owned()).spawn(move || {
            let served = affinity::pin(cpu).and_then(|()| serve(&*there, &counter, &stopped));
            if let Err(e) = served {
                eprintln!("the far port: {e}");
            }
        })?;
        let buffer = here.buffer();
        let mut raw = Self { here, buffer, arrived, stop, far: Some(far) };
        raw.knock()?;
        Ok(raw)
    }

    /// Waits until frames go through: a link that has just come up loses some.
    fn knock(&mut self) -> Result<()> {
        let mut one = FrameBatch::new(1);
        one.push(&frame(SMALL_FRAME, 0));
        for _ in 0..3000 {
            self.here.send(&one, 0..1)?;
            std::thread::sleep(Duration::from_millis(10));
            let mut came = false;
            let sink = &mut |frame: &[u8]| came |= frame.len() == SMALL_FRAME;
            self.here.receive(&mut self.buffer, 64, sink)?;
            if came {
                // What was sent twice comes back, too.
                std::thread::sleep(Duration::from_millis(100));
                while self.here.receive(&mut self.buffer, 64, &mut |_| {})? > 0 {}
                return Ok(());
            }
        }
        bail!("no frame comes through")
    }

    /// As many bytes as `Across::burst` WRITEs, in frames: how long until all have arrived.
    ///
    /// # Errors
    /// What the ports answer.
    pub fn burst(&mut self) -> Result<Duration> {
        let frames = BURST * u64::from(MESSAGE) / 4096;
        let goal = self.arrived.load(Ordering::Acquire) + frames;
        let mut batch = FrameBatch::new(64);
        let begin = Instant::now();
        for n in 0..frames / 64 {
            batch.clear();
            // A sender copies its data once too.
            (0..64).for_each(|i| batch.push(&frame(FRAME, (64 * n + i) as u16)));
            let mut sent = 0;
            while sent < batch.len() {
                sent += self.here.send(&batch, sent..batch.len())?;
            }
        }
        while self.arrived.load(Ordering::Acquire) < goal {
            ensure!(begin.elapsed() < Duration::from_secs(60), "frames were lost");
        }
        Ok(begin.elapsed())
    }

    /// The time of a round trip: a frame with 64 bytes of a WRITE there, one as long back.
    ///
    /// # Errors
    /// What the ports answer.
    pub fn round_trips(&mut self, rounds: u32) -> Result<Duration> {
        let mut one = FrameBatch::new(1);
        one.push(&frame(SMALL_FRAME, 0));
        let begin = Instant::now();
        for _ in 0..rounds {
            self.here.send(&one, 0..1)?;
            let mut came = false;
            while !came {
                // The system itself talks on a new link (IPv6).
                let sink = &mut |frame: &[u8]| came |= frame.len() == SMALL_FRAME;
                self.here.receive(&mut self.buffer, 1, sink)?;
                ensure!(begin.elapsed() < Duration::from_secs(60), "no frame came");
            }
        }
        Ok(begin.elapsed() / rounds)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(far) = self.far.take() {
            let _ = far.join();
        }
    }
}

/// Spins as a worker does, and sleeps when nothing comes.
fn serve(port: &dyn Port, arrived: &AtomicU64, stop: &AtomicBool) -> std::io::Result<()> {
    let (mut buffer, mut back) = (port.buffer(), FrameBatch::new(64));
    // One frame is looked for as long as they come one at a time: that costs the least.
    let mut want = 1;
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        back.clear();
        let mut long = 0;
        let got = port.receive(&mut buffer, want, &mut |frame| match frame.len() {
            FRAME => long += 1,
            SMALL_FRAME => back.push(frame),
            _ => {}
        })?;
        want = if long == 0 || got < want { 1 } else { 64 };
        arrived.fetch_add(long, Ordering::Release);
        if !back.is_empty() {
            port.send(&back, 0..back.len())?;
        }
        if long > 0 || !back.is_empty() {
            last = Instant::now();
        } else if last.elapsed() > POLL {
            sys::wait_readable(port.fd(), Duration::from_millis(50));
        }
    }
    Ok(())
}

/// Runs something while the calling thread and the far side's go before all others: for some ms at most.
///
/// # Errors
/// Those of `work`, or of the system.
pub fn first<R>(work: impl FnOnce() -> Result<R>) -> Result<R> {
    // A new thread gives itself its name.
    let mut tries = 0;
    let far = loop {
        match ThreadId::named(FAR).first() {
            Some(far) => break *far,
            None if tries < 1000 => std::thread::sleep(Duration::from_millis(1)),
            None => bail!("the far side's thread is not there"),
        }
        tries += 1;
    };
    far.set_first(true)?;
    ThreadId::SELF.set_first(true)?;
    let result = work();
    far.set_first(false)?;
    ThreadId::SELF.set_first(false)?;
    std::thread::sleep(Duration::from_millis(7));
    result
}

/// A RoCE frame of a length, as far as ports look.
fn frame(length: usize, identification: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
    frame.extend(((length - 14) as u16).to_be_bytes());
    frame.extend(identification.to_be_bytes());
    frame.extend([0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0xc3, 0x50, 0x12, 0xb7]);
    frame.extend(((length - 34) as u16).to_be_bytes());
    frame.resize(length, 0);
    frame
}

/// Two daemons, joined, a VM each, and a connection between them.
pub struct Across {
    turns: Loop,
    a: End,
    from: Mr,
    to: Mr,
    buffers: [front_end::Buffer; 2],
    vms: Vec<Vm>,
    _b: End,
    daemons: Vec<Daemon>,
    cx: MaySleep,
    next: u64,
    _sockets: tempfile::TempDir,
}

impl Across {
    /// Starts them. The far daemon's worker is kept on a CPU; `cx` is the calling thread's.
    ///
    /// # Errors
    /// What the daemons, the device or the system answer.
    pub fn start(cx: MaySleep, ports: &[PortSpec; 2], cpu: usize) -> Result<Self> {
        let (here, mut turns) = Workers::stepped()?;
        let there = Workers::start(&WorkerConfig::new(1, Cpus::from(cpu), POLL))?;
        let sockets = tempfile::tempdir()?;
        let (mut daemons, mut ends, mut vms) = (Vec::new(), Vec::new(), Vec::new());
        let mut regions = Vec::new();
        for (n, (workers, port)) in [here, there].into_iter().zip(ports).enumerate() {
            let wire = WireConfig { ports: vec![port.clone()], pcap: None };
            let mut daemon = Daemon::with_ports(&cx, workers, &wire)?;
            let path = sockets.path().join(format!("{n}.sock"));
            let device = DeviceConfig {
                name: format!("vm{n}"),
                mac: [0x52, 0x54, 0, 0, 0, n as u8 + 1],
                network: 0,
                vectors: 1,
                hca: None,
            };
            daemon.add_device(&cx, SocketConfig::new(path.clone(), device))?;
            daemons.push(daemon);
            let mut gid = [0; 16];
            gid[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, n as u8 + 1]);
            let settings = VmConfig {
                memory: MEMORY,
                regions: 1,
                vectors: 1,
                queue_size: 256,
                gid: Some(gid),
                ..VmConfig::default()
            };
            let vm = Vm::connect(&path, settings)?;
            let driver = vm.driver()?;
            let pd = driver.alloc_pd()?;
            let buffer = driver.memory().alloc_scattered(REGION)?;
            let mr = driver.reg_mr(&pd, &buffer, access::ALL)?;
            let options = QpOptions {
                sq_entries: DEPTH as u32,
                rq_entries: 16,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline: 0,
                ..QpOptions::default()
            };
            let cq = driver.create_cq(2 * DEPTH as u32, 0)?;
            let qp = driver.create_qp(&pd, &cq, &cq, &options)?;
            ends.push(End { qp, cq });
            regions.push((buffer, mr));
            vms.push(vm);
        }
        let [mut a, mut b] = <[End; 2]>::try_from(ends).ok().context("two ends")?;
        connect_rc(&mut a.qp, &mut b.qp, &RcOptions::default())?;
        turns.turn(Instant::now());
        let [(one, from), (other, to)] = <[_; 2]>::try_from(regions).ok().context("two regions")?;
        Ok(Self {
            turns,
            a,
            from,
            to,
            buffers: [one, other],
            vms,
            _b: b,
            daemons,
            cx,
            next: 0,
            _sockets: sockets,
        })
    }

    /// Ends both daemons, and gives the thread's context back.
    pub fn end(mut self) -> MaySleep {
        self.vms.iter().for_each(Vm::disconnect);
        for daemon in std::mem::take(&mut self.daemons) {
            daemon.stop(&self.cx);
        }
        self.cx
    }

    /// WRITEs of 64 KiB for `time`, 16 outstanding: bytes of data a second.
    ///
    /// # Errors
    /// If a completion tells of an error or does not come.
    pub fn stream(&mut self, time: Duration) -> Result<f64> {
        let places = REGION as u64 / u64::from(MESSAGE);
        let (first, mut done) = (self.next, self.next);
        let begin = Instant::now();
        let mut last = begin;
        loop {
            let go_on = begin.elapsed() < time;
            while go_on && self.next - done < 16 {
                let offset = self.next % places * u64::from(MESSAGE);
                let sges = [self.from.sge(offset, MESSAGE)];
                let wr = SendWr::write(self.next, &sges, self.to.remote(offset)).signaled();
                self.a.qp.post_send(&wr)?;
                self.next += 1;
            }
            self.turns.turn(Instant::now());
            let count = self.completions()?;
            done += count;
            if count > 0 {
                last = Instant::now();
            }
            if !go_on && done == self.next {
                return Ok(
                    (done - first) as f64 * f64::from(MESSAGE) / (last - begin).as_secs_f64()
                );
            }
            ensure!(last.elapsed() < Duration::from_secs(60), "a completion did not come");
        }
    }

    /// Some WRITEs of 64 KiB at once: how long until all have completed.
    ///
    /// # Errors
    /// As `stream`.
    pub fn burst(&mut self) -> Result<Duration> {
        let begin = Instant::now();
        let mut done = 0;
        for n in 0..BURST {
            let offset = n * u64::from(MESSAGE);
            let sges = [self.from.sge(offset, MESSAGE)];
            let wr = SendWr::write(self.next, &sges, self.to.remote(offset)).signaled();
            self.a.qp.post_send(&wr)?;
            self.next += 1;
        }
        while done < BURST {
            self.turns.turn(Instant::now());
            done += self.completions()?;
            ensure!(begin.elapsed() < Duration::from_secs(60), "a completion did not come");
        }
        Ok(begin.elapsed())
    }

    /// The time from post to completion of a WRITE of 64 bytes, one at a time.
    ///
    /// # Errors
    /// As `stream`.
    pub fn latency(&mut self, rounds: u32) -> Result<Duration> {
        let begin = Instant::now();
        for _ in 0..rounds {
            let sges = [self.from.sge(0, 64)];
            let wr = SendWr::write(self.next, &sges, self.to.remote(0)).signaled();
            self.a.qp.post_send(&wr)?;
            self.next += 1;
            while self.completions()? == 0 {
                self.turns.turn(Instant::now());
                ensure!(begin.elapsed() < Duration::from_secs(60), "a completion did not come");
            }
        }
        Ok(begin.elapsed() / rounds)
    }

    /// WRITEs the whole region once, and looks at every byte.
    ///
    /// # Errors
    /// If one is wrong, or as `stream`.
    pub fn verify(&mut self, seed: u8) -> Result<()> {
        let [from, to] = &self.buffers;
        let byte = |i: usize| (i / 251) as u8 ^ (i as u8).wrapping_mul(31) ^ seed;
        let bytes: Vec<u8> = (0..REGION).map(byte).collect();
        from.write(0, &bytes);
        to.write(0, &vec![!seed; REGION]);
        let places = REGION as u64 / u64::from(MESSAGE);
        let begin = Instant::now();
        let (mut posted, mut done) = (0, 0);
        while done < places {
            while posted < places && posted - done < 16 {
                let offset = posted * u64::from(MESSAGE);
                let sges = [self.from.sge(offset, MESSAGE)];
                let wr = SendWr::write(self.next, &sges, self.to.remote(offset)).signaled();
                self.a.qp.post_send(&wr)?;
                self.next += 1;
                posted += 1;
            }
            self.turns.turn(Instant::now());
            done += self.completions()?;
            ensure!(begin.elapsed() < Duration::from_secs(300), "a completion did not come");
        }
        let got = self.buffers[1].read(0, REGION);
        match got.iter().zip(&bytes).position(|(got, wanted)| got != wanted) {
            None => Ok(()),
            Some(at) => bail!("byte {at} is {:#x} and should be {:#x}", got[at], bytes[at]),
        }
    }

    fn completions(&mut self) -> Result<u64> {
        let mut wcs = [front_end::Wc::default(); 16];
        let count = self.a.cq.poll(&mut wcs);
        for wc in &wcs[..count] {
            ensure!(wc.is_success(), "a completion with status {}", wc.status);
        }
        Ok(count as u64)
    }
}
