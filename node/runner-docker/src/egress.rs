//! Ways out of the lab that the owner of this machine grants, for containers that ask for them.
//!
//! No packet of a container leaves the lab. Each place that it may reach has a door in the lab network
//! ([`iptl_labnet::Doors`]) behind which a carrier of the lablet takes connections and datagrams, over sockets that init
//! has opened in the container's own network. The carrier opens connections of its own to exactly that place, at the
//! addresses that were pinned before the cell was prepared, and passes bytes on. It looks up no name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use iptl_dag::model::destination::is_public;
use iptl_dag::model::{Destination, EgressUse, Host, Protocol};
use iptl_labnet::{Addrs, Door, Doors};
use iptl_runner::CellSpec;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Most hosts and most places of one cell: so many addresses are set aside.
const MAX_HOSTS: usize = 64;
const MAX_PLACES: usize = 128;

/// First address at which hosts are reached, and first as which what came to a door is seen: of those that are set aside
/// for documentation, as the lab's router and its server of names are.
const HOSTS: (u8, u16) = (64, 0x40);
const SEEN_AS: (u8, u16) = (128, 0x80);

/// Most connections of one instance at a time, and most ports from which it sends datagrams.
const MAX_CONNECTIONS: usize = 256;
const MAX_FLOWS: usize = 64;

/// Time that a place has to take a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// Time without a datagram after which a port is forgotten, as by a NAT.
const IDLE: Duration = Duration::from_secs(60);

/// The largest datagram.
const DATAGRAM: usize = 0xffff;

/// The places that instances of a cell may reach.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Egress {
    hosts: Vec<Host>,
    places: Vec<(Destination, Vec<SocketAddr>)>,
}

impl Egress {
    /// Collects those of all instances.
    ///
    /// # Errors
    ///
    /// Says that there are too many.
    pub(crate) fn of(spec: &CellSpec) -> Result<Egress, String> {
        let containers = spec.instances.iter().filter_map(|instance| instance.container.as_ref());
        let places: BTreeMap<_, _> = containers.flat_map(|container| &container.egress).collect();
        let hosts: BTreeSet<&Host> = places.keys().map(|place| &place.host).collect();
        if hosts.len() > MAX_HOSTS || places.len() > MAX_PLACES {
            return Err(format!(
                "it is to reach {} places of {} hosts outside of the lab; {MAX_PLACES} of {MAX_HOSTS} may be",
                places.len(),
                hosts.len()
            ));
        }
        Ok(Egress {
            hosts: hosts.into_iter().cloned().collect(),
            places: places.into_iter().map(|(place, at)| (place.clone(), at.clone())).collect(),
        })
    }

    /// Returns lines of `/etc/hosts` for the names among them.
    pub(crate) fn names(&self, v4: bool) -> String {
        let mut text = String::new();
        for host in &self.hosts {
            if let Host::Name(name) = host {
                let _ = writeln!(text, "{}\t{name}", self.inside(host, v4));
            }
        }
        text
    }

    /// Returns where an instance with these addresses reaches each of its own places, for its environment.
    pub(crate) fn told(&self, own: &BTreeSet<Destination>, addrs: Addrs) -> String {
        let places = own.iter().map(|place| format!("{place}={}", self.at(place, addrs.v4.is_some())));
        places.collect::<Vec<_>>().join(" ")
    }

    /// Returns the doors of an instance with these places and addresses, whose carrier listens at these ports.
    pub(crate) fn doors(&self, own: &BTreeSet<Destination>, addrs: Addrs, tcp_port: u16, udp_port: u16) -> Doors {
        let v4 = addrs.v4.is_some();
        let places = self.places.iter().enumerate().filter(|(_, (place, _))| own.contains(place));
        let doors = places.map(|(number, (place, _))| Door {
            at: self.at(place, v4),
            tcp: place.protocol == Protocol::Tcp,
            seen_as: set_aside(SEEN_AS, number, v4),
        });
        Doors { doors: doors.collect(), tcp_port, udp_port }
    }

