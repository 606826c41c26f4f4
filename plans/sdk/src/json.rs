//! JSON that events carry.

use std::fmt;

/// A JSON value, made from Rust values by `into`.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// Nothing.
    Null,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number; what is not finite is written as null.
    Float(f64),
    /// Text.
    Text(String),
    /// Values in order.
    List(Vec<Json>),
    /// Values by name.
    Object(Vec<(String, Json)>),
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Json::Null => f.write_str("null"),
            Json::Bool(value) => write!(f, "{value}"),
            Json::Int(value) => write!(f, "{value}"),
            Json::Float(value) if value.is_finite() => write!(f, "{value:?}"),
            Json::Float(_) => f.write_str("null"),
            Json::Text(text) => quoted(f, text),
            Json::List(items) => {
                f.write_str("[")?;
                for (at, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if at == 0 { "" } else { "," })?;
                }
                f.write_str("]")
            }
            Json::Object(fields) => {
                f.write_str("{")?;
                for (at, (name, value)) in fields.iter().enumerate() {
                    f.write_str(if at == 0 { "" } else { "," })?;
                    quoted(f, name)?;
                    write!(f, ":{value}")?;
                }
                f.write_str("}")
            }
        }
    }
}

fn quoted(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str("\"")?;
    for c in text.chars() {
        match c {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            c if c.is_control() => write!(f, "\\u{:04x}", u32::from(c))?,
            c => write!(f, "{c}")?,
        }
    }
    f.write_str("\"")
}

macro_rules! from {
    ($($type:ty => $variant:ident($value:ident) $make:expr;)*) => {
        $(impl From<$type> for Json {
            fn from($value: $type) -> Json { Json::$variant($make) }
        })*
    };
}

from! {
    bool => Bool(value) value;
    i32 => Int(value) value.into();
    u32 => Int(value) value.into();
    i64 => Int(value) value;
    f64 => Float(value) value;
    &str => Text(value) value.to_owned();
    String => Text(value) value;
}

impl From<u64> for Json {
    fn from(value: u64) -> Json {
        i64::try_from(value).map_or(Json::Float(value as f64), Json::Int)
    }
}

impl From<usize> for Json {
    fn from(value: usize) -> Json {
        (value as u64).into()
    }
}

impl From<()> for Json {
    fn from((): ()) -> Json {
        Json::Null
    }
}

impl<T: Into<Json>> From<Vec<T>> for Json {
    fn from(items: Vec<T>) -> Json {
        Json::List(items.into_iter().map(Into::into).collect())
    }
}

impl<T: Into<Json>, const N: usize> From<[(&str, T); N]> for Json {
    fn from(fields: [(&str, T); N]) -> Json {
        Json::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_json() {
        let cases: [(Json, &str); 6] = [
            (().into(), "null"),
            ([("a", 1u32), ("b", 2)].into(), r#"{"a":1,"b":2}"#),
            (vec![1.5, f64::NAN].into(), "[1.5,null]"),
            ("a\"\\\n\u{1b}".into(), r#""a\"\\\n\u001b""#),
            ([("ok", Json::from(true)), ("n", u64::MAX.into())].into(), r#"{"ok":true,"n":1.8446744073709552e19}"#),
            (Json::Object(Vec::new()), "{}"),
        ];
        for (json, text) in cases {
            assert_eq!(json.to_string(), text);
        }
    }
}
