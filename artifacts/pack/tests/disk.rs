//! A disk in memory that can be full, and that a process or a machine can die over.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use iptl_artifacts_pack::files::{FileAt, Files};

/// Numbers without end from a seed.
#[derive(Clone)]
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((word ^ (word >> 31)) % limit.max(1) as u64).unwrap()
    }
}

/// What a call changed and no sync has confirmed.
#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Size(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Write(at, data) => {
                bytes.resize(bytes.len().max(at + data.len()), 0);
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
            Change::Size(size) => bytes.resize(*size, 0),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone, Debug, Default)]
struct State {
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    inodes: Vec<Inode>,
    /// Calls that change something, so far.
    calls: u64,
    /// The call that the process dies in.
    dies_at: Option<u64>,
    is_dead: bool,
    /// Bytes that all files together may have.
    room: Option<usize>,
    /// Says that there is room where there is none.
    lies_about_room: bool,
}

/// The disk. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<State>>);

impl Disk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The process dies in the call with this number, which takes effect in part or not at all.
    pub fn die_at(&self, call: u64) {
        self.lock().dies_at = Some(call);
    }

    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    pub fn is_dead(&self) -> bool {
        self.lock().is_dead
    }

    pub fn set_room(&self, room: Option<usize>, lies: bool) {
        let mut state = self.lock();
        state.room = room;
        state.lies_about_room = lies;
    }

    pub fn used(&self) -> usize {
        self.lock().used()
    }

    /// Returns what the next process finds: everything that was written.
    pub fn after_kill(&self) -> Disk {
        let mut state = self.lock().clone();
        (state.dies_at, state.is_dead, state.calls) = (None, false, 0);
        Disk(Arc::new(Mutex::new(state)))
    }

    /// Returns what is found after the power failed: what was synced, and any part of the rest.
    pub fn after_power_loss(&self, numbers: &mut Numbers) -> Disk {
        let disk = self.after_kill();
        {
            let mut state = disk.lock();
            for inode in &mut state.inodes {
                let mut bytes = std::mem::take(&mut inode.durable);
                for change in std::mem::take(&mut inode.pending) {
                    match change {
                        _ if numbers.below(3) == 0 => {}
                        Change::Write(at, mut data) if numbers.below(3) == 0 => {
                            data.truncate(numbers.below(data.len() + 1));
                            Change::Write(at, data).apply(&mut bytes);
                        }
                        whole => whole.apply(&mut bytes),
                    }
                }
                inode.durable = bytes.clone();
                inode.now = bytes;
            }
            let (old, new) = (state.durable_names.clone(), state.names.clone());
            let mut names = old.clone();
            for (name, inode) in &new {
                if old.get(name) != Some(inode) && numbers.below(2) == 0 {
                    names.insert(name.clone(), *inode);
                }
            }
            for name in old.keys().filter(|name| !new.contains_key(*name)) {
                if numbers.below(2) == 0 {
                    names.remove(name);
                }
            }
            state.durable_names = names.clone();
            state.names = names;
        }
        disk
    }

    /// Returns the content of a file.
    pub fn content(&self, name: &str) -> Vec<u8> {
        let state = self.lock();
        state.inodes[state.names[name]].now.clone()
    }

    /// Replaces the content of a file, behind the back of whoever has it open.
    pub fn replace(&self, name: &str, bytes: Vec<u8>) {
        let mut state = self.lock();
        let inode = state.names[name];
        state.inodes[inode] = Inode { now: bytes.clone(), durable: bytes, pending: Vec::new() };
    }

    pub fn file_names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    /// Removes a file as a person would.
    pub fn lose(&self, name: &str) {
        let mut state = self.lock();
        state.names.remove(name);
        state.durable_names.remove(name);
    }
}

impl State {
    fn used(&self) -> usize {
        self.names.values().map(|inode| self.inodes[*inode].now.len()).sum()
    }

    /// Counts a call; says whether the process dies in it.
    fn call(&mut self) -> io::Result<bool> {
        if self.is_dead {
            return Err(io::Error::other("the process is dead"));
        }
        self.calls += 1;
        self.is_dead = self.dies_at == Some(self.calls);
        Ok(self.is_dead)
    }

    fn change(&mut self, inode: usize, change: Change) {
        let inode = &mut self.inodes[inode];
        change.apply(&mut inode.now);
        inode.pending.push(change);
    }
}

fn died<T>() -> io::Result<T> {
    Err(io::Error::other("the process died in this call"))
}

impl Files for Disk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn FileAt>> {
        let state = self.lock();
        let inode = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(OnDisk { disk: self.clone(), inode }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn FileAt>> {
        let mut state = self.lock();
        if state.call()? {
            return died();
        }
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.names.insert(name.to_owned(), inode);
        Ok(Arc::new(OnDisk { disk: self.clone(), inode }))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.file_names())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        if state.call()? {
            return died();
        }
        state.names.remove(name).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.lock();
        if state.call()? {
            return died();
        }
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn available(&self) -> io::Result<u64> {
        let state = self.lock();
        Ok(match state.room {
            Some(room) if !state.lies_about_room => (room.saturating_sub(state.used())) as u64,
            Some(_) | None => u64::MAX >> 1,
        })
    }
}

#[derive(Debug)]
struct OnDisk {
    disk: Disk,
    inode: usize,
}

impl FileAt for OnDisk {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.lock().inodes[self.inode].now.len() as u64)
    }

    fn read_at(&self, at: u64, out: &mut [u8]) -> io::Result<usize> {
        let state = self.disk.lock();
        let bytes = &state.inodes[self.inode].now;
        let start = bytes.len().min(usize::try_from(at).unwrap());
        let count = out.len().min(bytes.len() - start);
        out[..count].copy_from_slice(&bytes[start..start + count]);
        Ok(count)
    }

    fn read_now(&self, at: u64, out: &mut [u8]) -> io::Result<Option<usize>> {
        // Every third place is not in memory.
        if at.is_multiple_of(3) { Ok(None) } else { self.read_at(at, out).map(Some) }
    }

    fn write_at(&self, at: u64, pieces: &[&[u8]]) -> io::Result<()> {
        let mut state = self.disk.lock();
        let dies = state.call()?;
        let at = usize::try_from(at).unwrap();
        let mut data = pieces.concat();
        let growth = (at + data.len()).saturating_sub(state.inodes[self.inode].now.len());
        let room = state.room.map_or(usize::MAX, |room| room.saturating_sub(state.used()));
        let is_full = growth > room;
        if dies || is_full {
            data.truncate(data.len() / 2);
        }
        if !is_full || growth / 2 < room {
            state.change(self.inode, Change::Write(at, data));
        }
        match (dies, is_full) {
            (true, _) => died(),
            (false, true) => Err(io::ErrorKind::StorageFull.into()),
            (false, false) => Ok(()),
        }
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        if state.call()? {
            return died();
        }
        state.change(self.inode, Change::Size(usize::try_from(size).unwrap()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        if state.call()? {
            return died();
        }
        let inode = &mut state.inodes[self.inode];
        for change in std::mem::take(&mut inode.pending) {
            change.apply(&mut inode.durable);
        }
        Ok(())
    }
}