    fn at(&self, place: &Destination, v4: bool) -> SocketAddr {
        SocketAddr::new(self.inside(&place.host, v4), place.port)
    }

    /// Returns where a host is reached: at its own address where nothing in the lab can have that, and where instances
    /// have addresses of its family.
    fn inside(&self, host: &Host, v4: bool) -> IpAddr {
        match host {
            Host::Addr(addr) if is_public(*addr) && addr.is_ipv4() == v4 => *addr,
            host => set_aside(HOSTS, self.hosts.iter().position(|has| has == host).unwrap_or_default(), v4),
        }
    }

    /// Returns the place behind the door as which something was seen, where it is one of these.
    fn seen_as(&self, own: &BTreeSet<Destination>, addr: IpAddr, protocol: Protocol) -> Option<usize> {
        let v4 = addr.is_ipv4();
        let mut places = self.places.iter().enumerate();
        let found = places.find(|(number, _)| set_aside(SEEN_AS, *number, v4) == addr);
        found.filter(|(_, (place, _))| place.protocol == protocol && own.contains(place)).map(|(number, _)| number)
    }
}

fn set_aside((v4_from, v6_from): (u8, u16), number: usize, v4: bool) -> IpAddr {
    let number = u8::try_from(number).expect("there are at most 128");
    match v4 {
        true => Ipv4Addr::new(192, 0, 2, v4_from + number).into(),
        false => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, v6_from + u16::from(number)).into(),
    }
}

/// The sockets of an instance, from init.
pub(crate) struct Sockets {
    pub(crate) tcp: std::net::TcpListener,
    pub(crate) udp: std::net::UdpSocket,
}

impl Sockets {
    /// Returns their ports.
    pub(crate) fn ports(&self) -> io::Result<(u16, u16)> {
        Ok((self.tcp.local_addr()?.port(), self.udp.local_addr()?.port()))
    }
}

/// What an instance exchanged with each place of its cell.
#[derive(Default)]
struct Counts(Mutex<BTreeMap<usize, Arc<Count>>>);

#[derive(Default)]
struct Count {
    connections: AtomicU64,
    failed: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

impl Counts {
    fn of(&self, place: usize) -> Arc<Count> {
        Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(place).or_default())
    }
}

fn add(to: &AtomicU64, more: usize) {
    to.fetch_add(more as u64, Ordering::Relaxed);
}

/// Carries what one instance exchanges with places outside of the lab; ends with the value, and all connections with it.
pub(crate) struct Carrier {
    egress: Arc<Egress>,
    counts: Arc<Counts>,
    own: Arc<BTreeSet<Destination>>,
    /// Two that take what comes; what they carry ends with them.
    _tasks: JoinSet<()>,
}

impl Carrier {
    /// Starts to carry what comes to these sockets from doors of these places.
    pub(crate) fn start(egress: Arc<Egress>, own: BTreeSet<Destination>, sockets: Sockets) -> io::Result<Carrier> {
        sockets.tcp.set_nonblocking(true)?;
        sockets.udp.set_nonblocking(true)?;
        let (tcp, udp) = (TcpListener::from_std(sockets.tcp)?, UdpSocket::from_std(sockets.udp)?);
        let (counts, own) = (Arc::new(Counts::default()), Arc::new(own));
        let mut tasks = JoinSet::new();
        tasks.spawn(take_connections(tcp, Arc::clone(&egress), Arc::clone(&own), Arc::clone(&counts)));
        tasks.spawn(take_datagrams(Arc::new(udp), Arc::clone(&egress), Arc::clone(&own), Arc::clone(&counts)));
        Ok(Carrier { egress, counts, own, _tasks: tasks })
    }

    /// Returns what was exchanged so far with each place that the instance may reach.
    pub(crate) fn used(&self) -> BTreeMap<Destination, EgressUse> {
        let used = |number: usize| {
            let count = self.counts.of(number);
            let read = |of: &AtomicU64| of.load(Ordering::Relaxed);
            EgressUse {
                connections: read(&count.connections),
                failed: read(&count.failed),
                sent_bytes: read(&count.sent_bytes),
                received_bytes: read(&count.received_bytes),
            }
        };
        let places = self.egress.places.iter().enumerate().filter(|(_, (place, _))| self.own.contains(place));
        places.map(|(number, (place, _))| (place.clone(), used(number))).collect()
    }
}

