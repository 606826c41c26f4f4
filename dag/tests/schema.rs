//! The schemas in `schemas/` describe the model exactly: every example node is valid, and nothing in a schema is left
//! over that no example has.

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::{Ipld, codec};

use crate::examples;

#[test]
fn examples_are_exactly_what_the_schemas_say() {
    let schemas = Schemas::load();
    let mut used = BTreeSet::new();
    for (name, node) in examples::nodes() {
        let value: Ipld = codec::decode(node.to_block().data()).expect("a node is DAG-CBOR");
        schemas.check(&value, &root(&value), &name, &mut used);
    }
    let unused: Vec<String> = schemas.members().difference(&used).cloned().collect();
    assert!(unused.is_empty(), "in the schemas and in no example: {unused:?}");
}

#[test]
fn checker_refuses_what_a_schema_does_not_say() {
    let schemas = Schemas::load();
    let (_, node) = examples::nodes().remove(0);
    let Ipld::Map(mut union) = codec::decode(node.to_block().data()).expect("DAG-CBOR") else { panic!("not a map") };
    let Some(Ipld::Map(plan)) = union.get_mut("iptl.plan/1") else { panic!("not a plan") };
    plan.insert("extra".into(), Ipld::Null);
    let check = || schemas.check(&Ipld::Map(union.clone()), &Type::Named("Node".into()), "plan", &mut BTreeSet::new());
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err());
}

/// Returns the type of a block: a result alone has more than its tag.
fn root(value: &Ipld) -> Type {
    let is_result = matches!(value, Ipld::Map(entries) if entries.len() == 2);
    Type::Named(if is_result { "Result" } else { "Node" }.into())
}

/// A type of the schema language, as far as the schemas here use it.
#[derive(Clone, Debug)]
enum Type {
    Named(String),
    Link,
    List(Box<Type>),
    Map(Box<Type>),
}

#[derive(Debug)]
enum Definition {
    /// Fields: key, optional, nullable, type.
    Struct(Vec<(String, bool, bool, Type)>),
    /// Fields that stand in a list, in this order: name, type.
    Tuple(Vec<(String, Type)>),
    /// Tag to type.
    Keyed(BTreeMap<String, Type>),
    /// Kind to type.
    Kinded(BTreeMap<String, Type>),
    /// Values.
    Enum(BTreeSet<String>),
    /// Another name.
    Alias(Type),
}

struct Schemas(BTreeMap<String, Definition>);

impl Schemas {
    fn load() -> Schemas {
        let sources = [
            include_str!("../schemas/node.ipldsch"),
            include_str!("../schemas/plan.ipldsch"),
            include_str!("../schemas/run.ipldsch"),
            include_str!("../schemas/execution.ipldsch"),
            include_str!("../schemas/fact.ipldsch"),
            include_str!("../schemas/receipt.ipldsch"),
            include_str!("../schemas/outcome.ipldsch"),
            include_str!("../schemas/result.ipldsch"),
            include_str!("../schemas/image.ipldsch"),
            include_str!("../schemas/network.ipldsch"),
            include_str!("../schemas/fault.ipldsch"),
            include_str!("../schemas/series.ipldsch"),
        ];
        let mut definitions = BTreeMap::new();
        for source in sources {
            let mut tokens = Tokens::new(source);
            while let Some(word) = tokens.next() {
                assert_eq!(word, "type");
                let name = tokens.next().expect("a name");
                let definition = definition(&mut tokens);
                assert!(definitions.insert(name.clone(), definition).is_none(), "{name} is defined twice");
            }
        }
        Schemas(definitions)
    }

    /// Everything that an example has to show: fields, tags, values.
    fn members(&self) -> BTreeSet<String> {
        let mut members = BTreeSet::new();
        for (name, definition) in &self.0 {
            let mut add = |member: &str| {
                members.insert(format!("{name}.{member}"));
            };
            match definition {
                Definition::Struct(fields) => fields.iter().for_each(|(field, optional, nullable, _)| {
                    add(field);
                    if *optional || *nullable {
                        add(&format!("{field} absent"));
                    }
                }),
                Definition::Tuple(fields) => fields.iter().for_each(|(field, _)| add(field)),
                Definition::Keyed(types) | Definition::Kinded(types) => types.keys().for_each(|tag| add(tag)),
                Definition::Enum(values) => values.iter().for_each(|value| add(value)),
                Definition::Alias(_) => {}
            }
        }
        members
    }

