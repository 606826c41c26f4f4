//! Names: those of instances, and nothing else.

#![expect(unreachable_pub, reason = "the generated bindings re-export the resources of this file")]

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use async_trait::async_trait;
use iptl_labnet::Addrs;
use wasmtime::Result;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::SocketResult;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress, Network};
use wasmtime_wasi_io::poll::{DynPollable, Pollable, subscribe};

use super::NetView;
use super::wit::ip_name_lookup::{Host, HostResolveAddressStream};

/// The addresses of a name that were not taken yet.
pub struct Resolution {
    addresses: VecDeque<IpAddr>,
}

#[async_trait]
impl Pollable for Resolution {
    async fn ready(&mut self) {}
}

impl Host for NetView<'_> {
    fn resolve_addresses(&mut self, _: Resource<Network>, name: String) -> SocketResult<Resource<Resolution>> {
        // An address as text is itself, whoever has it; connecting to one that nobody has fails.
        let addresses: VecDeque<IpAddr> = match name.parse::<IpAddr>() {
            Ok(address) => [address].into(),
            Err(_) if name == "localhost" => [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].into(),
            Err(_) => {
                // Of the families that the network has; IPv4 first, as for everybody whose
                // IPv6 addresses are local ones (RFC 6724).
                self.net.with(|sockets| sockets.resolve(&name)).iter().flat_map(Addrs::iter).collect()
            }
        };
        if addresses.is_empty() {
            return Err(ErrorCode::NameUnresolvable.into());
        }
        Ok(self.table.push(Resolution { addresses })?)
    }
}

impl HostResolveAddressStream for NetView<'_> {
    fn resolve_next_address(&mut self, stream: Resource<Resolution>) -> SocketResult<Option<IpAddress>> {
        Ok(self.table.get_mut(&stream)?.addresses.pop_front().map(IpAddress::from))
    }

    fn subscribe(&mut self, stream: Resource<Resolution>) -> Result<Resource<DynPollable>> {
        subscribe(self.table, stream)
    }

    fn drop(&mut self, stream: Resource<Resolution>) -> Result<()> {
        self.table.delete(stream)?;
        Ok(())
    }
}
