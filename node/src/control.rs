//! The control API: whoever commands a node, over its socket, a pipe in memory, or a swarm stream.
//!
//! One connection carries one request. [`serve_local`] answers the owner, who may do anything; [`serve_remote`] answers
//! members of the lab, who may run things. The requests are handled by family: `content` (blocks, publishing,
//! fetching), `exec` (commands in instances), `keep` (collecting, checking), `lab` (making, joining, letting in), `probe` (networks), `runs` (submitting, watching,
//! listing), `top` (what they do now).

mod content;
mod exec;
mod keep;
mod lab;
mod probe;
mod remote;
mod runs;
mod top;

use std::sync::Arc;
use std::time::Duration;

use iptl_dag::{Block, PeerId};
use iptl_wire::control::{Failure, FailureKind, MAX_FRAME_SIZE, PROTOCOL, Reply, Request};
use iptl_wire::lab::Role;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::net::UnixListener;

use self::content::{Fetch, Part};
use crate::framed;
use crate::gate::Gate;
use crate::links::Duplex;
use crate::node::Node;
use crate::orchestrator::{OrchestratorHandle, Stopped};

/// Streams of one peer that have not shown a membership: more than a script of a member opens in one moment.
const MAX_STRANGERS_PER_PEER: usize = 64;

/// Streams of members that wait to be accepted.
const ACCEPT_QUEUE: usize = 64;

/// Longest wait for an orchestrator that has said to lead and still reads its logs.
const TAKING_UP: Duration = Duration::from_secs(10);

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// The node's owner.
    Owner,
    /// A member of the lab.
    Member { peer: PeerId, role: Role },
}

impl Caller {
    fn peer(&self, node: &Node) -> PeerId {
        match self {
            Caller::Owner => node.links.peer().clone(),
            Caller::Member { peer, .. } => peer.clone(),
        }
    }

    /// Refuses what only the owner of a node may ask.
    fn owner(&self) -> Result<(), Failure> {
        match self {
            Caller::Owner => Ok(()),
            Caller::Member { peer, role } => Err(failure(
                FailureKind::Denied,
                "control.denied",
                format!("{} is a {role} of this lab, not its owner", peer.short()),
                "ask the lab's owner to do it on their node",
            )),
        }
    }

    /// Refuses what a lender of machines may not ask.
    fn developer(&self) -> Result<(), Failure> {
        match self {
            Caller::Owner | Caller::Member { role: Role::Developer | Role::Orchestrator, .. } => Ok(()),
            Caller::Member { role: Role::Lablet, .. } => Err(failure(
                FailureKind::Denied,
                "control.denied",
                "this node lends its machine and may not submit runs".to_owned(),
                "ask the lab's owner for a developer's ticket: `iptl invite --role developer`",
            )),
        }
    }
}

/// A connection after its request was read.
pub(crate) struct Talk {
    reader: BufReader<ReadHalf<Box<dyn Duplex>>>,
    writer: WriteHalf<Box<dyn Duplex>>,
}

