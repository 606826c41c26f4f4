//! Nodes for tests, providers for them, and the control API as a caller sees it.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iptl_artifacts::{BlobStore, MemStore};
use iptl_artifacts_iroh::Provider;
use iptl_artifacts_pack::OpenError;
use iptl_dag::{Block, Cid, Codec, Ipld, PeerId, codec};
use iptl_net::{Incoming, Net};
use iptl_node::fetch::Wanted;
use iptl_node::home::Config;
use iptl_node::links::{Links, Stream};
use iptl_node::{Home, Options, Running, StartError, framed};
use iptl_trust::Keypair;
use iptl_wire::control::{Failure, FetchReport, MAX_FRAME_SIZE, Reply, Request, Upload};
use iptl_wire::lab::Role;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// What nodes of this process log from their first word on that is more than a detail.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Writes down what is logged from now on.
pub fn listen_to_log() {
    struct Log;
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            LOG.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    // Another test may have been first.
    let _heard = tracing_subscriber::fmt().with_writer(|| Log).with_ansi(false).try_init();
}

/// Waits until a peer is named in the log in a line that says why.
pub async fn is_logged(peer: &PeerId, why: &str) {
    let told = async {
        loop {
            let log = String::from_utf8_lossy(&LOG.lock().unwrap()).into_owned();
            let names = [peer.to_string(), peer.short()];
            let is_it = |line: &str| names.iter().any(|name| line.contains(name)) && line.contains(why);
            if log.lines().any(is_it) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(&format!("a word about {} and {why:?}", peer.short()), told).await;
}

/// A limit for everything that is waited for; met only when something is broken, and not where others leave this process a
/// tenth of the processors.
pub const LIMIT: Duration = Duration::from_secs(180);

/// A node with its home.
pub struct Node {
    pub running: Running,
    pub dir: TempDir,
}

/// Makes a home that listens on loopback alone and finds nobody by itself.
pub fn home(dir: &TempDir) -> Home {
    let home = Home::open(dir.path()).unwrap();
    let listen = vec!["/ip4/127.0.0.1/tcp/0".to_owned()];
    home.set_config(&Config { name: "machine".to_owned(), listen, mdns: Some(false), ..Config::default() }).unwrap();
    home
}

/// Plays the roles of an orchestrator or developer, and lends nothing.
pub fn options() -> Options {
    Options { worker: ("none".into(), Vec::new()), offline: false, roles: true, lend: false, socket: false }
}

pub async fn node() -> Node {
    let dir = tempfile::tempdir().unwrap();
    let running = iptl_node::start(home(&dir), options()).await.unwrap();
    Node { running, dir }
}

/// A node that publishes and fetches, and plays no role: a lablet without its runner.
pub async fn bystander() -> Node {
    let dir = tempfile::tempdir().unwrap();
    let running = iptl_node::start(home(&dir), Options { roles: false, ..options() }).await.unwrap();
    Node { running, dir }
}

/// A node that has made a lab.
pub async fn lab(open: bool) -> Node {
    let node = node().await;
    node.ask(Request::LabInit { name: "lab".to_owned(), open, private: false }).await.unwrap();
    node
}

/// A node that has joined a lab by a ticket.
pub async fn member(lab: &Node, role: Role) -> Node {
    let ticket = lab.invite(role, 60_000).await;
    let node = bystander().await;
    node.join(&ticket, role).await.unwrap();
    node
}

/// Starts a node on the home of one that is gone.
pub async fn start_again(dir: TempDir) -> Node {
    home(&dir);
    start_as_it_is(dir).await
}

/// Starts a node on the home of one that is gone, whose settings stay.
pub async fn start_as_it_is(dir: TempDir) -> Node {
    // The store is let go of when the last task that reads it has ended.
    let starting = async {
        loop {
            match iptl_node::start(Home::open(dir.path()).unwrap(), options()).await {
                Err(StartError::Store(OpenError::Locked { .. })) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                started => return started.unwrap(),
            }
        }
    };
    let running = within("the store to be let go of", starting).await;
    Node { running, dir }
}

/// Waits for a future, at most [`LIMIT`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {LIMIT:?} for {what}"),
    }
}

/// Reads replies up to the last one, which is told apart.
pub async fn replies(stream: &mut (impl AsyncRead + Unpin)) -> (Vec<Reply>, Result<(), Failure>) {
    let mut all = Vec::new();
    let reading = async {
        loop {
            match framed::expect::<Reply>(stream, MAX_FRAME_SIZE).await.unwrap() {
                Reply::End {} => return Ok(()),
                Reply::Error(failure) => return Err(failure),
                reply => all.push(reply),
            }
        }
    };
    let end = within("the last reply", reading).await;
    (all, end)
}

