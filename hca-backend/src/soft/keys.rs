// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory regions and their keys. A key is the MR's number and random bits; look-up is an index and a
//! comparison, without a lock. What is behind a key that work requests change is in `rebind`.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdma_midlayer::driver::{MrChange, MrDriver, PageFault, own_any};
use rdma_midlayer::memory::{PageRange, Span, Stretch, UserMemory};
use rdma_midlayer::rcu::{Guard, Table};
use rdma_midlayer::types::{Access, LKey, MwType, RKey};
use rdma_midlayer::work::{MwBind, RegMr, Sge};
use rdma_midlayer::{Error, MaySleep, Result};

use super::context::{Context, Pd};
use super::faults::{Faults, Missing};
use super::numbers::{NumberPool, Reuse};
use super::rebind::{BindFault, Draining, Found, Kind, Part, Rebind, Used, User, new_generation};

/// Low bits of a key that can't be guessed from other keys; the number is above them.
const RANDOM_BITS: u32 = 12;

/// Most MRs that a key can number: number 0 is not used, so that no key is 0.
pub(crate) const MAX_MRS: u32 = (1 << (32 - RANDOM_BITS)) - 1;

/// An MR as the data path sees it: never changed, only replaced.
struct Entry {
    key: u32,
    pd: u32,
    access: Access,
    memory: Memory,
    /// Another one whenever the memory is: a window knows its MR by it.
    generation: u64,
}

/// What is behind a key.
pub(crate) enum Memory {
    /// Nothing, for now.
    None,
    /// One range.
    One(UserMemory),
    /// Several, with holes between them: all that a consumer can use for DMA.
    Regions(Box<[UserMemory]>),
    /// What work requests put there. Such an entry's own key is none.
    Rebind(Arc<Rebind>),
}

