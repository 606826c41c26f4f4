//! A TUN device in the network namespace of the thread that makes it.
//!
//! This file is compiled into two programs: into this crate, which enters a container's namespace where it may, and
//! into the init of containers, which a short-lived container executes where the lablet may not. So it uses the system
//! alone, by `libc`: `ioctl` for the device, route netlink for addresses, routes and counters.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// What a device is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name that programs see: `eth0`.
    pub name: String,
    /// Its addresses, with the lengths of their networks' prefixes, in bits: at least one.
    pub addrs: Vec<(IpAddr, u8)>,
    /// Largest packet, in bytes.
    pub mtu: u16,
}

/// A device with a connection to the namespace that it is in. Both work from anywhere.
#[derive(Debug)]
pub struct Device {
    /// Packets, each behind the ten bytes of `struct virtio_net_hdr`; never waits.
    pub tun: OwnedFd,
    /// Route netlink in the namespace, for counters.
    pub netlink: OwnedFd,
}

/// Which step did not work.
#[derive(Debug)]
pub struct DeviceError {
    /// What was attempted: `opening /dev/net/tun`.
    pub what: &'static str,
    /// Why it did not work.
    pub source: io::Error,
}

/// What a device has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that were sent into it and found no room, because nobody took others in time.
    pub overrun: u64,
    /// Packets that the namespace did not take.
    pub refused: u64,
}

/// Packets that wait to be read; the kernel's 500 are too few for a burst of small ones.
const QUEUE: u32 = 1000;

/// Where packets come from in the order of what the kernel can be spared: sums, large packets of TCP, then of UDP,
/// which Linux before 6.2 does not have.
const OFFLOADS: [libc::c_ulong; 2] = [0x01 | 0x02 | 0x04 | 0x20 | 0x40, 0x01 | 0x02 | 0x04];

/// From `linux/if_tun.h`, which `libc` has in part.
mod request {
    pub(super) const SET_IFF: libc::c_ulong = 0x4004_54ca;
    pub(super) const SET_PERSIST: libc::c_ulong = 0x4004_54cb;
    pub(super) const SET_OFFLOAD: libc::c_ulong = 0x4004_54d0;
    pub(super) const SET_VNET_HEADER: libc::c_ulong = 0x4004_54d8;
}

/// From `linux/if_link.h`.
const IFLA_STATS64: u16 = 23;

/// Index of the loopback in every namespace.
const LOOPBACK: u32 = 1;

/// Makes the device in the namespace of this thread, or attaches to it where it was left there, and puts it to use with
/// its address and a route to everywhere. It stays when its descriptors are gone, as long as its namespace.
pub fn open_here(interface: &Interface) -> Result<Device, DeviceError> {
    let tun = open_tun(&interface.name)?;
    let netlink = netlink().map_err(step("opening a netlink socket"))?;
    let name = std::ffi::CString::new(interface.name.as_str()).unwrap_or_default();
    // SAFETY: the pointer is to a string with its end, which lives until the call is over.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(step("finding the device")(io::Error::last_os_error()));
    }
    let has_v6 = interface.addrs.iter().any(|(addr, _)| addr.is_ipv6());
    prepare_v6(&interface.name, has_v6);
    set_up(&netlink, LOOPBACK, &[]).map_err(step("starting the loopback"))?;
    let attributes = [(libc::IFLA_MTU, u32::from(interface.mtu)), (libc::IFLA_TXQLEN, QUEUE)];
    set_up(&netlink, index, &attributes).map_err(step("starting the device"))?;
    let has_v4 = interface.addrs.iter().any(|(addr, _)| addr.is_ipv4());
    for (addr, prefix) in &interface.addrs {
        match add_address(&netlink, index, *addr, *prefix) {
            // A kernel that was built without IPv6: where there is IPv4 beside it, that is what such a machine has.
            Err(e) if addr.is_ipv6() && has_v4 && is_unknown_family(&e) => continue,
            added => added.map_err(step("setting its address"))?,
        }
        add_route(&netlink, index, *addr).map_err(step("setting its route"))?;
    }
    Ok(Device { tun, netlink })
}

