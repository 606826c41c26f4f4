//! Where the program is: the variables that the lab sets for each instance.

use std::net::IpAddr;
use std::time::Duration;

use crate::{Error, Result, Rng};

/// Where the program is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Env {
    /// The run.
    pub run: String,
    /// Case of the plan.
    pub case: String,
    /// Group of this instance.
    pub group: String,
    /// Index in the group, from zero.
    pub index: u32,
    /// Instances in the group.
    pub group_size: u32,
    /// Instances over all groups.
    pub total: u32,
    /// Index over all groups, in the order of their names, from zero.
    pub ordinal: u32,
    /// Seed of the run, the same for all instances.
    pub seed: u64,
    /// Address in the lab network: over IPv4, and over IPv6 where that is all there is.
    pub addr: IpAddr,
    /// All groups with their sizes, in the order of their names.
    pub groups: Vec<(String, u32)>,
}

/// An instance of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Group.
    pub group: String,
    /// Index in the group.
    pub index: u32,
    /// Index over all groups.
    pub ordinal: u32,
}

impl Peer {
    /// Returns the host name, which resolves in the lab network: `node-3`.
    pub fn host(&self) -> String {
        format!("{}-{}", self.group, self.index)
    }
}

/// Reads where the program is.
///
/// # Errors
///
/// Fails where the program was not started by a lab.
pub fn env() -> Result<Env> {
    Env::read(|name| std::env::var(name).ok())
}

impl Env {
    fn read(get: impl Fn(&str) -> Option<String>) -> Result<Env> {
        let text = |name: &str| get(name).ok_or_else(|| Error::NotInLab { variable: name.to_owned() });
        fn number<T: std::str::FromStr>(name: &str, text: String) -> Result<T> {
            text.parse().map_err(|_| Error::NotInLab { variable: name.to_owned() })
        }
        let groups = text("IPTL_GROUPS")?
            .split(',')
            .map(|pair| pair.split_once('=').and_then(|(name, size)| Some((name.to_owned(), size.parse().ok()?))))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| Error::NotInLab { variable: "IPTL_GROUPS".to_owned() })?;
        Ok(Env {
            run: text("IPTL_RUN")?,
            case: text("IPTL_CASE")?,
            group: text("IPTL_GROUP")?,
            index: number("IPTL_INDEX", text("IPTL_INDEX")?)?,
            group_size: number("IPTL_GROUP_SIZE", text("IPTL_GROUP_SIZE")?)?,
            total: number("IPTL_TOTAL", text("IPTL_TOTAL")?)?,
            ordinal: number("IPTL_ORDINAL", text("IPTL_ORDINAL")?)?,
            seed: number("IPTL_SEED", text("IPTL_SEED")?)?,
            addr: number("IPTL_ADDR", text("IPTL_ADDR")?)?,
            groups,
        })
    }

    /// Returns a parameter of the run: `env.param::<u32>("rounds")`. Durations are [`Duration`]s, sizes numbers of bytes.
    ///
    /// # Errors
    ///
    /// Fails where the run has no such parameter, or one of another type.
    pub fn param<T: Param>(&self, name: &str) -> Result<T> {
        let variable = format!("IPTL_PARAM_{}", name.to_uppercase().replace('-', "_"));
        let value = std::env::var(variable).map_err(|_| Error::NoParam { name: name.to_owned() })?;
        T::from_text(&value).ok_or_else(|| Error::BadParam { name: name.to_owned(), value })
    }

    /// Returns all instances in the order of their ordinals, this one included.
    pub fn instances(&self) -> impl Iterator<Item = Peer> + '_ {
        let all = self.groups.iter().flat_map(|(group, size)| (0..*size).map(move |index| (group.clone(), index)));
        all.zip(0..).map(|((group, index), ordinal)| Peer { group, index, ordinal })
    }

    /// Returns random numbers that depend on the run's seed and on this instance, and on nothing else.
    pub fn rng(&self) -> Rng {
        Rng::new(self.seed ^ (u64::from(self.ordinal) << 32 | 0x9e37_79b9))
    }
}

/// A type that a parameter can have.
pub trait Param: Sized {
    /// Reads the text that the lab sets.
    fn from_text(text: &str) -> Option<Self>;
}

macro_rules! params {
    ($($type:ty)*) => {
        $(impl Param for $type {
            fn from_text(text: &str) -> Option<$type> { text.parse().ok() }
        })*
    };
}

params!(bool i32 i64 u16 u32 u64 usize f64 String);

impl Param for Duration {
    fn from_text(text: &str) -> Option<Duration> {
        text.parse().ok().map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(name: &str) -> Option<String> {
        let value = match name {
            "IPTL_RUN" => "bafyrun",
            "IPTL_CASE" => "default",
            "IPTL_GROUP" => "b",
            "IPTL_INDEX" => "1",
            "IPTL_GROUP_SIZE" => "2",
            "IPTL_TOTAL" => "5",
            "IPTL_ORDINAL" => "4",
            "IPTL_SEED" => "7",
            "IPTL_ADDR" => "10.0.0.5",
            "IPTL_GROUPS" => "a=3,b=2",
            _ => return None,
        };
        Some(value.to_owned())
    }

    #[test]
    fn the_lab_says_where_the_program_is() {
        let env = Env::read(variables).unwrap();
        assert_eq!((env.group.as_str(), env.index, env.ordinal, env.total), ("b", 1, 4, 5));
        let hosts: Vec<String> = env.instances().map(|peer| peer.host()).collect();
        assert_eq!(hosts, ["a-0", "a-1", "a-2", "b-0", "b-1"]);
    }

    #[test]
    fn a_program_outside_a_lab_is_told_so() {
        let without = |missing: &'static str| Env::read(move |name| variables(name).filter(|_| name != missing));
        assert_eq!(without("IPTL_SEED"), Err(Error::NotInLab { variable: "IPTL_SEED".to_owned() }));
        assert_eq!(without("IPTL_GROUPS"), Err(Error::NotInLab { variable: "IPTL_GROUPS".to_owned() }));
    }
}