async fn take_connections(
    listener: TcpListener,
    egress: Arc<Egress>,
    own: Arc<BTreeSet<Destination>>,
    counts: Arc<Counts>,
) {
    let mut open = JoinSet::new();
    loop {
        let (inside, from) = tokio::select! {
            came = listener.accept() => match came {
                Ok(came) => came,
                // Descriptors are short: some will be given back.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            Some(_) = open.join_next() => continue,
        };
        // Whoever comes by another way than a door is sent away: the instance itself, or another of the lab.
        let Some(number) = egress.seen_as(&own, from.ip().to_canonical(), Protocol::Tcp) else { continue };
        let count = counts.of(number);
        if open.len() >= MAX_CONNECTIONS {
            add(&count.failed, 1);
            continue;
        }
        let egress = Arc::clone(&egress);
        open.spawn(async move {
            let Some(outside) = connect(&egress.places[number].1).await else { return add(&count.failed, 1) };
            add(&count.connections, 1);
            let (from_inside, to_inside) = inside.into_split();
            let (from_outside, to_outside) = outside.into_split();
            // An end of one direction is passed on; an error ends both.
            let out = pass(from_inside, to_outside, &count.sent_bytes);
            let _broken = tokio::try_join!(out, pass(from_outside, to_inside, &count.received_bytes));
        });
    }
}

/// Connects to the first of these that takes a connection.
async fn connect(pinned: &[SocketAddr]) -> Option<TcpStream> {
    for addr in pinned {
        if let Ok(Ok(stream)) = tokio::time::timeout(CONNECT, TcpStream::connect(addr)).await {
            return Some(stream);
        }
    }
    None
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    bytes_passed: &AtomicU64,
) -> io::Result<()> {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let size = from.read(&mut bytes).await?;
        if size == 0 {
            return to.shutdown().await;
        }
        to.write_all(&bytes[..size]).await?;
        add(bytes_passed, size);
    }
}

/// One port of an instance, and its own socket to a place.
struct Flow {
    outside: Arc<UdpSocket>,
    sent_at: Arc<Mutex<Instant>>,
    answers: tokio::task::AbortHandle,
}

async fn take_datagrams(
    inside: Arc<UdpSocket>,
    egress: Arc<Egress>,
    own: Arc<BTreeSet<Destination>>,
    counts: Arc<Counts>,
) {
    let mut flows: BTreeMap<(usize, SocketAddr), Flow> = BTreeMap::new();
    let mut answering = JoinSet::new();
    let mut bytes = vec![0; DATAGRAM];
    loop {
        let (size, from) = tokio::select! {
            came = inside.recv_from(&mut bytes) => match came {
                Ok(came) => came,
                // An earlier answer found nobody.
                Err(_) => continue,
            },
            Some(_) = answering.join_next() => continue,
        };
        let Some(number) = egress.seen_as(&own, from.ip().to_canonical(), Protocol::Udp) else { continue };
        let count = counts.of(number);
        flows.retain(|_, flow| !flow.answers.is_finished());
        if !flows.contains_key(&(number, from)) {
            let room = flows.len() < MAX_FLOWS;
            let Some(outside) = (if room { open(&egress.places[number].1).await } else { None }) else {
                add(&count.failed, 1);
                continue;
            };
            add(&count.connections, 1);
            let (outside, sent_at) = (Arc::new(outside), Arc::new(Mutex::new(Instant::now())));
            let back =
                answer(Arc::clone(&inside), from, Arc::clone(&outside), Arc::clone(&sent_at), Arc::clone(&count));
            let answers = answering.spawn(back);
            flows.insert((number, from), Flow { outside, sent_at, answers });
        }
        if let Some(flow) = flows.get(&(number, from)) {
            *flow.sent_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            // What finds nobody there is lost, as anywhere.
            if flow.outside.send(&bytes[..size]).await.is_ok() {
                add(&count.sent_bytes, size);
            }
        }
    }
}

