// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The Ethernet between guests: each guest gets one end of a datagram socket pair, one frame a
//! datagram. Two guests hold the two ends of one pair; more are joined by a small switch. Or each
//! guest's frames go to the daemon, by sockets with names.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The guests' MTU: room for RoCE's largest path MTU, 4096, with its headers.
pub const MTU: usize = 9000;
/// Ethernet header, a VLAN tag, the payload.
const FRAME: usize = MTU + 18;
/// Frames that a receiver may lag behind; Linux's default of 10 makes bulk traffic stutter.
const QUEUE_FRAMES: &str = "512";

/// The MAC address of guest `index`'s network device, which its RDMA device is bound to.
pub fn mac(index: usize) -> [u8; 6] {
    // Locally administered, in the range QEMU uses; a lab has at most 200 guests.
    [0x52, 0x54, 0x00, 0x77, 0x00, index as u8 + 1]
}

/// A MAC address as text.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The IPv4 address of guest `index`.
pub fn address(index: usize) -> String {
    format!("10.77.0.{}", index + 1)
}

/// The name of the socket at which guest `index` gets its frames from the daemon.
pub fn guest_socket(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("guest{index}.net"))
}

/// The name of the daemon's socket for the frames of guest `index`.
pub fn daemon_socket(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("daemon{index}.net"))
}

/// One socket a guest, connected with the daemon, which must have made its own.
///
/// # Errors
/// When sockets can't be made.
pub fn join_by_daemon(folder: &Path, guests: usize) -> Result<Vec<OwnedFd>> {
    let folder = folder.to_owned();
    std::thread::spawn(move || -> Result<Vec<OwnedFd>> {
        long_queues();
        (0..guests)
            .map(|index| {
                let socket = UnixDatagram::bind(guest_socket(&folder, index))?;
                socket.connect(daemon_socket(&folder, index))?;
                Ok(socket.into())
            })
            .collect()
    })
    .join()
    .map_err(|_| anyhow::anyhow!("the thread that makes sockets failed"))?
    .context("connecting the guests' network with the daemon")
}

/// Queue lengths belong to the network namespace that a socket is made in: gives the calling thread, or
/// process, one of its own, so that the host's settings stay as they are. Async-signal-safe.
pub fn long_queues() {
    // SAFETY: unshare touches no memory; it moves only this thread. open, write and close get a
    // C string and the bytes of a literal.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNET) == 0 {
            let setting = libc::open(c"/proc/sys/net/unix/max_dgram_qlen".as_ptr(), libc::O_WRONLY);
            libc::write(setting, QUEUE_FRAMES.as_ptr().cast(), QUEUE_FRAMES.len());
            libc::close(setting);
        }
    }
}

/// One socket a guest, joined. The switch, if there is one, ends when the guests' ends are closed.
///
/// # Errors
/// When sockets can't be made.
pub fn join(guests: usize) -> Result<Vec<OwnedFd>> {
    std::thread::spawn(move || -> Result<Vec<OwnedFd>> {
        long_queues();
        match guests {
            1 => {
                let (guest, other) = UnixDatagram::pair()?;
                std::thread::spawn(move || swallow(&other));
                Ok(vec![guest.into()])
            }
            2 => {
                let (one, other) = UnixDatagram::pair()?;
                Ok(vec![one.into(), other.into()])
            }
            _ => {
                let pairs =
                    (0..guests).map(|_| UnixDatagram::pair()).collect::<io::Result<Vec<_>>>()?;
                let (ours, theirs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
                std::thread::spawn(move || switch(&ours));
                Ok(theirs.into_iter().map(OwnedFd::from).collect())
            }
        }
    })
    .join()
    .map_err(|_| anyhow::anyhow!("the thread that makes sockets failed"))?
    .context("making the guests' network")
}

fn swallow(socket: &UnixDatagram) {
    let mut frame = [0; FRAME];
    while socket.recv(&mut frame).is_ok_and(|length| length > 0) {}
}

/// Forwards frames by their destination MAC, or to everybody else. Ends when a guest is gone.
fn switch(ports: &[UnixDatagram]) {
    for port in ports {
        // A guest that doesn't read must not stop the others: its frames are dropped.
        let _ = port.set_nonblocking(true);
    }
    let mut waits: Vec<libc::pollfd> = ports
        .iter()
        .map(|port| libc::pollfd { fd: port.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    let mut frame = [0; FRAME];
    loop {
        // SAFETY: pointer and length of one live vector.
        let ready = unsafe { libc::poll(waits.as_mut_ptr(), waits.len() as libc::nfds_t, -1) };
        if ready < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
        for from in 0..ports.len() {
            if waits[from].revents & libc::POLLIN == 0 {
                if waits[from].revents != 0 {
                    return;
                }
                continue;
            }
            while let Ok(length) = ports[from].recv(&mut frame) {
                forward(ports, from, &frame[..length]);
            }
        }
    }
}

fn forward(ports: &[UnixDatagram], from: usize, frame: &[u8]) {
    let Some(destination) = frame.get(..6) else { return };
    match (0..ports.len()).find(|index| mac(*index) == destination) {
        Some(to) if to != from => drop(ports[to].send(frame)),
        Some(_) => {}
        None => {
            for (to, port) in ports.iter().enumerate() {
                if to != from {
                    let _ = port.send(frame);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn frame_to(destination: [u8; 6]) -> Vec<u8> {
        let mut frame = destination.to_vec();
        frame.extend([7; 60]);
        frame
    }

    #[test]
    fn switch_sends_to_the_owner_of_a_mac_and_broadcasts_to_all_others() {
        let guests: Vec<UnixDatagram> =
            join(3).unwrap().into_iter().map(UnixDatagram::from).collect();
        for guest in &guests {
            guest.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        }
        let mut buffer = [0; 100];
        guests[0].send(&frame_to(mac(2))).unwrap();
        assert_eq!(guests[2].recv(&mut buffer).unwrap(), 66);
        guests[1].send(&frame_to([0xff; 6])).unwrap();
        assert_eq!(guests[0].recv(&mut buffer).unwrap(), 66);
        assert_eq!(guests[2].recv(&mut buffer).unwrap(), 66);
        guests[1].set_nonblocking(true).unwrap();
        assert!(guests[1].recv(&mut buffer).is_err());
    }
}
