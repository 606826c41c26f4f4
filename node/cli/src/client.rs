//! The client side of the control API: one request per connection.
//!
//! A [`Client`] is the path of a socket or a node in this process, which it keeps alive. It is cheap to clone; every
//! [`Client::call`] opens a connection of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use iptl_dag::{Block, Cid};
use iptl_node::Running;
use iptl_wire::control::{MAX_FRAME_SIZE, Reply, Request, Upload};
use iptl_wire::frame;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::exit::{Error, Exit, Result};

/// Longest path that fits into a socket address on Linux, less the terminator.
const MAX_SOCKET_PATH: usize = 107;

/// What requests and replies go over.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A node that can be asked.
#[derive(Clone)]
pub enum Client {
    /// A process of its own.
    Daemon {
        /// Its socket.
        socket: PathBuf,
    },
    /// A node in this process; it ends with the last client.
    Here(Arc<Running>),
}

impl Client {
    /// Finds the daemon of a home; `None` where none answers.
    pub async fn connect(home: &Path) -> Option<Client> {
        let socket = home.join("api.sock");
        open(&socket).await.ok().map(|_| Client::Daemon { socket })
    }

    /// Makes a client of a node in this process.
    pub fn of_node(node: Arc<Running>) -> Client {
        Client::Here(node)
    }

    /// Returns whether the node lives in this process.
    pub fn is_temporary(&self) -> bool {
        match self {
            Client::Daemon { .. } => false,
            Client::Here(_) => true,
        }
    }

    /// Sends a request; its replies are read from what is returned.
    ///
    /// Dropping the replies half-way ends the request; the node lets go of it.
    pub async fn call(&self, request: Request) -> Result<Replies> {
        let stream: Box<dyn Stream> = match self {
            Client::Daemon { socket } => Box::new(open(socket).await.map_err(|e| no_node(socket, e))?),
            Client::Here(node) => Box::new(node.connect()),
        };
        let mut replies = Replies { stream };
        replies.send(&request).await?;
        Ok(replies)
    }

    /// Sends a request after which more is said to the node; what is said and what is replied go on independently.
    ///
    /// The request ends when both halves are dropped.
    pub async fn attach(&self, request: Request) -> Result<(Sayings, Replies)> {
        let Replies { stream } = self.call(request).await?;
        let (from, to) = tokio::io::split(stream);
        let replies = Replies { stream: Box::new(tokio::io::join(from, tokio::io::sink())) };
        Ok((Sayings { stream: to }, replies))
    }

    /// Sends a request and returns all its replies but the end.
    pub async fn call_all(&self, request: Request) -> Result<Vec<Reply>> {
        let mut replies = self.call(request).await?;
        let mut all = Vec::new();
        while let Some(reply) = replies.next().await? {
            all.push(reply);
        }
        Ok(all)
    }

    /// Sends a request and returns the first reply.
    pub async fn call_one(&self, request: Request) -> Result<Reply> {
        let all = self.call_all(request).await?;
        all.into_iter().next().ok_or_else(|| unexpected("nothing"))
    }

    /// Submits a run and returns its execution with the alias: known from the moment that the node says so, whatever
    /// becomes of the connection then.
    pub async fn submit(&self, run: Cid, priority: i32) -> Result<(Cid, String)> {
        let request = Request::Submit { run, source: None, source_addrs: Vec::new(), priority };
        match self.call(request).await?.next().await? {
            Some(Reply::Submitted { execution, alias }) => Ok((execution, alias)),
            other => Err(unexpected(&format!("{other:?}"))),
        }
    }

    /// Stores blocks at the node. When it returns, the node holds them durably.
    pub async fn put(&self, blocks: &[Block]) -> Result<()> {
        if let Client::Here(node) = self {
            node.put(blocks.to_vec()).await?;
            return Ok(node.flush().await?);
        }
        let mut replies = self.call(Request::Put {}).await?;
        for block in blocks {
            replies.send(&Upload::Block { cid: *block.cid(), data: block.data().to_vec() }).await?;
        }
        replies.send(&Upload::End {}).await?;
        while replies.next().await?.is_some() {}
        Ok(())
    }
}

