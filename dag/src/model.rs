//! The nodes of the lab, each a version of one union.
//!
//! [`plan`] says what can be run, [`run`] is one experiment as a pure value, [`execution`] one carrying-out of it with
//! its [`placement`] and the [`fact`]s of its log; [`receipt`]s are lablets' statements, [`outcome`] what the software
//! did, and [`result`] ties them together. An [`image`] is what containers start from, a [`network`] what lies between
//! instances, [`fault`] what is done to them. `schemas/*.ipldsch` is the
//! normative text.

pub mod container;
pub mod execution;
pub mod fact;
pub mod fault;
pub mod image;
pub mod loss;
pub mod network;
pub mod outcome;
pub mod placement;
pub mod plan;
pub mod receipt;
pub mod result;
pub mod rolling;
pub mod run;
pub mod series;
pub mod signed;

use serde::{Deserialize, Serialize};

pub use container::{Container, Health};
pub use execution::{Epoch, Execution, ExecutionId, InstanceId};
pub use fact::{Fact, FactKind, Recorded};
pub use fault::{Fault, FaultDone, FaultKind, FaultSchedule, FaultTarget, ScheduledFault};
pub use image::{Image, Layer, LayerPage};
pub use loss::{BarrierLoss, GroupLoss, LossPolicy, MaxLost, Placing};
pub use network::{
    AccessClass, DependenceModel, GatewayModel, GroupNetwork, IpModel, JitterModel, LinkModel, NetworkModel,
    PortsModel, SiteShare, Way,
};
pub use outcome::{
    Counts, GroupOutcome, InstanceOutcome, LossOutcome, Outcome, OutcomeShard, Termination, ThresholdOutcome, Verdict,
};
pub use placement::{Assignment, Placement, Refusal};
pub use plan::{
    Affinity, Case, Comparison, Count, Engine, GroupSpec, ParamKind, ParamSpec, Plan, Requirements, Resources,
    Statistic, Subject, Threshold, Value, Workload, WorkloadKind,
};
pub use receipt::{Adopted, CellNetworkUse, Exit, Intervention, LinkUse, NetworkUse, Receipt, ReceiptShard, Usage};
pub use result::{Attestation, Distortion, LabletRecord, ResultNode, ResultVerdict};
pub use rolling::Rolling;
pub use run::{GroupRun, Network, Run};
pub use series::{Series, SeriesExecution};
pub use signed::Signed;

use crate::codec::DecodeError;
use crate::{Block, codec};

macro_rules! nodes {
    ($($(#[$doc:meta])* $variant:ident($body:ty) = $tag:literal;)*) => {
        /// Every structured node that the lab stores.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub enum Node {
            $($(#[$doc])* #[serde(rename = $tag)] $variant($body),)*
        }

        impl Node {
            /// Returns the tag under which the node is stored, with its version.
            pub fn tag(&self) -> &'static str {
                match self { $(Node::$variant(_) => $tag,)* }
            }
        }

        $(
            impl From<$body> for Node {
                fn from(body: $body) -> Node { Node::$variant(body) }
            }

            impl TryFrom<Node> for $body {
                type Error = DecodeError;

                fn try_from(node: Node) -> Result<$body, DecodeError> {
                    let found = node.tag();
                    match node {
                        Node::$variant(body) => Ok(body),
                                        #[allow(unreachable_patterns, reason = "the macro also serves a union of one")]
                        _ => Err(DecodeError::WrongKind { expected: $tag, found }),
                    }
                }
            }
        )*
    };
}

nodes! {
    /// A plan.
    Plan(Plan) = "iptl.plan/1";
    /// A workload: what an instance executes.
    Workload(Workload) = "iptl.workload/1";
    /// A run.
    Run(Run) = "iptl.run/1";
    /// An execution.
    Execution(Execution) = "iptl.execution/1";
    /// A placement.
    Placement(Placement) = "iptl.placement/1";
    /// A fact of an execution's log.
    Fact(Signed<Fact>) = "iptl.fact/1";
    /// A chunk of receipts.
    Receipts(ReceiptShard) = "iptl.receipts/1";
    /// An outcome.
    Outcome(Outcome) = "iptl.outcome/1";
    /// A chunk of the instances of an outcome.
    OutcomeShard(OutcomeShard) = "iptl.outcome-shard/1";
    /// An attestation.
    Attestation(Signed<Attestation>) = "iptl.attestation/1";
    /// A result.
    Result(ResultNode) = "iptl.result/1";
    /// A container image.
    Image(Image) = "iptl.image/1";
    /// A layer of a container image.
    Layer(Layer) = "iptl.layer/1";
    /// A part of a layer.
    LayerPage(LayerPage) = "iptl.layer-page/1";
    /// A network.
    Network(NetworkModel) = "iptl.network/1";
    /// A schedule of faults.
    Faults(FaultSchedule) = "iptl.faults/1";
    /// Executions that were submitted together.
    Series(Series) = "iptl.series/1";
}

impl Node {
    /// Encodes the node as a block.
    pub fn to_block(&self) -> Block {
        codec::to_block(self)
    }

    /// Returns whether the node is a control record: something that the lab acts on or answers for. Those refuse
    /// fields that they do not know; data nodes pass over them, so that older nodes can read what newer ones wrote.
    pub fn is_control(&self) -> bool {
        match self {
            Node::Execution(_) | Node::Placement(_) | Node::Fact(_) | Node::Receipts(_) | Node::Attestation(_) => true,
            Node::Plan(_)
            | Node::Workload(_)
            | Node::Run(_)
            | Node::Outcome(_)
            | Node::OutcomeShard(_)
            | Node::Result(_)
            | Node::Image(_)
            | Node::Layer(_)
            | Node::LayerPage(_)
            | Node::Network(_)
            | Node::Faults(_)
            | Node::Series(_) => false,
        }
    }

    /// Decodes a node from the bytes of a block; refuses encodings that are not canonical.
    ///
    /// A control record must be exactly what its value encodes to. A data node may hold more than is known here, but
    /// what is known must be read as any reader of DAG-CBOR reads it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Node, DecodeError> {
        let node: Node = codec::decode(bytes)?;
        let known = codec::encode(&node);
        let canonical = known == bytes || (!node.is_control() && codec::is_extension(bytes, &known)?);
        if canonical { Ok(node) } else { Err(DecodeError::NotCanonical { expected: node.tag() }) }
    }
}

/// Encodes a body as the block of its node.
pub fn to_block<T: Into<Node>>(body: T) -> Block {
    body.into().to_block()
}

/// Decodes the bytes of a block as a node of one kind.
pub fn from_bytes<T: TryFrom<Node, Error = DecodeError>>(bytes: &[u8]) -> Result<T, DecodeError> {
    T::try_from(Node::from_bytes(bytes)?)
}
