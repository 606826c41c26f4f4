//! Doing it all again: what a reader of a result need not take on trust.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use bytes::Bytes;
use iptl_dag::model::fact::CellFact;
use iptl_dag::model::signed::signing_bytes;
use iptl_dag::model::{
    Adopted, Assignment, Attestation, Counts, Execution, Fact, FactKind, FaultDone, InstanceId, Intervention,
    NetworkUse, Outcome, Placement, Receipt, ReceiptShard, ResultNode, ResultVerdict, Run, Signed, ThresholdOutcome,
    Way,
};
use iptl_dag::{Cid, PeerId};

use crate::assemble::{Assembled, Assembly, MAX_INSTANCES, assemble, chain};
use crate::choose::{is_instance, termination};
use crate::files::Summary;
use crate::judge;
use crate::seal::{parse_range, ranges};
use crate::source::{Source, SourceError};
use crate::used::{GroupUse, used};

/// Checks an ed25519 signature: signer, signed bytes, signature.
///
/// The signed bytes are those of [`signing_bytes`], with their domain.
pub type CheckSignature<'a> = dyn Fn(&PeerId, &[u8], &[u8]) -> bool + 'a;

/// Most problems that are listed; further ones are counted in a last line.
const MAX_PROBLEMS: usize = 100;

/// Most facts that are followed back from the end of a log.
const MAX_FACTS: u64 = 1_000_000;

/// What a verification found.
#[derive(Clone, Debug)]
pub struct Verification {
    /// The result.
    pub result: ResultNode,
    /// Its run.
    pub run: Run,
    /// Its outcome, as it was stored.
    pub outcome: Outcome,
    /// Its attestation.
    pub attestation: Signed<Attestation>,
    /// Receipts that were read, of all attempts, each once.
    pub receipts: u64,
    /// Signatures that are good: of receipts, the attestation and facts.
    pub signatures_good: u64,
    /// Signatures that are bad; the receipts and facts under them count for nothing.
    pub signatures_bad: u64,
    /// Receipts of instances that the run does not have.
    pub unknown_instances: u64,
    /// Instances that the orchestrator lists as missing: lost, whatever receipts there are of them.
    pub missing_instances: u64,
    /// Facts of the log that were followed, in their chain.
    pub facts: u64,
    /// Placements that were read, in their chain.
    pub placements: u64,
    /// Thresholds as they were recomputed.
    pub thresholds: Vec<ThresholdOutcome>,
    /// Whether the outcome, assembled again from the receipts, has the same CID.
    pub outcome_equal: bool,
    /// Whether the files directory does.
    pub files_equal: bool,
    /// Counts and distributions as they were recomputed; none where the outcome could not be assembled again.
    pub summary: Option<Summary>,
    /// Receipts by lablet.
    pub lablets: BTreeMap<PeerId, LabletCount>,
    /// Commands that people executed in instances, as the receipts that count say, by instance.
    pub interventions: Vec<(InstanceId, Intervention)>,
    /// Instances whose lablet was started again while they ran, as the receipts that count say, by instance.
    pub adopted: Vec<(InstanceId, Adopted)>,
    /// What instances used, by group, as the receipts that count say.
    pub used: BTreeMap<String, GroupUse>,
    /// What the lab network did to the packets of instances, as the receipts that count say, by instance.
    pub networked: Vec<Networked>,
    /// What was done to it on purpose, by the lablets that say so, in the order in which it was due.
    pub faults: Vec<(PeerId, FaultDone)>,
    /// How far lablets were from each other before the start, by the one that measured; only where delays were to hide it.
    pub ways: Vec<(PeerId, Way)>,
    /// Everything that is wrong, for people; empty where the result is what it says.
    pub problems: Vec<String>,
}

impl Verification {
    /// Returns whether the result is what it says.
    pub fn is_good(&self) -> bool {
        self.problems.is_empty()
    }
}

/// What the lab network did to the packets of one attempt of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Networked {
    /// The instance.
    pub instance: InstanceId,
    /// Its attempt, from one.
    pub attempt: u32,
    /// Where it was.
    pub lablet: PeerId,
    /// By which runner.
    pub runner: String,
    /// What it was.
    pub used: NetworkUse,
}

