//! The little of RFC 6455 that a client of the lab's own service needs: a handshake, and frames.

use std::io::{self, Error, ErrorKind, Read, Write};

/// Longest message of the lab in bytes: the largest payload, as base64 within a JSON text within JSON.
const MAX_MESSAGE: u64 = 4 << 20;

/// Longest answer to the handshake in bytes.
const MAX_HEAD: usize = 8 << 10;

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const LAST: u8 = 0x80;

/// What the service said.
#[derive(Debug, PartialEq)]
pub(super) enum Heard {
    /// A message.
    Message(String),
    /// A ping, to be answered with its data.
    Ping(Vec<u8>),
    /// It closes, with its reason.
    Close(String),
}

/// Asks a service to speak frames from now on.
///
/// The key is no secret and the service's hash of it proves nothing that its answer does not: nobody but the lab
/// listens there.
pub(super) fn shake_hands(stream: &mut (impl Read + Write), host: &str) -> io::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    write!(
        stream,
        "GET / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: iptl-sdk/{version}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: aXB0bC1uYXRpdmUtc2RrIQ==\r\n\r\n"
    )?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
        if head.len() > MAX_HEAD {
            return Err(invalid("its answer to the handshake has no end"));
        }
    }
    if head.starts_with(b"HTTP/1.1 101 ") {
        Ok(())
    } else {
        let line = String::from_utf8_lossy(&head);
        Err(invalid(&format!("it answers {}", line.lines().next().unwrap_or_default())))
    }
}

/// Writes a message.
pub(super) fn write_text(stream: &mut impl Write, text: &str) -> io::Result<()> {
    write_frame(stream, TEXT, text.as_bytes())
}

/// Answers a ping.
pub(super) fn write_pong(stream: &mut impl Write, data: &[u8]) -> io::Result<()> {
    write_frame(stream, PONG, data)
}

/// Writes a whole message in one frame. Its mask is zero: masks protect proxies from pages in a browser, and here is
/// neither.
fn write_frame(stream: &mut impl Write, kind: u8, data: &[u8]) -> io::Result<()> {
    let mut frame = vec![LAST | kind];
    match data.len() {
        size if size < 126 => frame.push(0x80 | size as u8),
        size => match u16::try_from(size) {
            Ok(size) => {
                frame.push(0x80 | 126);
                frame.extend(size.to_be_bytes());
            }
            Err(_) => {
                frame.push(0x80 | 127);
                frame.extend((size as u64).to_be_bytes());
            }
        },
    }
    frame.extend([0; 4]);
    frame.extend(data);
    stream.write_all(&frame)
}

/// Reads until the service has said something, fragments put together.
pub(super) fn read(stream: &mut impl Read) -> io::Result<Heard> {
    let mut message: Vec<u8> = Vec::new();
    loop {
        let mut head = [0; 2];
        stream.read_exact(&mut head)?;
        let (last, kind) = (head[0] & LAST != 0, head[0] & 0x0f);
        let size = match head[1] {
            126 => {
                let mut size = [0; 2];
                stream.read_exact(&mut size)?;
                u16::from_be_bytes(size).into()
            }
            127 => {
                let mut size = [0; 8];
                stream.read_exact(&mut size)?;
                u64::from_be_bytes(size)
            }
            size if size < 126 => size.into(),
            _ => return Err(invalid("it masks its frames")),
        };
        if size + message.len() as u64 > MAX_MESSAGE {
            return Err(invalid("its message is too long"));
        }
        let mut data = vec![0; size as usize];
        stream.read_exact(&mut data)?;
        match kind {
            0 | TEXT | BINARY => message.append(&mut data),
            PING => return Ok(Heard::Ping(data)),
            CLOSE => return Ok(Heard::Close(String::from_utf8_lossy(data.get(2..).unwrap_or_default()).into_owned())),
            _ => continue,
        }
        if last {
            return String::from_utf8(message).map(Heard::Message).map_err(|_| invalid("its message is no text"));
        }
    }
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_written_with_the_shortest_length() {
        for (size, head) in [
            (5, &[0x81, 0x85, 0, 0, 0, 0][..]),
            (126, &[0x81, 0xfe, 0, 126, 0, 0, 0, 0]),
            (70_000, &[0x81, 0xff, 0, 0, 0, 0, 0, 1, 0x11, 0x70, 0, 0, 0, 0]),
        ] {
            let mut frame = Vec::new();
            write_text(&mut frame, &"x".repeat(size)).unwrap();
            assert_eq!((&frame[..head.len()], frame.len()), (head, head.len() + size));
        }
    }

    #[test]
    fn messages_are_put_together() {
        let bytes =
            [&[0x01, 2][..], b"he", &[0x00, 1], b"l", &[0x80, 2], b"lo", &[0x89, 1], b"?", &[0x88, 4, 3, 232], b"no"];
        let bytes = bytes.concat();
        let mut stream = &bytes[..];
        assert_eq!(read(&mut stream).unwrap(), Heard::Message("hello".to_owned()));
        assert_eq!(read(&mut stream).unwrap(), Heard::Ping(b"?".to_vec()));
        assert_eq!(read(&mut stream).unwrap(), Heard::Close("no".to_owned()));
        assert!(read(&mut stream).is_err());
        assert!(read(&mut &[0x81, 127, 255, 255, 255, 255, 255, 255, 255, 0][..]).is_err());
        assert!(read(&mut &[0x81, 0x81, 1, 2, 3, 4, 5][..]).is_err());
    }
}
