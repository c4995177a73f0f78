//! SCRAM against published exchanges, of RFC 5802, RFC 7677 and the server's own tests, and between our two sides.

use sluicegate_mcbp::sasl::scram::{Client, ClientFirst, Credentials};
use sluicegate_mcbp::sasl::{Mechanism, Password, plain, read_plain};
use sluicegate_mcbp::{ErrorKind, Secret};

struct Exchange {
    mechanism: Mechanism,
    user: &'static str,
    password: &'static str,
    client_nonce: &'static str,
    challenge: &'static str,
    proof: &'static str,
    /// Empty where the source does not have it.
    signature: &'static str,
}

const EXCHANGES: [Exchange; 6] = [
    Exchange {
        mechanism: Mechanism::ScramSha1,
        user: "user",
        password: "pencil",
        client_nonce: "fyko+d2lbbFgONRv9qkxdawL",
        challenge: "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
        proof: "v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
        signature: "rmF9pqV8S7suAoZWja4dJRkFsKQ=",
    },
    Exchange {
        mechanism: Mechanism::ScramSha256,
        user: "user",
        password: "pencil",
        client_nonce: "rOprNGfwEbeRWgbNEkqO",
        challenge: "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        proof: "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        signature: "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
    },
    Exchange {
        mechanism: Mechanism::ScramSha1,
        user: "user",
        password: "pencil",
        client_nonce: "d40a02e348040590",
        challenge: "r=d40a02e348040590ec8ac784d46faf9d,s=fw3GRQYlFy6QEqT5y7Of4XbGaGg=,i=10",
        proof: "co6kWwNhpVYuuFHWQv5VVcWrPJM=",
        signature: "inZJ2d0Ms4dnENnHwPaqVfNn7DY=",
    },
    Exchange {
        mechanism: Mechanism::ScramSha1,
        user: "username",
        password: "password",
        client_nonce: "fyko+d2lbbFgONRv9qkxdawL",
        challenge: "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=ZP8Dc+4BGCAMitu9B7qSbjaB2fs=,i=4096",
        proof: "BgDTjduRiG2rLn++YdlWSNmMCw8=",
        signature: "UfaW46lFMmrVCgnqdU1KxQVUNso=",
    },
    Exchange {
        mechanism: Mechanism::ScramSha256,
        user: "username",
        password: "password",
        client_nonce: "fyko+d2lbbFgONRv9qkxdawL",
        challenge: "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=PxxruqJ4/CL3QR2fEH0ZDNqq56u8qf0eZm6YLK1aoTQ=,i=4096",
        proof: "zN1Vl3VZ03UhsHVOO2n4RHxT4js7dTn+/LcLT8Tq+JI=",
        signature: "LG5RRVHh+9OfBnOctbT+89mfY3Cph/3PSebVLY/PGsI=",
    },
    Exchange {
        mechanism: Mechanism::ScramSha512,
        user: "username",
        password: "password",
        client_nonce: "fyko+d2lbbFgONRv9qkxdawL",
        challenge: "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=PU0/GpqaHx9+XsECIYGuGnN9o65two+E5l3BAbisQn3smkGOIlL2OJ6hB8b5pfOETGG1v4X9/xq8SjxsGdZ3xg==,i=4096",
        proof: "hw4VUyoNvrlZjhnfXS3EeWs8SQvAa2hVgyMlT3AuZIsLivqU8ZSFD5w9iT+nWHuxC4w4xkVTz4X9bqY0hx5EJQ==",
        signature: "",
    },
];

fn say(secret: &Secret) -> String {
    String::from_utf8(secret.0.to_vec()).unwrap()
}

#[test]
fn a_client_proves_what_the_published_exchanges_prove() {
    for exchange in &EXCHANGES {
        let password = Password::new(exchange.password);
        let (client, first) = Client::start(exchange.mechanism, exchange.user, password, exchange.client_nonce).unwrap();
        assert_eq!(say(&first), format!("n,,n={},r={}", exchange.user, exchange.client_nonce));
        let (client, last) = client.answer(exchange.challenge.as_bytes()).unwrap();
        let last = say(&last);
        assert_eq!(last.split_once(",p=").unwrap().1, exchange.proof);
        if !exchange.signature.is_empty() {
            client.verify(format!("v={}", exchange.signature).as_bytes()).unwrap();
        }
    }
}

