//! Images that nobody should have made.

mod hostile;
mod limits;
mod links;