    fn check(&self, value: &Ipld, expected: &Type, at: &str, used: &mut BTreeSet<String>) {
        match (expected, value) {
            (Type::Link, Ipld::Link(_)) => {}
            (Type::List(item), Ipld::List(items)) => {
                items.iter().enumerate().for_each(|(i, value)| self.check(value, item, &format!("{at}/{i}"), used));
            }
            (Type::Map(item), Ipld::Map(entries)) => {
                entries.iter().for_each(|(key, value)| self.check(value, item, &format!("{at}/{key}"), used));
            }
            (Type::Named(name), value) => self.check_named(value, name, at, used),
            (expected, value) => panic!("{at} should be {expected:?} and is {value:?}"),
        }
    }

    fn check_named(&self, value: &Ipld, name: &str, at: &str, used: &mut BTreeSet<String>) {
        let kind = kind(value);
        let prelude = [("String", "string"), ("Int", "int"), ("Float", "float"), ("Bool", "bool"), ("Bytes", "bytes")];
        if let Some((_, expected)) = prelude.iter().find(|(prelude, _)| *prelude == name) {
            assert_eq!(kind, *expected, "{at}");
            return;
        }
        if name == kind {
            return;
        }
        let definition = self.0.get(name).unwrap_or_else(|| panic!("{at}: {name} is not defined"));
        match (definition, value) {
            (Definition::Alias(alias), value) => self.check(value, alias, at, used),
            (Definition::Struct(fields), Ipld::Map(entries)) => {
                let mut rest = entries.clone();
                for (field, optional, nullable, expected) in fields {
                    let at = format!("{at}/{field}");
                    match rest.remove(field) {
                        None => {
                            assert!(optional, "{at} is missing");
                            used.insert(format!("{name}.{field} absent"));
                        }
                        Some(Ipld::Null) => {
                            assert!(nullable, "{at} is null");
                            used.insert(format!("{name}.{field} absent"));
                        }
                        Some(value) => {
                            used.insert(format!("{name}.{field}"));
                            self.check(&value, expected, &at, used);
                        }
                    }
                }
                assert!(rest.is_empty(), "{at}: {name} does not have {rest:?}");
            }
            (Definition::Tuple(fields), Ipld::List(items)) => {
                assert_eq!(items.len(), fields.len(), "{at} has an item for each field of {name}");
                for ((field, expected), value) in fields.iter().zip(items) {
                    used.insert(format!("{name}.{field}"));
                    self.check(value, expected, &format!("{at}/{field}"), used);
                }
            }
            (Definition::Keyed(types), Ipld::Map(entries)) => {
                assert_eq!(entries.len(), 1, "{at} has one tag");
                let (tag, value) = entries.first_key_value().expect("one entry");
                let expected = types.get(tag).unwrap_or_else(|| panic!("{at}: {name} does not have {tag}"));
                used.insert(format!("{name}.{tag}"));
                self.check(value, expected, &format!("{at}/{tag}"), used);
            }
            (Definition::Kinded(types), value) => {
                let expected = types.get(kind).unwrap_or_else(|| panic!("{at}: {name} is never a {kind}"));
                used.insert(format!("{name}.{kind}"));
                self.check(value, expected, at, used);
            }
            (Definition::Enum(values), Ipld::String(value)) => {
                assert!(values.contains(value), "{at}: {name} is never {value}");
                used.insert(format!("{name}.{value}"));
            }
            (definition, value) => panic!("{at} should be {definition:?} and is {value:?}"),
        }
    }
}

fn kind(value: &Ipld) -> &'static str {
    match value {
        Ipld::Null => "null",
        Ipld::Bool(_) => "bool",
        Ipld::Integer(_) => "int",
        Ipld::Float(_) => "float",
        Ipld::String(_) => "string",
        Ipld::Bytes(_) => "bytes",
        Ipld::List(_) => "list",
        Ipld::Map(_) => "map",
        Ipld::Link(_) => "link",
    }
}

