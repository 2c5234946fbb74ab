// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line of the daemon.

mod cli;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Parser;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use rdma_midlayer::MaySleep;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::low_level::pipe;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use vhost_rdma::{Daemon, StartError};

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
    ended: bool,
    daemon: Arc<Mutex<Daemon>>,
}

impl MutEventSubscriber for Signals {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if events.fd() == self.end.as_raw_fd() {
            let _ = self.end.read(&mut [0; 16]);
            self.ended = true;
        } else {
            let _ = self.report.read(&mut [0; 16]);
            let daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
            daemon.devices().for_each(|device| log::info!("{}", device.report()));
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

    let daemon = Arc::new(Mutex::new(Daemon::start(&cx, &cli.daemon_config())?));
    let mut manager: EventManager<Arc<Mutex<Signals>>> =
        EventManager::new().map_err(|e| std::io::Error::other(e.to_string()))?;
    let signals =
        Arc::new(Mutex::new(Signals { end, report, ended: false, daemon: daemon.clone() }));
    manager.add_subscriber(signals.clone());
    for socket in cli.socket_configs() {
        let path = socket.path.clone();
        daemon.lock().unwrap_or_else(PoisonError::into_inner).add_device(&cx, socket)?;
        log::info!("waiting for a front end on {}", path.display());
    }
    while !signals.lock().unwrap_or_else(PoisonError::into_inner).ended {
        manager.run().map_err(|e| std::io::Error::other(e.to_string()))?;
    }
    log::info!("ending");
    drop(manager);
    drop(signals);
    if let Ok(daemon) = Arc::try_unwrap(daemon) {
        daemon.into_inner().unwrap_or_else(PoisonError::into_inner).stop(&cx);
    }
    Ok(())
}
