//! A lablet's probe of a network: its links on this machine, and the ways to other lablets.
//!
//! The thread is one as components have it (`iptl-runner-wasm`): no priority, a wait of its own. That of containers may go
//! before others, and is late by less then.

use std::sync::Arc;
use std::time::Duration;

use iptl_dag::model::NetworkModel;
use iptl_labnet::{Probe, Probed};
use iptl_labnet_tun::now_ns;
use iptl_wire::control::{Failure, FailureKind, MAX_FRAME_SIZE, Reply};
use iptl_wire::probe::{LinkProbe, MAX_OTHERS, PROTOCOL, ProbeOrder, ProbeReport, WayProbe};
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::carrier::Carrier;
use crate::framed;
use crate::links::{Links, Stream};
use crate::members::Members;

/// Streams that wait to be accepted.
const ACCEPT_QUEUE: usize = 4;

/// Longest wait for the order.
const ORDER_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest that a lablet takes, others included that are nowhere to be found.
pub(crate) const LONGEST: Duration = Duration::from_secs(120);

/// What a lablet probes with.
#[derive(Clone)]
pub(crate) struct Prober {
    pub(crate) links: Links,
    pub(crate) members: Members,
    pub(crate) carrier: Carrier,
    pub(crate) name: String,
    pub(crate) stop: CancellationToken,
}

impl Prober {
    /// Accepts orders of who leads until the node stops; carries out one at a time.
    pub(crate) async fn serve(self) {
        let mut incoming = self.links.accept(PROTOCOL, ACCEPT_QUEUE).await;
        let busy = Arc::new(Mutex::new(()));
        while let Some((peer, mut stream)) = incoming.recv().await {
            if self.members.leader().is_none_or(|(leader, _)| peer != leader) {
                tracing::warn!(%peer, "refused a probe of somebody who does not lead the lab");
                continue;
            }
            let (prober, busy) = (self.clone(), Arc::clone(&busy));
            tokio::spawn(async move {
                let _turn = busy.lock().await;
                let reply = tokio::select! {
                    reply = prober.attend(&mut stream) => reply,
                    () = prober.stop.cancelled() => return,
                };
                let reply = match reply {
                    Ok(report) => Reply::Probed(Ok(Box::new(report))),
                    Err(failed) => Reply::Error(failed),
                };
                let _gone = framed::write(&mut stream, &reply).await;
                let _gone = stream.shutdown().await;
            });
        }
    }

    async fn attend(&self, stream: &mut Stream) -> Result<ProbeReport, Failure> {
        let order = framed::expect::<ProbeOrder>(stream, MAX_FRAME_SIZE);
        let order = tokio::time::timeout(ORDER_TIMEOUT, order).await.map_err(|_| broken("no order came"))?;
        let ProbeOrder { network, others } = order.map_err(|e| broken(format!("the order is not understood: {e}")))?;
        let measured = tokio::task::spawn_blocking(move || measure(&network));
        let (links, late_ns) = measured.await.map_err(broken)?.map_err(|e| {
            let message = format!("the network cannot be probed: {e}");
            Failure { kind: FailureKind::Usage, code: "network.bad".to_owned(), message, help: String::new() }
        })?;
        let mut ways = Vec::new();
        for (peer, lablet, addrs) in others.into_iter().take(MAX_OTHERS) {
            ways.push(match self.carrier.measure(&peer, &addrs, None).await {
                Ok(way) => WayProbe {
                    best_ns: Some(way.best_ns),
                    median_ns: Some(way.median_ns),
                    relayed: way.relayed,
                    trouble: String::new(),
                    to: peer,
                    lablet,
                },
                Err(e) => WayProbe {
                    best_ns: None,
                    median_ns: None,
                    relayed: false,
                    trouble: e.to_string(),
                    to: peer,
                    lablet,
                },
            });
        }
        let (peer, lablet) = (self.links.peer().clone(), self.name.clone());
        Ok(ProbeReport { peer, lablet, links, late_ns, ways })
    }
}

fn broken(reason: impl std::fmt::Display) -> Failure {
    let (message, help) = (format!("the lablet cannot probe: {reason}"), String::new());
    Failure { kind: FailureKind::Broken, code: "probe.broken".to_owned(), message, help }
}

/// Probes a network against the clock of this machine; takes some two seconds.
fn measure(network: &NetworkModel) -> Result<(Vec<LinkProbe>, [u64; 3]), iptl_labnet::CompileError> {
    let mut probe = Probe::new(network)?;
    // Otherwise the kernel adds 50 µs to every wait.
    if let Err(error) = nix::sys::prctl::set_timerslack(1) {
        tracing::debug!(%error, "waits of the probe are late by up to 50 µs");
    }
    probe.advance(now_ns());
    while let Some(due_ns) = probe.poll_timeout() {
        let now = now_ns();
        if due_ns > now {
            std::thread::sleep(Duration::from_nanos(due_ns - now));
        }
        probe.advance(now_ns());
    }
    let late = probe.lateness();
    let links = probe.links().into_iter().map(|probed| {
        let Probed { link, packets, asked_ns, measured_ns, .. } = probed;
        LinkProbe {
            link,
            packets,
            asked_ns,
            measured_ns,
            asked_loss_ppm: probed.asked_loss_ppm,
            measured_loss_ppm: probed.measured_loss_ppm,
            asked_rate_bps: probed.asked_rate_bps,
            measured_rate_bps: probed.measured_rate_bps,
        }
    });
    Ok((links.collect(), [late.quantile_ns(500), late.quantile_ns(990), late.max_ns()]))
}