/// Memory that a key was found to allow the use of, for as long as this lives.
pub(crate) enum Held<'g> {
    /// Of a plain MR.
    Plain(&'g UserMemory),
    /// Counted.
    Counted(Used),
    /// Through a window, which is counted.
    Window(&'g UserMemory, #[allow(dead_code, reason = "counts the user")] Arc<Part>),
    /// Through a window, both counted.
    CountedWindow(Used, #[allow(dead_code, reason = "counts the user")] Arc<Part>),
}

impl std::ops::Deref for Held<'_> {
    type Target = UserMemory;

    #[inline]
    fn deref(&self) -> &UserMemory {
        match self {
            Self::Plain(memory) | Self::Window(memory, _) => memory,
            Self::Counted(memory) | Self::CountedWindow(memory, _) => memory,
        }
    }
}

/// Whose keys count, and how the memory is to be used.
#[derive(Clone, Copy)]
pub(crate) struct Use {
    pub(crate) pd: u32,
    /// The QP's number for ever.
    pub(crate) qp: u64,
    /// Of a kernel: `LKey::LOCAL_DMA` is a key.
    pub(crate) privileged: bool,
    pub(crate) access: Access,
}

impl Use {
    fn user(&self) -> User {
        User { pd: self.pd, qp: self.qp }
    }
}

impl Entry {
    /// Whether there is memory that may be used so.
    fn gives(&self, pd: u32, access: Access) -> bool {
        let there = matches!(self.memory, Memory::One(_) | Memory::Regions(_));
        there && self.pd == pd && self.access.contains(access)
    }

    /// The memory, if the access is allowed.
    #[inline]
    fn check(&self, pd: u32, access: Access, addr: u64, len: u64) -> Option<&UserMemory> {
        if self.pd != pd || !self.access.contains(access) {
            return None;
        }
        match &self.memory {
            Memory::One(memory) => Some(memory).filter(|memory| memory.contains(addr, len)),
            Memory::Regions(regions) => regions.iter().find(|memory| memory.contains(addr, len)),
            Memory::None | Memory::Rebind(_) => None,
        }
    }
}

/// The MRs of a context.
pub(crate) struct Mrs {
    table: Table<Entry>,
    numbers: Mutex<NumberPool>,
    random: RandomState,
    count: AtomicU64,
    /// What `LKey::LOCAL_DMA` stands for.
    dma: Table<UserMemory>,
    /// MRs of memory on demand.
    on_demand: AtomicUsize,
    /// Theirs.
    pub(crate) faults: Faults,
}

impl Mrs {
    pub(crate) fn new(max: u32) -> Self {
        let max = max.min(MAX_MRS);
        Self {
            table: Table::new(max as usize + 1),
            numbers: Mutex::new(NumberPool::new(1, max, Reuse::Early)),
            random: RandomState::new(),
            count: AtomicU64::new(0),
            dma: Table::new(1),
            on_demand: AtomicUsize::new(0),
            faults: Faults::default(),
        }
    }

    /// Whether any memory is there on demand only.
    #[inline]
    pub(crate) fn has_on_demand(&self) -> bool {
        self.on_demand.load(Ordering::Relaxed) > 0
    }

    #[inline]
    fn entry<'g>(&self, key: u32, guard: &'g Guard) -> Option<&'g Entry> {
        self.table.get((key >> RANDOM_BITS) as usize, guard).filter(|e| e.key == key)
    }

    /// The memory that an SGE names, if its first `len` bytes may be used so. Never sleeps.
    #[inline]
    pub(crate) fn local<'g>(
        &'g self,
        sge: &Sge,
        len: u64,
        of: &Use,
        guard: &'g Guard,
    ) -> Option<Held<'g>> {
        match self.entry(sge.lkey.0, guard) {
            Some(entry) => entry.check(of.pd, of.access, sge.addr, len).map(Held::Plain),
            None => self.local_otherwise(sge, len, of, guard),
        }
    }

    #[cold]
    fn local_otherwise<'g>(
        &'g self,
        sge: &Sge,
        len: u64,
        of: &Use,
        guard: &'g Guard,
    ) -> Option<Held<'g>> {
        if sge.lkey == LKey::LOCAL_DMA {
            let dma = self.dma.get(0, guard).filter(|_| of.privileged)?;
            return dma.contains(sge.addr, len).then_some(Held::Plain(dma));
        }
        let rebind = self.rebind(sge.lkey.0, guard)?;
        match rebind.find(sge.lkey.0, of.user(), of.access, sge.addr, len)? {
            Found::Memory(memory) => Some(Held::Counted(memory)),
            // A window is for peers.
            Found::Part(..) => None,
        }
    }

    /// The memory that a peer names, if it may use it so, and the address in it. Never sleeps.
    #[inline]
    pub(crate) fn remote<'g>(
        &'g self,
        rkey: RKey,
        addr: u64,
        len: u64,
        of: &Use,
        guard: &'g Guard,
    ) -> Option<(Held<'g>, u64)> {
        match self.entry(rkey.0, guard) {
            Some(entry) => {
                entry.check(of.pd, of.access, addr, len).map(|memory| (Held::Plain(memory), addr))
            }
            None => self.remote_otherwise(rkey, addr, len, of, guard),
        }
    }

    #[cold]
    fn remote_otherwise<'g>(
        &'g self,
        rkey: RKey,
        addr: u64,
        len: u64,
        of: &Use,
        guard: &'g Guard,
    ) -> Option<(Held<'g>, u64)> {
        let rebind = self.rebind(rkey.0, guard)?;
        match rebind.find(rkey.0, of.user(), of.access, addr, len)? {
            Found::Memory(memory) => Some((Held::Counted(memory), addr)),
            Found::Part(part, at) => Some((self.through(part, at, len, of, guard)?, at)),
        }
    }

    /// Whether a key gives a peer some rights, wherever. Never sleeps.
    pub(crate) fn allows(&self, rkey: RKey, of: &Use, guard: &Guard) -> bool {
        match self.entry(rkey.0, guard) {
            Some(entry) => entry.gives(of.pd, of.access),
            None => self
                .rebind(rkey.0, guard)
                .is_some_and(|rebind| rebind.gives(rkey.0, of.user(), of.access)),
        }
    }

    /// What a window shows, if it is still what it was bound to.
    fn through<'g>(
        &'g self,
        part: Arc<Part>,
        addr: u64,
        len: u64,
        of: &Use,
        guard: &'g Guard,
    ) -> Option<Held<'g>> {
        if let Some(entry) = self.entry(part.lkey, guard) {
            let same = entry.generation == part.generation;
            let memory = entry.check(of.pd, Access::MW_BIND, addr, len).filter(|_| same)?;
            return Some(Held::Window(memory, part));
        }
        let rebind = self.rebind(part.lkey, guard)?;
        if rebind.generation(part.lkey) != Some(part.generation) {
            return None;
        }
        match rebind.find(part.lkey, of.user(), Access::MW_BIND, addr, len)? {
            Found::Memory(memory) => Some(Held::CountedWindow(memory, part)),
            Found::Part(..) => None,
        }
    }

    /// The object of a key that work requests change, whatever its tag.
    fn rebind<'g>(&self, key: u32, guard: &'g Guard) -> Option<&'g Arc<Rebind>> {
        match &self.table.get((key >> RANDOM_BITS) as usize, guard)?.memory {
            Memory::Rebind(rebind) if rebind.is(key) => Some(rebind),
            _ => None,
        }
    }

    /// REG_MR of a kernel's QP. Never sleeps.
    pub(crate) fn register_fast(
        &self,
        reg: &RegMr,
        pd: u32,
        guard: &Guard,
    ) -> std::result::Result<(), BindFault> {
        let rebind = self.rebind(reg.key.0, guard).filter(|r| r.pd == pd).ok_or(BindFault)?;
        check_access(reg.access).map_err(|_| BindFault)?;
        rebind.register(reg.key.0, reg.access, reg.memory.clone())
    }

    /// LOCAL_INV, and SEND_WITH_INV at the peer. Never sleeps.
    pub(crate) fn invalidate(
        &self,
        key: u32,
        user: User,
        guard: &Guard,
    ) -> std::result::Result<Draining, BindFault> {
        self.rebind(key, guard).ok_or(BindFault)?.invalidate(key, user)
    }

    /// BIND_MW (IBA 10.6.7.2). Never sleeps.
    pub(crate) fn bind(
        &self,
        bind: &MwBind,
        user: User,
        guard: &Guard,
    ) -> std::result::Result<Option<Draining>, BindFault> {
        let window =
            self.rebind(bind.rkey.0, guard).filter(|r| r.pd == user.pd).ok_or(BindFault)?;
        let zero_based = bind.access.contains(Access::ZERO_BASED);
        let remote = Access::REMOTE_READ | Access::REMOTE_WRITE | Access::REMOTE_ATOMIC;
        let wrong = bind.access.0 & !(remote | Access::ZERO_BASED).0 != 0
            || zero_based && window.kind != Kind::Window(MwType::Type2);
        if wrong {
            return Err(BindFault);
        }
        let part = match bind.length {
            0 => None,
            _ => Some(self.part(bind, user.pd, guard).ok_or(BindFault)?),
        };
        window.bind(bind.rkey.0, bind.access, part, user.qp)
    }

    /// The part of an MR that a window is to show, if it may.
    fn part(&self, bind: &MwBind, pd: u32, guard: &Guard) -> Option<Part> {
        let stores = bind.access.0 & (Access::REMOTE_WRITE | Access::REMOTE_ATOMIC).0 != 0;
        let wanted = if stores { Access::MW_BIND | Access::LOCAL_WRITE } else { Access::MW_BIND };
        let (lkey, addr, length) = (bind.lkey.0, bind.addr, bind.length);
        let generation = match self.entry(lkey, guard) {
            Some(entry) => {
                // All memory is no MR that a window may show a part of.
                let one = matches!(entry.memory, Memory::One(_));
                entry.check(pd, wanted, addr, length).filter(|_| one)?;
                entry.generation
            }
            None => self.rebind(lkey, guard)?.windowed(lkey, pd, wanted, addr, length)?,
        };
        let base = if bind.access.contains(Access::ZERO_BASED) { 0 } else { addr };
        Some(Part { lkey, generation, addr, length, base })
    }

    /// What `LKey::LOCAL_DMA` stands for. When it returns nobody uses what it stood for. May sleep.
    pub(crate) fn set_dma(&self, cx: &MaySleep, memory: Option<UserMemory>) {
        drop(self.dma.remove(cx, 0));
        if let Some(memory) = memory {
            let _ = self.dma.insert(0, Arc::new(memory));
        }
    }

    /// Bits that nobody who knows other keys can tell.
    fn random_bits(&self, number: u32) -> u32 {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        self.random.hash_one((count, number)) as u32 & ((1 << RANDOM_BITS) - 1)
    }

    fn register(&self, pd: u32, access: Access, memory: Memory) -> Result<u32> {
        let number = self.take_number().ok_or(Error::Limit("memory regions"))?;
        let key = number << RANDOM_BITS | self.random_bits(number);
        let entry = Entry { key, pd, access, memory, generation: new_generation() };
        self.publish(number, entry)?;
        Ok(key)
    }

    /// A key that work requests will put memory behind.
    pub(crate) fn allocate(&self, pd: u32, kind: Kind) -> Result<Arc<Rebind>> {
        let number = self.take_number().ok_or(Error::Limit("memory regions"))?;
        let key = number << RANDOM_BITS | self.random_bits(number);
        let rebind = Arc::new(Rebind::new(kind, pd, key));
        let memory = Memory::Rebind(rebind.clone());
        // Key 0 is nobody's: what is behind it is found by the number only.
        let entry = Entry { key: 0, pd, access: Access::NONE, memory, generation: 0 };
        self.publish(number, entry)?;
        Ok(rebind)
    }

    fn publish(&self, number: u32, entry: Entry) -> Result<()> {
        if self.table.insert(number as usize, Arc::new(entry)).is_err() {
            self.give_back(number);
            return Err(Error::Limit("memory regions"));
        }
        Ok(())
    }

    /// Puts another entry behind its key; the old one when nobody uses it any more.
    fn replace(&self, cx: &MaySleep, entry: Entry) -> Result<Arc<Entry>> {
        let number = (entry.key >> RANDOM_BITS) as usize;
        self.table.replace(cx, number, Arc::new(entry)).map_err(|_unused| Error::Gone)
    }

    pub(crate) fn deregister(&self, cx: &MaySleep, key: u32) {
        let number = key >> RANDOM_BITS;
        drop(self.table.remove(cx, number as usize));
        self.give_back(number);
    }

    fn take_number(&self) -> Option<u32> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn give_back(&self, number: u32) {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner).give_back(number);
    }
}

