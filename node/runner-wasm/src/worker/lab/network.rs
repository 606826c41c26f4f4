//! What an instance asks of its own network.

use std::collections::BTreeMap;

use iptl_labnet::{Filter, Shape, Subnet, Wish};
use iptl_runner::files::{CellFiles, NETWORK_EVENT};
use wasmtime::Result;

use super::LabView;
use super::records::lost;
use super::wit::network::{self as wit, Host};

impl Host for LabView<'_> {
    fn configure(&mut self, enabled: bool, shape: wit::Shape, rules: Vec<wit::Rule>) -> Result<Result<(), String>> {
        let wish = read(enabled, &shape, &rules);
        let outcome = wish.as_ref().map_err(Clone::clone).and_then(|wish| self.put_in_force(wish));
        let data = CellFiles::network_data(wish.as_ref().ok(), outcome.as_ref().err().map(String::as_str));
        let mut line = Vec::new();
        CellFiles::event_line(&mut line, self.cell.at_us(), NETWORK_EVENT, &data);
        self.charge_record(line.len())?;
        self.cell.files.append_events(&self.instance.id, &line).map_err(|e| lost(&e))?;
        Ok(outcome)
    }
}

impl LabView<'_> {
    fn put_in_force(&self, newer: &Wish) -> Result<(), String> {
        let mut wish = self.instance.wish();
        let next = wish.then(newer).map_err(|e| e.to_string())?;
        self.cell.net.shape(self.instance.address, &next).map_err(|e| e.to_string())?;
        *wish = next;
        Ok(())
    }
}

fn read(enabled: bool, shape: &wit::Shape, rules: &[wit::Rule]) -> Result<Wish, String> {
    let rules = rules.iter().map(|rule| {
        let subnet: Subnet = rule.subnet.parse().map_err(|e| format!("a rule: {e}"))?;
        Ok((subnet, read_shape(&rule.shape)))
    });
    Ok(Wish { enabled, shape: read_shape(shape), rules: rules.collect::<Result<BTreeMap<_, _>, String>>()? })
}

fn read_shape(shape: &wit::Shape) -> Shape {
    Shape {
        filter: match shape.filter {
            wit::Filter::Accept => Filter::Accept,
            wit::Filter::Reject => Filter::Reject,
            wit::Filter::Drop => Filter::Drop,
        },
        latency_ns: shape.latency,
        jitter_ns: shape.jitter,
        bandwidth_bps: shape.bandwidth,
        loss_ppm: shape.loss,
        corrupt_ppm: shape.corrupt,
        reorder_ppm: shape.reorder,
        duplicate_ppm: shape.duplicate,
    }
}
