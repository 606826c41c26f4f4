//! Events and metrics.

use std::sync::atomic::Ordering;

use iptl_runner::files::CellFiles;
use serde_json::value::RawValue;
use wasmtime::Result;

use super::wit::records::Host;
use super::{LabView, check_name};
use crate::worker::exit::Ending;

/// Longest unit of a metric in bytes.
const MAX_UNIT: usize = 32;

impl LabView<'_> {
    /// Counts what a record takes; ends the instance where it is more than it may.
    pub(super) fn charge_record(&self, bytes: usize) -> Result<()> {
        let before = self.instance.record_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if before.saturating_add(bytes as u64) > self.instance.limits.record_bytes {
            return Err(Ending::TooMuch { what: "records" }.into());
        }
        Ok(())
    }
}

/// Ends an instance whose records cannot be kept: a result without them would not say what it seems to say.
pub(super) fn lost(error: &std::io::Error) -> wasmtime::Error {
    Ending::Lost { what: "records", reason: error.to_string() }.into()
}

impl Host for LabView<'_> {
    fn event(&mut self, name: String, data: String) -> Result<Result<(), String>> {
        if let Err(reason) = check_name("an event", &name) {
            return Ok(Err(reason));
        }
        // Ends of line can only stand between the tokens of JSON, and a record is one line.
        let data = data.replace(['\n', '\r'], " ");
        let data = match RawValue::from_string(data) {
            Ok(data) => data,
            Err(e) => return Ok(Err(format!("the data is not JSON: {e}"))),
        };
        let mut line = Vec::new();
        CellFiles::event_line(&mut line, self.cell.at_us(), &name, &data);
        self.charge_record(line.len())?;
        self.cell.files.append_events(&self.instance.id, &line).map_err(|e| lost(&e))?;
        Ok(Ok(()))
    }

    fn metric(&mut self, name: String, value: f64, unit: String) -> Result<Result<(), String>> {
        if let Err(reason) = check_name("a metric", &name) {
            return Ok(Err(reason));
        }
        if !value.is_finite() {
            return Ok(Err(format!("the value of {name} is {value}, which is no number")));
        }
        if unit.len() > MAX_UNIT {
            return Ok(Err(format!("a unit of {} bytes; {MAX_UNIT} are allowed", unit.len())));
        }
        let mut line = Vec::new();
        CellFiles::metric_line(&mut line, self.cell.at_us(), &name, value, &unit);
        self.charge_record(line.len())?;
        self.cell.files.append_metrics(&self.instance.id, &line).map_err(|e| lost(&e))?;
        Ok(Ok(()))
    }
}
