//! What clients send: one JSON object for each request.

use serde::Deserialize;
use serde_json::value::RawValue;

/// Deepest nesting of a payload: what parsers of other clients take.
pub const MAX_DEPTH: usize = 128;

/// Longest `id` of a request in bytes; SDKs count in decimal.
pub const MAX_ID: usize = 64;

/// A request as it stands in a message.
#[derive(Debug, Deserialize)]
pub struct Request<'a> {
    /// What the answers carry.
    #[serde(default)]
    pub id: Option<String>,
    /// Gives up an earlier request with this `id`.
    #[serde(default)]
    pub is_cancel: Option<bool>,
    /// Publishes.
    #[serde(default, borrow)]
    pub publish: Option<Publish<'a>>,
    /// Subscribes.
    #[serde(default)]
    pub subscribe: Option<Subscribe>,
    /// Waits.
    #[serde(default)]
    pub barrier: Option<Barrier>,
    /// Signals.
    #[serde(default)]
    pub signal_entry: Option<SignalEntry>,
}

/// Publishes a payload on a topic.
#[derive(Debug, Deserialize)]
pub struct Publish<'a> {
    /// Key of the topic.
    #[serde(default)]
    pub topic: String,
    /// Any JSON.
    #[serde(default, borrow)]
    pub payload: Option<&'a RawValue>,
    /// How bytes stand in the payload.
    #[serde(default)]
    pub encoding: Option<Encoding>,
}

/// Subscribes to a topic.
#[derive(Debug, Deserialize)]
pub struct Subscribe {
    /// Key of the topic.
    #[serde(default)]
    pub topic: String,
    /// How bytes are to stand in messages.
    #[serde(default)]
    pub encoding: Option<Encoding>,
}

/// Waits until a state has had so many signals.
#[derive(Debug, Deserialize)]
pub struct Barrier {
    /// Key of the state.
    #[serde(default)]
    pub state: String,
    /// Signals; zero and below are met at once.
    #[serde(default)]
    pub target: i64,
}

/// Signals a state.
#[derive(Debug, Deserialize)]
pub struct SignalEntry {
    /// Key of the state.
    #[serde(default)]
    pub state: String,
}

/// How bytes stand in JSON; an extension of the lab's own SDK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// As a string of base64, with padding.
    Base64,
}

/// Why a message is no request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It is no JSON, or no JSON of this shape.
    #[error("failed to unmarshal JSON")]
    NoJson,
    /// Its `id` is too long to be repeated.
    #[error("an id of {size} bytes; {MAX_ID} are allowed")]
    LongId {
        /// Its length in bytes.
        size: usize,
    },
}

/// Reads a message. Whitespace around it, such as the end of line of the Go SDK, does not count.
pub fn read(message: &[u8]) -> Result<Request<'_>, RequestError> {
    // A list of the right values would be read as the object too.
    if message.trim_ascii_start().first() != Some(&b'{') {
        return Err(RequestError::NoJson);
    }
    let request: Request<'_> = serde_json::from_slice(message).map_err(|_| RequestError::NoJson)?;
    match request.id.as_ref().map(String::len) {
        Some(size) if size > MAX_ID => Err(RequestError::LongId { size }),
        Some(_) | None => Ok(request),
    }
}

/// Returns whether JSON nests no deeper than [`MAX_DEPTH`]. It is a scan, so that depth costs no stack.
pub fn is_shallow(json: &str) -> bool {
    let (mut depth, mut text, mut escaped) = (0usize, false, false);
    for byte in json.bytes() {
        if text {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => text = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => text = true,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_every_sdk_are_read() {
        // Go and Rust, with the end of line that Go's encoder writes.
        let go = br#"{"id":"0","is_cancel":false,"publish":{"topic":"t","payload":{"a":[1,2.50]}}}
"#;
        let publish = read(go).unwrap().publish.unwrap();
        assert_eq!((publish.topic.as_str(), publish.payload.unwrap().get()), ("t", r#"{"a":[1,2.50]}"#));
        // JavaScript: no is_cancel, the id at the end.
        let js = read(br#"{"barrier":{"state":"s","target":-1},"id":"17"}"#).unwrap();
        assert_eq!((js.id.as_deref(), js.barrier.unwrap().target), (Some("17"), -1));
        // All keys of Go's struct, the others null.
        let nulls = read(br#"{"id":"3","is_cancel":false,"publish":null,"subscribe":{"topic":"t"},"barrier":null}"#);
        assert!(nulls.unwrap().subscribe.is_some());
        let payload = read(br#"{"id":"1","publish":{"topic":"t","payload":null}}"#).unwrap().publish.unwrap().payload;
        assert_eq!(payload.map_or("null", RawValue::get), "null");
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let deep = "[".repeat(100_000);
        let unknown = format!(r#"{{"id":"1","other":{deep}"#);
        for bad in
            ["", "null", "x", "[]", "{", r#"{"id":1}"#, r#"{"id":"1","barrier":{"target":1e99}}"#, &deep, &unknown]
        {
            assert_eq!(
                read(bad.as_bytes()).map(|_| ()).unwrap_err(),
                RequestError::NoJson,
                "{}",
                &bad[..bad.len().min(40)]
            );
        }
        assert_eq!(read(b"\xff\xfe{}").map(|_| ()).unwrap_err(), RequestError::NoJson);
        let long = format!(r#"{{"id":"{}"}}"#, "1".repeat(65));
        assert_eq!(read(long.as_bytes()).map(|_| ()).unwrap_err(), RequestError::LongId { size: 65 });
    }

    #[test]
    fn depth_is_bounded_without_a_stack() {
        assert!(is_shallow(r#"{"a":"[[[[\"{{{{","b":[[]]}"#));
        assert!(is_shallow(&format!("{}{}", "[".repeat(128), "]".repeat(128))));
        assert!(!is_shallow(&"[".repeat(129)));
        assert!(is_shallow(&"[],".repeat(1000)));
        assert!(!is_shallow(&"{\"a\":".repeat(1 << 20)));
    }
}
