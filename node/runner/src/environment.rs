//! The environment that an instance starts with.

use std::collections::BTreeMap;

use iptl_labnet::Addrs;

use crate::cell::{CellSpec, InstanceSpec};

/// Returns the environment of one instance: what its group sets, and the lab's own variables, which win.
///
/// `ordinal` counts over all groups in the order of their names, and `addrs` are the lab addresses that follow from
/// it and the network. Every name and value is a function of run, group and index, never of the machine.
pub fn environment(cell: &CellSpec, instance: &InstanceSpec, ordinal: u32, addrs: Addrs) -> BTreeMap<String, String> {
    let mut env = instance.env.clone();
    let mut set = |name: &str, value: String| {
        env.insert(format!("IPTL_{name}"), value);
    };
    let group_size = cell.groups.get(&instance.id.group).copied().unwrap_or(0);
    let total: u64 = cell.groups.values().map(|n| u64::from(*n)).sum();
    set("RUN", cell.run_id.clone());
    set("CASE", cell.case.clone());
    set("GROUP", instance.id.group.clone());
    set("INDEX", instance.id.index.to_string());
    set("GROUP_SIZE", group_size.to_string());
    set("TOTAL", total.to_string());
    set("ORDINAL", ordinal.to_string());
    set("SEED", cell.seed.to_string());
    if let Some(addr) = addrs.first() {
        set("ADDR", addr.to_string());
    }
    if let Some(addr) = addrs.v6 {
        set("ADDR6", addr.to_string());
    }
    set("GROUPS", groups(&cell.groups));
    for (name, value) in &cell.params {
        set(&format!("PARAM_{}", variable(name)), value.clone());
    }
    env
}

/// Writes `a=3,b=5`.
fn groups(groups: &BTreeMap<String, u32>) -> String {
    groups.iter().map(|(name, size)| format!("{name}={size}")).collect::<Vec<_>>().join(",")
}

/// Makes the name of a parameter the name of a variable: `fan-out` becomes `FAN_OUT`.
fn variable(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parameters_become_names_of_variables() {
        assert_eq!(variable("fan-out.max"), "FAN_OUT_MAX");
    }
}