fn definition(tokens: &mut Tokens) -> Definition {
    match tokens.peek() {
        Some("struct") => {
            tokens.expect("struct");
            tokens.expect("{");
            let mut fields = Vec::new();
            while !tokens.accept("}") {
                let name = tokens.next().expect("a field");
                let (optional, nullable) = (tokens.accept("optional"), tokens.accept("nullable"));
                let expected = type_of(tokens);
                let mut key = name;
                if tokens.accept("(") {
                    tokens.expect("rename");
                    key = tokens.next().expect("a key").trim_matches('"').to_owned();
                    tokens.expect(")");
                }
                fields.push((key, optional, nullable, expected));
            }
            if !tokens.accept("representation") {
                return Definition::Struct(fields);
            }
            match tokens.next().as_deref() {
                Some("map") => Definition::Struct(fields),
                Some("tuple") => Definition::Tuple(fields.into_iter().map(|(name, _, _, of)| (name, of)).collect()),
                other => panic!("representation {other:?}"),
            }
        }
        Some("union") => {
            tokens.expect("union");
            tokens.expect("{");
            let mut types = BTreeMap::new();
            while !tokens.accept("}") {
                tokens.expect("|");
                let expected = type_of(tokens);
                let tag = tokens.next().expect("a tag");
                assert!(types.insert(tag.trim_matches('"').to_owned(), expected).is_none(), "{tag} is there twice");
            }
            tokens.expect("representation");
            match tokens.next().as_deref() {
                Some("keyed") => Definition::Keyed(types),
                Some("kinded") => Definition::Kinded(types),
                other => panic!("representation {other:?}"),
            }
        }
        Some("enum") => {
            tokens.expect("enum");
            tokens.expect("{");
            let mut values = BTreeSet::new();
            while !tokens.accept("}") {
                tokens.expect("|");
                tokens.next().expect("a name");
                tokens.expect("(");
                let value = tokens.next().expect("a value");
                values.insert(value.trim_matches('"').to_owned());
                tokens.expect(")");
            }
            tokens.expect("representation");
            tokens.expect("string");
            Definition::Enum(values)
        }
        _ => Definition::Alias(type_of(tokens)),
    }
}

fn type_of(tokens: &mut Tokens) -> Type {
    match tokens.next().expect("a type").as_str() {
        "&" => {
            tokens.next().expect("the type of the target");
            Type::Link
        }
        "[" => {
            let item = type_of(tokens);
            tokens.expect("]");
            Type::List(Box::new(item))
        }
        "{" => {
            tokens.expect("String");
            tokens.expect(":");
            let item = type_of(tokens);
            tokens.expect("}");
            Type::Map(Box::new(item))
        }
        name => Type::Named(name.to_owned()),
    }
}

struct Tokens(std::iter::Peekable<std::vec::IntoIter<String>>);

impl Tokens {
    fn new(source: &str) -> Tokens {
        let mut tokens = Vec::new();
        for line in source.lines() {
            let code = line.split_once('#').map_or(line, |(code, _)| code);
            let mut word = String::new();
            let mut quoted = false;
            for c in code.chars() {
                quoted ^= c == '"';
                if !quoted && (c.is_whitespace() || "{}[]()&|:".contains(c)) {
                    tokens.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
                    tokens.extend((!c.is_whitespace()).then(|| c.to_string()));
                } else {
                    word.push(c);
                }
            }
            tokens.extend((!word.is_empty()).then_some(word));
        }
        Tokens(tokens.into_iter().peekable())
    }

    fn peek(&mut self) -> Option<&str> {
        self.0.peek().map(String::as_str)
    }

    fn next(&mut self) -> Option<String> {
        self.0.next()
    }

    fn accept(&mut self, word: &str) -> bool {
        self.0.next_if(|token| token == word).is_some()
    }

    fn expect(&mut self, word: &str) {
        assert_eq!(self.next().as_deref(), Some(word));
    }
}
