//! A container is made and started, and its init holds the workload: what there is before an instance lives.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::time::Duration;

use iptl_dag::model::InstanceId;

use crate::cell::Cell;
use crate::egress::Sockets;
use crate::engine;
use crate::link::{Door, Greeting, Link};
use crate::network::{CellNetwork, Place};
use crate::protocol::{FromInit, ToInit};
use crate::settings::Wanted;
use crate::state::InstanceDir;

/// Time that init has to connect once its container was started; a machine that swaps takes its time.
const CONNECT: Duration = Duration::from_secs(60);

/// What comes with init's connection, until it is in use.
pub(crate) struct Outputs {
    pub(crate) listener: TcpListener,
    pub(crate) out: OwnedFd,
    pub(crate) err: OwnedFd,
    /// For what it exchanges with places outside of the lab, where it may reach any.
    pub(crate) egress: Option<Sockets>,
}

/// Why a container does not hold a workload that could be started.
#[derive(Debug)]
pub(crate) enum Failure {
    /// For this instance alone.
    NotStarted(String),
    /// The engine does not answer.
    Engine(io::Error),
}

/// Makes the container, starts it, and waits until its init holds the workload.
///
/// Dropped half-way it may leave a container, which the caller removes once nothing is being made any more.
pub(crate) async fn set_up(
    cell: &Cell,
    network: &CellNetwork,
    instance: &InstanceId,
    name: &str,
    wanted: &Wanted,
    dir: &InstanceDir,
    allow_root: bool,
) -> Result<(String, Link, Outputs), Failure> {
    let io = |what: &'static str| move |e: io::Error| Failure::NotStarted(format!("{what}: {e}"));
    let door = Door::open(&dir.lab()).map_err(io("its socket cannot be opened"))?;
    let failed = |e: bollard::errors::Error| match engine::is_away(&e) {
        true => Failure::Engine(io::Error::other(engine::said(&e))),
        false => Failure::NotStarted(format!("the container engine refuses it: {}", engine::said(&e))),
    };
    let (engine, named, body) = (cell.engine.clone(), name.to_owned(), wanted.body.clone());
    let making = async move {
        let id = engine.create(&named, &body).await?;
        engine.start(&id).await.map(|()| id)
    };
    // Not dropped with this: the engine would go on, and nobody would know when it is done.
    let made = cell.making.spawn(making).await.map_err(|e| Failure::Engine(io::Error::other(e)))?;
    let id = made.map_err(failed)?;
    let greeted = tokio::time::timeout(CONNECT, door.accept([0; 16])).await;
    let (mut link, greeting) = match greeted {
        Ok(greeted) => greeted.map_err(io("its init cannot be heard"))?,
        Err(_) => {
            let state = cell.engine.state(&id).await.ok().flatten().unwrap_or_default();
            let status = state.exit_code.map_or_else(String::new, |code| format!(", status {code}"));
            return Err(Failure::NotStarted(format!("its init did not answer within {} s{status}", CONNECT.as_secs())));
        }
    };
    let Greeting { uid, listener, out, err, egress, .. } = greeting;
    if uid == 0 && !allow_root {
        return Err(Failure::NotStarted(
            "its user is root in this image, and the owner does not allow that".to_owned(),
        ));
    }
    link.send(&ToInit::Order(wanted.order.clone())).await.map_err(io("its init does not listen"))?;
    match tokio::time::timeout(CONNECT, link.receive()).await {
        Ok(Ok(Some(FromInit::Ready))) => {
            // Init has answered: it is the process that the engine names, and lives.
            let place = Place {
                engine: &cell.engine,
                wanted: &wanted.body,
                name,
                container: &id,
                pid: 0,
                lab: &dir.lab(),
                making: &cell.making,
            };
            if let Some(sockets) = &egress {
                network.open_doors(instance, sockets).map_err(io("its ways out of the lab cannot be opened"))?;
            }
            connect(network, instance, place).await?;
            Ok((id, link, Outputs { listener, out, err, egress }))
        }
        Ok(Ok(_)) | Err(_) => Err(Failure::NotStarted("its init does not understand its order".to_owned())),
        Ok(Err(e)) => Err(io("its init broke off")(e)),
    }
}

/// Gives an instance its place in the lab network.
async fn connect(network: &CellNetwork, instance: &InstanceId, place: Place<'_>) -> Result<(), Failure> {
    let state = place.engine.state(place.container).await;
    let state = state.map_err(|e| Failure::Engine(io::Error::other(engine::said(&e))))?;
    let pid = state.and_then(|state| state.pid).and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
    let Some(pid) = pid else { return Err(Failure::NotStarted("its container ended before it began".to_owned())) };
    network.connect(instance, &Place { pid, ..place }).await.map_err(Failure::NotStarted)
}
