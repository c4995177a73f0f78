use super::*;
use proptest::prelude::*;
use serde_json::Value;

/// A tree, to compare with. Only tests make one; it recurses as deep as the test's input.
fn tree(scanner: &mut Scanner<'_>) -> Result<Value> {
    Ok(match scanner.peek()? {
        b'{' => {
            let mut map = serde_json::Map::new();
            scanner.map(|s, key| {
                let key = String::from_utf8(key.into_owned()).unwrap();
                map.insert(key, tree(s)?);
                Ok(())
            })?;
            Value::Object(map)
        }
        b'[' => {
            let mut list = Vec::new();
            scanner.array(|s| tree(s).map(|value| list.push(value)))?;
            Value::Array(list)
        }
        b'"' => Value::String(scanner.string()?.into_owned()),
        b'n' => scanner.literal(b"null").map(|()| Value::Null)?,
        b't' | b'f' => Value::Bool(scanner.bool()?),
        _ => {
            let mut ahead = scanner.clone();
            if let Ok(number) = ahead.u64() {
                *scanner = ahead;
                number.into()
            } else {
                let start = scanner.at;
                scanner.skip()?;
                let text = std::str::from_utf8(&scanner.bytes[start..scanner.at]).unwrap();
                serde_json::from_str(text).map_err(|_| scanner.error("number"))?
            }
        }
    })
}

fn parse(bytes: &[u8]) -> Result<Value> {
    let mut scanner = Scanner::new(bytes);
    let value = tree(&mut scanner)?;
    scanner.end()?;
    Ok(value)
}

fn skip(bytes: &[u8]) -> Result<()> {
    let mut scanner = Scanner::new(bytes);
    scanner.skip()?;
    scanner.end()
}

/// `text` with an escape of U+FFFD in place of each escape of half a surrogate pair.
fn without_halves(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let escape = |rest: &str| {
            let digits = rest.strip_prefix("\\u")?.get(..4).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
            u16::from_str_radix(digits, 16).ok()
        };
        let is_high = |n: u16| (0xd800..0xdc00).contains(&n);
        let is_low = |n: u16| (0xdc00..0xe000).contains(&n);
        let length = match (escape(rest), rest.get(6..).and_then(escape)) {
            (Some(first), Some(second)) if is_high(first) && is_low(second) => 12,
            (Some(first), _) if is_high(first) || is_low(first) => {
                out.push_str("\\ufffd");
                rest = &rest[6..];
                continue;
            }
            (Some(_), _) => 6,
            // An escaped backslash does not begin another escape.
            (None, _) => 1 + rest.chars().nth(1).map_or(0, char::len_utf8),
        };
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    out + rest
}

/// Compares with `serde_json` on valid UTF-8. It refuses half surrogate pairs, which are no reason
/// to refuse a document.
fn check(text: &str) {
    let theirs = serde_json::from_str::<Value>(&without_halves(text));
    match (parse(text.as_bytes()), &theirs) {
        (Ok(mine), Ok(theirs)) => assert_eq!(mine, *theirs, "{text}"),
        (Err(_), Err(_)) => {}
        (mine, theirs) => panic!("{text:?}: {mine:?} {theirs:?}"),
    }
    let ignored = serde_json::from_str::<serde::de::IgnoredAny>(text);
    assert_eq!(skip(text.as_bytes()).is_ok(), ignored.is_ok(), "{text:?}");
}

#[test]
fn odd_values_are_read_as_serde_json_reads_them() {
    let values = [
        "",
        " ",
        "{}",
        "[]",
        "[ ]",
        "{ }",
        "[1,]",
        "[,1]",
        "{,}",
        "{\"a\":1,}",
        "{\"a\"}",
        "{1:2}",
        "[1 2]",
        "{\"a\" 1}",
        "nul",
        "null",
        " true ",
        "tru",
        "false",
        "truefalse",
        "01",
        "-01",
        "-",
        "-0",
        "1.",
        "1.5",
        ".5",
        "1e",
        "1e+",
        "1e5",
        "-1E-5",
        "1.5e3x",
        "00",
        "18446744073709551615",
        "18446744073709551616",
        "9007199254740993",
        "\"\"",
        "\"a",
        "\"\\",
        "\"\\u12\"",
        "\"\\u00e9\"",
        "\"\\ud83d\\ude00\"",
        "\"\\ud83d\"",
        "\"\\ude00\"",
        "\"\\ud83dx\"",
        "\"\\ud83d\\u0041\"",
        "\"\\x\"",
        "\"\\/\\b\\f\\n\\r\\t\\\\\\\"\"",
        "\"a\nb\"",
        "\"\u{7f}é😀\"",
        "{\"a\":{\"b\":[1,{\"c\":null}]},\"a\":2}",
        "[[[[",
        "]",
        "}",
        "[}",
        "{\"a\":1]",
        "\u{feff}1",
        "1 1",
        "{\"\\u0061\":1}",
        "\"\\u0000\"",
        "{\"k\":\"abcdefgh\\\"ijklmnop\"}",
        "\"abcdefg\u{1f}\"",
    ];
    values.into_iter().for_each(check);
}

