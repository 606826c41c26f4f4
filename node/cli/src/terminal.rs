//! The terminal that a command has: its size, a mode in which every key arrives as it is, and all of it to draw on.

use std::io::{self, IsTerminal, Write};

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

/// The whole terminal, to be drawn on; what stood there before comes back when dropped.
pub struct Screen(());

impl Screen {
    /// Takes the terminal, and hides its cursor.
    pub fn enter() -> io::Result<Screen> {
        put("\u{1b}[?1049h\u{1b}[?25l")?;
        Ok(Screen(()))
    }

    /// Draws lines from the top; none is longer than the terminal is wide.
    pub fn show(&self, lines: &[String]) -> io::Result<()> {
        let mut text = String::from("\u{1b}[H");
        for (at, line) in lines.iter().enumerate() {
            if at > 0 {
                text.push_str("\r\n");
            }
            text.push_str(line);
            text.push_str("\u{1b}[K");
        }
        text.push_str("\u{1b}[J");
        put(&text)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone shows nothing.
        let _ = put("\u{1b}[?25h\u{1b}[?1049l");
    }
}

fn put(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
