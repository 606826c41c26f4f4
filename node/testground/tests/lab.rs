//! A lab of one cell in this process: servers of instances around the real sync cores.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use iptl_dag::PeerId;
use iptl_dag::model::{Exit, InstanceId};
use iptl_labnet::Wish;
use iptl_runner::{CellEvent, SyncCall, SyncReply};
use iptl_sync::{CellSync, Reply, RunSync, SyncOp};
use iptl_testground::{Asked, Identity, Journal, Seen, SyncServer};
use tokio::sync::{Notify, mpsc};

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Run, plan and case of every test.
pub const NAMES: [&str; 3] = ["r1", "demo", "default"];

/// A lab whose instances are `g/0`, `g/1` …
pub struct Lab {
    inner: Arc<Inner>,
    events: mpsc::Sender<CellEvent>,
}

struct Inner {
    started: Instant,
    world: Mutex<World>,
    /// Something was answered or said.
    news: Notify,
}

struct World {
    cell: CellSync,
    run: RunSync,
    peer: PeerId,
    servers: BTreeMap<InstanceId, Arc<SyncServer>>,
    journals: BTreeMap<InstanceId, Arc<Mutex<Journal>>>,
    /// Answers to instances without a server, which stand for groups of another kind.
    answers: BTreeMap<(u32, u64), Vec<Reply>>,
    /// What instances asked of their networks and nobody has answered.
    wishes: VecDeque<(Wish, Asked)>,
    /// Why instances were refused a network.
    refused: Vec<String>,
    calls: u64,
    next_call: u64,
}

/// Names an instance.
pub fn instance(index: u32) -> InstanceId {
    InstanceId { group: "g".into(), index }
}

/// Who an instance is to its server.
pub fn identity(index: u32, case: &str) -> Identity {
    let [run, plan, _] = NAMES;
    Identity::new(run, plan, case, &format!("g-{index}"))
}

impl Lab {
    /// Starts a lab of so many instances.
    pub fn new(instances: u32) -> Lab {
        let peer = PeerId::from_ed25519(&[7; 32]);
        let mut cell = CellSync::new((0..instances).map(instance));
        cell.session_up();
        let run = RunSync::new([(peer.clone(), u64::from(instances))]);
        let world = World {
            cell,
            run,
            peer,
            servers: BTreeMap::new(),
            journals: BTreeMap::new(),
            answers: BTreeMap::new(),
            wishes: VecDeque::new(),
            refused: Vec::new(),
            calls: 0,
            next_call: 0,
        };
        let inner = Arc::new(Inner { started: Instant::now(), world: Mutex::new(world), news: Notify::new() });
        let (events, mut from_servers) = mpsc::channel(8);
        let lab = Arc::clone(&inner);
        tokio::spawn(async move {
            while let Some(event) = from_servers.recv().await {
                let CellEvent::Sync { id, call } = event else { panic!("a server says {event:?}") };
                lab.call(&id, call);
            }
        });
        Lab { inner, events }
    }

    /// Serves an instance on a port of its own.
    pub fn serve(&self, index: u32) -> SocketAddr {
        self.serve_case_on(index, NAMES[2], (Ipv4Addr::LOCALHOST, 0).into())
    }