/// Asks one thing on a fresh connection.
pub async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request,
) -> (Vec<Reply>, Result<(), Failure>) {
    framed::write(&mut stream, &request).await.unwrap();
    replies(&mut stream).await
}

impl Node {
    pub fn peer(&self) -> PeerId {
        self.running.peer().clone()
    }

    /// Stops in order; the home stays.
    pub async fn stopped(self) -> TempDir {
        self.running.stop().await;
        self.dir
    }

    /// Drops the node, as a crash would but for what was buffered, and starts another on its home.
    pub async fn restarted(self) -> Node {
        drop(self.running);
        start_again(self.dir).await
    }

    /// Returns an address with the node's peer ID.
    pub async fn addr(&self) -> String {
        self.running.addrs().await.into_iter().find(|addr| addr.contains("/127.0.0.1/tcp/")).unwrap()
    }

    /// Asks as the owner.
    pub async fn ask(&self, request: Request) -> Result<Vec<Reply>, Failure> {
        let (replies, end) = ask(self.running.connect(), request).await;
        end.map(|()| replies)
    }

    /// Asks as the owner what must fail, and returns the code.
    pub async fn denied(&self, request: Request) -> String {
        self.ask(request).await.unwrap_err().code
    }

    /// Puts blocks into the store that everybody may read.
    pub async fn put(&self, blocks: &[Block]) {
        let shelf = parent(blocks);
        self.put_hidden(&[blocks, std::slice::from_ref(&shelf)].concat()).await;
        self.ask(Request::Share { root: *shelf.cid() }).await.unwrap();
    }

    /// Puts blocks into the store that members of the lab may read.
    pub async fn put_hidden(&self, blocks: &[Block]) {
        let mut stream = self.running.connect();
        framed::write(&mut stream, &Request::Put {}).await.unwrap();
        for block in blocks {
            let upload = Upload::Block { cid: *block.cid(), data: block.data().to_vec() };
            framed::write(&mut stream, &upload).await.unwrap();
        }
        framed::write(&mut stream, &Upload::End {}).await.unwrap();
        replies(&mut stream).await.1.unwrap();
    }

    /// Fetches a DAG from peers; returns the report and what was told on the way, also where it failed.
    pub async fn fetch(
        &self,
        root: &Cid,
        peers: Vec<String>,
        timeout_ms: u64,
    ) -> (Result<FetchReport, Failure>, Vec<Reply>) {
        let request = Request::Fetch { root: *root, peers, timeout_ms, shallow: false };
        let (mut replies, end) = ask(self.running.connect(), request).await;
        let report = end.map(|()| match replies.pop() {
            Some(Reply::Fetched(report)) => report,
            other => panic!("a fetch ended with {other:?}"),
        });
        (report, replies)
    }

    pub async fn invite(&self, role: Role, ttl_ms: u64) -> String {
        match &self.ask(Request::Invite { role, ttl_ms }).await.unwrap()[..] {
            [Reply::Ticket { ticket }] => ticket.clone(),
            other => panic!("an invitation was answered by {other:?}"),
        }
    }

    pub async fn join(&self, target: &str, role: Role) -> Result<Vec<Reply>, Failure> {
        self.ask(join_request(target, role)).await
    }
}

pub fn join_request(target: &str, role: Role) -> Request {
    Request::Join { target: target.to_owned(), name: "machine".to_owned(), role }
}

/// A peer of the swarm that is no node: it says what a test wants.
pub struct Stranger {
    pub net: Net,
    pub links: Links,
}

impl Stranger {
    pub async fn new(seed: u8) -> Stranger {
        let seed = [seed; 32];
        let listen = vec!["/ip4/127.0.0.1/tcp/0".to_owned()];
        let (net, mut events) = iptl_net::start(iptl_net::Config { seed, listen, ..Default::default() }).await.unwrap();
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        let peer = Keypair::from_seed(&seed).peer().clone();
        Stranger { links: Links::new(peer, Some(net.clone())), net }
    }

    pub async fn addr(&self) -> String {
        self.net.addrs().await.into_iter().find(|addr| addr.contains("/127.0.0.1/tcp/")).unwrap()
    }

    pub async fn open(&self, node: &Node, protocol: &'static str) -> Stream {
        self.links.open(&node.peer(), &[node.addr().await], protocol).await.unwrap()
    }