/// Finds the plain MRs' memory of one request after the other: it is mostly where that of the last was.
pub(crate) struct Finder<'g> {
    mrs: &'g Mrs,
    guard: &'g Guard,
    pd: u32,
    /// Of `seen`.
    key: u32,
    /// What `key` allows.
    access: Access,
    /// The part of `key`'s memory, which `pd` may use, that was found last.
    seen: Stretch<'g>,
}

impl<'g> Finder<'g> {
    /// For what `pd` names.
    #[inline]
    pub(crate) fn new(mrs: &'g Mrs, pd: u32, guard: &'g Guard) -> Self {
        Self { mrs, guard, pd, key: 0, access: Access::NONE, seen: Stretch::EMPTY }
    }

    /// As `Mrs::local` and `Mrs::remote`, of a plain MR's memory that lies together in the host. `None`
    /// also if it does not.
    #[inline(always)]
    pub(crate) fn span(
        &mut self,
        key: u32,
        addr: u64,
        len: u64,
        access: Access,
    ) -> Option<Span<'g>> {
        if key == self.key
            && self.access.contains(access)
            && let Some(span) = self.seen.span(addr, len)
        {
            return Some(span);
        }
        self.look_up(key, addr, len, access)
    }

    #[inline(never)]
    fn look_up(&mut self, key: u32, addr: u64, len: u64, access: Access) -> Option<Span<'g>> {
        let (memory, allowed) = self.plain(key, access)?;
        let seen = memory.stretch(addr)?;
        (self.key, self.access, self.seen) = (key, allowed, seen);
        seen.span(addr, len)
    }

    /// As `span`, of memory that need not lie together.
    #[inline(never)]
    pub(crate) fn memory(
        &self,
        key: u32,
        addr: u64,
        len: u64,
        access: Access,
    ) -> Option<&'g UserMemory> {
        let (memory, _) = self.plain(key, access)?;
        (memory.paging().is_none() && memory.contains(addr, len)).then_some(memory)
    }

    /// The memory of a plain MR that may be used so, and all that the key allows.
    #[inline(always)]
    fn plain(&self, key: u32, access: Access) -> Option<(&'g UserMemory, Access)> {
        let entry = self.mrs.entry(key, self.guard)?;
        if entry.pd != self.pd || !entry.access.contains(access) {
            return None;
        }
        match &entry.memory {
            Memory::One(memory) => Some((memory, entry.access)),
            _ => None,
        }
    }
}

