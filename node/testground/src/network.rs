//! What an instance asks of its network.
//!
//! A program publishes a configuration on the topic of its host name and waits until a state of its choice was
//! signalled for it, which happens once the configuration is in force. What cannot be had is refused with its reason,
//! since a program would wait for its signal for ever.

use iptl_labnet::{Filter, Shape, Subnet, Wish};
use serde::Deserialize;

/// Nanoseconds and bits per second are numbers of JSON, of which larger ones are none that anybody means.
const LARGEST: f64 = 1e18;

/// A configuration.
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
    default: Option<Link>,
    #[serde(default)]
    rules: Option<Vec<Rule>>,
    #[serde(default)]
    routing_policy: Option<String>,
    #[serde(default)]
    callback_state: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Link {
    latency: Option<f64>,
    jitter: Option<f64>,
    bandwidth: Option<f64>,
    filter: Option<u8>,
    loss: Option<f64>,
    corrupt: Option<f64>,
    corrupt_corr: Option<f64>,
    reorder: Option<f64>,
    reorder_corr: Option<f64>,
    duplicate: Option<f64>,
    duplicate_corr: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct Rule {
    #[serde(flatten)]
    link: Link,
    subnet: String,
}

/// Reads a configuration; returns what it asks for and the state that is to be signalled for it, or why it cannot be
/// had.
pub(crate) fn read(config: &[u8]) -> Result<(Wish, String), String> {
    let config: Config = serde_json::from_slice(config).map_err(|e| format!("a network configuration: {e}"))?;
    let text = |value: &Option<String>| value.as_ref().is_some_and(|value| !value.is_empty());
    let refusals = [
        ("another network than default", text(&config.network) && config.network.as_deref() != Some("default")),
        ("an address", text(&config.ipv4) || text(&config.ipv6)),
        ("routes out of the lab", config.routing_policy.as_deref() == Some("allow_all")),
    ];
    let refused: Vec<&str> = refusals.into_iter().filter_map(|(what, asked)| asked.then_some(what)).collect();
    if !refused.is_empty() {
        return Err(format!("instances cannot have what this asks for: {}", refused.join(", ")));
    }
    let shape = config.default.unwrap_or_default().read()?;
    let rules = config.rules.unwrap_or_default().into_iter().map(|rule| {
        let subnet: Subnet = rule.subnet.parse().map_err(|e| format!("a rule: {e}"))?;
        let shape = rule.link.read().map_err(|reason| format!("the rule for {subnet}: {reason}"))?;
        Ok((subnet, shape))
    });
    let wish = Wish {
        // Programs that leave it out ask for none, and the Go SDK always says it.
        enabled: config.enable == Some(true),
        shape,
        rules: rules.collect::<Result<_, String>>()?,
    };
    match config.callback_state {
        Some(state) if !state.is_empty() => Ok((wish, state)),
        Some(_) | None => Err("a network configuration names no callback_state".to_owned()),
    }
}

impl Link {
    fn read(&self) -> Result<Shape, String> {
        let correlations = [self.corrupt_corr, self.reorder_corr, self.duplicate_corr];
        if correlations.into_iter().flatten().any(|percent| percent != 0.0) {
            return Err("a correlation: what happens to one packet does not depend on the one before".to_owned());
        }
        let filter = match self.filter {
            None | Some(0) => Filter::Accept,
            Some(1) => Filter::Reject,
            Some(2) => Filter::Drop,
            Some(other) => return Err(format!("filter {other}, which is none of 0, 1 and 2")),
        };
        Ok(Shape {
            filter,
            latency_ns: whole("latency", self.latency)?,
            jitter_ns: whole("jitter", self.jitter)?,
            bandwidth_bps: whole("bandwidth", self.bandwidth)?,
            loss_ppm: chance("loss", self.loss)?,
            corrupt_ppm: chance("corrupt", self.corrupt)?,
            reorder_ppm: chance("reorder", self.reorder)?,
            duplicate_ppm: chance("duplicate", self.duplicate)?,
        })
    }
}

fn whole(what: &str, value: Option<f64>) -> Result<u64, String> {
    match value.unwrap_or(0.0) {
        value if (0.0..=LARGEST).contains(&value) => Ok(value as u64),
        value => Err(format!("{what} {value}")),
    }
}

/// Returns a share of a million of one in percent; what is more than none stays so.
fn chance(what: &str, percent: Option<f64>) -> Result<u32, String> {
    match percent.unwrap_or(0.0) {
        0.0 => Ok(0),
        percent if (0.0..=100.0).contains(&percent) => Ok(((percent * 10_000.0).round() as u32).max(1)),
        percent => Err(format!("{what} {percent} %")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: &str) -> Result<(Wish, String), String> {
        super::read(config.as_bytes())
    }

    fn reason(config: &str) -> String {
        read(config).unwrap_err()
    }

    #[test]
    fn the_network_as_it_is_can_be_had() {
        let zeros = r#"{"bandwidth":0,"corrupt":0,"filter":0,"jitter":0,"latency":0,"loss":0.0}"#;
        let go = format!(
            r#"{{"IPv4":null,"IPv6":null,"callback_state":"up","default":{zeros},"enable":true,"network":"default",
            "routing_policy":"deny_all","rules":null}}"#
        );
        assert_eq!(read(&go), Ok((Wish::default(), "up".to_owned())));
        assert_eq!(read(r#"{"enable":true,"callback_state":"up","rules":[]}"#), Ok((Wish::default(), "up".to_owned())));
    }

    #[test]
    fn shapes_and_rules_are_read_in_the_units_of_the_sdks() {
        let config = r#"{"enable":true,"callback_state":"x","network":"default","routing_policy":"deny_all",
            "default":{"latency":100000000,"jitter":5000000,"bandwidth":1048576,"filter":0,"loss":0.5,"corrupt":1,
            "corrupt_corr":0,"reorder":25,"reorder_corr":0,"duplicate":100,"duplicate_corr":0},
            "rules":[{"latency":0,"filter":2,"subnet":"10.0.0.7/32"},{"latency":1000,"subnet":"10.1.2.3/16"}]}"#;
        let (wish, _) = read(config).unwrap();
        let shape = Shape {
            latency_ns: 100_000_000,
            jitter_ns: 5_000_000,
            bandwidth_bps: 1_048_576,
            loss_ppm: 5_000,
            corrupt_ppm: 10_000,
            reorder_ppm: 250_000,
            duplicate_ppm: 1_000_000,
            ..Shape::default()
        };
        assert_eq!(wish.shape, shape);
        let rule = |subnet: &str| wish.rules[&subnet.parse().unwrap()];
        assert_eq!(rule("10.0.0.7/32"), Shape { filter: Filter::Drop, ..Shape::default() });
        assert_eq!(rule("10.1.0.0/16"), Shape { latency_ns: 1_000, ..Shape::default() });
        assert_eq!(chance("loss", Some(0.000_001)), Ok(1), "a chance is not rounded to none");
    }

    #[test]
    fn a_network_that_is_not_enabled_is_none() {
        assert!(!read(r#"{"callback_state":"x"}"#).unwrap().0.enabled);
        assert!(!read(r#"{"enable":false,"callback_state":"x"}"#).unwrap().0.enabled);
    }

    #[test]
    fn what_cannot_be_had_is_refused_with_what_it_was() {
        let addressed = r#"{"IPv4":"16.0.1.2/12","enable":true,"callback_state":"x"}"#;
        assert!(reason(addressed).ends_with("what this asks for: an address"));
        let out = r#"{"enable":true,"callback_state":"x","routing_policy":"allow_all","network":"other"}"#;
        assert!(reason(out).ends_with("another network than default, routes out of the lab"));
        assert!(reason(r#"{"enable":true}"#).ends_with("no callback_state"));
        assert!(reason("7").starts_with("a network configuration"));
        let with = |link: &str| reason(&format!(r#"{{"enable":true,"callback_state":"x","default":{{{link}}}}}"#));
        assert_eq!(with(r#""latency":-1"#), "latency -1");
        assert_eq!(with(r#""bandwidth":1e30"#), "bandwidth 1000000000000000000000000000000");
        assert_eq!(with(r#""loss":100.5"#), "loss 100.5 %");
        assert_eq!(with(r#""filter":3"#), "filter 3, which is none of 0, 1 and 2");
        assert!(with(r#""reorder":1,"reorder_corr":2"#).starts_with("a correlation"));
        let ruled = |rule: &str| reason(&format!(r#"{{"enable":true,"callback_state":"x","rules":[{{{rule}}}]}}"#));
        assert!(ruled(r#""subnet":"<nil>""#).starts_with("a rule: \"<nil>\" is no subnet"));
        assert_eq!(ruled(r#""subnet":"10.0.0.0/8","loss":-2"#), "the rule for 10.0.0.0/8: loss -2 %");
        assert!(ruled(r#""latency":1"#).starts_with("a network configuration"));
    }
}