#[test]
fn numbers_are_exact_or_refused() {
    assert_eq!(Scanner::new(b"9007199254740993").u64(), Ok(9_007_199_254_740_993));
    assert_eq!(Scanner::new(b" 18446744073709551615,").u64(), Ok(u64::MAX));
    for bad in ["18446744073709551616", "1.0", "1e3", "-1", "07", "\"1\"", "null", ""] {
        assert!(Scanner::new(bad.as_bytes()).u64().is_err(), "{bad}");
    }
}

#[test]
fn deep_nesting_costs_no_stack() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")] {
        let depth = 1_000_000;
        let text = format!("{}1{}", open.repeat(depth), close.repeat(depth));
        skip(text.as_bytes()).unwrap();
        assert!(skip(&text.as_bytes()[..text.len() - 1]).is_err());
        assert!(skip(open.repeat(depth).as_bytes()).is_err());
    }
    let crossed = format!("{}1{}", "[{\"a\":".repeat(100), "]}".repeat(100));
    assert!(skip(crossed.as_bytes()).is_err());
}

#[test]
fn wrong_encoding_is_read_as_go_reads_it() {
    let cases: [(&[u8], &str); 10] = [
        (b"\"a\xff\"", "a\u{fffd}"),
        (b"\"\\n\xff\"", "\n\u{fffd}"),
        (b"\"\xe2\x82z\"", "\u{fffd}\u{fffd}z"),
        (b"\"\xf0\x9f\x98\"", "\u{fffd}\u{fffd}\u{fffd}"),
        (b"\"\xed\xa0\xbd\"", "\u{fffd}\u{fffd}\u{fffd}"),
        (b"\"\\ud83d\"", "\u{fffd}"),
        (b"\"\\ude00x\"", "\u{fffd}x"),
        (b"\"\\ud83d\\u0041\"", "\u{fffd}A"),
        (b"\"\\ud83d\\ud83d\\ude00\"", "\u{fffd}\u{1f600}"),
        (b"\"\\ud83d\\n\\u0000\"", "\u{fffd}\n\0"),
    ];
    for (json, expected) in cases {
        assert_eq!(Scanner::new(json).string().as_deref(), Ok(expected), "{}", json.escape_ascii());
        assert_eq!(skip(json), Ok(()), "{}", json.escape_ascii());
    }
    // As bytes the text is not changed, so that a caller that needs UTF-8 can check it.
    assert_eq!(Scanner::new(b"\"\\n\xff\"").bytes().as_deref(), Ok(&b"\n\xff"[..]));
}

#[test]
fn odd_values_are_skipped() {
    for json in
        ["1e400", "-0.0e-999", "123456789012345678901234567890", r#"{"a":1,"a":{"a":[]},"\ud800":"\udfff"}"#, r#""\u0000""#]
    {
        assert_eq!(skip(json.as_bytes()), Ok(()), "{json}");
    }
    // Go refuses these as well.
    for json in ["\"\0\"", "{\"a\":1}\0", "{\"a\0\":1}", "1e", "\u{feff}{}"] {
        assert!(skip(json.as_bytes()).is_err(), "{json:?}");
    }
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e9..1e9).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 60, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::btree_map("[a-z\"\\\\é\u{1}-\u{20}]{0,12}", inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_document_is_read_as_serde_json_reads_it(value in json(), pretty in any::<bool>()) {
        check(&if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap());
    }

    #[test]
    fn damaged_documents_are_accepted_or_refused_alike(
        value in json(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), "[\\[\\]{}:,\"\\\\a0-9eE.+u-]"), 1..4),
    ) {
        let mut text: Vec<char> = serde_json::to_string(&value).unwrap().chars().collect();
        for (at, with) in damage {
            let at = at.index(text.len());
            text[at] = with.chars().next().unwrap();
        }
        check(&text.into_iter().collect::<String>());
    }

    #[test]
    fn any_string_with_escapes_is_read_as_serde_json_reads_it(
        parts in prop::collection::vec(prop_oneof![
            any::<char>().prop_map(String::from),
            any::<u16>().prop_map(|n| format!("\\u{n:04x}")),
            (0xd800u16..0xe000).prop_map(|n| format!("\\u{n:04X}")),
            "\\\\[\"\\\\/bfnrt]",
            "[a-z]{1,20}",
        ], 0..12),
    ) {
        check(&format!("\"{}\"", parts.concat()));
    }
}
