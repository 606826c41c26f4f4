//! The connection to the lab: one for the program, made by the first call, with a thread that reads.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufReader, ErrorKind};
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

/// Time between two tries to reach a lab that is gone. A lablet that is started again takes its containers over, and
/// until it does their connections wait.
const RECONNECT: Duration = Duration::from_millis(250);

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
    /// Where the lab listens.
    address: (String, u16),
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

#[derive(Debug, Default)]
struct Call {
    /// Whether the lab is told when it is given up.
    lasting: bool,
    /// As it was sent, for calls that are asked again where the lab was away.
    request: Option<String>,
    /// Messages that come again on a new connection and were there before.
    again: u64,
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
        Client::open((host.clone(), port), prefix).map_err(no_lab)
    }

    fn open(address: (String, u16), prefix: String) -> std::io::Result<Client> {
        let writer = Mutex::new(dial(&address)?);
        Ok(Client { address, prefix, writer, state: Mutex::default(), news: Condvar::new() })
    }

    fn start_reading(&'static self) -> Result<()> {
        let stream = lock(&self.writer).try_clone()?;
        let thread = std::thread::Builder::new().name("iptl-lab".to_owned()).stack_size(STACK);
        thread.spawn(move || {
            let mut stream = stream;
            let reason = loop {
                match self.read(stream) {
                    Some(reason) => break reason,
                    None => match self.reconnect() {
                        Ok(again) => stream = again,
                        Err(error) => break format!("the lab is gone: {error}"),
                    },
                }
            };
            lock(&self.state).gone = Some(reason);
            self.news.notify_all();
        })?;
        Ok(())
    }

    /// Reads answers until the connection is over; returns why there will be no other, where the lab says so.
    fn read(&self, stream: TcpStream) -> Option<String> {
        let mut stream = BufReader::new(stream);
        loop {
            match websocket::read(&mut stream) {
                Ok(Heard::Message(reply)) => self.deliver(&reply),
                Ok(Heard::Ping(data)) => websocket::write_pong(&mut *lock(&self.writer), &data).ok()?,
                Ok(Heard::Close(reason)) => return Some(format!("the lab closed the connection: {reason}")),
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    return Some(format!("the lab is gone: {error}"));
                }
                Err(_) => return None,
            }
        }
    }

    /// Connects again, and asks for everything that is still waited for. A signal or publication that was under way may
    /// have counted or not, so it fails with that.
    ///
    /// Fails where nobody listens any more. While somebody might accept, it waits: the lab ends a program that it has
    /// lost.
    fn reconnect(&self) -> std::io::Result<TcpStream> {
        let stream = loop {
            match dial(&self.address) {
                Ok(stream) => break stream,
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Err(error),
                Err(_) => std::thread::sleep(RECONNECT),
            }
        };
        // Who asks meanwhile waits for the writer, and then writes to the new connection.
        let mut writer = lock(&self.writer);
        *writer = stream.try_clone()?;
        let mut state = lock(&self.state);
        for call in state.calls.values_mut().filter(|call| call.answer.is_none()) {
            if let Some(request) = &call.request {
                call.again = call.position;
                websocket::write_text(&mut *writer, request)?;
            } else {
                let reason = "the lab was away while this was under way: it may have counted or not";
                call.settle(Err(Error::Refused(reason.to_owned())));
            }
        }
        drop(state);
        self.news.notify_all();
        Ok(stream)
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
            if let Some(reason) = failed {
                state.calls.insert(call, Call { answer: Some(Err(Error::Refused(reason))), ..Call::default() });
                return Ok(call);
            }
            call
        };
        let lasting = matches!(ask, Ask::Barrier { .. } | Ask::Subscribe { .. });
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
        let request = format!("{{\"id\":\"{call}\",\"is_cancel\":false,{request}}}");
        // Nobody connects anew between the two: a request is either known then, or goes to the new connection.
        let mut writer = lock(&self.writer);
        let known = Call { lasting, request: lasting.then(|| request.clone()), ..Call::default() };
        lock(&self.state).calls.insert(call, known);
        send(&mut writer, &request);
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
                send(&mut lock(&self.writer), &format!("{{\"id\":\"{call}\",\"is_cancel\":true}}"));
            }
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
            if call.again > 0 {
                call.again -= 1;
                return;
            }
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

/// Sends a request. Where that fails the connection is over, and the thread that reads sees it too.
fn send(writer: &mut TcpStream, request: &str) {
    if websocket::write_text(writer, request).is_err() {
        let _ = writer.shutdown(std::net::Shutdown::Both);
    }
}

fn dial((host, port): &(String, u16)) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect((host.as_str(), *port))?;
    stream.set_nodelay(true)?;
    websocket::shake_hands(&mut stream, host)?;
    Ok(stream)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// A client with a thread that reads, the service's end of its connection, and where it would connect again.
    fn connect() -> (&'static Client, TcpStream, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let service = std::thread::spawn(move || (accept(&listener), listener));
        let address = ("127.0.0.1".to_owned(), address.port());
        let client = Client::open(address, "run:r:plan:p:case:c".to_owned());
        let client: &'static Client = Box::leak(Box::new(client.unwrap()));
        client.start_reading().unwrap();
        let (stream, listener) = service.join().unwrap();
        (client, stream, listener)
    }

    fn accept(listener: &TcpListener) -> TcpStream {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").unwrap();
        stream
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
        let (client, mut service, _listener) = connect();
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
        let (client, mut service, _listener) = connect();
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
        let (client, mut service, _listener) = connect();
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

    #[test]
    fn a_lab_that_was_away_is_asked_again_for_all_that_is_waited_for() {
        let (client, mut service, listener) = connect();
        let topic = client.ask(Ask::Subscribe { topic: "t" }).unwrap();
        let barrier = client.ask(Ask::Barrier { state: "s", target: 2 }).unwrap();
        let signal = client.ask(Ask::Signal { state: "s" }).unwrap();
        let message = |n: u8| format!("\"subscribe\":\"\\\"{}\\\"\"", base64::encode(&[n]));
        reply(&mut service, topic, &message(1));
        reply(&mut service, topic, &message(2));
        wait(client, topic);
        assert_eq!(client.take_message(topic).unwrap().unwrap().payload, [1]);
        let second = loop {
            wait(client, topic);
            if let Some(message) = client.take_message(topic) {
                break message.unwrap();
            }
        };
        assert_eq!(second.payload, [2]);
        drop(service);
        let mut service = accept(&listener);
        assert!(request(&mut service).contains("topics:t"));
        assert!(request(&mut service).contains("\"target\":2"));
        // Nobody knows whether the signal counted.
        wait(client, signal);
        assert!(matches!(client.take_answers(&[signal]), Some(Err(Error::Refused(why))) if why.contains("away")));
        // Messages that were there come again, and are told once.
        for n in 1..4 {
            reply(&mut service, topic, &message(n));
        }
        wait(client, topic);
        let third = client.take_message(topic).unwrap().unwrap();
        assert_eq!((third.position, third.payload), (3, vec![3]));
        reply(&mut service, barrier, "\"error\":\"\"");
        wait(client, barrier);
        assert_eq!(client.take_answers(&[barrier]), Some(Ok(0)));
        drop(listener);
        drop(service);
        let late = client.ask(Ask::Barrier { state: "s", target: 3 }).unwrap();
        wait(client, late);
        assert!(matches!(client.take_answers(&[late]), Some(Err(Error::Refused(why))) if why.contains("gone")));
    }
}
