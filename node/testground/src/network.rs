//! What an instance asks of its network, as far as this server answers it.
//!
//! A program publishes a configuration on the topic of its host name and waits until a state of its choice was
//! signalled for it. A configuration that asks for nothing but the network as it is gets its signal; one that asks for
//! more is refused with what it asked for, since a program would wait for its signal for ever.

use serde::Deserialize;

/// A configuration, with the parts that decide.
#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default)]
    network: Option<String>,
    #[serde(default, rename = "IPv4")]
    ipv4: Option<String>,
    #[serde(default, rename = "IPv6")]
    ipv6: Option<String>,
    #[serde(default)]
    enable: Option<bool>,
    #[serde(default)]
    default: Option<Shape>,
    #[serde(default)]
    rules: Option<Vec<serde::de::IgnoredAny>>,
    #[serde(default)]
    routing_policy: Option<String>,
    #[serde(default)]
    callback_state: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Shape {
    latency: Option<f64>,
    jitter: Option<f64>,
    bandwidth: Option<f64>,
    loss: Option<f64>,
    corrupt: Option<f64>,
    reorder: Option<f64>,
    duplicate: Option<f64>,
}

/// Reads a configuration; returns the state that is to be signalled for it, or why it cannot be had.
pub(crate) fn callback(config: &str) -> Result<String, String> {
    let config: Config = serde_json::from_str(config).map_err(|e| format!("a network configuration: {e}"))?;
    let wanted = wanted(&config);
    if !wanted.is_empty() {
        return Err(format!("the network of this instance cannot be changed, and this asks for {}", wanted.join(", ")));
    }
    match config.callback_state {
        Some(state) if !state.is_empty() => Ok(state),
        Some(_) | None => Err("a network configuration names no callback_state".to_owned()),
    }
}

/// Lists what a configuration asks for beyond the network as it is.
fn wanted(config: &Config) -> Vec<&'static str> {
    let shape = config.default.as_ref();
    let value = |of: fn(&Shape) -> Option<f64>| shape.and_then(of).is_some_and(|value| value != 0.0);
    let text = |value: &Option<String>| value.as_ref().is_some_and(|value| !value.is_empty());
    let rows = [
        ("another network than default", text(&config.network) && config.network.as_deref() != Some("default")),
        ("an address", text(&config.ipv4) || text(&config.ipv6)),
        ("no network", config.enable != Some(true)),
        ("latency", value(|s| s.latency) || value(|s| s.jitter)),
        ("bandwidth", value(|s| s.bandwidth)),
        ("loss", value(|s| s.loss)),
        ("corruption", value(|s| s.corrupt)),
        ("reordering", value(|s| s.reorder)),
        ("duplicates", value(|s| s.duplicate)),
        ("rules", config.rules.as_ref().is_some_and(|rules| !rules.is_empty())),
        ("routes out of the lab", config.routing_policy.as_deref() == Some("allow_all")),
    ];
    rows.into_iter().filter_map(|(what, asked)| asked.then_some(what)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_as_it_is_can_be_had() {
        let zeros = r#"{"bandwidth":0,"corrupt":0,"filter":0,"jitter":0,"latency":0,"loss":0.0}"#;
        let go = format!(
            r#"{{"IPv4":null,"IPv6":null,"callback_state":"up","default":{zeros},"enable":true,"network":"default",
            "routing_policy":"deny_all","rules":null}}"#
        );
        assert_eq!(callback(&go), Ok("up".to_owned()));
        assert_eq!(callback(r#"{"enable":true,"callback_state":"up","rules":[]}"#), Ok("up".to_owned()));
    }

    #[test]
    fn anything_else_is_refused_with_what_it_was() {
        let reason = |config: &str| callback(config).unwrap_err();
        let shaped = r#"{"IPv4":"16.0.1.2/12","enable":true,"callback_state":"x","default":{"latency":100000000}}"#;
        assert!(reason(shaped).ends_with("asks for an address, latency"));
        assert!(reason(r#"{"callback_state":"x"}"#).ends_with("asks for no network"));
        assert!(reason(r#"{"enable":true,"callback_state":"x","routing_policy":"allow_all"}"#).ends_with("the lab"));
        assert!(reason(r#"{"enable":true}"#).ends_with("no callback_state"));
        assert!(reason("7").starts_with("a network configuration"));
    }
}
