//! Reads the JSON of replies.

use crate::Json;

/// Deepest nesting that is read.
const MAX_DEPTH: usize = 16;

/// Parses a whole text; none where it is no JSON, or nests deeper than any reply.
pub(super) fn parse(text: &str) -> Option<Json> {
    let mut parser = Parser { rest: text };
    let value = parser.value(MAX_DEPTH)?;
    parser.skip();
    parser.rest.is_empty().then_some(value)
}

impl Json {
    /// Returns a field of an object.
    pub(super) fn field(&self, name: &str) -> Option<&Json> {
        match self {
            Json::Object(fields) => fields.iter().find(|(key, _)| key == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// Returns the text that it is.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the count that it is.
    pub(super) fn count(&self) -> Option<u64> {
        match self {
            Json::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn value(&mut self, depth: usize) -> Option<Json> {
        let depth = depth.checked_sub(1)?;
        self.skip();
        match self.rest.as_bytes().first()? {
            b'{' => self.object(depth),
            b'[' => self.list(depth),
            b'"' => self.text().map(Json::Text),
            b'n' => self.word("null", Json::Null),
            b't' => self.word("true", Json::Bool(true)),
            b'f' => self.word("false", Json::Bool(false)),
            _ => self.number(),
        }
    }

    fn object(&mut self, depth: usize) -> Option<Json> {
        let mut fields = Vec::new();
        self.take('{')?;
        if self.take('}').is_some() {
            return Some(Json::Object(fields));
        }
        loop {
            self.skip();
            let name = self.text()?;
            self.take(':')?;
            fields.push((name, self.value(depth)?));
            if self.take(',').is_none() {
                break;
            }
        }
        self.take('}')?;
        Some(Json::Object(fields))
    }

    fn list(&mut self, depth: usize) -> Option<Json> {
        let mut items = Vec::new();
        self.take('[')?;
        if self.take(']').is_some() {
            return Some(Json::List(items));
        }
        loop {
            items.push(self.value(depth)?);
            if self.take(',').is_none() {
                break;
            }
        }
        self.take(']')?;
        Some(Json::List(items))
    }

    fn text(&mut self) -> Option<String> {
        self.rest = self.rest.strip_prefix('"')?;
        let mut text = String::new();
        loop {
            let end = self.rest.find(['"', '\\'])?;
            let (plain, rest) = self.rest.split_at(end);
            text.push_str(plain);
            self.rest = &rest[1..];
            if rest.starts_with('"') {
                return Some(text);
            }
            let escape = self.rest.chars().next()?;
            self.rest = &self.rest[escape.len_utf8()..];
            text.push(match escape {
                '"' | '\\' | '/' => escape,
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                'b' => '\u{8}',
                'f' => '\u{c}',
                'u' => self.unicode()?,
                _ => return None,
            });
        }
    }

    fn unicode(&mut self) -> Option<char> {
        let first = self.hex()?;
        if !(0xd800..0xdc00).contains(&first) {
            return char::from_u32(first);
        }
        self.rest = self.rest.strip_prefix("\\u")?;
        let second = self.hex()?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
        char::from_u32(0x1_0000 + ((first - 0xd800) << 10 | second))
    }

    fn hex(&mut self) -> Option<u32> {
        let (digits, rest) = self.rest.split_at_checked(4)?;
        self.rest = rest;
        u32::from_str_radix(digits, 16).ok()
    }

    fn number(&mut self) -> Option<Json> {
        let is_part = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E');
        let end = self.rest.find(|c: char| !is_part(c)).unwrap_or(self.rest.len());
        let (number, rest) = self.rest.split_at(end);
        self.rest = rest;
        number.parse().map(Json::Int).or_else(|_| number.parse().map(Json::Float)).ok()
    }

    fn word(&mut self, word: &str, value: Json) -> Option<Json> {
        self.rest = self.rest.strip_prefix(word)?;
        Some(value)
    }

    fn take(&mut self, expected: char) -> Option<()> {
        self.skip();
        self.rest = self.rest.strip_prefix(expected)?;
        Some(())
    }

    fn skip(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_read() {
        let reply =
            r#"{"id":"0","error":"a\"\\\né\ud83d\ude00","publish":{"seq":1}, "subscribe":"" ,"x":[1,-2.5,true]}"#;
        let reply = parse(reply).unwrap();
        assert_eq!(reply.field("id").and_then(Json::text), Some("0"));
        assert_eq!(reply.field("error").and_then(Json::text), Some("a\"\\\né😀"));
        assert_eq!(reply.field("publish").and_then(|p| p.field("seq")).and_then(Json::count), Some(1));
        assert_eq!(reply.field("x"), Some(&vec![Json::Int(1), Json::Float(-2.5), Json::Bool(true)].into()));
        assert_eq!(reply.field("signal_entry"), None);
    }

    #[test]
    fn what_is_written_can_be_read() {
        let json: Json = [("a\u{1}\"", Json::from(vec![1, 2])), ("b", Json::Null)].into();
        assert_eq!(parse(&json.to_string()), Some(json));
    }

    #[test]
    fn what_is_no_json_is_none() {
        let deep = "[".repeat(100_000);
        for bad in ["", "{", "[1,]", "{\"a\"}", "\"\\ud800\"", "\"\\u12\"", "nul", "1 2", "\"a", "+é", &deep] {
            assert_eq!(parse(bad), None, "{}", &bad[..bad.len().min(20)]);
        }
    }
}
