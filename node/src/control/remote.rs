//! Control over the swarm: a member shows its token and asks; a node without an orchestrator passes requests on.

use std::convert::Infallible;
use std::time::Duration;

use iptl_dag::PeerId;
use iptl_dag::model::Signed;
use iptl_wire::control::{Failure, FailureKind, MAX_FRAME_SIZE, PROTOCOL, Reply, Request};
use iptl_wire::lab::{MAX_JOIN_SIZE, MemberToken, Role};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{Caller, Talk, broken, failure, say};
use crate::framed;
use crate::links::Stream;
use crate::node::Node;

/// Longest wait for a member's token.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the token that every control stream begins with.
pub(super) async fn admit(node: &Node, peer: &PeerId, talk: &mut Talk) -> Result<Role, Failure> {
    let denied = |message: String| {
        failure(FailureKind::Denied, "control.stranger", message, "join the lab first: `iptl join TICKET`")
    };
    if node.membership().is_none() {
        return Err(denied("this node is in no lab".to_owned()));
    }
    let token: Signed<MemberToken> =
        tokio::time::timeout(TOKEN_TIMEOUT, framed::expect(&mut talk.reader, MAX_JOIN_SIZE))
            .await
            .map_err(|_| denied("no membership was shown".to_owned()))?
            .map_err(|e| denied(e.to_string()))?;
    node.members.admit(peer, &token).map_err(denied)
}

/// Asks the lab's orchestrator in the name of this node's owner and passes its replies on.
pub(super) async fn forward(node: &Node, caller: &Caller, request: Request, talk: &mut Talk) -> Result<(), Failure> {
    let mut stream = ask(node, caller, &request).await?;
    replies(&mut talk.writer, &mut stream).await
}

/// Opens a stream to the lab's orchestrator and asks in the name of this node's owner. Other members ask it themselves:
/// nobody acts in the name of another.
pub(super) async fn ask(node: &Node, caller: &Caller, request: &Request) -> Result<Stream, Failure> {
    if let Caller::Member { .. } = caller {
        let message = "this node is not the lab's orchestrator, and asks it for nobody but its owner".to_owned();
        let help = "ask the lab's orchestrator";
        return Err(failure(FailureKind::Denied, "control.denied", message, help));
    }
    let membership = node.membership().ok_or_else(|| {
        let help = "make one with `iptl lab init`, join one with `iptl join TICKET`, or try one with `iptl dev up`";
        failure(FailureKind::LabUnable, "lab.none", "this node is in no lab".to_owned(), help)
    })?;
    let orchestrator = membership.orchestrator();
    let mut stream =
        node.links.open(orchestrator, &membership.addrs, PROTOCOL).await.map_err(|e| offline(e.to_string()))?;
    framed::write(&mut stream, &membership.token).await.map_err(|e| offline(e.to_string()))?;
    framed::write(&mut stream, request).await.map_err(|e| offline(e.to_string()))?;
    Ok(stream)
}

/// Passes on what the asker still says, and the replies to it, until these end. Neither side is read further than the
/// other takes it; that the asker has gone is passed on as the end of the stream.
pub(super) async fn relay(talk: &mut Talk, stream: Stream) -> Result<(), Failure> {
    let (mut from, mut to) = tokio::io::split(stream);
    let Talk { reader, writer } = talk;
    let up = async {
        let _broken_off = tokio::io::copy(reader, &mut to).await;
        let _gone = to.shutdown().await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        done = replies(writer, &mut from) => done,
        never = up => match never {},
    }
}

async fn replies(writer: &mut (impl AsyncWrite + Unpin), from: &mut (impl AsyncRead + Unpin)) -> Result<(), Failure> {
    loop {
        match framed::expect::<Reply>(from, MAX_FRAME_SIZE).await {
            Ok(Reply::End {}) => return Ok(()),
            Ok(Reply::Error(failed)) => return Err(failed),
            Ok(reply) => say(writer, reply).await?,
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => return Err(broken(error)),
            Err(error) => return Err(offline(format!("the lab broke off: {error}"))),
        }
    }
}

fn offline(message: String) -> Failure {
    failure(FailureKind::LabUnable, "lab.offline", message, "see whether the lab's node runs: `iptl status` there")
}
