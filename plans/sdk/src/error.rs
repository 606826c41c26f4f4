//! Why a call failed.

use std::fmt;

/// Why a call failed.
#[derive(Clone, PartialEq, Eq)]
pub enum Error {
    /// A variable of the lab is missing or makes no sense: the program was not started by a lab.
    NotInLab {
        /// Variable.
        variable: String,
    },
    /// The run has no such parameter.
    NoParam {
        /// Name.
        name: String,
    },
    /// The parameter is not of the type that was asked for.
    BadParam {
        /// Name.
        name: String,
        /// Its value.
        value: String,
    },
    /// The lab refused, with its reason.
    Refused(String),
}

/// The answer of a call.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotInLab { variable } => write!(f, "not started by a lab: {variable} is missing or garbled"),
            Error::NoParam { name } => write!(f, "the run has no parameter `{name}`"),
            Error::BadParam { name, value } => write!(f, "parameter `{name}` has the unexpected value `{value}`"),
            Error::Refused(reason) => f.write_str(reason),
        }
    }
}

/// As people read it: a `main` that returns an error prints this.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        Error::Refused(error.to_string())
    }
}
