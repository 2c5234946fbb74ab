// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line of the daemon.

mod cli;

use std::cell::{Cell, RefCell};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::rc::Rc;

use clap::Parser;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use rdma_midlayer::MaySleep;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::low_level::pipe;
use vhost_rdma::hotplug::HostDevices;
use vhost_rdma::{Daemon, Management, StartError};

use cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.print_capabilities {
        println!("{}", cli::CAPABILITIES);
        return ExitCode::SUCCESS;
    }
    env_logger::Builder::new()
        .filter_level(cli.log_level)
        .parse_default_env()
        .format_timestamp_millis()
        .init();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vhost-rdma: {e}");
            ExitCode::FAILURE
        }
    }
}

/// The signals that the one control thread hears: a byte a signal.
struct Signals {
    end: UnixStream,
    report: UnixStream,
    ended: Rc<Cell<bool>>,
    daemon: Rc<RefCell<Daemon>>,
}

impl MutEventSubscriber for Signals {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if events.fd() == self.end.as_raw_fd() {
            let _ = self.end.read(&mut [0; 16]);
            self.ended.set(true);
        } else {
            let _ = self.report.read(&mut [0; 16]);
            let daemon = self.daemon.borrow();
            daemon.devices().for_each(|device| log::info!("{}", device.report()));
            for counted in daemon.wire_counts() {
                let some = counted.counts.iter().filter(|(_, n)| *n > 0);
                let some: Vec<_> = some.map(|(name, n)| format!("{name} {n}")).collect();
                log::info!("{}: {}", counted.who, some.join(", "));
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        for stream in [&self.end, &self.report] {
            if let Err(e) = ops.add(Events::new(stream, EventSet::IN)) {
                log::error!("signals can't be watched: {e}");
            }
        }
    }
}

fn run(cli: &Cli) -> Result<(), StartError> {
    let Some(cx) = MaySleep::claim() else { return Ok(()) };
    // Before anything exists that a signal would have to end in order.
    let (end, end_write) = UnixStream::pair()?;
    let (report, report_write) = UnixStream::pair()?;
    pipe::register(SIGTERM, end_write.try_clone()?)?;
    pipe::register(SIGINT, end_write)?;
    pipe::register(SIGUSR1, report_write)?;

    let daemon = Rc::new(RefCell::new(Daemon::start(&cx, &cli.daemon_config())?));
    let ended = Rc::new(Cell::new(false));
    let result = serve(
        &cx,
        cli,
        &daemon,
        Signals { end, report, ended: ended.clone(), daemon: daemon.clone() },
    );
    log::info!("ending");
    if let Some(daemon) = Rc::into_inner(daemon) {
        daemon.into_inner().stop(&cx);
    }
    result
}

/// Adds what the command line asks for, and serves signals and management until a signal ends it.
fn serve(
    cx: &MaySleep,
    cli: &Cli,
    daemon: &Rc<RefCell<Daemon>>,
    signals: Signals,
) -> Result<(), StartError> {
    let ended = signals.ended.clone();
    let mut manager: EventManager<Box<dyn MutEventSubscriber + '_>> =
        EventManager::new().map_err(|e| std::io::Error::other(e.to_string()))?;
    manager.add_subscriber(Box::new(signals));
    for socket in cli.socket_configs() {
        let path = socket.path.clone();
        daemon.borrow_mut().add_device(cx, socket)?;
        log::info!("waiting for a front end on {}", path.display());
    }
    if let Some(path) = &cli.control {
        manager.add_subscriber(Box::new(Management::listen(cx, daemon.clone(), path)?));
        log::info!("waiting for vhost-rdma-ctl on {}", path.display());
    }
    manager.add_subscriber(Box::new(HostDevices::new(cx, daemon.clone())));
    while !ended.get() {
        manager.run().map_err(|e| std::io::Error::other(e.to_string()))?;
    }
    Ok(())
}