/// Gives a device other addresses: those that it had and has no longer go, and so does what was sent from them.
pub fn readdress(device: &Device, name: &str, before: &[(IpAddr, u8)], now: &[(IpAddr, u8)]) -> io::Result<()> {
    let mut message = Message::new(libc::RTM_GETLINK, 0);
    message.link(0, 0);
    message.attribute(libc::IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
    let answer = ask(&device.netlink, message)?;
    // Of `struct ifinfomsg`: family, kind of device, index.
    let index = answer.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    let index = index.ok_or(io::ErrorKind::InvalidData)?;
    // The old ones go first: a second address of an IPv4 network is a secondary one, which goes with the first.
    for (addr, prefix) in before.iter().filter(|addr| !now.contains(addr)) {
        let mut message = Message::new(libc::RTM_DELADDR, libc::NLM_F_ACK);
        message.0.extend_from_slice(&[family(*addr), *prefix, 0, 0]);
        message.0.extend_from_slice(&index.to_ne_bytes());
        message.attribute(libc::IFA_LOCAL, &octets(*addr));
        ask(&device.netlink, message).map(drop)?;
    }
    for (addr, prefix) in now.iter().filter(|addr| !before.contains(addr)) {
        add_address(&device.netlink, index, *addr, *prefix)?;
    }
    // With the last address of a family its routes may have gone.
    now.iter().try_for_each(|(addr, _)| add_route(&device.netlink, index, *addr))
}

/// Has the namespace speak IPv6 where the device has an address of it, and says nothing by itself: what the kernel would
/// say of the link would be taken for packets of somebody else. Where these files are not, or cannot be written, who made
/// the namespace has done it, or there is no IPv6, which setting an address then says.
fn prepare_v6(name: &str, wanted: bool) {
    let write = |of: &str, key: &str, value: &str| {
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{of}/{key}"), value);
    };
    if wanted {
        // No address of the link itself, no looking for who else has ours, no asking for routers.
        for (key, value) in V6_SETTINGS {
            write(name, key, value);
        }
        write("lo", "disable_ipv6", "0");
    } else {
        write(name, "disable_ipv6", "1");
    }
}

/// Settings of IPv6 on the device, by their names under `net.ipv6.conf`. Who may not write them here has whoever makes
/// the namespace do it.
pub const V6_SETTINGS: [(&str, &str); 5] = [
    ("addr_gen_mode", "1"),
    ("accept_ra", "0"),
    ("accept_dad", "0"),
    ("router_solicitations", "0"),
    ("disable_ipv6", "0"),
];

/// Asks the namespace what a device has counted.
pub fn counters(device: &Device, name: &str) -> io::Result<Counters> {
    let mut message = Message::new(libc::RTM_GETLINK, 0);
    message.link(0, 0);
    message.attribute(libc::IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
    let answer = ask(&device.netlink, message)?;
    let mut attributes = answer.get(LINK_HEAD..).unwrap_or_default();
    while let Some((kind, value, rest)) = next_attribute(attributes) {
        if kind == IFLA_STATS64 {
            let number = |at: usize| {
                let bytes = value.get(at * 8..at * 8 + 8).and_then(|bytes| bytes.try_into().ok());
                bytes.map_or(0, u64::from_ne_bytes)
            };
            // Of `struct rtnl_link_stats64`: dropped on receipt and on transmission, as the namespace sees it.
            return Ok(Counters { refused: number(6), overrun: number(7) });
        }
        attributes = rest;
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel says nothing of its counters"))
}

fn step(what: &'static str) -> impl Fn(io::Error) -> DeviceError {
    move |source| DeviceError { what, source }
}

fn open_tun(name: &str) -> Result<OwnedFd, DeviceError> {
    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: the path is a string with its end; the descriptor is nobody else's.
    let tun = unsafe {
        let fd = libc::open(c"/dev/net/tun".as_ptr(), flags);
        if fd < 0 {
            return Err(step("opening /dev/net/tun")(io::Error::last_os_error()));
        }
        OwnedFd::from_raw_fd(fd)
    };
    // `struct ifreq`: sixteen bytes of name, then flags, and room for what else it may hold.
    let mut wanted = [0u8; 40];
    if name.is_empty() || name.len() > 15 {
        return Err(step("naming the device")(io::ErrorKind::InvalidInput.into()));
    }
    wanted[..name.len()].copy_from_slice(name.as_bytes());
    let flags = u16::try_from(libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR).unwrap_or_default();
    wanted[16..18].copy_from_slice(&flags.to_ne_bytes());
    let size: libc::c_int = 10;
    // SAFETY: each request is one of this device's, and its argument a number, or a pointer to memory of the size that
    // the kernel reads, which lives until the call is over.
    unsafe {
        let tun = tun.as_raw_fd();
        checked(libc::ioctl(tun, request::SET_IFF as _, wanted.as_mut_ptr())).map_err(step("making the device"))?;
        checked(libc::ioctl(tun, request::SET_VNET_HEADER as _, &raw const size))
            .map_err(step("sizing the heads of packets"))?;
        let mut offloads =
            OFFLOADS.iter().map(|offload| checked(libc::ioctl(tun, request::SET_OFFLOAD as _, *offload)));
        let taken = offloads.next().unwrap_or(Ok(())).or_else(|e| offloads.next().unwrap_or(Err(e)));
        taken.map_err(step("letting large packets through"))?;
        checked(libc::ioctl(tun, request::SET_PERSIST as _, 1 as libc::c_ulong)).map_err(step("keeping the device"))?;
    }
    Ok(tun)
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn netlink() -> io::Result<OwnedFd> {
    // SAFETY: takes numbers alone; the descriptor is nobody else's.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    checked(fd)?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_up(netlink: &OwnedFd, index: u32, attributes: &[(u16, u32)]) -> io::Result<()> {
    let mut message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_ACK);
    message.link(index, u32::try_from(libc::IFF_UP).unwrap_or_default());
    for (kind, value) in attributes {
        message.attribute(*kind, &value.to_ne_bytes());
    }
    ask(netlink, message).map(drop)
}

fn add_address(netlink: &OwnedFd, index: u32, addr: IpAddr, prefix: u8) -> io::Result<()> {
    let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let mut message = Message::new(libc::RTM_NEWADDR, flags);
    let octets = octets(addr);
    // `struct ifaddrmsg`: family, prefix, flags, scope, index. An address of IPv6 is one at once: nobody else has it.
    let at_once = if addr.is_ipv6() { IFA_F_NODAD } else { 0 };
    message.0.extend_from_slice(&[family(addr), prefix, at_once, 0]);
    message.0.extend_from_slice(&index.to_ne_bytes());
    message.attribute(libc::IFA_LOCAL, &octets);
    message.attribute(libc::IFA_ADDRESS, &octets);
    ask(netlink, message).map(drop)
}

fn is_unknown_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}

/// Adds a route to everywhere, for the family of an address.
fn add_route(netlink: &OwnedFd, index: u32, of: IpAddr) -> io::Result<()> {
    let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let mut message = Message::new(libc::RTM_NEWROUTE, flags);
    // `struct rtmsg`: family, two lengths of prefixes, service, table, origin, scope, kind, flags.
    let (table, origin) = (libc::RT_TABLE_MAIN, libc::RTPROT_STATIC);
    message.0.extend_from_slice(&[family(of), 0, 0, 0, table, origin, libc::RT_SCOPE_LINK, libc::RTN_UNICAST]);
    message.0.extend_from_slice(&0u32.to_ne_bytes());
    message.attribute(libc::RTA_OIF, &index.to_ne_bytes());
    ask(netlink, message).map(drop)
}

/// Returns the family of an address, as messages hold it.
fn family(addr: IpAddr) -> u8 {
    match addr {
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 10,
    }
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// From `linux/if_addr.h`: no look for who else has the address.
const IFA_F_NODAD: u8 = 0x02;

/// Bytes of `struct nlmsghdr` and of `struct ifinfomsg`.
const HEAD: usize = 16;
const LINK_HEAD: usize = 16;

/// A request of route netlink.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: libc::c_int) -> Message {
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or_default();
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.resize(HEAD, 0);
        Message(bytes)
    }

    /// Adds a `struct ifinfomsg` that sets these flags.
    fn link(&mut self, index: u32, flags: u32) {
        self.0.extend_from_slice(&[0; 4]);
        for number in [index, flags, flags] {
            self.0.extend_from_slice(&number.to_ne_bytes());
        }
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// Sends a request and returns what the answer holds after its head: nothing where it is a plain yes.
fn ask(netlink: &OwnedFd, message: Message) -> io::Result<Vec<u8>> {
    let Message(mut bytes) = message;
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    let mut answer = vec![0u8; 32 << 10];
    // SAFETY: both buffers live until the calls are over, with their true sizes.
    let received = unsafe {
        let sent = libc::send(netlink.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0);
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::recv(netlink.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0)
    };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    answer.truncate(received);
    let head = answer.get(..HEAD).ok_or(io::ErrorKind::UnexpectedEof)?;
    let kind = u16::from_ne_bytes([head[4], head[5]]);
    let rest = answer.split_off(HEAD);
    if libc::c_int::from(kind) != libc::NLMSG_ERROR {
        return Ok(rest);
    }
    let errno = rest.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(-libc::EPROTO, i32::from_ne_bytes);
    if errno == 0 { Ok(Vec::new()) } else { Err(io::Error::from_raw_os_error(-errno)) }
}

/// Splits the first attribute off: its kind, its value, what follows.
fn next_attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
    let value = bytes.get(4..length)?;
    Some((kind, value, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}
