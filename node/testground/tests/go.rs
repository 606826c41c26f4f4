//! What the Go SDK puts on the wire, byte for byte: its handshake, each message as a frame that is not the last and an
//! empty one that is, JSON with an end of line, and a close with status 1000.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::lab::{NAMES, PATIENCE};

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CONTINUATION: u8 = 0;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const LAST: u8 = 0x80;

/// Longest message that the library of the Go SDK reads.
const READ_LIMIT: usize = 32_768;

/// A client.
pub struct Client {
    stream: TcpStream,
    next_id: u64,
}

/// What the server said.
#[derive(Debug, PartialEq)]
pub enum Heard {
    Message(Value),
    Pong(Vec<u8>),
    Closed(u16, String),
    Gone,
}

impl Client {
    /// Connects as the Go SDK does.
    pub async fn connect(address: SocketAddr) -> Client {
        let hello = "GET / HTTP/1.1\r\nHost: testground-sync-service:5050\r\nUser-Agent: Go-http-client/1.1\r\n\
             Connection: Upgrade\r\nSec-Websocket-Extensions: permessage-deflate; client_no_context_takeover; \
             server_no_context_takeover\r\nSec-Websocket-Key: 4Hb8HMqfvbJDbbGvbLa2Jg==\r\n\
             Sec-Websocket-Version: 13\r\nUpgrade: websocket\r\n\r\n";
        let client = Client::connect_with(address, hello).await;
        // As everything in Go does, and not the Rust SDK.
        client.stream.set_nodelay(true).unwrap();
        client
    }

    /// Connects as the Rust SDK does.
    pub async fn connect_as_rust(address: SocketAddr) -> Client {
        let hello = "GET / HTTP/1.1\r\nHost: ...\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: 4Hb8HMqfvbJDbbGvbLa2Jg==\r\nSec-WebSocket-Version: 13\r\n\r\n";
        Client::connect_with(address, hello).await
    }

    async fn connect_with(address: SocketAddr, hello: &str) -> Client {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(hello.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("an answer to the handshake"));
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        assert!(head.contains("sec-websocket-accept: "), "{head}");
        assert!(!head.contains("sec-websocket-extensions"), "nothing was agreed on: {head}");
        Client { stream, next_id: 0 }
    }

    /// Sends a request; returns its id. `request` is what follows `is_cancel`: `"barrier":{…}`.
    pub async fn request(&mut self, request: &str) -> String {
        let id = self.next_id.to_string();
        self.next_id += 1;
        let json = format!("{{\"id\":\"{id}\",\"is_cancel\":false,{request}}}\n");
        self.frame(TEXT, json.as_bytes()).await;
        self.frame(LAST | CONTINUATION, b"").await;
        id
    }

    /// Sends a whole message in one binary frame, as the Rust SDK does.
    pub async fn binary(&mut self, message: &[u8]) {
        self.frame(LAST | BINARY, message).await;
    }

    /// Sends a ping.
    pub async fn ping(&mut self, data: &[u8]) {
        self.frame(LAST | PING, data).await;
    }

    /// Closes with status 1000, and waits for the answer.
    pub async fn close(mut self) -> Heard {
        self.frame(LAST | CLOSE, &1000u16.to_be_bytes()).await;
        let heard = self.hear().await;
        assert_eq!(self.hear().await, Heard::Gone);
        heard
    }

    /// Sends a request and returns its reply, where nothing else is to come before it.
    pub async fn ask(&mut self, request: &str) -> Value {
        let id = self.request(request).await;
        let reply = self.reply().await;
        assert_eq!(reply["id"], id.as_str());
        reply
    }

    /// Signals; returns the number of the signal.
    pub async fn signal(&mut self, state: &str) -> u64 {
        let reply = self.ask(&format!("\"signal_entry\":{{\"state\":\"{}\"}}", key("states", state))).await;
        reply["signal_entry"]["seq"].as_u64().unwrap_or_else(|| panic!("{reply}"))
    }

    /// Starts to wait at a barrier.
    pub async fn barrier(&mut self, state: &str, target: i64) -> String {
        self.request(&format!("\"barrier\":{{\"state\":\"{}\",\"target\":{target}}}", key("states", state))).await
    }

    /// Publishes JSON; returns the position.
    pub async fn publish(&mut self, topic: &str, payload: &str) -> u64 {
        let reply = self.ask(&publish(topic, payload)).await;
        reply["publish"]["seq"].as_u64().unwrap_or_else(|| panic!("{reply}"))
    }

    /// Subscribes.
    pub async fn subscribe(&mut self, topic: &str) -> String {
        self.request(&format!("\"subscribe\":{{\"topic\":\"{}\"}}", key("topics", topic))).await
    }

    /// Returns the next reply, which has all five keys and is short enough for Go.
    pub async fn reply(&mut self) -> Value {
        match self.hear().await {
            Heard::Message(reply) => reply,
            other => panic!("a reply was expected: {other:?}"),
        }
    }

    /// Returns what the server says next.
    pub async fn hear(&mut self) -> Heard {
        tokio::time::timeout(PATIENCE, self.hear_frame()).await.expect("waiting for the server")
    }

    async fn hear_frame(&mut self) -> Heard {
        let Ok(first) = self.stream.read_u8().await else { return Heard::Gone };
        let size = match self.stream.read_u8().await.unwrap() {
            126 => usize::from(self.stream.read_u16().await.unwrap()),
            127 => usize::try_from(self.stream.read_u64().await.unwrap()).unwrap(),
            small => usize::from(small),
        };
        let mut data = vec![0; size];
        self.stream.read_exact(&mut data).await.unwrap();
        match first {
            first if first == LAST | TEXT => {
                assert!(size <= READ_LIMIT, "the Go SDK ends with a message of {size} bytes");
                let reply: Value = serde_json::from_slice(&data).unwrap();
                let keys: Vec<&str> = reply.as_object().unwrap().keys().map(String::as_str).collect();
                assert_eq!(keys, ["error", "id", "publish", "signal_entry", "subscribe"]);
                Heard::Message(reply)
            }
            first if first == LAST | PONG => Heard::Pong(data),
            first if first == LAST | CLOSE => {
                let code = data.first_chunk::<2>().map_or(1005, |code| u16::from_be_bytes(*code));
                Heard::Closed(code, String::from_utf8(data.split_off(2.min(data.len()))).unwrap())
            }
            other => panic!("a frame that begins with {other:#x}"),
        }
    }

    /// Sends a frame, masked.
    pub async fn frame(&mut self, first: u8, data: &[u8]) {
        let mask = [0x11, 0x22, 0x33, 0x44];
        let mut frame = vec![first];
        match data.len() {
            size @ ..126 => frame.push(0x80 | size as u8),
            size @ 126..0x1_0000 => {
                frame.push(0x80 | 126);
                frame.extend((size as u16).to_be_bytes());
            }
            size => {
                frame.push(0x80 | 127);
                frame.extend((size as u64).to_be_bytes());
            }
        }
        frame.extend(mask);
        frame.extend(data.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.stream.write_all(&frame).await.unwrap();
    }

    /// Sends anything.
    pub async fn raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await
    }
}

/// Writes a publication.
pub fn publish(topic: &str, payload: &str) -> String {
    format!("\"publish\":{{\"topic\":\"{}\",\"payload\":{payload}}}", key("topics", topic))
}

/// Writes the key of a state or a topic.
pub fn key(kind: &str, name: &str) -> String {
    let [run, plan, case] = NAMES;
    format!("run:{run}:plan:{plan}:case:{case}:{kind}:{name}")
}
