//! The environment of an instance: the lab's own variables, and those that Testground's SDKs ask for.
//!
//! Every variable of an SDK is set, to an empty value where there is none: the Rust SDK does not start otherwise.

use std::collections::BTreeMap;
use std::path::PathBuf;

use iptl_runner::{Addrs, CellSpec, InstanceSpec};

use crate::keys::{Identity, without_slashes};

/// What a runner decides about an instance and the run does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Name of the plan, for people.
    pub plan: String,
    /// Index over all groups in the order of their names.
    pub ordinal: u32,
    /// Addresses in the lab network.
    pub addrs: Addrs,
    /// Network that the address of an instance is looked for in: `10.0.0.0/8`, or one of IPv6 where there is no IPv4;
    /// `127.0.0.0/8` where there is only loopback.
    pub subnet: String,
    /// What `gethostname` says to the instance.
    pub hostname: String,
    /// Where the instance reaches its sync service.
    pub sync_host: String,
    /// Port of the sync service.
    pub sync_port: u16,
    /// Directory that the instance leaves files in, as it sees it; it exists and can be written to.
    pub outputs: PathBuf,
    /// Directory of its own that is thrown away, as it sees it.
    pub temp: PathBuf,
    /// Start of the cell as RFC 3339 text.
    pub start_time: String,
}

/// Returns the environment of one instance: what its group sets, then Testground's variables, then the lab's own.
///
/// `TEST_SIDECAR` is true: the lab does what a sidecar is asked for. The Rust SDK does not work without one.
pub fn environment(cell: &CellSpec, instance: &InstanceSpec, setting: &Setting) -> BTreeMap<String, String> {
    let mut env = iptl_runner::environment(cell, instance, setting.ordinal, setting.addrs);
    let group_size = cell.groups.get(&instance.id.group).copied().unwrap_or(0);
    let total: u64 = cell.groups.values().map(|size| u64::from(*size)).sum();
    let rows = [
        ("TEST_PLAN", without_slashes(&setting.plan)),
        ("TEST_CASE", without_slashes(&cell.case)),
        ("TEST_RUN", cell.run_id.clone()),
        ("TEST_REPO", String::new()),
        ("TEST_BRANCH", String::new()),
        ("TEST_TAG", String::new()),
        ("TEST_INSTANCE_COUNT", total.to_string()),
        ("TEST_INSTANCE_ROLE", String::new()),
        ("TEST_INSTANCE_PARAMS", parameters(&cell.params)),
        ("TEST_GROUP_ID", instance.id.group.clone()),
        ("TEST_GROUP_INSTANCE_COUNT", group_size.to_string()),
        ("TEST_OUTPUTS_PATH", setting.outputs.display().to_string()),
        ("TEST_TEMP_PATH", setting.temp.display().to_string()),
        ("TEST_SIDECAR", "true".to_owned()),
        ("TEST_SUBNET", setting.subnet.clone()),
        ("TEST_START_TIME", setting.start_time.clone()),
        ("TEST_CAPTURE_PROFILES", String::new()),
        ("TEST_DISABLE_METRICS", "false".to_owned()),
        ("SYNC_SERVICE_HOST", setting.sync_host.clone()),
        ("SYNC_SERVICE_PORT", setting.sync_port.to_string()),
        // Empty turns it off: every point would be a request of its own.
        ("INFLUXDB_URL", String::new()),
        ("REDIS_HOST", String::new()),
        ("HOSTNAME", setting.hostname.clone()),
    ];
    env.extend(rows.map(|(name, value)| (name.to_owned(), value)));
    // A group may choose how much its programs log.
    env.entry("LOG_LEVEL".to_owned()).or_insert_with(|| "info".to_owned());
    env
}

/// Returns who the sync service of this instance takes keys from: what [`environment`] tells it to write.
pub fn identity(cell: &CellSpec, setting: &Setting) -> Identity {
    Identity::new(&cell.run_id, &setting.plan, &cell.case, &setting.hostname)
}

/// Returns the parameters that Testground's variable cannot carry, with the reason.
///
/// `|` separates parameters, so one with it is left out; the Go and JavaScript SDKs drop one whose value has a `=`.
pub fn unsaid_parameters(params: &BTreeMap<String, String>) -> Vec<(&str, &'static str)> {
    let reason = |(name, value): (&String, &String)| {
        if name.contains(['|', '=']) {
            Some("its name has a | or a =: programs find it in IPTL_PARAM_*")
        } else if value.contains('|') {
            Some("its value has a |, which separates parameters: programs find it in IPTL_PARAM_*")
        } else if value.contains('=') {
            Some("its value has a =: the Go and JavaScript SDKs of Testground drop it")
        } else {
            None
        }
    };
    params.iter().filter_map(|pair| reason(pair).map(|reason| (pair.0.as_str(), reason))).collect()
}

/// Writes `k=v|k=v`.
fn parameters(params: &BTreeMap<String, String>) -> String {
    let can_be_said = |(name, value): &(&String, &String)| !name.contains(['|', '=']) && !value.contains('|');
    let pairs: Vec<String> = params.iter().filter(can_be_said).map(|(k, v)| format!("{k}={v}")).collect();
    pairs.join("|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_cannot_be_said_are_named() {
        let params: BTreeMap<String, String> = [("a", "1"), ("b", "x|y"), ("c", "k=v"), ("d", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        assert_eq!(parameters(&params), "a=1|c=k=v|d=");
        let named: Vec<&str> = unsaid_parameters(&params).into_iter().map(|(name, _)| name).collect();
        assert_eq!(named, ["b", "c"]);
    }
}