    /// Accepts blob streams, to be answered in whatever way.
    pub async fn blob_streams(&self) -> Incoming {
        self.net.accept(iptl_artifacts_iroh::PROTOCOL, 16).await.unwrap()
    }
}

/// Answers requests for blobs of a peer out of a store.
pub async fn serve(stranger: &Stranger, store: Arc<dyn BlobStore>) -> tokio::task::JoinHandle<()> {
    let mut incoming = stranger.blob_streams().await;
    let provider = Provider::over(store);
    tokio::spawn(async move {
        while let Some((_, stream)) = incoming.next().await {
            let provider = provider.clone();
            // Whoever asked sees it when a stream breaks.
            tokio::spawn(async move { provider.serve(stream).await });
        }
    })
}

/// Answers requests for blobs of a peer out of blocks; `send` puts each answer on its stream in its own way.
pub async fn serve_by<F>(
    stranger: &Stranger,
    blocks: Vec<Block>,
    send: impl Fn(iptl_net::Stream, Vec<u8>) -> F + Clone + Send + Sync + 'static,
) -> tokio::task::JoinHandle<()>
where
    F: Future<Output = ()> + Send,
{
    let mut incoming = stranger.blob_streams().await;
    let provider = Provider::over(store_of(blocks).await);
    tokio::spawn(async move {
        while let Some((_, mut stream)) = incoming.next().await {
            let (provider, send) = (provider.clone(), send.clone());
            tokio::spawn(async move {
                let answer = answer_to(&mut stream, &provider).await;
                send(stream, answer).await;
            });
        }
    })
}

/// Reads a request for blobs to its end, and returns what a provider answers.
pub async fn answer_to(stream: &mut iptl_net::Stream, provider: &Provider) -> Vec<u8> {
    let mut request = Vec::new();
    stream.read_to_end(&mut request).await.unwrap();
    let (mut pipe, end) = tokio::io::duplex(1 << 20);
    pipe.write_all(&request).await.unwrap();
    pipe.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let (served, read) = tokio::join!(provider.serve(end), pipe.read_to_end(&mut answer));
    served.unwrap();
    read.unwrap();
    answer
}

/// Wants a whole DAG of whoever is named later.
pub fn wanted(root: &Cid) -> Wanted {
    Wanted { root: *root, from: Vec::new(), fellows: Vec::new(), timeout: Duration::from_secs(30), shallow: false }
}

/// A DAG of three levels: a root, `nodes` nodes, and under each of them `leaves` leaves.
pub struct Dag {
    pub root: Block,
    pub nodes: Vec<Block>,
    pub leaves: Vec<Block>,
}

impl Dag {
    pub fn new(nodes: usize, leaves: usize, leaf_size: usize) -> Dag {
        let leaf = |i: usize| {
            let mut data = vec![7; leaf_size];
            data[..8].copy_from_slice(&i.to_le_bytes());
            Block::new(Codec::Raw, data)
        };
        let leaves: Vec<Block> = (0..nodes * leaves).map(leaf).collect();
        let nodes: Vec<Block> = leaves.chunks(leaves.len() / nodes).map(parent).collect();
        Dag { root: parent(&nodes), nodes, leaves }
    }

    pub fn cid(&self) -> &Cid {
        self.root.cid()
    }

    pub fn blocks(&self) -> Vec<Block> {
        [std::slice::from_ref(&self.root), &self.nodes, &self.leaves].concat()
    }

    pub fn bytes(&self) -> u64 {
        self.blocks().iter().map(|block| block.data().len() as u64).sum()
    }
}

/// Makes a node that links `children`.
pub fn parent(children: &[Block]) -> Block {
    codec::to_block(&Ipld::List(children.iter().map(|child| Ipld::Link(*child.cid())).collect()))
}

/// Makes a store in memory.
pub async fn store_of(blocks: Vec<Block>) -> Arc<dyn BlobStore> {
    let store = MemStore::default();
    store.put(blocks).await.unwrap();
    Arc::new(store)
}

/// A peer that answers every request for blocks with these bytes.
pub async fn answering(seed: u8, answer: Vec<u8>) -> Stranger {
    let stranger = Stranger::new(seed).await;
    let mut incoming = stranger.blob_streams().await;
    tokio::spawn(async move {
        while let Some((_, mut stream)) = incoming.next().await {
            let mut request = Vec::new();
            let _gone = stream.read_to_end(&mut request).await;
            let _gone = stream.write_all(&answer).await;
            let _gone = stream.shutdown().await;
        }
    });
    stranger
}