impl Networked {
    fn of(receipt: &Receipt) -> Option<Networked> {
        Some(Networked {
            used: receipt.network.clone()?,
            instance: receipt.instance.clone(),
            attempt: receipt.attempt,
            lablet: receipt.lablet.clone(),
            runner: receipt.runner.clone(),
        })
    }
}

/// What one lablet's receipts say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LabletCount {
    /// Receipts with a good signature, of all attempts.
    pub receipts: u64,
    /// By how the attempts ended.
    pub counts: Counts,
}

/// Why a result cannot even be looked at.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A node without which nothing can be checked.
    #[error("the {what} cannot be read")]
    Node {
        /// `result`, `run`, `execution`, `outcome` or `attestation`.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: SourceError,
    },
}

/// Verifies a result from its CID.
///
/// `read` gives the bytes of blocks, which are checked against their CIDs; `check_signature` checks a signature.
/// What is wrong is listed in [`Verification::problems`]; an error means that there was nothing to look at.
pub fn verify(
    result: &Cid,
    read: &mut dyn FnMut(&Cid) -> Option<Bytes>,
    check_signature: &CheckSignature<'_>,
) -> Result<Verification, VerifyError> {
    let mut source = Source::new(read);
    let of = |what| move |source| VerifyError::Node { what, source };
    let node: ResultNode = source.node(result).map_err(of("result"))?;
    let run: Run = source.node(&node.run).map_err(of("run"))?;
    let execution: Execution = source.node(&node.execution.0).map_err(of("execution"))?;
    let outcome: Outcome = source.node(&node.outcome).map_err(of("outcome"))?;
    let attestation: Signed<Attestation> = source.node(&node.attestation).map_err(of("attestation"))?;

    let mut check = Check {
        source,
        check_signature,
        result: node,
        run,
        execution,
        attestation,
        problems: Problems::default(),
        good: 0,
        bad: 0,
        lablets: BTreeMap::new(),
        attempts: BTreeMap::new(),
    };
    check.nodes(&outcome);
    let placements = check.placements();
    let (receipts, read, unknown_instances) = check.receipts(&placements);
    let (receipts, missing_instances) = check.missing(receipts);
    let mut interventions: Vec<_> = receipts
        .iter()
        .flat_map(|signed| signed.body.interventions.iter().map(|done| (signed.body.instance.clone(), done.clone())))
        .collect();
    interventions.sort_by(|a, b| (&a.0, a.1.at_ms).cmp(&(&b.0, b.1.at_ms)));
    let mut adopted: Vec<_> = receipts
        .iter()
        .filter_map(|signed| Some((signed.body.instance.clone(), signed.body.adopted.clone()?)))
        .collect();
    adopted.sort_by(|a, b| a.0.cmp(&b.0));
    let mut networked: Vec<_> = receipts.iter().filter_map(|signed| Networked::of(&signed.body)).collect();
    networked.sort_by(|a, b| (&a.instance, a.attempt).cmp(&(&b.instance, b.attempt)));
    let used = used(receipts.iter().map(|signed| &signed.body));
    let Told { facts, successors, faults, mut ways } = check.log();
    ways.sort();
    check.leader(&receipts, &successors);
    check.attempts();
    let assembled = check.assemble_again(receipts, &outcome);

    let Check { result, run, attestation, problems, good, bad, lablets, .. } = check;
    Ok(Verification {
        outcome_equal: assembled.as_ref().is_some_and(|a| a.outcome == result.outcome),
        files_equal: assembled.as_ref().is_some_and(|a| a.files == result.files),
        thresholds: assembled.as_ref().map(|a| a.thresholds.clone()).unwrap_or_default(),
        summary: assembled.map(|a| a.summary),
        result,
        run,
        outcome,
        attestation,
        receipts: read,
        signatures_good: good,
        signatures_bad: bad,
        unknown_instances,
        missing_instances,
        facts,
        placements: placements.len() as u64,
        lablets,
        interventions,
        adopted,
        used,
        networked,
        faults,
        ways,
        problems: problems.into_list(),
    })
}

