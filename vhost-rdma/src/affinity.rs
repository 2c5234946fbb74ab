// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which CPUs a thread may run on. Which thread gets which is `worker.rs`.

use std::io;
use std::str::FromStr;

/// The most CPUs that the system's own set type can name.
const MAX_CPU: usize = libc::CPU_SETSIZE as usize;

/// A list of CPUs, as `taskset` takes it: numbers and ranges, with commas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpus(Vec<usize>);

impl Cpus {
    /// The CPU for the thread with a number; `None` if no CPUs are listed: any.
    pub fn of_thread(&self, thread: usize) -> Option<usize> {
        self.0.get(thread.checked_rem(self.0.len())?).copied()
    }

    /// How many are listed.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl From<usize> for Cpus {
    fn from(cpu: usize) -> Self {
        Self(vec![cpu])
    }
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| match part.parse::<usize>() {
            Ok(cpu) if cpu < MAX_CPU => Ok(cpu),
            Ok(_) | Err(_) => Err(format!("'{part}' is not a CPU: 0 to {}", MAX_CPU - 1)),
        };
        let mut list = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("'{part}' runs backwards"));
            }
            list.extend(first..=last);
        }
        Ok(Self(list))
    }
}

/// Keeps the calling thread on one CPU.
///
/// # Errors
/// What the system answers: `InvalidInput` for a CPU that there is not.
pub fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: an all-zero set is an empty one; `cpu` was checked to lie in it; 0 is this thread.
    let done = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_those_of_taskset_and_threads_take_them_in_turn() {
        let cpus: Cpus = "1,4-6".parse().unwrap();
        let of: Vec<_> = (0..6).map(|n| cpus.of_thread(n).unwrap()).collect();
        assert_eq!(of, [1, 4, 5, 6, 1, 4]);
        assert_eq!(Cpus::default().of_thread(3), None);
        for bad in ["", "x", "1,", "3-1", "1024", "-1"] {
            assert!(bad.parse::<Cpus>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_thread_stays_where_it_was_pinned() {
        std::thread::spawn(|| {
            pin(0).unwrap();
            // SAFETY: no arguments.
            assert_eq!(unsafe { libc::sched_getcpu() }, 0);
            assert!(pin(MAX_CPU).is_err());
            assert!(pin(MAX_CPU - 1).is_err(), "there are not so many");
        })
        .join()
        .unwrap();
    }
}