async fn open(socket: &Path) -> std::io::Result<UnixStream> {
    if socket.as_os_str().len() <= MAX_SOCKET_PATH {
        return UnixStream::connect(socket).await;
    }
    // A home deep in the tree: its directory is reached through a descriptor, whose path is short.
    let directory = std::fs::File::open(socket.parent().unwrap_or(Path::new("/")))?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&directory);
    UnixStream::connect(format!("/proc/self/fd/{fd}/api.sock")).await
}

/// What is said to the node after a request.
pub struct Sayings {
    stream: tokio::io::WriteHalf<Box<dyn Stream>>,
}

impl Sayings {
    /// Says something; waits while the node has more than it takes. Fails where the node has closed the connection, which
    /// then has said why.
    pub async fn say<T: Serialize>(&mut self, message: &T) -> std::io::Result<()> {
        self.stream.write_all(&frame::encode(message)).await?;
        self.stream.flush().await
    }
}

/// The replies to one request.
pub struct Replies {
    stream: Box<dyn Stream>,
}

impl Replies {
    async fn send<T: Serialize>(&mut self, message: &T) -> Result<()> {
        match self.stream.write_all(&frame::encode(message)).await {
            Ok(()) => Ok(()),
            // The node closed early: its reason is the better message.
            Err(_) => match self.read::<Reply>().await? {
                Reply::Error(failure) => Err(failure.into()),
                _ => Err(gone()),
            },
        }
    }

    async fn read<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut header = [0; frame::HEADER_SIZE];
        self.stream.read_exact(&mut header).await.map_err(|_| gone())?;
        let length = frame::length(header, MAX_FRAME_SIZE).map_err(|e| unexpected(&e.to_string()))?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.map_err(|_| gone())?;
        frame::decode(&body).map_err(|e| unexpected(&e.to_string()))
    }

    /// Returns the next reply, `None` at the end. Not cancel-safe: a dropped call may lose half a frame.
    pub async fn next(&mut self) -> Result<Option<Reply>> {
        match self.read::<Reply>().await? {
            Reply::End {} => Ok(None),
            Reply::Error(failure) => Err(failure.into()),
            reply => Ok(Some(reply)),
        }
    }

    /// Turns the replies into a channel, so that they can be awaited beside other things.
    pub fn into_channel(mut self) -> tokio::sync::mpsc::Receiver<Result<Reply>> {
        // Replies are shown as they come; the node's own queue pushes back behind these.
        let (sender, receiver) = tokio::sync::mpsc::channel(64);
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    next = self.next() => next,
                    () = sender.closed() => return,
                };
                match next {
                    Ok(Some(reply)) => {
                        if sender.send(Ok(reply)).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) => return,
                    Err(error) => {
                        // Nobody listens any more where this fails.
                        let _ = sender.send(Err(error)).await;
                        return;
                    }
                }
            }
        });
        receiver
    }
}

fn no_node(socket: &Path, error: std::io::Error) -> Error {
    let home = socket.parent().unwrap_or(socket).display();
    Error::new(
        Exit::LabUnable,
        "node.not-running",
        format!("no node answers at {home}: {error}"),
        format!("start it with `iptl up --home {home}`, or name another home with --home"),
    )
}

fn gone() -> Error {
    Error::broken(
        "node.gone",
        "the node closed the connection",
        "see its log with `iptl doctor`; start it with `iptl up`",
    )
}

/// The node answered something that the request does not allow.
pub fn unexpected(what: &str) -> Error {
    Error::broken(
        "node.protocol",
        format!("the node answered {what}, which this version does not understand"),
        "use the same version of iptl for the node and the command line",
    )
}
