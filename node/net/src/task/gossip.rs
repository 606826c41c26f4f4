//! Topics: own subscriptions, validation, and messages that wait for a first subscriber.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p::gossipsub::{self, IdentTopic, MessageAcceptance, PublishError as SwarmPublishError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Task;
use crate::addr::to_peer;
use crate::error::{PublishError, SubscribeError};
use crate::event::{GossipMessage, GossipVerdict, Validate};
use crate::swarm::{MAX_GOSSIP_SIZE, topic_scores};

/// Accepted messages that a subscriber has not read; further ones are lost to it. What must arrive is repeated by its
/// sender, as gossip promises nothing.
const SUBSCRIBER_QUEUE: usize = 1_024;
/// How long a message waits for a first subscriber: one round of subscriptions after connecting, many times over.
const PUBLISH_WAIT: Duration = Duration::from_secs(2);
/// Messages that wait for a first subscriber: with their largest size, 4 MiB.
const MAX_WAITING: usize = 256;
/// Bytes of signature, key, source, sequence number and topic around a payload, at most.
const ENVELOPE: usize = 512;

/// State of gossip.
#[derive(Default)]
pub(super) struct Gossip {
    subscriptions: BTreeMap<String, Subscription>,
    waiting: Vec<Waiting>,
}

struct Subscription {
    validate: Validate,
    queue: mpsc::Sender<GossipMessage>,
}

struct Waiting {
    topic: String,
    data: Vec<u8>,
    deadline: Instant,
    reply: oneshot::Sender<Result<(), PublishError>>,
}

impl Gossip {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiting| waiting.deadline).min()
    }
}

impl Task {
    pub(super) fn subscribe(
        &mut self,
        topic: String,
        validate: Validate,
    ) -> Result<mpsc::Receiver<GossipMessage>, SubscribeError> {
        if self.gossip.subscriptions.get(&topic).is_some_and(|subscription| !subscription.queue.is_closed()) {
            return Err(SubscribeError::Taken { topic });
        }
        let refused = |reason: String| SubscribeError::Refused { topic: topic.clone(), reason };
        let ident = IdentTopic::new(&topic);
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        gossip.set_topic_params(ident.clone(), topic_scores()).map_err(|error| refused(error.into()))?;
        gossip.subscribe(&ident).map_err(|error| refused(error.to_string()))?;
        let (queue, receiver) = mpsc::channel(SUBSCRIBER_QUEUE);
        self.gossip.subscriptions.insert(topic, Subscription { validate, queue });
        Ok(receiver)
    }

    pub(super) fn unsubscribe(&mut self, topic: &str) {
        if self.gossip.subscriptions.remove(topic).is_some() {
            self.swarm.behaviour_mut().gossip.unsubscribe(&IdentTopic::new(topic));
        }
    }

    pub(super) fn publish(&mut self, topic: String, data: Vec<u8>, reply: oneshot::Sender<Result<(), PublishError>>) {
        let limit = MAX_GOSSIP_SIZE - ENVELOPE;
        let result = if data.len() > limit {
            Err(PublishError::TooLarge { size: data.len(), limit })
        } else {
            match self.publish_now(&topic, &data) {
                Err(PublishError::NoPeers { .. }) if self.gossip.waiting.len() < MAX_WAITING => {
                    let deadline = Instant::now() + PUBLISH_WAIT;
                    self.gossip.waiting.push(Waiting { topic, data, deadline, reply });
                    return;
                }
                Err(PublishError::NoPeers { .. }) => {
                    Err(PublishError::TooManyWaiting { waiting: self.gossip.waiting.len() })
                }
                done => done,
            }
        };
        // A caller that is gone does not want to know.
        let _ = reply.send(result);
    }

    fn publish_now(&mut self, topic: &str, data: &[u8]) -> Result<(), PublishError> {
        let published = self.swarm.behaviour_mut().gossip.publish(IdentTopic::new(topic), data);
        published.map(|_| ()).map_err(|error| match error {
            SwarmPublishError::NoPeersSubscribedToTopic => PublishError::NoPeers { topic: topic.into() },
            SwarmPublishError::MessageTooLarge => {
                PublishError::TooLarge { size: data.len(), limit: MAX_GOSSIP_SIZE - ENVELOPE }
            }
            SwarmPublishError::AllQueuesFull(peers) => PublishError::QueuesFull { peers },
            SwarmPublishError::Duplicate
            | SwarmPublishError::SigningError(_)
            | SwarmPublishError::TransformFailed(_) => {
                PublishError::Refused { topic: topic.into(), reason: error.to_string() }
            }
        })
    }

    pub(super) fn on_gossip(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message { propagation_source, message_id, message } => {
                let acceptance = self.judge(message);
                let gossip = &mut self.swarm.behaviour_mut().gossip;
                gossip.report_message_validation_result(&message_id, &propagation_source, acceptance);
            }
            gossipsub::Event::Subscribed { topic, .. } => self.publish_waiting(topic.as_str()),
            gossipsub::Event::SlowPeer { peer_id, failed_messages } => {
                tracing::debug!(peer = %peer_id, ?failed_messages, "peer is slow to take gossip");
            }
            gossipsub::Event::GossipsubNotSupported { peer_id } => tracing::debug!(peer = %peer_id, "no gossip"),
            gossipsub::Event::Unsubscribed { .. } => {}
        }
    }

    /// Asks the validator, and delivers what it accepts.
    fn judge(&mut self, message: gossipsub::Message) -> MessageAcceptance {
        let topic = message.topic.as_str();
        // Strict validation lets no message without a source through.
        let (Some(source), Some(subscription)) = (message.source, self.gossip.subscriptions.get(topic)) else {
            return MessageAcceptance::Ignore;
        };
        let source = to_peer(&source);
        match (subscription.validate)(&source, &message.data) {
            GossipVerdict::Reject => MessageAcceptance::Reject,
            GossipVerdict::Ignore => MessageAcceptance::Ignore,
            GossipVerdict::Accept => {
                match subscription.queue.try_send(GossipMessage { source, data: message.data }) {
                    Ok(()) => {}
                    Err(mpsc::error::TrySendError::Full(lost)) => {
                        tracing::warn!(topic, source = %lost.source, "message lost: the subscriber does not read");
                    }
                    Err(mpsc::error::TrySendError::Closed(_)) => {
                        let topic = topic.to_owned();
                        self.unsubscribe(&topic);
                        return MessageAcceptance::Ignore;
                    }
                }
                MessageAcceptance::Accept
            }
        }
    }

    fn publish_waiting(&mut self, topic: &str) {
        let waiting = std::mem::take(&mut self.gossip.waiting);
        for message in waiting {
            if message.topic != topic {
                self.gossip.waiting.push(message);
                continue;
            }
            match self.publish_now(&message.topic, &message.data) {
                Err(PublishError::NoPeers { .. }) => self.gossip.waiting.push(message),
                // A caller that is gone does not want to know.
                done => drop(message.reply.send(done)),
            }
        }
    }

    pub(super) fn on_gossip_deadline(&mut self, now: Instant) {
        let waiting = std::mem::take(&mut self.gossip.waiting);
        for message in waiting {
            if message.deadline > now {
                self.gossip.waiting.push(message);
            } else {
                // A caller that is gone does not want to know.
                let _ = message.reply.send(Err(PublishError::NoPeers { topic: message.topic }));
            }
        }
    }
}
