//! What clients send that they must not, and what comes of it: the instance is told, and nobody else notices.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::go::{Client, Heard, key, publish};
use crate::lab::{Lab, PATIENCE};

/// Sends a message and expects the connection to be closed; the instance can connect again.
async fn check_closed(message: &[u8], code: u16, reason: &str) {
    let lab = Lab::new(1);
    let address = lab.serve(0);
    let mut client = Client::connect(address).await;
    client.binary(message).await;
    assert_eq!(client.hear().await, Heard::Closed(code, reason.to_owned()));
    assert_eq!(Client::connect(address).await.signal("still here").await, 1);
}

#[tokio::test]
async fn sync_request_that_is_no_json() {
    for message in [&b"no json"[..], b"", b"null", b"[1]", b"{\"id\":3}", b"{\"id\":\"1\",\"barrier\":7}", b"\xff\xfe"]
    {
        check_closed(message, 1007, "failed to unmarshal JSON").await;
    }
    let deep = "{\"publish\":".repeat(100_000);
    check_closed(deep.as_bytes(), 1009, "a message may have 524288 bytes").await;
    check_closed(&deep.as_bytes()[..500_000], 1007, "failed to unmarshal JSON").await;
}

#[tokio::test]
async fn sync_request_that_is_endless() {
    let lab = Lab::new(1);
    let address = lab.serve(0);
    // One frame that says that it is longer than anything.
    let mut client = Client::connect(address).await;
    client.raw(&[0x81, 0xff, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4]).await.unwrap();
    assert_eq!(client.hear().await, Heard::Closed(1009, "a message may have 524288 bytes".to_owned()));
    // Fragments without an end.
    let mut client = Client::connect(address).await;
    client.frame(1, &[b' '; 60_000]).await;
    for _ in 0..8 {
        client.frame(0, &[b' '; 60_000]).await;
    }
    assert_eq!(client.hear().await, Heard::Closed(1009, "a message may have 524288 bytes".to_owned()));
    // A handshake without an end.
    let mut stream = TcpStream::connect(address).await.unwrap();
    let header = [b'x'; 8192];
    let refused = async {
        stream.write_all(b"GET / HTTP/1.1\r\nX: ").await?;
        loop {
            stream.write_all(&header).await?;
        }
    };
    let refused: std::io::Result<()> = tokio::time::timeout(PATIENCE, refused).await.expect("it is cut off");
    assert!(refused.is_err());
    assert_eq!(Client::connect(address).await.signal("still here").await, 1);
}

#[tokio::test]
async fn sync_request_for_another_run() {
    let lab = Lab::new(1);
    let mut client = Client::connect(lab.serve(0)).await;
    let other = "run:r2:plan:demo:case:default";
    for request in [
        format!("\"signal_entry\":{{\"state\":\"{other}:states:ready\"}}"),
        format!("\"barrier\":{{\"state\":\"{other}:states:ready\",\"target\":1}}"),
        format!("\"publish\":{{\"topic\":\"{other}:topics:t\",\"payload\":1}}"),
        format!("\"publish\":{{\"topic\":\"{other}:run_events\",\"payload\":{{\"success_event\":{{}}}}}}"),
        format!("\"subscribe\":{{\"topic\":\"{other}:topics:t\"}}"),
        "\"signal_entry\":{\"state\":\"ready\"}".to_owned(),
    ] {
        let reply = client.ask(&request).await;
        let error = reply["error"].as_str().unwrap();
        assert!(
            error.contains("is not of this run, whose keys begin with \"run:r1:plan:demo:case:default:\""),
            "{error}"
        );
    }
    assert_eq!(lab.calls(), 0, "the lab was asked");
    assert_eq!(lab.exit(0, 3), iptl_dag::model::Exit::Exited { code: 3 }, "an event of another run counted");
    assert_eq!(client.signal("ready").await, 1);
}

