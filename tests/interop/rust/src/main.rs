//! Does what the Rust SDK of Testground can do, and says what it saw.
//!
//! Case `tour`: all meet, publish where they stand, read what the others published, and meet again. Case `fail`: says
//! that it failed. Case `panic`: panics. Case `stall`: waits for what never comes. Case `shape`: the second instance has
//! its network shaped and says what that did to its conversation with the first.

use std::borrow::Cow;
use std::error::Error;

mod shape;

use testground::client::Client;
use tokio_stream::StreamExt;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = Client::new_and_init().await?;
    let parameters = client.run_parameters();
    match parameters.test_case.as_str() {
        "tour" => tour(client).await,
        "shape" => shape::run(client).await,
        "fail" => Ok(client.record_failure("as it was told").await?),
        "panic" => panic!("as it was told"),
        "stall" => Ok(client.barrier("never", u64::MAX >> 1).await?),
        other => Ok(client.record_failure(format!("no case is called {other}")).await?),
    }
}

async fn tour(client: Client) -> Result<(), Box<dyn Error>> {
    let parameters = client.run_parameters();
    let count = parameters.test_instance_count;
    let parameter = |name: &str| parameters.test_instance_params.get(name).cloned().unwrap_or_default();
    client.record_message(format!("{} from {}, with {}", parameter("greeting"), parameters.hostname, parameter("odd")));

    let place = serde_json::json!({ "seq": client.global_seq(), "host": parameters.hostname });
    client.publish("places", Cow::Owned(place)).await?;
    let mut places = client.subscribe("places", u16::MAX.into()).await;
    let mut seen = Vec::new();
    while (seen.len() as u64) < count {
        let place = places.next().await.ok_or("the topic ended")??;
        seen.push(place["seq"].as_u64().ok_or("a place without a number")?);
    }
    seen.sort_unstable();
    client.record_message(format!("saw {seen:?}"));

    let last = client.signal_and_wait("seen", count).await?;
    client.record_message(format!("number {last} of {count}"));
    if seen == (1..=count).collect::<Vec<u64>>() {
        client.record_success().await?;
    } else {
        client.record_failure(format!("the places are {seen:?}")).await?;
    }
    Ok(())
}
