//! A small lab in memory: a run, lablets, their receipts and the blocks behind them.

use std::collections::BTreeMap;

use bytes::Bytes;
use iptl_dag::model::signed::{Signable, signing_bytes};
use iptl_dag::model::{
    self, Assignment, CannotStart, Engine, Epoch, Execution, ExecutionId, Exit, Fact, FactKind, GroupRun, InstanceId,
    LabletRecord, LossPolicy, Network, Node, Placement, Receipt, ReceiptShard, Resources, Run, Signed, Threshold,
    Usage, WorkloadKind,
};
use iptl_dag::unixfs::FileBuilder;
use iptl_dag::{Block, Cid, Codec, PeerId};
use iptl_result::{
    AssembleError, Assembled, Assembly, AttestationRecord, Verification, assemble, attestation, seal, verify,
};

pub(crate) struct World {
    pub(crate) blocks: BTreeMap<Cid, Bytes>,
    pub(crate) run: Run,
    pub(crate) execution: Execution,
    pub(crate) receipts: Vec<Signed<Receipt>>,
    pub(crate) placements: Vec<Placement>,
    pub(crate) cancelled: bool,
    pub(crate) timed_out: bool,
    /// Why nothing was started.
    pub(crate) cannot_start: Option<CannotStart>,
    /// Receipts that are sealed, where they are not those that count.
    pub(crate) attested: Option<Vec<Signed<Receipt>>>,
    /// Who signs the attestation.
    pub(crate) leader: PeerId,
    /// Last attempt of instances that were granted more than once.
    pub(crate) attempts: BTreeMap<InstanceId, u32>,
}

pub(crate) fn peer(number: u8) -> PeerId {
    PeerId::from_ed25519(&[number; 32])
}

/// Stands in for ed25519: the tests are about who is asked, and for what.
pub(crate) fn sign<T: Signable>(signer: PeerId, body: T) -> Signed<T> {
    let signature = fake_signature(&signer, &signing_bytes(&body));
    Signed { body, signer, signature }
}

pub(crate) fn check_signature(signer: &PeerId, message: &[u8], signature: &[u8]) -> bool {
    fake_signature(signer, message) == signature
}

fn fake_signature(signer: &PeerId, message: &[u8]) -> Vec<u8> {
    Block::new(Codec::Raw, [signer.as_bytes(), message].concat()).cid().to_bytes()
}

pub(crate) fn no_room() -> CannotStart {
    CannotStart { code: "lab.no-capacity".into(), reason: "no lablets to run this".into(), help: "invite one".into() }
}

pub(crate) fn id(group: &str, index: u32) -> InstanceId {
    InstanceId { group: group.into(), index }
}

impl World {
    /// A run of these groups, each instance placed on lablet 1.
    pub(crate) fn new(groups: &[(&str, u32)], thresholds: Vec<Threshold>) -> World {
        let group = |count| GroupRun {
            workload: *Block::new(Codec::Raw, "workload").cid(),
            kind: WorkloadKind::Wasm,
            count,
            args: Vec::new(),
            env: BTreeMap::new(),
            resources: Resources::default(),
            requires: Default::default(),
            container: None,
            loss: None,
            start: None,
        };
        let run = Run {
            plan: *Block::new(Codec::Raw, "plan").cid(),
            case: "case".into(),
            groups: groups.iter().map(|(name, count)| ((*name).into(), group(*count))).collect(),
            params: BTreeMap::new(),
            seed: 1,
            engine: Engine::Live,
            network: Network::Clean,
            faults: Vec::new(),
            loss: LossPolicy::default(),
            thresholds,
            timeout_ms: 60_000,
            placing: Default::default(),
            captures: Default::default(),
        };
        let execution =
            Execution { run: model::to_block(run.clone()).cid().to_owned(), orchestrator: peer(9), nonce: [0; 16] };
        let mut world = World {
            blocks: BTreeMap::new(),
            run,
            execution,
            receipts: Vec::new(),
            placements: Vec::new(),
            cancelled: false,
            timed_out: false,
            cannot_start: None,
            attested: None,
            leader: peer(9),
            attempts: BTreeMap::new(),
        };
        let assignments = groups
            .iter()
            .flat_map(|(name, count)| {
                [1, 2].map(|lablet| Assignment { group: (*name).into(), start: 0, count: *count, lablet: peer(lablet) })
            })
            .collect();
        world.placements =
            vec![Placement { execution: world.execution_id(), parent: None, assignments, refused: Vec::new() }];
        world
    }

    pub(crate) fn execution_id(&self) -> ExecutionId {
        self.execution.id()
    }

    pub(crate) fn file(&mut self, text: &str) -> Cid {
        let mut blocks = Vec::new();
        let entry = FileBuilder::of_bytes(text.as_bytes(), &mut blocks);
        self.keep(blocks);
        entry.cid
    }