#[test]
fn a_server_and_a_client_agree_only_on_the_same_password() {
    for mechanism in [Mechanism::ScramSha1, Mechanism::ScramSha256, Mechanism::ScramSha512] {
        let credentials = Credentials::new(mechanism, &Password::new("pa,ss=w\u{f6}rd"), b"salt", 100).unwrap();
        let exchange = |password: &str| {
            let (client, first) = Client::start(mechanism, "a=b,c", Password::new(password), "client").unwrap();
            let server = ClientFirst::parse(mechanism, &first.0).unwrap();
            assert_eq!(server.user(), "a=b,c");
            let (server, challenge) = server.challenge(credentials.clone(), "server").unwrap();
            let (client, last) = client.answer(&challenge.0).unwrap();
            let signature = server.finish(&last.0)?;
            client.verify(&signature.0)
        };
        exchange("pa,ss=w\u{f6}rd").unwrap();
        // The same characters, composed differently.
        exchange("pa,ss=wo\u{308}rd").unwrap();
        assert_eq!(exchange("password").unwrap_err().kind(), ErrorKind::Authentication);
    }
}

#[test]
fn a_client_refuses_servers_that_prove_nothing() {
    let start = || Client::start(Mechanism::ScramSha256, "user", Password::new("pencil"), "nonce").unwrap().0;
    for challenge in ["r=other,s=AAAA,i=1", "r=nonce,s=AAAA,i=1", "r=nonce1,s=AAAA,i=0", "r=nonce1,s=AAAA,i=1000001"] {
        assert_eq!(start().answer(challenge.as_bytes()).unwrap_err().kind(), ErrorKind::Authentication, "{challenge}");
    }
    for challenge in [&b""[..], b"r=nonce1", b"r=nonce1,s=!,i=1", b"m=x,r=nonce1,s=AAAA,i=1", b"\xff"] {
        assert_eq!(start().answer(challenge).unwrap_err().kind(), ErrorKind::Malformed, "{challenge:?}");
    }
    let last = || start().answer(b"r=nonce1,s=AAAA,i=1").unwrap().0;
    for message in ["v=AAAA", "v=", "e=invalid-proof"] {
        assert_eq!(last().verify(message.as_bytes()).unwrap_err().kind(), ErrorKind::Authentication, "{message}");
    }
}

#[test]
fn a_server_refuses_what_it_does_not_do() {
    let parse = |first: &str| ClientFirst::parse(Mechanism::ScramSha1, first.as_bytes()).unwrap_err().kind();
    assert_eq!(parse("p=tls-unique,,n=user,r=x"), ErrorKind::Unsupported);
    assert_eq!(parse("y,,n=user,r=x"), ErrorKind::Unsupported);
    assert_eq!(parse("n,,n=us=er,r=x"), ErrorKind::Malformed);
    assert_eq!(parse("n,,n=user"), ErrorKind::Malformed);
}

#[test]
fn plain_is_read_back_and_passwords_are_not_shown() {
    let password = Password::new("hunter2");
    let data = plain("user", &password).unwrap();
    assert_eq!(&data.0[..], b"\0user\0hunter2");
    assert_eq!(read_plain(&data).unwrap(), ("user".to_owned(), password.clone()));
    assert_eq!(read_plain(&Secret("user\0pass".into())).unwrap_err().kind(), ErrorKind::Malformed);
    assert!(plain("us\0er", &password).is_err());
    let (client, first) = Client::start(Mechanism::ScramSha1, "user", password.clone(), "n").unwrap();
    assert!(!format!("{password:?}{data:?}{client:?}{first:?}").contains("hunter2"));
}

#[test]
fn plain_is_for_tls_and_the_strongest_challenge_for_clear_text() {
    let all = "SCRAM-SHA1 SCRAM-SHA512 PLAIN SCRAM-SHA256";
    for (offered, is_tls, allow_plain, chosen) in [
        (all, true, false, Some(Mechanism::Plain)),
        (all, false, false, Some(Mechanism::ScramSha512)),
        (all, false, true, Some(Mechanism::ScramSha512)),
        ("SCRAM-SHA1", true, false, Some(Mechanism::ScramSha1)),
        ("CRAM-MD5 PLAIN", false, false, None),
        ("CRAM-MD5 PLAIN", false, true, Some(Mechanism::Plain)),
        ("", true, true, None),
    ] {
        assert_eq!(Mechanism::choose(offered, is_tls, allow_plain).ok(), chosen, "{offered} {is_tls} {allow_plain}");
    }
}
