//! What the instances of a result used: CPU, memory and the lab network, by group.

use std::collections::BTreeMap;

use iptl_result::{GroupUse, Spread};
use serde_json::{Value, json};

use crate::ui;

/// Returns a line for each group.
pub(super) fn lines(used: &BTreeMap<String, GroupUse>) -> Vec<String> {
    let line = |(name, used): (&String, &GroupUse)| {
        let GroupUse { instances, cpu_us, memory_bytes, sent_bytes, received_bytes } = used;
        format!(
            "used      {name}: each cpu {} half, {} at most; memory {} half, {} at most; of {instances} cpu {}, sent {}, \
             received {}",
            time(cpu_us.p50),
            time(cpu_us.max),
            ui::bytes(memory_bytes.p50),
            ui::bytes(memory_bytes.max),
            time(cpu_us.sum),
            ui::bytes(sent_bytes.sum),
            ui::bytes(received_bytes.sum),
        )
    };
    used.iter().map(line).collect()
}

fn time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// Returns all of it as data.
pub(super) fn to_json(used: &BTreeMap<String, GroupUse>) -> Value {
    let spread = |of: &Spread| json!({"p50": of.p50, "max": of.max, "sum": of.sum});
    let group = |used: &GroupUse| {
        json!({
            "instances": used.instances, "cpu_us": spread(&used.cpu_us), "memory_bytes": spread(&used.memory_bytes),
            "sent_bytes": spread(&used.sent_bytes), "received_bytes": spread(&used.received_bytes),
        })
    };
    used.iter().map(|(name, used)| (name.clone(), group(used))).collect()
}
