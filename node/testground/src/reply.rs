//! What clients get: one JSON object for each answer, always with all five keys.
//!
//! A missing key makes the Rust SDK panic; so does an error that is no JSON by itself.

use data_encoding::BASE64;
use serde::Serialize;
use serde::de::IgnoredAny;

use crate::request::{self, Encoding};

/// Longest message in bytes that clients built on the Go SDK read; they end with a longer one.
pub const MAX_GO_MESSAGE: usize = 32_768;

/// Which client is at the other end, where that matters. It is known by what the client says when it connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Dialect {
    /// Built on the Go SDK: it reads no message over [`MAX_GO_MESSAGE`].
    Go,
    /// Built on the Rust SDK: it parses the text of an error as JSON.
    Rust,
    /// The lab's own SDK: it connects again by itself where its connection ends.
    Lab,
    /// Any other.
    #[default]
    Other,
}

/// An answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// Published at this position.
    Published(u64),
    /// Signalled, as the signal of this number.
    Signalled(u64),
    /// The barrier is met.
    Opened,
    /// A message, as JSON text.
    Message(&'a str),
    /// Why there is no answer.
    Failed(&'a str),
}

#[derive(Serialize)]
struct Reply<'a> {
    id: &'a str,
    error: &'a str,
    publish: Option<Seq>,
    subscribe: &'a str,
    signal_entry: Option<Seq>,
}

#[derive(Serialize)]
struct Seq {
    seq: u64,
}

/// Writes an answer for a client.
pub fn write(id: &str, answer: Answer<'_>, dialect: Dialect) -> String {
    let mut reply = Reply { id, error: "", publish: None, subscribe: "", signal_entry: None };
    let quoted;
    match answer {
        Answer::Published(seq) => reply.publish = Some(Seq { seq }),
        Answer::Signalled(seq) => reply.signal_entry = Some(Seq { seq }),
        Answer::Opened => {}
        Answer::Message(json) => reply.subscribe = json,
        Answer::Failed(reason) => match dialect {
            Dialect::Rust => {
                quoted = text(reason);
                reply.error = &quoted;
            }
            Dialect::Go | Dialect::Lab | Dialect::Other => reply.error = reason,
        },
    }
    serde_json::to_string(&reply).expect("keys are strings and it goes to memory")
}

/// Returns the JSON text in which a subscriber gets a payload.
///
/// What another Testground program published is handed on as it is. Bytes that are no JSON, which only other SDKs can
/// publish, become a string, or an object with one field `base64` where they are no text either.
pub fn payload_as_json(payload: &[u8], encoding: Option<Encoding>) -> String {
    if encoding == Some(Encoding::Base64) {
        return text(&BASE64.encode(payload));
    }
    match std::str::from_utf8(payload) {
        Ok(json) if is_json(json) => json.to_owned(),
        Ok(other) => text(other),
        Err(_) => format!("{{\"base64\":{}}}", text(&BASE64.encode(payload))),
    }
}

/// Returns whether text is JSON that any client can parse.
fn is_json(json: &str) -> bool {
    request::is_shallow(json) && serde_json::from_str::<IgnoredAny>(json).is_ok()
}

fn text(text: &str) -> String {
    serde_json::to_string(text).expect("text is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reply_has_all_five_keys() {
        let rows = [
            (Answer::Published(1), r#"{"id":"0","error":"","publish":{"seq":1},"subscribe":"","signal_entry":null}"#),
            (Answer::Signalled(4), r#"{"id":"0","error":"","publish":null,"subscribe":"","signal_entry":{"seq":4}}"#),
            (Answer::Opened, r#"{"id":"0","error":"","publish":null,"subscribe":"","signal_entry":null}"#),
            (
                Answer::Message(r#"{"seq":1}"#),
                r#"{"id":"0","error":"","publish":null,"subscribe":"{\"seq\":1}","signal_entry":null}"#,
            ),
            (
                Answer::Failed("topics are full"),
                r#"{"id":"0","error":"topics are full","publish":null,"subscribe":"","signal_entry":null}"#,
            ),
        ];
        for (answer, expected) in rows {
            assert_eq!(write("0", answer, Dialect::Other), expected);
        }
    }

    #[test]
    fn rust_clients_get_errors_that_they_can_parse() {
        let reply = write("0", Answer::Failed("no \"x\""), Dialect::Rust);
        let reply: serde_json::Value = serde_json::from_str(&reply).unwrap();
        let error: String = serde_json::from_str(reply["error"].as_str().unwrap()).unwrap();
        assert_eq!(error, "no \"x\"");
    }

    #[test]
    fn payloads_that_are_json_are_handed_on_as_they_are() {
        for json in ["null", "1", "9007199254740993", r#"{"b":1,"a":[2.50]}"#, r#""text""#] {
            assert_eq!(payload_as_json(json.as_bytes(), None), json);
        }
    }

    #[test]
    fn other_payloads_become_json() {
        assert_eq!(payload_as_json(b"hello \"you\"", None), r#""hello \"you\"""#);
        assert_eq!(payload_as_json(b"", None), r#""""#);
        assert_eq!(payload_as_json(b"\xff\x00", None), r#"{"base64":"/wA="}"#);
        assert_eq!(payload_as_json(b"1", Some(Encoding::Base64)), r#""MQ==""#);
        let deep = "[".repeat(1000);
        assert!(payload_as_json(deep.as_bytes(), None).starts_with('"'));
    }
}