/// What a log tells.
struct Told {
    facts: u64,
    /// Who took over in it.
    successors: BTreeSet<PeerId>,
    /// What lablets did on purpose, in the order in which it was due.
    faults: Vec<(PeerId, FaultDone)>,
    ways: Vec<(PeerId, Way)>,
}

/// Problems up to a bound: a hostile result could have millions.
#[derive(Default)]
struct Problems {
    list: Vec<String>,
    further: u64,
}

impl Problems {
    fn add(&mut self, problem: impl Into<String>) {
        if self.list.len() < MAX_PROBLEMS {
            self.list.push(problem.into());
        } else {
            self.further += 1;
        }
    }

    fn into_list(mut self) -> Vec<String> {
        if self.further > 0 {
            self.list.push(format!("and {} more problems", self.further));
        }
        self.list
    }
}

/// Where an instance was placed: group to lablet to ranges. Every placement of the chain counts, since an attempt may
/// have run under an earlier one.
type Placed = BTreeSet<(String, PeerId, u32, u32)>;

struct Check<'a> {
    source: Source<'a>,
    check_signature: &'a CheckSignature<'a>,
    result: ResultNode,
    run: Run,
    execution: Execution,
    attestation: Signed<Attestation>,
    problems: Problems,
    good: u64,
    bad: u64,
    lablets: BTreeMap<PeerId, LabletCount>,
    /// Last attempt of instances that were granted more than once, as facts and receipts tell.
    attempts: BTreeMap<InstanceId, u32>,
}

