//! The terminal that a command has: its size, and a mode in which every key arrives as it is.

use std::io::{self, IsTerminal};

use iptl_wire::exec::Window;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// What a terminal has that does not say how large it is.
const USUAL: Window = Window { columns: 80, rows: 24 };

/// Returns the size of the terminal on standard output.
pub fn window() -> Window {
    match tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => Window { columns: size.ws_col, rows: size.ws_row },
        Ok(_) | Err(_) => USUAL,
    }
}

/// A terminal on standard input that passes every key on and echoes nothing; as it was before when dropped.
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Changes the mode of the terminal.
    pub fn enter() -> io::Result<Raw> {
        if !io::stdin().is_terminal() {
            return Err(io::Error::other("standard input is no terminal"));
        }
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw)?;
        Ok(Raw { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no mode.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}