/// A consumer's hold of an MR.
pub(crate) struct Mr {
    context: Arc<Context>,
    key: u32,
    /// The consumer's number of its table of pages, if it is of memory on demand.
    on_demand: Option<u32>,
    /// Held while the entry is exchanged, so that no late exchange hits the next owner of the number.
    now: Mutex<Now>,
}

/// What an MR is now.
struct Now {
    pd: u32,
    access: Access,
    gone: bool,
}

/// Remote stores need the right to local ones (IBA 10.6.3.1).
pub(crate) fn check_access(access: Access) -> Result<()> {
    let stores = access.0 & (Access::REMOTE_WRITE | Access::REMOTE_ATOMIC).0;
    if stores != 0 && !access.contains(Access::LOCAL_WRITE) {
        return Err(Error::Invalid("remote write and atomics need local write"));
    }
    Ok(())
}

impl Mr {
    pub(crate) fn register(
        context: Arc<Context>,
        pd: u32,
        memory: Memory,
        access: Access,
    ) -> Result<Self> {
        check_access(access)?;
        let on_demand = match &memory {
            Memory::One(memory) => memory.paging().map(|paging| paging.number()),
            _ => None,
        };
        // Before anybody can find the memory.
        context.mrs.on_demand.fetch_add(usize::from(on_demand.is_some()), Ordering::SeqCst);
        let key = context.mrs.register(pd, access, memory).inspect_err(|_| {
            context.mrs.on_demand.fetch_sub(usize::from(on_demand.is_some()), Ordering::SeqCst);
        })?;
        Ok(Self { context, key, on_demand, now: Mutex::new(Now { pd, access, gone: false }) })
    }

