//! The codes of mistakes. A code never changes its meaning; one that is no longer used is not given again.

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        $($(#[$doc])* pub(crate) const $name: &str = $code;)*

        /// All codes, in order.
        pub const CODES: &[&str] = &[$($code),*];
    };
}

codes! {
    /// The file is not TOML.
    SYNTAX = "E0101";
    /// A key or table stands twice.
    DUPLICATE = "E0102";
    /// The file is larger than any manifest.
    TOO_LARGE = "E0103";
    /// A key that means nothing here.
    UNKNOWN_KEY = "E0201";
    /// A key that must be there is not.
    MISSING_KEY = "E0202";
    /// A value of another type.
    WRONG_TYPE = "E0203";
    /// A name that cannot be one.
    BAD_NAME = "E0204";
    /// A word that is none of those allowed.
    UNKNOWN_WORD = "E0205";
    /// A quantity whose unit or number cannot be read.
    BAD_QUANTITY = "E0206";
    /// A number or quantity out of range.
    OUT_OF_RANGE = "E0207";
    /// Text that is empty, too long or has control characters.
    BAD_TEXT = "E0208";
    /// A group names a workload that is not there.
    UNKNOWN_WORKLOAD = "E0301";
    /// A plan without workloads or cases, a case without groups.
    EMPTY = "E0302";
    /// The default is not between the bounds.
    DEFAULT_OUTSIDE = "E0303";
    /// The smallest is larger than the largest.
    REVERSED_BOUNDS = "E0304";
    /// A workload has none or both of path and CID.
    WORKLOAD_SOURCE = "E0305";
    /// A path that leaves the plan's directory.
    BAD_PATH = "E0306";
    /// Not a CID, or not that of a workload.
    BAD_CID = "E0307";
    /// A threshold without exactly one subject and one comparison.
    THRESHOLD_SHAPE = "E0308";
    /// A threshold about a group that is not there.
    THRESHOLD_GROUP = "E0309";
    /// A key that does not belong to the type of the parameter.
    PARAM_KEY = "E0310";
    /// A variable of the environment that is the lab's, or no variable.
    BAD_ENV = "E0311";
    /// More instances than one run may have.
    TOO_MANY = "E0312";
    /// Settings of a container for a workload that is none.
    CONTAINER = "E0313";
    /// A network that is neither the plan's nor one that everybody has.
    UNKNOWN_NETWORK = "E0314";
    /// A matrix of delays that does not fit its regions.
    MATRIX = "E0315";
    /// More regions than a network has links for.
    TOO_MANY_LINKS = "E0316";
    /// A region, access class, gateway or site that the network does not have.
    UNKNOWN_PLACE = "E0317";
    /// Shares that are no whole, or leave a group nowhere.
    SHARES = "E0318";
    /// A site inside itself.
    INSIDE_ITSELF = "E0319";
    /// A name of a network that has it already.
    NAME_TAKEN = "E0320";
    /// Keys of a network that do not go together.
    NETWORK_SHAPE = "E0321";
    /// A network that places a group which is not there.
    NETWORK_GROUP = "E0322";
    /// A fault that does not say what happens, or when.
    FAULT_SHAPE = "E0323";
    /// A place outside of the lab that is none.
    DESTINATION = "E0324";
    /// The plan has no such case.
    UNKNOWN_CASE = "E0401";
    /// The plan has several cases and none was chosen.
    NO_CASE = "E0402";
    /// The case has no such group.
    UNKNOWN_GROUP = "E0403";
    /// The group cannot have this size.
    GROUP_SIZE = "E0404";
    /// The case has no such parameter.
    UNKNOWN_PARAM = "E0405";
    /// The value is not of the parameter's type.
    PARAM_TYPE = "E0406";
    /// The value is not within the parameter's bounds or choices.
    PARAM_RANGE = "E0407";
    /// The workload's node was not at hand, or the plan does not name it.
    NO_WORKLOAD = "E0408";
    /// The run would have no instances, or too many.
    RUN_SIZE = "E0409";
    /// A capture of what cannot be captured.
    CAPTURE = "E0410";
}

/// The page that explains every code, a section for each.
const PAGE: &str = include_str!("../../docs/spec/plan-errors.md");

/// Returns the long text about a code, as Markdown without its heading; none where there is no such code.
pub fn explain(code: &str) -> Option<&'static str> {
    let code = CODES.iter().find(|known| known.eq_ignore_ascii_case(code))?;
    let heading = format!("\n## {code}: ");
    let start = PAGE.find(&heading)? + heading.len();
    let section = PAGE[start..].split("\n## ").next()?;
    Some(section.trim_end())
}
