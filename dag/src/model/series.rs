//! Series: executions that were submitted together, as repetitions and as a matrix of choices.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Cid;
use crate::model::result::ResultVerdict;

/// Most executions of a series.
pub const MAX_SERIES: usize = 1_000;

/// What a series came to: one link to all that its executions left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Executions in the order of their submission, at most [`MAX_SERIES`].
    pub executions: Vec<SeriesExecution>,
}

/// One execution of a series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeriesExecution {
    /// The [`Execution`](crate::model::Execution) node.
    pub execution: Cid,
    /// The run.
    pub run: Cid,
    /// Choices that tell it from others of the series, as they were given: parameters and sizes of groups.
    pub choices: BTreeMap<String, String>,
    /// Which repetition of these choices, from one.
    pub repetition: u32,
    /// The result; none where it ended without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Cid>,
    /// Verdict of the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<ResultVerdict>,
    /// Why nothing was started, or there is no result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}
