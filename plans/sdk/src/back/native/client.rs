//! The connection to the lab: one for the program, made by the first call, with a thread that reads.

use std::collections::{BTreeMap, VecDeque};
use std::io::BufReader;
use std::net::TcpStream;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::websocket::{self, Heard};
use super::{Event, base64, json};
use crate::{Error, Json, Message, Result};

/// Largest payload of one message and longest name, in bytes; as for Wasm programs.
const MAX_PAYLOAD: usize = 256 << 10;
const MAX_NAME: usize = 256;

/// Bytes of messages that may wait to be taken; a subscription that is not read ends beyond it, as for Wasm programs.
const MAX_WAITING: usize = 8 << 20;

/// Bytes that a waiting message costs beside its payload.
const MESSAGE_OVERHEAD: usize = 64;

/// Stack of the thread that reads: it parses short messages.
const STACK: usize = 256 << 10;

/// What is asked of the lab.
pub(super) enum Ask<'a> {
    Signal { state: &'a str },
    Barrier { state: &'a str, target: u64 },
    Publish { topic: &'a str, payload: &'a [u8] },
    Subscribe { topic: &'a str },
}

/// The connection.
#[derive(Debug)]
pub(super) struct Client {
    /// How keys of this run begin.
    prefix: String,
    writer: Mutex<TcpStream>,
    state: Mutex<State>,
    /// Something was answered.
    news: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    calls: BTreeMap<u64, Call>,
    waiting: usize,
    /// Why there will be no more answers.
    gone: Option<String>,
}

#[derive(Debug)]
struct Call {
    /// Whether the lab is told when it is given up.
    lasting: bool,
    answer: Option<Result<u64>>,
    messages: VecDeque<Message>,
    /// Messages that came, which is the position of the last.
    position: u64,
}

/// Returns the connection, made where there is none yet.
pub(super) fn lab() -> Result<&'static Client> {
    static CLIENT: OnceLock<Result<Client>> = OnceLock::new();
    let client = CLIENT.get_or_init(Client::connect).as_ref().map_err(Clone::clone)?;
    static READER: OnceLock<Result<()>> = OnceLock::new();
    READER.get_or_init(|| client.start_reading()).clone()?;
    Ok(client)
}

impl Client {
    fn connect() -> Result<Client> {
        let text = |name: &str| std::env::var(name).map_err(|_| Error::NotInLab { variable: name.to_owned() });
        let host = text("SYNC_SERVICE_HOST")?;
        let port = text("SYNC_SERVICE_PORT")?;
        let port = port.parse().map_err(|_| Error::NotInLab { variable: "SYNC_SERVICE_PORT".to_owned() })?;
        let prefix = format!("run:{}:plan:{}:case:{}", text("TEST_RUN")?, text("TEST_PLAN")?, text("TEST_CASE")?);
        let no_lab = |error| Error::Refused(format!("the lab at {host}:{port} does not listen: {error}"));
        let stream = TcpStream::connect((host.as_str(), port)).map_err(no_lab)?;
        Client::open(stream, &host, prefix).map_err(no_lab)
    }

    fn open(mut stream: TcpStream, host: &str, prefix: String) -> std::io::Result<Client> {
        stream.set_nodelay(true)?;
        websocket::shake_hands(&mut stream, host)?;
        Ok(Client { prefix, writer: Mutex::new(stream), state: Mutex::default(), news: Condvar::new() })
    }

    fn start_reading(&'static self) -> Result<()> {
        let stream = lock(&self.writer).try_clone()?;
        let thread = std::thread::Builder::new().name("iptl-lab".to_owned()).stack_size(STACK);
        thread.spawn(move || {
            let reason = self.read(stream);
            lock(&self.state).gone = Some(reason);
            self.news.notify_all();
        })?;
        Ok(())
    }

    /// Reads answers until there are no more; returns why.
    fn read(&self, stream: TcpStream) -> String {
        let mut stream = BufReader::new(stream);
        loop {
            match websocket::read(&mut stream) {
                Ok(Heard::Message(reply)) => self.deliver(&reply),
                Ok(Heard::Ping(data)) => {
                    if let Err(error) = websocket::write_pong(&mut *lock(&self.writer), &data) {
                        return format!("the lab is gone: {error}");
                    }
                }
                Ok(Heard::Close(reason)) => return format!("the lab closed the connection: {reason}"),
                Err(error) => return format!("the lab is gone: {error}"),
            }
        }
    }

    /// Asks; returns the number of the call.
    pub(super) fn ask(&self, ask: Ask<'_>) -> Result<u64> {
        let (what, name) = match &ask {
            Ask::Signal { state } | Ask::Barrier { state, .. } => ("state", *state),
            Ask::Publish { topic, .. } | Ask::Subscribe { topic } => ("topic", *topic),
        };
        let size = match &ask {
            Ask::Publish { payload, .. } => payload.len(),
            Ask::Signal { .. } | Ask::Barrier { .. } | Ask::Subscribe { .. } => 0,
        };
        let failed = if name.is_empty() || name.len() > MAX_NAME {
            let size = name.len();
            Some(format!("the name of a {what} has {size} bytes; it may have 1 to {MAX_NAME}"))
        } else if size > MAX_PAYLOAD {
            Some(format!("a message of {size} bytes; {MAX_PAYLOAD} are allowed"))
        } else {
            None
        };
        let call = {
            let mut state = lock(&self.state);
            let failed = failed.or_else(|| state.gone.clone());
            let call = state.next;
            state.next += 1;
            let lasting = matches!(ask, Ask::Barrier { .. } | Ask::Subscribe { .. });
            let asked = failed.is_none();
            let answer = failed.map(|reason| Err(Error::Refused(reason)));
            state.calls.insert(call, Call { lasting, answer, messages: VecDeque::new(), position: 0 });
            if !asked {
                return Ok(call);
            }
            call
        };
        let key = Json::Text(format!("{}:{what}s:{name}", self.prefix));
        let request = match ask {
            Ask::Signal { .. } => format!("\"signal_entry\":{{\"state\":{key}}}"),
            Ask::Barrier { target, .. } => {
                // The protocol counts in signed numbers, and nothing is ever signalled so often.
                let target = target.min(i64::MAX as u64);
                format!("\"barrier\":{{\"state\":{key},\"target\":{target}}}")
            }
            Ask::Publish { payload, .. } => {
                let payload = base64::encode(payload);
                format!("\"publish\":{{\"topic\":{key},\"payload\":\"{payload}\",\"encoding\":\"base64\"}}")
            }
            Ask::Subscribe { .. } => format!("\"subscribe\":{{\"topic\":{key},\"encoding\":\"base64\"}}"),
        };
        self.send(&format!("{{\"id\":\"{call}\",\"is_cancel\":false,{request}}}"));
        Ok(call)
    }

    /// Takes the answers of calls that belong together: an error of any, or the number of the first once all are there.
    pub(super) fn take_answers(&self, calls: &[u64]) -> Option<Result<u64>> {
        let state = lock(&self.state);
        let answer = |call: &u64| state.calls.get(call).and_then(|call| call.answer.clone());
        let answers: Vec<Option<Result<u64>>> = calls.iter().map(answer).collect();
        if let Some(Err(error)) = answers.iter().flatten().find(|answer| answer.is_err()) {
            return Some(Err(error.clone()));
        }
        if answers.iter().all(Option::is_some) {
            return answers.into_iter().next().flatten();
        }
        state.gone.is_some().then(|| Err(state.over()))
    }

    /// Takes the next message of a subscription. Why there will be no more is said again each time.
    pub(super) fn take_message(&self, call: u64) -> Option<Result<Message>> {
        let mut state = lock(&self.state);
        let over = state.gone.is_some().then(|| state.over());
        let call = state.calls.get_mut(&call)?;
        let Some(message) = call.messages.pop_front() else {
            return match &call.answer {
                Some(Err(error)) => Some(Err(error.clone())),
                Some(Ok(_)) | None => over.map(Err),
            };
        };
        state.waiting -= message.payload.len() + MESSAGE_OVERHEAD;
        Some(Ok(message))
    }

    /// Blocks until one of the events is there or the time is over; returns the positions of those that are.
    pub(super) fn wait(&self, events: &[Event], timeout: Option<Duration>) -> Vec<usize> {
        // A time beyond what the clock can say is no bound.
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = lock(&self.state);
        loop {
            let ready = events.iter().enumerate().filter(|(_, event)| state.has(&event.calls));
            let ready: Vec<usize> = ready.map(|(at, _)| at).collect();
            if !ready.is_empty() {
                return ready;
            }
            state = match end {
                None => self.news.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(end) => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Vec::new();
                    }
                    self.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Forgets calls; the lab is told to give up what it would go on with.
    pub(super) fn forget(&self, calls: &[u64]) {
        for call in calls {
            let given_up = {
                let mut state = lock(&self.state);
                let Some(forgotten) = state.calls.remove(call) else { continue };
                let waiting: usize = forgotten.messages.iter().map(|m| m.payload.len() + MESSAGE_OVERHEAD).sum();
                state.waiting -= waiting;
                forgotten.lasting && forgotten.answer.is_none() && state.gone.is_none()
            };
            if given_up {
                self.send(&format!("{{\"id\":\"{call}\",\"is_cancel\":true}}"));
            }
        }
    }

    /// Sends a request. Where that fails the connection is over, and the thread that reads sees it too.
    fn send(&self, request: &str) {
        let mut writer = lock(&self.writer);
        if let Err(error) = websocket::write_text(&mut *writer, request) {
            let _ = writer.shutdown(std::net::Shutdown::Both);
            let mut state = lock(&self.state);
            state.gone.get_or_insert(format!("the lab is gone: {error}"));
            self.news.notify_all();
        }
    }

    /// Takes a reply of the lab; one that nobody waits for is dropped.
    fn deliver(&self, reply: &str) {
        let Some(reply) = json::parse(reply) else { return };
        let id = reply.field("id").and_then(Json::text).and_then(|id| id.parse().ok());
        let mut state = lock(&self.state);
        let waiting = state.waiting;
        let Some(call) = id.and_then(|id: u64| state.calls.get_mut(&id)) else { return };
        let text = |name: &str| reply.field(name).and_then(Json::text).filter(|text| !text.is_empty());
        let seq = |name: &str| reply.field(name).and_then(|field| field.field("seq")).and_then(Json::count);
        let mut cost = 0;
        if let Some(error) = text("error") {
            call.settle(Err(Error::Refused(error.to_owned())));
        } else if let Some(message) = text("subscribe") {
            call.position += 1;
            let payload = json::parse(message).and_then(|json| base64::decode(json.text()?));
            match payload {
                _ if call.answer.is_some() => {}
                None => call.settle(Err(Error::Refused("a message that is no base64".to_owned()))),
                Some(payload) if waiting + payload.len() + MESSAGE_OVERHEAD > MAX_WAITING => {
                    let reason = format!("more than {MAX_WAITING} bytes of messages waited to be read");
                    call.settle(Err(Error::Refused(reason)));
                }
                Some(payload) => {
                    cost = payload.len() + MESSAGE_OVERHEAD;
                    call.messages.push_back(Message { position: call.position, payload });
                }
            }
        } else {
            call.settle(Ok(seq("signal_entry").or_else(|| seq("publish")).unwrap_or(0)));
        }
        state.waiting += cost;
        drop(state);
        self.news.notify_all();
    }
}

impl State {
    /// Returns whether there is something to take: all answers, an error among them, or a message.
    fn has(&self, calls: &[u64]) -> bool {
        let known = || calls.iter().filter_map(|call| self.calls.get(call));
        self.gone.is_some()
            || known().any(|call| matches!(call.answer, Some(Err(_))))
            || known().all(|call| call.answer.is_some() || !call.messages.is_empty())
    }

    fn over(&self) -> Error {
        Error::Refused(self.gone.clone().unwrap_or_default())
    }
}

impl Call {
    fn settle(&mut self, answer: Result<u64>) {
        if self.answer.is_none() {
            self.answer = Some(answer);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// A client with a thread that reads, and the service's end of its connection.
    fn connect() -> (&'static Client, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let service = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").unwrap();
            stream
        });
        let client = Client::open(TcpStream::connect(address).unwrap(), "lab", "run:r:plan:p:case:c".to_owned());
        let client: &'static Client = Box::leak(Box::new(client.unwrap()));
        client.start_reading().unwrap();
        (client, service.join().unwrap())
    }

    /// Reads a request of fewer than 126 bytes.
    fn request(service: &mut TcpStream) -> String {
        let mut head = [0; 6];
        service.read_exact(&mut head).unwrap();
        let mut request = vec![0; usize::from(head[1] & 0x7f)];
        service.read_exact(&mut request).unwrap();
        String::from_utf8(request).unwrap()
    }

    fn say(service: &mut TcpStream, first: u8, data: &[u8]) {
        let mut frame = vec![first, 127];
        frame.extend((data.len() as u64).to_be_bytes());
        frame.extend(data);
        service.write_all(&frame).unwrap();
    }

    fn reply(service: &mut TcpStream, id: u64, fields: &str) {
        say(service, 0x81, format!("{{\"id\":\"{id}\",{fields}}}").as_bytes());
    }

    fn wait(client: &Client, call: u64) {
        assert_eq!(client.wait(&[Event { calls: vec![call] }], None), [0]);
    }

    #[test]
    fn a_subscription_that_is_not_read_ends_and_nothing_else_does() {
        let (client, mut service) = connect();
        let topic = client.ask(Ask::Subscribe { topic: "t" }).unwrap();
        let message = format!("\"subscribe\":\"\\\"{}\\\"\"", base64::encode(&vec![7; 1 << 20]));
        for _ in 0..9 {
            reply(&mut service, topic, &message);
        }
        let signal = client.ask(Ask::Signal { state: "s" }).unwrap();
        reply(&mut service, signal, "\"signal_entry\":{\"seq\":3}");
        wait(client, signal);
        assert_eq!(client.take_answers(&[signal]), Some(Ok(3)));
        for position in 1..8 {
            let message = client.take_message(topic).unwrap().unwrap();
            assert_eq!((message.position, message.payload.len()), (position, 1 << 20));
        }
        for _ in 0..2 {
            assert!(matches!(client.take_message(topic), Some(Err(Error::Refused(_)))));
        }
    }

    #[test]
    fn the_lab_is_told_what_is_given_up() {
        let (client, mut service) = connect();
        let barrier = client.ask(Ask::Barrier { state: "s", target: u64::MAX }).unwrap();
        let asked = request(&mut service);
        assert!(asked.contains("\"state\":\"run:r:plan:p:case:c:states:s\",\"target\":9223372036854775807"), "{asked}");
        client.forget(&[barrier]);
        assert_eq!(request(&mut service), "{\"id\":\"0\",\"is_cancel\":true}");
        // A signal counts although nobody waits for its number, and what was answered is over.
        let signal = client.ask(Ask::Signal { state: "s" }).unwrap();
        assert!(request(&mut service).contains("signal_entry"));
        client.forget(&[signal]);
        let open = client.ask(Ask::Barrier { state: "s", target: 1 }).unwrap();
        assert!(request(&mut service).contains("barrier"));
        reply(&mut service, open, "\"error\":\"\"");
        wait(client, open);
        client.forget(&[open]);
        client.ask(Ask::Subscribe { topic: "last" }).unwrap();
        assert!(request(&mut service).contains("last"));
    }

    #[test]
    fn nothing_is_waited_for_once_the_lab_is_gone() {
        let (client, mut service) = connect();
        let barrier = client.ask(Ask::Barrier { state: "s", target: 2 }).unwrap();
        say(&mut service, 0x89, b"are you there");
        say(&mut service, 0x88, b"\x03\xe8the run is over");
        wait(client, barrier);
        let expected = Error::Refused("the lab closed the connection: the run is over".to_owned());
        assert_eq!(client.take_answers(&[barrier]), Some(Err(expected.clone())));
        let late = client.ask(Ask::Subscribe { topic: "t" }).unwrap();
        wait(client, late);
        assert_eq!(client.take_message(late), Some(Err(expected)));
    }
}