    /// Serves an instance of a case at an address.
    pub fn serve_case_on(&self, index: u32, case: &str, address: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind(address).unwrap_or_else(|e| panic!("{address}: {e}"));
        let address = listener.local_addr().unwrap();
        let journal = Arc::new(Mutex::new(Journal::new(1 << 20)));
        let (published, inner) = (Arc::clone(&journal), Arc::clone(&self.inner));
        let observe = move |seen: Seen<'_>| {
            if let Seen::Refused(reason) = seen {
                inner.world.lock().unwrap().refused.push(reason.to_owned());
            }
            let Seen::Event(event) = seen else { return };
            let at_us = inner.started.elapsed().as_micros() as u64;
            published.lock().unwrap().published(at_us, event);
            inner.news.notify_waiters();
        };
        let wishes = Arc::clone(&self.inner);
        let shape = move |wish, asked| {
            wishes.world.lock().unwrap().wishes.push_back((wish, asked));
            wishes.news.notify_waiters();
        };
        let events = self.events.clone();
        let server = SyncServer::start(listener, instance(index), identity(index, case), events, observe, shape);
        let mut world = self.inner.world.lock().unwrap();
        world.servers.insert(instance(index), Arc::new(server.unwrap()));
        world.journals.insert(instance(index), journal);
        address
    }

    /// Waits for what an instance asks of its network, which is to be answered.
    pub async fn wish(&self) -> (Wish, Asked) {
        let news = async {
            loop {
                let news = self.inner.news.notified();
                if let Some(wish) = self.inner.world.lock().unwrap().wishes.pop_front() {
                    return wish;
                }
                news.await;
            }
        };
        tokio::time::timeout(PATIENCE, news).await.expect("it asks for a network")
    }

    /// Returns why instances were refused a network.
    pub fn refused(&self) -> Vec<String> {
        self.inner.world.lock().unwrap().refused.clone()
    }

    /// Ends the server of an instance as a runner does.
    pub async fn finish(&self, index: u32) {
        let server = self.inner.world.lock().unwrap().servers.remove(&instance(index)).unwrap();
        Arc::into_inner(server).expect("nobody else holds it").finish(PATIENCE).await;
    }

    /// Drops the server of an instance at once.
    pub fn drop_server(&self, index: u32) {
        self.inner.world.lock().unwrap().servers.remove(&instance(index));
    }

    /// Looks at the journal of an instance.
    pub fn journal<T>(&self, index: u32, look: impl FnOnce(&mut Journal) -> T) -> T {
        let journal = Arc::clone(&self.inner.world.lock().unwrap().journals[&instance(index)]);
        let mut journal = journal.lock().unwrap();
        look(&mut journal)
    }

    /// Returns how an instance ended whose process ended with this status.
    pub fn exit(&self, index: u32, code: i32) -> Exit {
        self.journal(index, |journal| journal.exit(Exit::Exited { code }))
    }

    /// Calls the lab for an instance without a server, and waits for `count` answers.
    pub async fn ask(&self, index: u32, op: SyncOp, count: usize) -> Vec<Reply> {
        let call = {
            let mut world = self.inner.world.lock().unwrap();
            world.next_call += 1;
            let call = world.next_call;
            world.cell.call(&instance(index), call, op);
            self.inner.settle(&mut world);
            call
        };
        let answers = |world: &World| world.answers.get(&(index, call)).filter(|all| all.len() >= count).cloned();
        self.wait("answers to another group", answers).await
    }

    /// Publishes for an instance without a server.
    pub async fn publish(&self, index: u32, topic: &str, payload: impl Into<Bytes>) {
        let op = SyncOp::Publish { topic: topic.into(), payload: payload.into() };
        assert!(matches!(self.ask(index, op, 1).await[..], [Reply::Published { .. }]));
    }

    /// Returns how many calls the servers have made.
    pub fn calls(&self) -> u64 {
        self.inner.world.lock().unwrap().calls
    }

    /// Waits until some server has called.
    pub async fn called(&self) {
        self.wait("a call", |world| (world.calls > 0).then_some(())).await;
    }

    async fn wait<T>(&self, what: &str, look: impl Fn(&World) -> Option<T>) -> T {
        let found = async {
            loop {
                let news = self.inner.news.notified();
                if let Some(found) = look(&self.inner.world.lock().unwrap()) {
                    return found;
                }
                news.await;
            }
        };
        tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("waiting for {what}"))
    }
}

impl Inner {
    fn call(&self, id: &InstanceId, call: SyncCall) {
        let number = call.call();
        let op = match call {
            SyncCall::Signal { state, .. } => SyncOp::Signal { state },
            SyncCall::Barrier { state, target, .. } => SyncOp::Barrier { state, target },
            SyncCall::SignalAndWait { state, target, .. } => SyncOp::SignalAndWait { state, target },
            SyncCall::Publish { topic, payload, .. } => SyncOp::Publish { topic, payload: payload.into() },
            SyncCall::Subscribe { topic, .. } => SyncOp::Subscribe { topic },
            SyncCall::Cancel { .. } => SyncOp::Cancel,
        };
        let mut world = self.world.lock().unwrap();
        world.calls += 1;
        world.cell.call(id, number, op);
        self.settle(&mut world);
    }

    /// Carries messages between both cores until they have no more to say, and answers to whoever asked.
    fn settle(&self, world: &mut World) {
        let peer = world.peer.clone();
        loop {
            let mut said = false;
            while let Some(up) = world.cell.poll_up() {
                world.run.handle(&peer, up).unwrap();
                said = true;
            }
            while let Some((_, down)) = world.run.poll_down() {
                world.cell.handle(down);
                said = true;
            }
            while let Some((id, call, reply)) = world.cell.poll_reply() {
                said = true;
                match world.servers.get(&id) {
                    Some(server) => server.reply(answer(id, call, reply)),
                    None => world.answers.entry((id.index, call)).or_default().push(reply),
                }
            }
            if !said {
                break;
            }
        }
        self.news.notify_waiters();
    }
}

fn answer(id: InstanceId, call: u64, reply: Reply) -> SyncReply {
    match reply {
        Reply::Signalled { seq } => SyncReply::Signalled { id, call, seq },
        Reply::Opened { seq } => SyncReply::Opened { id, call, seq },
        Reply::Published { position } => SyncReply::Published { id, call, position },
        Reply::Message { position, payload } => SyncReply::Message { id, call, position, payload: payload.to_vec() },
        Reply::Failed(error) => SyncReply::Failed { id, call, reason: error.to_string() },
    }
}
