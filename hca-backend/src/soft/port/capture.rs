// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A port that writes what passes through another one into a pcap file, as Wireshark reads it.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::FrameBatch;
use super::rx_buffer::RxBuffer;
use super::{ETHERNET_OVERHEAD, MAX_MTU, OpenError, Port, PortCounters};

/// Microseconds or nanoseconds, and the byte order: a reader knows both by this number.
const NANOSECONDS: u32 = 0xa1b2_3c4d;
const LINK_ETHERNET: u32 = 1;

/// A pcap file, which several captures may share.
pub struct PcapFile {
    path: PathBuf,
    /// None once it could not be written.
    file: Mutex<Option<BufWriter<File>>>,
}

impl PcapFile {
    /// Makes a file, or empties it.
    ///
    /// # Errors
    /// When the file can't be made.
    pub fn create(path: &Path) -> Result<Arc<Self>, OpenError> {
        let failed = || OpenError::system(format!("capture file {}", path.display()));
        let mut file = BufWriter::with_capacity(1 << 16, File::create(path).map_err(failed())?);
        let mut header = Vec::with_capacity(24);
        header.extend(NANOSECONDS.to_ne_bytes());
        header.extend(2u16.to_ne_bytes());
        header.extend(4u16.to_ne_bytes());
        header.extend([0; 8]);
        header.extend(((MAX_MTU + ETHERNET_OVERHEAD) as u32).to_ne_bytes());
        header.extend(LINK_ETHERNET.to_ne_bytes());
        file.write_all(&header).and_then(|()| file.flush()).map_err(failed())?;
        Ok(Arc::new(Self { path: path.to_owned(), file: Mutex::new(Some(file)) }))
    }

    fn write<'a>(&self, frames: impl Iterator<Item = &'a [u8]>) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = file.as_mut() else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut result = Ok(());
        for frame in frames {
            let length = frame.len() as u32;
            let mut record = [0; 16];
            let fields = [now.as_secs() as u32, now.subsec_nanos(), length, length];
            for (place, field) in record.chunks_exact_mut(4).zip(fields) {
                place.copy_from_slice(&field.to_ne_bytes());
            }
            result = result.and_then(|()| open.write_all(&record)).and(open.write_all(frame));
        }
        self.judge(result, &mut file);
    }

    fn flush(&self) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let result = file.as_mut().map_or(Ok(()), Write::flush);
        self.judge(result, &mut file);
    }

    /// A full disk ends the capture, not the traffic.
    fn judge(&self, result: io::Result<()>, file: &mut Option<BufWriter<File>>) {
        if let Err(e) = result {
            log::error!("capture file {}: {e}; the capture ends here", self.path.display());
            *file = None;
        }
    }
}

/// A port whose frames, out and in, are also written to a file.
pub struct Capture<P> {
    inner: P,
    file: Arc<PcapFile>,
}

impl<P: Port> Capture<P> {
    /// Captures what passes through `inner`.
    pub fn new(inner: P, file: Arc<PcapFile>) -> Self {
        Self { inner, file }
    }
}

impl<P: Port> Port for Capture<P> {
    fn send(&self, frames: &FrameBatch, range: Range<usize>) -> io::Result<usize> {
        let sent = self.inner.send(frames, range.clone())?;
        self.file.write((range.start..range.start + sent).map(|i| frames.frame(i)));
        Ok(sent)
    }

    fn receive(
        &self,
        buffer: &mut RxBuffer,
        max: usize,
        sink: &mut dyn FnMut(&[u8]),
    ) -> io::Result<usize> {
        let got = self.inner.receive(buffer, max, &mut |frame| {
            self.file.write(std::iter::once(frame));
            sink(frame);
        })?;
        if got == 0 {
            // Nothing to do: whoever looks at the file now sees all of it.
            self.file.flush();
        }
        Ok(got)
    }

    fn buffer(&self) -> RxBuffer {
        self.inner.buffer()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.inner.fd()
    }

    fn mtu(&self) -> usize {
        self.inner.mtu()
    }

    fn counters(&self) -> PortCounters {
        self.inner.counters()
    }
}

impl Drop for PcapFile {
    fn drop(&mut self) {
        self.flush();
    }
}
