//! The nodes of the lab, each a version of one union.
//!
//! [`plan`] says what can be run, [`run`] is one experiment as a pure value, [`execution`] one carrying-out of it with
//! its [`placement`] and the [`fact`]s of its log; [`receipt`]s are lablets' statements, [`outcome`] what the software
//! did, and [`result`] ties them together. An [`image`] is what containers start from, a [`network`] what lies between
//! instances, [`fault`] what is done to them. `schemas/*.ipldsch` is the
//! normative text.

pub mod container;
pub mod destination;
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

use std::fmt;

use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use container::{Container, Health};
pub use destination::{Destination, Host, Protocol};
pub use execution::{Epoch, Execution, ExecutionId, InstanceId};
pub use fact::{CannotStart, Fact, FactKind, Recorded};
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
pub use receipt::{
    Adopted, BetweenRegions, ByLab, CellNetworkUse, EgressUse, Exit, Intervention, LinkUse, NetworkUse, Receipt,
    ReceiptShard, Usage,
};
pub use result::{Attestation, Distortion, FormerResult, LabletRecord, ResultNode, ResultVerdict};
pub use rolling::Rolling;
pub use run::{GroupRun, Network, Run};
pub use series::{Series, SeriesExecution};
pub use signed::Signed;

use crate::codec::DecodeError;
use crate::{Block, codec};

macro_rules! nodes {
    ($($(#[$doc:meta])* $variant:ident($body:ty) = $tag:literal;)*) => {
        /// Every structured node that the lab stores.
        ///
        /// A node is a map from its tag to its body, and of a result `files` stands beside the tag.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Node {
            $($(#[$doc])* $variant($body),)*
            /// A result.
            Result(ResultNode),
        }

        /// The keys of the map that a node is.
        #[derive(Deserialize)]
        #[serde(variant_identifier)]
        enum Key {
            $(#[serde(rename = $tag)] $variant,)*
            #[serde(rename = "iptl.result/2")]
            Result,
            #[serde(rename = "files")]
            Files,
        }

        impl Node {
            /// Returns the tag under which the node is stored, with its version.
            pub fn tag(&self) -> &'static str {
                match self {
                    $(Node::$variant(_) => $tag,)*
                    Node::Result(_) => result::TAG,
                }
            }
        }

        impl Serialize for Node {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self {
                    $(Node::$variant(body) => tagged(serializer, $tag, body),)*
                    Node::Result(node) => {
                        let (files, body) = node.to_parts();
                        let mut map = serializer.serialize_map(Some(2))?;
                        map.serialize_entry(result::FILES, &files)?;
                        map.serialize_entry(result::TAG, &body)?;
                        map.end()
                    }
                }
            }
        }

        impl<'de> Visitor<'de> for ReadNode {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a node: a map from its tag to its body")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let node = match map.next_key()? {
                    $(Some(Key::$variant) => Node::$variant(map.next_value()?),)*
                    Some(Key::Files) => {
                        let files = map.next_value()?;
                        let Some(Key::Result) = map.next_key()? else {
                            return Err(A::Error::custom("`files` stands beside no tag but that of a result"));
                        };
                        Node::Result(ResultNode::of_parts(files, map.next_value()?))
                    }
                    Some(Key::Result) => return Err(A::Error::missing_field(result::FILES)),
                    None => return Err(A::Error::custom("a node without a tag")),
                };
                match map.next_key::<IgnoredAny>()? {
                    None => Ok(node),
                    Some(_) => Err(A::Error::custom("an entry beside the tag")),
                }
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
    /// A result of the former version: read, and not written.
    FormerResult(FormerResult) = "iptl.result/1";
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

/// Reads a node out of a map.
struct ReadNode;

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_map(ReadNode)
    }
}

fn tagged<S: Serializer, T: Serialize>(serializer: S, tag: &str, body: &T) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry(tag, body)?;
    map.end()
}

impl From<ResultNode> for Node {
    fn from(node: ResultNode) -> Node {
        Node::Result(node)
    }
}

/// Takes a result of either version.
impl TryFrom<Node> for ResultNode {
    type Error = DecodeError;

    fn try_from(node: Node) -> Result<ResultNode, DecodeError> {
        let found = node.tag();
        match node {
            Node::Result(node) | Node::FormerResult(FormerResult(node)) => Ok(node),
            _ => Err(DecodeError::WrongKind { expected: result::TAG, found }),
        }
    }
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
            | Node::FormerResult(_)
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