impl Check<'_> {
    fn signature(&mut self, signer: &PeerId, message: &[u8], signature: &[u8]) -> bool {
        let good = (self.check_signature)(signer, message, signature);
        if good {
            self.good += 1;
        } else {
            self.bad += 1;
        }
        good
    }

    /// Checks that result, run, execution, outcome and attestation speak of the same thing.
    fn nodes(&mut self, outcome: &Outcome) {
        let signed = self.attestation.clone();
        let body = &signed.body;
        let message = signing_bytes(body);
        if !self.signature(&signed.signer, &message, &signed.signature) {
            self.problems.add(format!("the attestation's signature by {} is bad", signed.signer));
        }
        let rows = [
            (self.execution.run == self.result.run, "the execution is of another run"),
            (body.execution == self.result.execution, "the attestation is of another execution"),
            (body.outcome == self.result.outcome, "the attestation vouches for another outcome"),
            (body.files == self.result.files, "the attestation vouches for other files"),
            (outcome.run == self.result.run, "the outcome is of another run"),
        ];
        for (holds, problem) in rows {
            if !holds {
                self.problems.add(problem);
            }
        }
    }

    fn placements(&mut self) -> Vec<Placement> {
        let mut placements = Vec::new();
        let mut parent = None;
        for cid in self.attestation.body.placements.clone() {
            let placement: Placement = match self.source.node(&cid) {
                Ok(placement) => placement,
                Err(e) => {
                    self.problems.add(format!("placement: {}", chain(&e)));
                    continue;
                }
            };
            if placement.execution != self.result.execution {
                self.problems.add(format!("placement {cid} is of another execution"));
            }
            if placement.parent != parent {
                self.problems.add(format!("placement {cid} does not link the one before it"));
            }
            parent = Some(cid);
            placements.push(placement);
        }
        placements
    }

    /// Reads all receipts and returns those that count, how many there were, and how many are of no instance.
    fn receipts(&mut self, placements: &[Placement]) -> (Vec<Signed<Receipt>>, u64, u64) {
        let placed: Placed = placements
            .iter()
            .flat_map(|p| &p.assignments)
            .map(|a| (a.group.clone(), a.lablet.clone(), a.start, a.count))
            .collect();
        let (mut good, mut read, mut unknown) = (Vec::new(), 0, 0);
        // A chunk that was sealed again repeats receipts of an earlier one.
        let mut seen = BTreeSet::new();
        for cid in self.attestation.body.receipts.clone() {
            let shard: ReceiptShard = match self.source.node(&cid) {
                Ok(shard) => shard,
                Err(e) => {
                    self.problems.add(format!("receipts: {}", chain(&e)));
                    continue;
                }
            };
            for receipt in shard.receipts {
                if !seen.insert((receipt.body.instance.clone(), receipt.signature.clone())) {
                    continue;
                }
                read += 1;
                if !is_instance(&self.run, &receipt.body.instance) {
                    unknown += 1;
                    self.problems.add(format!("a receipt for {}, which the run does not have", receipt.body.instance));
                } else if self.receipt(&receipt, &placed) {
                    good.push(receipt);
                }
            }
        }
        (good, read, unknown)
    }

    /// Checks one receipt; one that fails is left out of the outcome.
    fn receipt(&mut self, receipt: &Signed<Receipt>, placed: &Placed) -> bool {
        let body = &receipt.body;
        let message = signing_bytes(body);
        if !self.signature(&receipt.signer, &message, &receipt.signature) {
            self.problems.add(format!("the signature of {}'s receipt by {} is bad", body.instance, receipt.signer));
            return false;
        }
        let lablet_known = self.attestation.body.lablets.iter().any(|l| l.peer == body.lablet);
        let was_placed = placed
            .range((body.instance.group.clone(), body.lablet.clone(), 0, 0)..)
            .take_while(|(group, lablet, ..)| *group == body.instance.group && *lablet == body.lablet)
            .any(|(_, _, start, count)| (*start..start.saturating_add(*count)).contains(&body.instance.index));
        let workload = self.run.groups.get(&body.instance.group).map(|g| g.workload);
        let rows = [
            (receipt.signer == body.lablet, "is not signed by its lablet"),
            (body.execution == self.result.execution, "is of another execution"),
            (workload == Some(body.workload), "is of another workload"),
            (lablet_known, "is by a lablet that took no part"),
            (was_placed, "is by a lablet that it was not placed on"),
            ((1..=self.run.attempts_of(&body.instance.group)).contains(&body.attempt), "is of an attempt too many"),
        ];
        let mut counts = true;
        for (holds, problem) in rows {
            if !holds {
                self.problems.add(format!("the receipt of {} {problem}", body.instance));
                counts = false;
            }
        }
        if counts {
            self.tried(body.instance.clone(), body.attempt);
        }
        let lablet = self.lablets.entry(body.lablet.clone()).or_default();
        lablet.receipts += 1;
        judge::count(&mut lablet.counts, &termination(&body.exit));
        counts
    }

    fn tried(&mut self, instance: InstanceId, attempt: u32) {
        if attempt > 1 && self.attempts.len() < MAX_INSTANCES as usize {
            let last = self.attempts.entry(instance).or_default();
            *last = (*last).max(attempt);
        }
    }

    /// Takes in what a grant of the log says of attempts; the bound of each group holds for all of them.
    fn granted(&mut self, assignments: &[Assignment], attempt: u32) {
        if attempt <= 1 {
            return;
        }
        for assignment in assignments {
            if attempt > self.run.attempts_of(&assignment.group) {
                self.problems.add(format!("the log grants attempt {attempt} of {assignment}, which is one too many"));
            }
            let size = self.run.groups.get(&assignment.group).map_or(0, |group| group.count);
            for instance in assignment.instances().take_while(|instance| instance.index < size) {
                self.tried(instance, attempt);
            }
        }
    }

    /// Checks that the attempts which are attested are those that log and receipts tell of.
    fn attempts(&mut self) {
        let told = ranges(&self.attempts);
        if told != self.attestation.body.attempts {
            let count = |of: &BTreeMap<String, u32>| of.len();
            self.problems.add(format!(
                "log and receipts tell of further attempts in {} ranges of instances, and the attestation of {} or others",
                count(&told),
                count(&self.attestation.body.attempts)
            ));
        }
    }

    /// Checks that whoever has no receipt is listed as missing. Returns the receipts that are left without those of
    /// the missing, and the number of these.
    fn missing(&mut self, receipts: Vec<Signed<Receipt>>) -> (Vec<Signed<Receipt>>, u64) {
        let mut listed: BTreeMap<String, Vec<RangeInclusive<u32>>> = BTreeMap::new();
        for key in self.attestation.body.missing.keys() {
            match parse_range(key) {
                Some((group, range)) if self.run.groups.get(group).is_some_and(|g| *range.end() < g.count) => {
                    listed.entry(group.to_owned()).or_default().push(range);
                }
                Some(_) | None => self.problems.add(format!("{key:?} is listed as missing and is not in the run")),
            }
        }
        listed.values_mut().for_each(merge);
        let is_listed = |id: &InstanceId| listed.get(&id.group).is_some_and(|ranges| covers(ranges, id.index));
        if self.run.instances() > MAX_INSTANCES {
            return (receipts, self.run.instances());
        }
        let counting: Vec<Signed<Receipt>> = receipts.into_iter().filter(|r| !is_listed(&r.body.instance)).collect();
        let have: BTreeSet<&InstanceId> = counting.iter().map(|r| &r.body.instance).collect();
        let mut missing = 0;
        for (name, group) in &self.run.groups {
            for index in 0..group.count {
                let id = InstanceId { group: name.clone(), index };
                if have.contains(&id) {
                    continue;
                }
                missing += 1;
                if !is_listed(&id) {
                    self.problems.add(format!("{id} has no receipt that counts and is not listed as missing"));
                }
            }
        }
        (counting, missing)
    }

    /// Checks that the attestation is by the orchestrator, or by a successor: one under whom lablets worked, or that
    /// took the log over.
    fn leader(&mut self, receipts: &[Signed<Receipt>], successors: &BTreeSet<PeerId>) {
        let signer = &self.attestation.signer;
        let led = *signer == self.execution.orchestrator || successors.contains(signer);
        if !led && !receipts.iter().any(|r| r.body.epoch.peer == *signer) {
            self.problems.add(format!("the attestation is signed by {signer}, who did not lead the execution"));
        }
        if let Some(term) = self.attestation.body.term.as_ref().filter(|term| term.peer != *signer) {
            self.problems.add(format!("the attestation is signed by {signer}, and is of a term of {}", term.peer));
        }
    }

    /// Follows the log from its end to its first fact; returns what it tells.
    fn log(&mut self) -> Told {
        let mut successors = BTreeSet::new();
        let (mut faulted, mut ways) = (Vec::new(), Vec::new());
        let mut next = self.attestation.body.log;
        let mut expected_seq = None;
        let mut facts = 0;
        while let Some(cid) = next {
            let fact: Signed<Fact> = match self.source.node(&cid) {
                Ok(fact) => fact,
                Err(e) => {
                    self.problems.add(format!("log: {}", chain(&e)));
                    break;
                }
            };
            facts += 1;
            let message = signing_bytes(&fact.body);
            let body = &fact.body;
            if !self.signature(&fact.signer, &message, &fact.signature) {
                self.problems.add(format!("the signature of fact {} by {} is bad", body.seq, fact.signer));
            }
            let in_chain = expected_seq.is_none_or(|seq| seq == body.seq)
                && body.execution == self.result.execution
                && (body.seq == 0) == body.prev.is_none()
                && body.epoch.peer == fact.signer;
            if !in_chain || facts > MAX_FACTS {
                self.problems.add(format!("fact {} does not fit into the log", body.seq));
                break;
            }
            if matches!(body.kind, FactKind::TakenOver { .. }) {
                successors.insert(fact.signer.clone());
            }
            expected_seq = body.seq.checked_sub(1);
            next = body.prev;
            let Some((lablet, said)) = body.kind.of_cell() else { continue };
            match said {
                CellFact::Held { assignments, attempt } => self.granted(assignments, attempt),
                CellFact::Measured(measured) => {
                    let room = MAX_INSTANCES as usize - ways.len().min(MAX_INSTANCES as usize);
                    ways.extend(measured.iter().take(room).map(|way| (lablet.clone(), way.clone())));
                }
                CellFact::Faulted(done) => {
                    let room = MAX_INSTANCES as usize - faulted.len().min(MAX_INSTANCES as usize);
                    faulted.extend(done.iter().take(room).map(|done| (lablet.clone(), *done)));
                }
                CellFact::Accepted | CellFact::Refused | CellFact::Received(_) | CellFact::Lost(_) => {}
            }
        }
        faulted.sort_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
        Told { facts, successors, faults: faulted, ways }
    }

    fn assemble_again(&mut self, receipts: Vec<Signed<Receipt>>, outcome: &Outcome) -> Option<Assembled> {
        let Attestation { cannot_start, started_ms, .. } = &self.attestation.body;
        if cannot_start.is_some() && (*started_ms > 0 || !receipts.is_empty()) {
            self.problems.add("the attestation states that nothing was started, and something was");
        }
        let input = Assembly {
            run_cid: self.result.run,
            run: self.run.clone(),
            execution: self.result.execution,
            receipts,
            missing: BTreeMap::new(),
            cancelled: false,
            timed_out: false,
            cannot_start: self.attestation.body.cannot_start.as_ref().map(|why| why.reason.clone()),
        };
        let assembled = match assemble(&input, self.source.reader()) {
            Ok(assembled) => assembled,
            Err(e) => {
                self.problems.add(format!("the outcome cannot be assembled again: {}", chain(&e)));
                return None;
            }
        };
        if assembled.outcome != self.result.outcome {
            self.problems.add(format!(
                "the receipts give outcome {} and not {}: {}",
                assembled.outcome,
                self.result.outcome,
                difference(&assembled, outcome)
            ));
        }
        if assembled.files != self.result.files {
            self.problems.add(format!("the receipts give files {} and not {}", assembled.files, self.result.files));
        }
        if assembled.counts != self.result.counts {
            self.problems.add("the receipts give other counts than the result states");
        }
        let stated = &self.attestation.body.inconclusive;
        if let Some(reason) = assembled.inconclusive.iter().find(|reason| !stated.contains(reason)) {
            self.problems.add(format!("the attestation does not state that {reason}"));
        }
        let expected: ResultVerdict = judge::result_verdict(assembled.verdict, stated);
        if expected != self.result.verdict {
            self.problems.add(format!("the verdict should be {expected:?} and is {:?}", self.result.verdict));
        }
        Some(assembled)
    }
}