    pub(crate) fn keep(&mut self, blocks: Vec<Block>) {
        self.blocks.extend(blocks.into_iter().map(Block::into_parts));
    }

    pub(crate) fn receipt(&self, instance: InstanceId, exit: Exit) -> Receipt {
        Receipt {
            execution: self.execution_id(),
            instance,
            attempt: 1,
            epoch: Epoch { counter: 1, peer: peer(9) },
            workload: *Block::new(Codec::Raw, "workload").cid(),
            lablet: peer(1),
            runner: "fake 1".into(),
            started_ms: 1,
            ended_ms: 2,
            exit,
            usage: Usage::default(),
            logs: None,
            events: None,
            metrics: None,
            artifacts: None,
            samples: None,
            limits_met: Vec::new(),
            interventions: Vec::new(),
            adopted: None,
            network: None,
        }
    }

    pub(crate) fn add(&mut self, receipt: Receipt) {
        self.receipts.push(sign(receipt.lablet.clone(), receipt));
    }

    /// Adds a receipt of an instance that ended like this.
    pub(crate) fn end(&mut self, group: &str, index: u32, exit: Exit) {
        self.add(self.receipt(id(group, index), exit));
    }

    /// Adds a receipt of an instance that ended well and measured something.
    pub(crate) fn measure(&mut self, group: &str, index: u32, lines: &str) {
        let metrics = Some(self.file(lines));
        self.add(Receipt { metrics, ..self.receipt(id(group, index), Exit::Exited { code: 0 }) });
    }

    pub(crate) fn assembly(&self) -> Assembly {
        Assembly {
            run_cid: self.execution.run,
            run: self.run.clone(),
            execution: self.execution_id(),
            receipts: self.receipts.clone(),
            missing: BTreeMap::new(),
            cancelled: self.cancelled,
            timed_out: self.timed_out,
            cannot_start: self.cannot_start.as_ref().map(|why| why.reason.clone()),
        }
    }

    pub(crate) fn assemble(&self) -> Assembled {
        self.try_assemble().expect("everything is there")
    }

    pub(crate) fn try_assemble(&self) -> Result<Assembled, AssembleError> {
        assemble(&self.assembly(), &mut |cid| self.blocks.get(cid).cloned())
    }

    /// Seals the result, with `edit` having the last word on what is attested.
    pub(crate) fn seal(&mut self, edit: impl FnOnce(&mut model::Attestation)) -> Cid {
        let (assembly, assembled) = (self.assembly(), self.assemble());
        let mut blocks = vec![model::to_block(self.run.clone())];
        let attested = self.attested.as_ref().unwrap_or(&self.receipts);
        let chunks = attested.chunks(2).map(|r| model::to_block(ReceiptShard { receipts: r.to_vec() }));
        let receipts: Vec<Block> = chunks.collect();
        let placements: Vec<Block> = self.placements.iter().cloned().map(model::to_block).collect();
        let facts = self.facts();
        let lablet = |number| LabletRecord {
            peer: peer(number),
            name: "lablet".into(),
            version: "1".into(),
            cpus: 1,
            memory_bytes: 1,
            clock_offset_us: 0,
            clock_error_us: 0,
        };
        let record = AttestationRecord {
            lab: peer(8),
            receipts: receipts.iter().map(|b| *b.cid()).collect(),
            placements: placements.iter().map(|b| *b.cid()).collect(),
            log: facts.last().map(|b| *b.cid()),
            lablets: vec![lablet(1), lablet(2)],
            submitted_ms: 1,
            started_ms: if self.cannot_start.is_some() { 0 } else { 2 },
            ended_ms: 3,
            distortions: Vec::new(),
            attempts: self.attempts.clone(),
            ended_early: None,
            cannot_start: self.cannot_start.clone(),
            term: None,
        };
        let mut body = attestation(&assembly, &assembled, record);
        edit(&mut body);
        let (_, sealed) = seal(&assembly, &assembled, &self.execution, sign(self.leader.clone(), body)).expect("fits");
        blocks.extend(receipts.into_iter().chain(placements).chain(facts).chain(assembled.blocks).chain(sealed));
        let root = *blocks.last().expect("there are blocks").cid();
        self.keep(blocks);
        root
    }

    fn facts(&self) -> Vec<Block> {
        let mut facts: Vec<Block> = Vec::new();
        for kind in [FactKind::Started {}, FactKind::TimedOut {}, FactKind::Cancelled { by: peer(1) }] {
            let fact = Fact {
                execution: self.execution_id(),
                seq: facts.len() as u64,
                prev: facts.last().map(|b| *b.cid()),
                epoch: Epoch { counter: 1, peer: peer(9) },
                at_ms: 5,
                kind,
            };
            facts.push(Node::from(sign(peer(9), fact)).to_block());
        }
        facts
    }

    pub(crate) fn verify(&self, result: &Cid) -> Verification {
        verify(result, &mut |cid| self.blocks.get(cid).cloned(), &check_signature).expect("the nodes are there")
    }
}