impl Talk {
    fn new(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Talk {
        let (reader, writer) = tokio::io::split(Box::new(stream) as Box<dyn Duplex>);
        Talk { reader: BufReader::with_capacity(64 << 10, reader), writer }
    }

    /// Sends a reply; fails where the asker is gone, which ends the request.
    async fn say(&mut self, reply: Reply) -> Result<(), Failure> {
        say(&mut self.writer, reply).await
    }
}

async fn say(writer: &mut (impl AsyncWrite + Unpin), reply: Reply) -> Result<(), Failure> {
    framed::write(writer, &reply)
        .await
        .map_err(|e| failure(FailureKind::Broken, "control.gone", format!("the asker is gone: {e}"), ""))
}

/// Accepts the owner's connections on the node's socket, until the node stops.
pub(crate) async fn listen(node: Arc<Node>, listener: UnixListener) {
    loop {
        let accepted = tokio::select! {
            () = node.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                tokio::spawn(serve_local(node.clone(), stream));
            }
            Err(error) => {
                tracing::warn!(%error, "the control socket");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// Stores blocks of the owner's own process: those of [`Request::Put`], without the flush.
pub(crate) async fn put_here(node: &Node, blocks: Vec<Block>) -> Result<(), Failure> {
    let _grace = node.keeper.grace();
    node.store.put(blocks).await.map_err(content::store)
}

/// Makes durable what was put.
pub(crate) async fn flush_here(node: &Node) -> Result<(), Failure> {
    node.store.flush().await.map_err(content::store)
}

/// Answers the owner.
pub(crate) async fn serve_local(node: Arc<Node>, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
    let mut talk = Talk::new(stream);
    answer(&node, Caller::Owner, &mut talk).await;
}

/// Answers members of the lab, until the node stops.
pub(crate) async fn serve_remote(node: Arc<Node>) {
    let mut incoming = node.links.accept(PROTOCOL, ACCEPT_QUEUE).await;
    let gate = Gate::new(MAX_STRANGERS_PER_PEER);
    while let Some((peer, stream)) = incoming.recv().await {
        let Some(place) = gate.enter(&peer) else {
            tracing::debug!(%peer, "too many control streams of one peer that show no membership");
            continue;
        };
        let node = node.clone();
        tokio::spawn(async move {
            let mut talk = Talk::new(stream);
            let admitted = remote::admit(&node, &peer, &mut talk).await;
            drop(place);
            match admitted {
                Ok(role) => answer(&node, Caller::Member { peer, role }, &mut talk).await,
                Err(refused) => {
                    tracing::warn!(%peer, reason = refused.message, "refused a control stream");
                    let _gone = talk.say(Reply::Error(refused)).await;
                    let _gone = talk.writer.shutdown().await;
                }
            }
        });
    }
}

async fn answer(node: &Arc<Node>, caller: Caller, talk: &mut Talk) {
    let last = match framed::read::<Request>(&mut talk.reader, MAX_FRAME_SIZE).await {
        Ok(Some(request)) => match dispatch(node, &caller, request, talk).await {
            Ok(()) => Reply::End {},
            Err(failed) => Reply::Error(failed),
        },
        Ok(None) => return,
        Err(error) => Reply::Error(failure(
            FailureKind::Usage,
            "control.request",
            format!("the request is not understood: {error}"),
            "the command line and the node differ in version: restart the node with `iptl down` and `iptl up`",
        )),
    };
    let _gone = talk.say(last).await;
    let _gone = talk.writer.shutdown().await;
}

async fn dispatch(node: &Arc<Node>, caller: &Caller, request: Request, talk: &mut Talk) -> Result<(), Failure> {
    match request {
        Request::Status {} => lab::status(node, talk).await,
        Request::Put {} => content::put(node, caller, talk).await,
        Request::Publish { root, kind, name, public } => {
            content::publish(node, caller, root, &kind, &name, public).await
        }
        Request::Share { root } => content::share(node, caller, root, talk).await,
        Request::Unshare { root } => content::unshare(node, caller, root, talk).await,
        Request::Pin { root, direct, name } => content::pin(node, caller, root, direct, name).await,
        Request::Unpin { root } => content::unpin(node, caller, root).await,
        Request::Fetch { root, peers, timeout_ms, shallow } => {
            let part = if shallow { Part::Root } else { Part::All };
            content::fetch(node, caller, Fetch { root, part, peers, timeout_ms }, talk).await
        }
        Request::FetchRange { root, range, peers, timeout_ms } => {
            content::fetch(node, caller, Fetch { root, part: Part::Bytes(range), peers, timeout_ms }, talk).await
        }
        Request::Blocks { cids } => content::blocks(node, caller, cids, talk).await,
        Request::Collect {} => keep::collect(node, caller, talk).await,
        Request::Check { repair } => keep::check(node, caller, repair, talk).await,
        Request::Resolve { name } => runs::resolve(node, caller, name, talk).await,
        Request::Submit { run, source, source_addrs, priority } => {
            runs::submit(node, caller, run, source, source_addrs, priority, talk).await
        }
        Request::DryRun { run } => runs::dry_run(node, caller, run, talk).await,
        Request::Watch { execution } => runs::watch(node, caller, execution, talk).await,
        Request::Cancel { execution } => runs::cancel(node, caller, execution, talk).await,
        Request::Audit { execution } => runs::audit(node, caller, execution, talk).await,
        Request::Logs { execution, group, index, follow } => {
            runs::logs(node, caller, runs::LogsOf { execution, group, index, follow }, talk).await
        }
        Request::Exec { execution, instance, command, terminal } => {
            exec::exec(node, caller, exec::Wanted { execution, instance, command, terminal }, talk).await
        }
        Request::Top { execution, once } => top::top(node, caller, execution, once, talk).await,
        Request::Probe { network } => probe::probe(node, caller, network, talk).await,
        Request::List { what } => runs::list(node, caller, what, talk).await,
        Request::LabInit { name, open, private } => lab::init(node, caller, &name, open, private).await,
        Request::Invite { role, ttl_ms } => lab::invite(node, caller, role, ttl_ms, talk).await,
        Request::Join { target, name, role } => lab::join(node, caller, &target, &name, role, talk).await,
        Request::Approve { peer } => lab::approve(node, caller, &peer).await,
        Request::Revoke { peer } => lab::revoke(node, caller, &peer).await,
        Request::HandOver { to } => lab::hand_over(node, caller, to, talk).await,
        Request::Leave {} => lab::leave(node, caller).await,
        Request::Shutdown { finish } => lab::shutdown(node, caller, finish).await,
    }
}

pub(crate) fn failure(kind: FailureKind, code: &str, message: String, help: &str) -> Failure {
    Failure { kind, code: code.to_owned(), message, help: help.to_owned() }
}

/// Returns the orchestrator of a node where it leads. One that others have heard to lead may still read its logs: then
/// that is waited for, since nobody else could answer.
async fn leading(node: &Node) -> Option<OrchestratorHandle> {
    let lab = node.candidate()?;
    if node.members.leader().is_some_and(|(leader, _)| leader == *node.links.peer()) {
        let _late = tokio::time::timeout(TAKING_UP, lab.takes_up()).await;
    }
    Some(lab).filter(OrchestratorHandle::leads)
}

/// The orchestrator does not lead, or no longer: whoever asked may ask another one.
fn stopped(_: Stopped) -> Failure {
    remote::elsewhere()
}

/// Makes a failure of the node's own, which says its causes.
fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    let error = error.into();
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        // Some errors say their cause themselves.
        if !message.ends_with(&said) {
            message = format!("{message}: {said}");
        }
        source = cause.source();
    }
    failure(
        FailureKind::Broken,
        "node.broken",
        message,
        "see the node's log; `iptl doctor` checks disk, store and network",
    )
}

#[cfg(test)]
mod tests {
    use iptl_dag::model::InstanceId;

    use super::*;
    use crate::home::Home;
    use crate::node::Options;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_asks_the_orchestrator_for_nobody_but_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            worker: ("/bin/true".into(), Vec::new()),
            offline: true,
            roles: false,
            lend: false,
            socket: false,
        };
        let running = crate::start(Home::open(dir.path()).unwrap(), options).await.unwrap();
        let member = Caller::Member { peer: PeerId::from_ed25519(&[7; 32]), role: Role::Developer };
        let run = iptl_dag::codec::cid_of(&"run");
        for request in [
            Request::Submit { run, source: None, source_addrs: Vec::new(), priority: 0 },
            Request::DryRun { run },
            Request::Cancel { execution: "last".to_owned() },
            Request::Watch { execution: "last".to_owned() },
            Request::Exec {
                execution: "last".to_owned(),
                instance: InstanceId { group: "g".to_owned(), index: 0 },
                command: vec!["sh".to_owned()],
                terminal: None,
            },
        ] {
            let (_asker, stream) = tokio::io::duplex(64 << 10);
            let refused = dispatch(running.node(), &member, request, &mut Talk::new(stream)).await.unwrap_err();
            assert_eq!(refused.code, "control.denied");
        }
        running.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_asks_one_that_was_heard_to_lead_is_answered_once_it_does() {
        let dir = tempfile::tempdir().unwrap();
        let worker = ("/bin/true".into(), Vec::new());
        let options = Options { worker, offline: true, roles: true, lend: false, socket: false };
        let running = crate::start(Home::open(dir.path()).unwrap(), options).await.unwrap();
        let node = running.node();
        let ask = |request| {
            let node = node.clone();
            async move {
                let (_asker, stream) = tokio::io::duplex(64 << 10);
                dispatch(&node, &Caller::Owner, request, &mut Talk::new(stream)).await
            }
        };
        ask(Request::LabInit { name: "lab".to_owned(), open: false, private: false }).await.unwrap();
        let (reads_its_logs, done) = node.candidate().unwrap().before_it_leads();
        node.set_candidate(reads_its_logs);
        let early = ask(Request::Watch { execution: "last".to_owned() });
        tokio::pin!(early);
        assert!(futures::poll!(&mut early).is_pending(), "it is asked too early");
        done();
        // It knows no execution, which is more than that another one may.
        assert_eq!(early.await.unwrap_err().code, "execution.unknown");
        running.stop().await;
    }
}
