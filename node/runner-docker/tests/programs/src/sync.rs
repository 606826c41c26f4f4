//! The least that a client of the sync service can be.

use std::io::{Read, Write};
use std::net::TcpStream;

pub(crate) struct Sync {
    stream: TcpStream,
    next: u64,
}

impl Sync {
    pub(crate) fn connect() -> Sync {
        let mut stream = TcpStream::connect("testground-sync-service:5050").unwrap();
        let hello = "GET / HTTP/1.1\r\nHost: lab\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
        stream.write_all(hello.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        Sync { stream, next: 0 }
    }

    fn key(kind: &str, name: &str) -> String {
        let variable = |name: &str| std::env::var(name).unwrap();
        let (run, plan, case) = (variable("TEST_RUN"), variable("TEST_PLAN"), variable("TEST_CASE"));
        format!("run:{run}:plan:{plan}:case:{case}:{kind}:{name}")
    }

    pub(crate) fn signal(&mut self, state: &str) {
        let key = Sync::key("states", state);
        self.ask(&format!("\"signal_entry\":{{\"state\":\"{key}\"}}"));
        self.answer();
    }

    pub(crate) fn signal_and_wait(&mut self, state: &str, target: u64) {
        self.signal(state);
        let key = Sync::key("states", state);
        self.ask(&format!("\"barrier\":{{\"state\":\"{key}\",\"target\":{target}}}"));
        self.answer();
    }

    /// Waits as a library that says nothing of a connection that ended: the answer is not looked for.
    pub(crate) fn wait_blindly(&mut self, state: &str, target: u64) {
        let key = Sync::key("states", state);
        self.ask(&format!("\"barrier\":{{\"state\":\"{key}\",\"target\":{target}}}"));
    }

    pub(crate) fn publish(&mut self, topic: &str, payload: &str) {
        let key = Sync::key("topics", topic);
        self.ask(&format!("\"publish\":{{\"topic\":\"{key}\",\"payload\":\"{payload}\"}}"));
        self.answer();
    }

    /// Asks for a network; returns what is answered.
    pub(crate) fn configure(&mut self, config: &str) -> String {
        let key = Sync::key("topics", &format!("network:{}", std::env::var("HOSTNAME").unwrap()));
        self.ask(&format!("\"publish\":{{\"topic\":\"{key}\",\"payload\":{config}}}"));
        self.answer()
    }

    pub(crate) fn subscribe(&mut self, topic: &str, count: u64) -> Vec<String> {
        let key = Sync::key("topics", topic);
        self.ask(&format!("\"subscribe\":{{\"topic\":\"{key}\"}}"));
        let message = |answer: String| {
            // "subscribe":"\"3\"" is the JSON text of the payload, as text.
            let (_, rest) = answer.split_once("\"subscribe\":\"").unwrap();
            rest.split("\",\"").next().unwrap().replace("\\\"", "")
        };
        (0..count).map(|_| message(self.answer())).collect()
    }

    fn ask(&mut self, request: &str) {
        let text = format!("{{\"id\":\"{}\",\"is_cancel\":false,{request}}}", self.next);
        self.next += 1;
        let mut frame = vec![0x81];
        match u16::try_from(text.len()).unwrap() {
            short @ 0..126 => frame.push(0x80 | short as u8),
            long => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&long.to_be_bytes());
            }
        }
        // A mask of zeros changes nothing.
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(text.as_bytes());
        self.stream.write_all(&frame).unwrap();
    }

    fn answer(&mut self) -> String {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).unwrap();
        let size = match head[1] & 0x7f {
            126 => {
                let mut size = [0; 2];
                self.stream.read_exact(&mut size).unwrap();
                usize::from(u16::from_be_bytes(size))
            }
            short => usize::from(short),
        };
        let mut text = vec![0; size];
        self.stream.read_exact(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("\"error\":\"\""), "{text}");
        text
    }
}