/// Opens a socket that hears one place alone.
async fn open(pinned: &[SocketAddr]) -> Option<UdpSocket> {
    let place = pinned.first()?;
    let any: IpAddr = if place.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await.ok()?;
    socket.connect(place).await.ok()?;
    Some(socket)
}

/// Passes answers on until there is nothing to be said any more.
async fn answer(
    inside: Arc<UdpSocket>,
    to: SocketAddr,
    outside: Arc<UdpSocket>,
    sent_at: Arc<Mutex<Instant>>,
    count: Arc<Count>,
) {
    let mut bytes = vec![0; DATAGRAM];
    let mut heard_at = Instant::now();
    loop {
        let last = heard_at.max(*sent_at.lock().unwrap_or_else(PoisonError::into_inner));
        match tokio::time::timeout_at(last + IDLE, outside.recv(&mut bytes)).await {
            Ok(Ok(size)) => {
                heard_at = Instant::now();
                if inside.send_to(&bytes[..size], to).await.is_ok() {
                    add(&count.received_bytes, size);
                }
            }
            // Nobody was there when something was sent; the next may find somebody.
            Ok(Err(_)) => heard_at = Instant::now(),
            Err(_) if Instant::now() < *sent_at.lock().unwrap_or_else(PoisonError::into_inner) + IDLE => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn egress(places: &[&str]) -> Egress {
        let places: BTreeMap<Destination, Vec<SocketAddr>> =
            places.iter().map(|place| (place.parse().unwrap(), Vec::new())).collect();
        let hosts: BTreeSet<Host> = places.keys().map(|place| place.host.clone()).collect();
        Egress { hosts: hosts.into_iter().collect(), places: places.into_iter().collect() }
    }

    #[test]
    fn places_of_one_host_share_its_address_and_have_doors_of_their_own() {
        let all = ["a.example:1/tcp", "a.example:2/udp", "b.example:1/tcp", "8.8.8.8:53/udp", "10.0.0.1:80/tcp"];
        let egress = egress(&all);
        let own: BTreeSet<Destination> = all.iter().map(|place| place.parse().unwrap()).collect();
        let addrs = Addrs { v4: Some(Ipv4Addr::new(10, 0, 0, 1)), v6: None };
        assert_eq!(egress.names(true), "192.0.2.64\ta.example\n192.0.2.65\tb.example\n");
        assert_eq!(
            egress.told(&own, addrs),
            // A public address is reached as such; one that others in the lab may have is not.
            "a.example:1/tcp=192.0.2.64:1 a.example:2/udp=192.0.2.64:2 b.example:1/tcp=192.0.2.65:1 \
             8.8.8.8:53/udp=8.8.8.8:53 10.0.0.1:80/tcp=192.0.2.67:80"
        );
        let doors = egress.doors(&own, addrs, 4, 5);
        let seen: BTreeSet<IpAddr> = doors.doors.iter().map(|door| door.seen_as).collect();
        assert_eq!((doors.doors.len(), seen.len()), (5, 5));
        for door in &doors.doors {
            let protocol = if door.tcp { Protocol::Tcp } else { Protocol::Udp };
            assert!(egress.seen_as(&own, door.seen_as, protocol).is_some());
            assert_eq!(egress.seen_as(&own, door.at.ip(), protocol), None);
            assert_eq!(egress.seen_as(&BTreeSet::new(), door.seen_as, protocol), None, "none of its own");
        }
        assert_eq!(egress.doors(&BTreeSet::new(), addrs, 4, 5).doors, []);
        // Over IPv6 where instances have nothing else.
        let addrs = Addrs { v4: None, v6: Some(Ipv6Addr::LOCALHOST) };
        assert_eq!(egress.names(false), "2001:db8::40\ta.example\n2001:db8::41\tb.example\n");
        assert!(egress.told(&own, addrs).ends_with("10.0.0.1:80/tcp=[2001:db8::43]:80"));
    }
}