/// Says in a word or two where two outcomes part.
fn difference(assembled: &Assembled, outcome: &Outcome) -> &'static str {
    if assembled.verdict != outcome.verdict {
        "the verdicts differ"
    } else if assembled.thresholds != outcome.thresholds {
        "the thresholds differ"
    } else {
        "the groups differ"
    }
}

/// Sorts ranges and joins those that overlap.
fn merge(ranges: &mut Vec<RangeInclusive<u32>>) {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| *range.start());
    ranges.dedup_by(|later, earlier| {
        let overlap = later.start() <= earlier.end();
        if overlap {
            *earlier = *earlier.start()..=*earlier.end().max(later.end());
        }
        overlap
    });
}

/// Returns whether an index is in one of these disjoint, sorted ranges.
fn covers(ranges: &[RangeInclusive<u32>], index: u32) -> bool {
    let after = ranges.partition_point(|range| *range.start() <= index);
    after.checked_sub(1).is_some_and(|last| ranges[last].contains(&index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_ranges_cover_what_the_ranges_covered() {
        let mut ranges = vec![7..=9, 1..=2, 2..=4, 20..=20, 8..=8, 9..=12];
        let covered: Vec<u32> = (0..30).filter(|i| ranges.iter().any(|range| range.contains(i))).collect();
        merge(&mut ranges);
        assert_eq!(ranges, [1..=4, 7..=12, 20..=20]);
        assert_eq!((0..30).filter(|i| covers(&ranges, *i)).collect::<Vec<_>>(), covered);
    }
}