#[tokio::test]
async fn sync_request_of_no_kind() {
    let lab = Lab::new(1);
    let mut client = Client::connect(lab.serve(0)).await;
    let reply = client.ask("\"explode\":{\"state\":\"x\"}").await;
    assert_eq!(reply["error"], "the request names none of publish, subscribe, barrier and signal_entry");
    // Rust's client parses the text of an error.
    let mut rust = Client::connect_as_rust(lab.serve(0)).await;
    let reply = rust.ask("\"explode\":{}").await;
    let error: String = serde_json::from_str(reply["error"].as_str().unwrap()).unwrap();
    assert!(error.starts_with("the request names none"), "{error}");
}

#[tokio::test]
async fn names_and_payloads_beyond_their_bounds() {
    let lab = Lab::new(1);
    let mut client = Client::connect(lab.serve(0)).await;
    let long = "n".repeat(257);
    let fat = format!("\"{}\"", "x".repeat(256 << 10));
    let deep = format!("{}{}", "[".repeat(129), "]".repeat(129));
    let rows = [
        (format!("\"signal_entry\":{{\"state\":\"{}\"}}", key("states", &long)), "a state whose name has 257 bytes"),
        (format!("\"subscribe\":{{\"topic\":\"{}\"}}", key("topics", "")), "names no topic"),
        (publish("t", &fat), "a message of 262146 bytes; 262144 are allowed"),
        (publish("t", &deep), "nests deeper than 128"),
    ];
    for (request, expected) in rows {
        let reply = client.ask(&request).await;
        assert!(reply["error"].as_str().unwrap().contains(expected), "{reply}");
    }
    assert_eq!(lab.calls(), 0);
}

#[tokio::test]
async fn more_barriers_than_may_be_open() {
    let lab = Lab::new(1);
    let mut client = Client::connect(lab.serve(0)).await;
    for _ in 0..448 {
        client.barrier("never", 2).await;
    }
    client.barrier("never", 2).await;
    let reply = client.reply().await;
    assert_eq!(reply["id"], "448");
    assert_eq!(reply["error"], "448 barriers and subscriptions of this connection are open already");
    // Given up, they count no more.
    client.binary(br#"{"id":"0","is_cancel":true}"#).await;
    assert_eq!(client.signal("other").await, 1);
    client.barrier("other", 1).await;
    assert_eq!(client.reply().await["error"], "");
}

#[tokio::test]
async fn more_connections_than_an_instance_may_have() {
    let lab = Lab::new(2);
    let address = lab.serve(0);
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(Client::connect(address).await);
    }
    let mut ninth = TcpStream::connect(address).await.unwrap();
    let closed = tokio::time::timeout(PATIENCE, ninth.read_u8()).await.expect("it is closed");
    assert!(closed.is_err());
    // The others of the instance and other instances go on.
    assert_eq!(clients[7].signal("here").await, 1);
    assert_eq!(Client::connect(lab.serve(1)).await.signal("here").await, 2);
}

#[tokio::test]
async fn a_client_that_asks_and_never_reads() {
    let lab = Lab::new(2);
    let mut deaf = Client::connect(lab.serve(0)).await;
    // It is read until what it does not take fills its share, and not beyond; what it asked then counts.
    let flood = async {
        loop {
            let ping = format!("{{\"id\":\"{}\",\"explode\":0}}", "7".repeat(60));
            deaf.binary(ping.as_bytes()).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(1), flood).await.is_err(), "it has no end by itself");
    let mut other = Client::connect(lab.serve(1)).await;
    assert_eq!(other.signal("unharmed").await, 1);
}

#[tokio::test]
async fn a_message_that_clients_on_the_go_sdk_cannot_read() {
    let lab = Lab::new(2);
    let mut go = Client::connect(lab.serve(0)).await;
    let id = go.subscribe("large").await;
    lab.publish(1, "large", "1").await;
    assert_eq!(go.reply().await["subscribe"], "1");
    lab.publish(1, "large", format!("\"{}\"", "x".repeat(40_000))).await;
    let reply = go.reply().await;
    assert_eq!(reply["id"], id.as_str());
    assert!(reply["error"].as_str().unwrap().starts_with("message 2 of topic large takes 40"), "{reply}");
    assert_eq!(go.signal("lives on").await, 1);
}