    fn now(&self) -> Result<MutexGuard<'_, Now>> {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.gone { Err(Error::Gone) } else { Ok(now) }
    }
}

impl MrDriver for Mr {
    fn lkey(&self) -> LKey {
        LKey(self.key)
    }

    fn rkey(&self) -> RKey {
        RKey(self.key)
    }

    fn replace_memory(&self, cx: &MaySleep, memory: Option<UserMemory>) -> Result<()> {
        let now = self.now()?;
        let memory = memory.map_or(Memory::None, Memory::One);
        let (pd, access) = (now.pd, now.access);
        let entry = Entry { key: self.key, pd, access, memory, generation: new_generation() };
        let mrs = &self.context.mrs;
        mrs.replace(cx, entry)?;
        self.on_demand.inspect(|number| mrs.faults.forget(*number));
        Ok(())
    }

    fn take_page_fault(&self) -> Option<PageFault> {
        let missing = self.context.mrs.faults.take(self.on_demand?)?;
        let Missing { pages, write } = missing;
        Some(PageFault { pages, write })
    }

    fn answer_page_faults(&self, pages: PageRange, refused: bool) {
        self.on_demand.inspect(|number| self.context.mrs.faults.answer(*number, pages, refused));
    }

    fn rereg(&self, cx: &MaySleep, change: MrChange) -> Result<()> {
        let mut now = self.now()?;
        let access = change.access.unwrap_or(now.access);
        check_access(access)?;
        let pd = match change.pd {
            Some(pd) => own_any::<Pd>(pd)?.number_in(&self.context)?,
            None => now.pd,
        };
        let mrs = &self.context.mrs;
        let other_pd = pd != now.pd;
        let entry = |memory, generation| Entry { key: self.key, pd, access, memory, generation };
        match change.memory {
            Some(memory) => drop(mrs.replace(cx, entry(Memory::One(memory), new_generation()))?),
            // An entry is shared with readers: its memory can be had only when they have left. For
            // that moment the key names nothing (IBA 11.2.8.4: the consumer has no work under way).
            None => {
                let old = mrs.replace(cx, entry(Memory::None, 0))?;
                let old = Arc::into_inner(old).map(|old| (old.memory, old.generation));
                let (memory, generation) = old.unwrap_or((Memory::None, 0));
                // A window shows nothing of an MR of another PD.
                let generation = if other_pd { new_generation() } else { generation };
                mrs.replace(cx, entry(memory, generation))?;
            }
        }
        (now.pd, now.access) = (pd, access);
        Ok(())
    }

    fn dereg(&self, cx: &MaySleep) -> Result<()> {
        self.now()?.gone = true;
        let mrs = &self.context.mrs;
        mrs.deregister(cx, self.key);
        if let Some(number) = self.on_demand {
            mrs.on_demand.fetch_sub(1, Ordering::SeqCst);
            mrs.faults.forget(number);
        }
        Ok(())
    }
}
