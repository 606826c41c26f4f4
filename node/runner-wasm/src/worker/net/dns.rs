//! Names: those of instances, and nothing else.

#![expect(unreachable_pub, reason = "the generated bindings re-export the resources of this file")]

use std::net::{IpAddr, Ipv4Addr};

use async_trait::async_trait;
use wasmtime::Result;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::SocketResult;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress, Network};
use wasmtime_wasi_io::poll::{DynPollable, Pollable, subscribe};

use super::NetView;
use super::wit::ip_name_lookup::{Host, HostResolveAddressStream};

/// The one address of a name, until it is taken.
pub struct Resolution {
    address: Option<Ipv4Addr>,
}

#[async_trait]
impl Pollable for Resolution {
    async fn ready(&mut self) {}
}

impl Host for NetView<'_> {
    fn resolve_addresses(&mut self, _: Resource<Network>, name: String) -> SocketResult<Resource<Resolution>> {
        // An address as text is itself, whoever has it; connecting to one that nobody has fails.
        let address = match name.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => Some(address),
            Ok(IpAddr::V6(_)) => None,
            Err(_) if name == "localhost" => Some(Ipv4Addr::LOCALHOST),
            Err(_) => self.directory.resolve(&name),
        };
        let address = Some(address.ok_or(ErrorCode::NameUnresolvable)?);
        Ok(self.table.push(Resolution { address })?)
    }
}

impl HostResolveAddressStream for NetView<'_> {
    fn resolve_next_address(&mut self, stream: Resource<Resolution>) -> SocketResult<Option<IpAddress>> {
        Ok(self.table.get_mut(&stream)?.address.take().map(|address| IpAddr::V4(address).into()))
    }

    fn subscribe(&mut self, stream: Resource<Resolution>) -> Result<Resource<DynPollable>> {
        subscribe(self.table, stream)
    }

    fn drop(&mut self, stream: Resource<Resolution>) -> Result<()> {
        self.table.delete(stream)?;
        Ok(())
    }
}
