//! How an instance ended, from what the engine and the limits say.

use iptl_dag::model::Exit;
use wasmtime::{Error, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

/// A host function ends the instance that called it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Ending {
    /// It wrote more than it may.
    #[error("more {what} than it may write")]
    TooMuch {
        /// Of what.
        what: &'static str,
    },
    /// The lab could not keep what it wrote.
    #[error("{what} could not be kept: {reason}")]
    Lost {
        /// What.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

/// Addresses above this are what an overflow of the stack of a program at the foot of its memory runs into: Rust and C
/// put the stack below their data, so that it ends in a fault just below zero.
const BELOW_ZERO: u64 = 0xffff_ffff - (64 << 20);

/// Frames of a backtrace that the engine collects.
pub(crate) const MAX_FRAMES: usize = 256;

/// Returns the exit of a call of `wasi:cli/run`; `refused_memory` says that the instance was refused memory.
pub(crate) fn of_call(result: Result<Result<(), ()>, Error>, refused_memory: bool) -> Exit {
    match result {
        Ok(Ok(())) => Exit::Exited { code: 0 },
        Ok(Err(())) => Exit::Exited { code: 1 },
        Err(error) => of_error(&error, refused_memory),
    }
}

/// Returns the exit that an error of the engine means.
pub(crate) fn of_error(error: &Error, refused_memory: bool) -> Exit {
    if let Some(I32Exit(code)) = error.downcast_ref::<I32Exit>() {
        return Exit::Exited { code: *code };
    }
    if let Some(ending) = error.downcast_ref::<Ending>() {
        return of_ending(ending);
    }
    if refused_memory {
        return Exit::OutOfMemory {};
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::StackOverflow) => Exit::StackOverflow {},
        Some(Trap::MemoryOutOfBounds) if is_below_zero(error) || is_deep(error) => Exit::StackOverflow {},
        Some(trap) => Exit::Trapped { trap: trap_name(*trap) },
        None => Exit::Trapped { trap: format!("host: {}", error.root_cause()) },
    }
}

fn of_ending(ending: &Ending) -> Exit {
    match ending {
        Ending::TooMuch { what } => Exit::TooMuchOutput { what: (*what).to_owned() },
        Ending::Lost { .. } => Exit::Stopped { reason: ending.to_string() },
    }
}

/// Returns the stable name of a trap.
fn trap_name(trap: Trap) -> String {
    let text = trap.to_string();
    match trap {
        Trap::UnreachableCodeReached => "unreachable".to_owned(),
        _ => text.strip_prefix("wasm trap: ").unwrap_or(&text).to_owned(),
    }
}

/// Returns whether a program was deeper in calls than the engine's backtrace reaches.
///
/// Bulk copies report no address when they leave the memory; at this depth it is the foot of the stack that they left.
fn is_deep(error: &Error) -> bool {
    error.downcast_ref::<WasmBacktrace>().is_some_and(|backtrace| backtrace.frames().len() >= MAX_FRAMES)
}

/// Returns whether a memory fault hit an address just below zero.
fn is_below_zero(error: &Error) -> bool {
    // The engine keeps the address in a type that it does not export; its text is what there is.
    error.chain().any(|cause| {
        let text = cause.to_string();
        text.split_once("memory fault at wasm address 0x")
            .and_then(|(_, rest)| rest.split_once(' '))
            .and_then(|(address, _)| u64::from_str_radix(address, 16).ok())
            .is_some_and(|address| (BELOW_ZERO..1 << 32).contains(&address))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traps_have_stable_names() {
        assert_eq!(trap_name(Trap::UnreachableCodeReached), "unreachable");
        assert_eq!(trap_name(Trap::IntegerDivisionByZero), "integer divide by zero");
        assert_eq!(trap_name(Trap::BadSignature), "indirect call type mismatch");
    }

    #[test]
    fn statuses_and_endings_are_told_from_traps() {
        assert_eq!(of_call(Ok(Ok(())), false), Exit::Exited { code: 0 });
        assert_eq!(of_call(Ok(Err(())), false), Exit::Exited { code: 1 });
        assert_eq!(of_call(Err(I32Exit(7).into()), true), Exit::Exited { code: 7 });
        assert_eq!(of_call(Err(Trap::StackOverflow.into()), false), Exit::StackOverflow {});
        assert_eq!(of_call(Err(Trap::UnreachableCodeReached.into()), true), Exit::OutOfMemory {});
        let ending = Ending::TooMuch { what: "records" };
        assert_eq!(of_call(Err(Error::new(ending)), false), Exit::TooMuchOutput { what: "records".into() });
    }
}
