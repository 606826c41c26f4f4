//! Nodes for tests, and waiting for what they do.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use iptl_net::{Config, Net, NetEvent, start};
use tokio::sync::mpsc;

/// A limit for everything that is waited for; met only when something is broken.
pub const LIMIT: Duration = Duration::from_secs(30);

pub const TCP: &str = "/ip4/127.0.0.1/tcp/0";
pub const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// A node with its events.
pub struct Node {
    pub net: Net,
    pub events: mpsc::Receiver<NetEvent>,
}

/// Returns a configuration with an identity of its own.
pub fn config(listen: &[&str]) -> Config {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    seed[8..12].copy_from_slice(&std::process::id().to_le_bytes());
    Config { seed, listen: listen.iter().map(|addr| addr.to_string()).collect(), ..Config::default() }
}

pub async fn node(config: Config) -> Node {
    let (net, events) = start(config).await.unwrap();
    Node { net, events }
}

/// Returns two nodes, the first connected to the second.
pub async fn pair(listen: &str) -> (Node, Node) {
    let (a, b) = (node(config(&[listen])).await, node(config(&[listen])).await);
    a.net.connect(b.net.peer(), &b.net.addrs().await).await.unwrap();
    (a, b)
}

impl Node {
    /// Waits for an event that `wanted` takes; passes others over.
    pub async fn wait<T>(&mut self, what: &str, mut wanted: impl FnMut(&NetEvent) -> Option<T>) -> T {
        let seen = async {
            loop {
                let event = self.events.recv().await.expect("the node runs");
                if let Some(found) = wanted(&event) {
                    return found;
                }
            }
        };
        within(what, seen).await
    }
}

/// Waits for a future, at most [`LIMIT`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {LIMIT:?} for {what}"),
    }
}

/// Asks again until there is an answer, at most [`LIMIT`]: for state that no event tells of.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let answer = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(what, answer).await
}
