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
use crate::home::Membership;
use crate::links::Stream;
use crate::node::Node;

/// Longest wait for a member's token.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest wait for one of the lab's orchestrators; the way through a relay takes some seconds.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

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

/// An answer that has begun to come.
pub(super) struct Answer {
    first: Reply,
    stream: Stream,
}

/// Asks who leads the lab in the name of this node's owner and passes its replies on.
pub(super) async fn forward(node: &Node, caller: &Caller, request: Request, talk: &mut Talk) -> Result<(), Failure> {
    ask(node, caller, &request).await?.pass_on(talk).await
}

/// Opens a stream to who leads the lab and asks in the name of this node's owner. Other members ask it themselves:
/// nobody acts in the name of another. Where that one is gone, or does not lead any more, the others are asked.
pub(super) async fn ask(node: &Node, caller: &Caller, request: &Request) -> Result<Answer, Failure> {
    if let Caller::Member { .. } = caller {
        if node.candidate().is_some() {
            return Err(elsewhere());
        }
        let message = "this node is not the lab's orchestrator, and asks it for nobody but its owner".to_owned();
        let help = "ask the lab's orchestrator";
        return Err(failure(FailureKind::Denied, "control.denied", message, help));
    }
    let membership = node.membership().ok_or_else(|| {
        let help = "make one with `iptl lab init`, join one with `iptl join TICKET`, or try one with `iptl dev up`";
        failure(FailureKind::LabUnable, "lab.none", "this node is in no lab".to_owned(), help)
    })?;
    let mut candidates = node.members.candidates();
    candidates.retain(|(peer, _)| peer != node.links.peer());
    let mut failed = elsewhere();
    for (orchestrator, addrs) in candidates {
        match put(node, &membership, &orchestrator, &addrs, request).await {
            Ok(Answer { first: Reply::Error(refused), .. }) if refused.code == ELSEWHERE => failed = refused,
            Ok(answer) => {
                if node.members.leader().is_none_or(|(leader, _)| leader != orchestrator) {
                    // It leads, and tells so who introduces itself: the next request goes to it at once.
                    let (members, links) = (node.members.clone(), node.links.clone());
                    tokio::spawn(async move { members.ask_again(&links, &orchestrator, &addrs).await });
                }
                return Ok(answer);
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Puts a request to one orchestrator, and waits for the beginning of its answer.
async fn put(
    node: &Node,
    membership: &Membership,
    orchestrator: &PeerId,
    addrs: &[String],
    request: &Request,
) -> Result<Answer, Failure> {
    let opening = node.links.open(orchestrator, addrs, PROTOCOL);
    let mut stream = tokio::time::timeout(OPEN_TIMEOUT, opening)
        .await
        .map_err(|_| offline(format!("{} did not answer within {} s", orchestrator.short(), OPEN_TIMEOUT.as_secs())))?
        .map_err(|e| offline(e.to_string()))?;
    framed::write(&mut stream, &membership.token).await.map_err(|e| offline(e.to_string()))?;
    framed::write(&mut stream, request).await.map_err(|e| offline(e.to_string()))?;
    let first = reply(&mut stream).await?;
    Ok(Answer { first, stream })
}

/// Passes on what the asker still says, and the replies to it, until these end. Neither side is read further than the
/// other takes it; that the asker has gone is passed on as the end of the stream.
pub(super) async fn relay(talk: &mut Talk, answer: Answer) -> Result<(), Failure> {
    let Answer { first, stream } = answer;
    let (mut from, mut to) = tokio::io::split(stream);
    let Talk { reader, writer } = talk;
    let up = async {
        let _broken_off = tokio::io::copy(reader, &mut to).await;
        let _gone = to.shutdown().await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        done = replies(writer, first, &mut from) => done,
        never = up => match never {},
    }
}

async fn replies(
    writer: &mut (impl AsyncWrite + Unpin),
    first: Reply,
    from: &mut (impl AsyncRead + Unpin),
) -> Result<(), Failure> {
    let mut next = first;
    loop {
        match next {
            Reply::End {} => return Ok(()),
            Reply::Error(failed) => return Err(failed),
            reply => say(writer, reply).await?,
        }
        next = reply(from).await?;
    }
}

pub(super) async fn reply(from: &mut (impl AsyncRead + Unpin)) -> Result<Reply, Failure> {
    framed::expect::<Reply>(from, MAX_FRAME_SIZE).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => broken(error),
        _ => offline(format!("the lab broke off: {error}")),
    })
}

impl Answer {
    /// Begins with a stream that was asked something already.
    pub(super) async fn of(mut stream: Stream) -> Result<Answer, Failure> {
        let first = reply(&mut stream).await?;
        Ok(Answer { first, stream })
    }

    /// Returns what it begins with.
    pub(super) fn first(&self) -> &Reply {
        &self.first
    }

    /// Fails where it begins with a refusal.
    pub(super) fn accepted(self) -> Result<(), Failure> {
        match self.first {
            Reply::Error(refused) => Err(refused),
            _ => Ok(()),
        }
    }

    /// Passes the replies on until they end.
    pub(super) async fn pass_on(self, talk: &mut Talk) -> Result<(), Failure> {
        let Answer { first, mut stream } = self;
        replies(&mut talk.writer, first, &mut stream).await
    }
}

/// Code of a failure that another orchestrator does not have.
const ELSEWHERE: &str = "lab.elsewhere";

/// This orchestrator does not lead the lab, or no longer.
pub(super) fn elsewhere() -> Failure {
    let message = "this orchestrator does not lead the lab now".to_owned();
    failure(FailureKind::LabUnable, ELSEWHERE, message, "try again in a moment; see who leads: `iptl status`")
}

fn offline(message: String) -> Failure {
    failure(FailureKind::LabUnable, "lab.offline", message, "see whether the lab's node runs: `iptl status` there")
}
