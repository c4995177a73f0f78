//! Asks name servers for the SRV records of a name.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use resolv_conf::Config;
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};
use sluicegate_mcbp::topology::SrvRecord;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// The port of name servers.
const PORT: u16 = 53;

/// The largest answer that is taken without a connection; larger ones say that they are cut.
const MAX_DATAGRAM: usize = 4096;

/// Who is asked, and how often.
#[derive(Clone, Debug)]
pub(crate) struct NameServers {
    servers: Vec<SocketAddr>,
    patience: Duration,
    attempts: u32,
}

impl NameServers {
    /// Those that the system is configured with. Reads a file.
    pub(crate) fn of_system() -> NameServers {
        // As the C library has it: without a file, or without a server in it, it is the machine itself.
        let config = std::fs::read("/etc/resolv.conf").ok().and_then(|text| Config::parse(text).ok()).unwrap_or_default();
        NameServers {
            servers: config.get_nameservers_or_local().iter().map(|server| SocketAddr::new(IpAddr::from(server), PORT)).collect(),
            patience: Duration::from_secs(config.timeout.clamp(1, 30).into()),
            attempts: config.attempts.clamp(1, 5),
        }
    }

    /// This one.
    pub(crate) fn only(server: SocketAddr) -> NameServers {
        NameServers { servers: vec![server], patience: Duration::from_secs(5), attempts: 2 }
    }

    /// The SRV records of a name; none if there is no such name. One server is asked after another until one knows.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// Why the last one asked did not know.
    pub(crate) async fn srv(&self, name: &str) -> Result<Vec<SrvRecord>, String> {
        let mut trouble = "there is no name server".to_owned();
        for _ in 0..self.attempts {
            for server in &self.servers {
                let asked = timeout(self.patience, ask(*server, name)).await;
                match asked.unwrap_or_else(|_| Err(format!("no answer within {:?}", self.patience))) {
                    Ok(records) => return Ok(records),
                    Err(error) => trouble = format!("{server}: {error}"),
                }
            }
        }
        Err(trouble)
    }
}

/// Asks one server; once more over a connection if the answer does not fit.
async fn ask(server: SocketAddr, name: &str) -> Result<Vec<SrvRecord>, String> {
    let id = rand::random();
    let query = query(id, name)?;
    let failed = |error: io::Error| error.to_string();
    let answer = over_udp(server, id, &query).await.map_err(failed)?;
    let answer = if is_cut(&answer) { over_tcp(server, &query).await.map_err(failed)? } else { answer };
    read(id, name, &answer)
}

async fn over_udp(server: SocketAddr, id: u16, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut answer = vec![0; MAX_DATAGRAM];
    loop {
        let len = socket.recv(&mut answer).await?;
        // Whatever else arrives is no answer to this.
        if answer[..len].starts_with(&id.to_be_bytes()) {
            answer.truncate(len);
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut socket = TcpStream::connect(server).await?;
    let len = u16::try_from(query.len()).map_err(io::Error::other)?;
    socket.write_all(&[&len.to_be_bytes()[..], query].concat()).await?;
    let len = socket.read_u16().await?;
    let mut answer = vec![0; len.into()];
    socket.read_exact(&mut answer).await?;
    Ok(answer)
}

fn query(id: u16, name: &str) -> Result<Vec<u8>, String> {
    let wrong = |error: simple_dns::SimpleDnsError| format!("it can be no name of the DNS: {error}");
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(Question::new(
        Name::new(name).map_err(wrong)?,
        QTYPE::TYPE(TYPE::SRV),
        QCLASS::CLASS(CLASS::IN),
        false,
    ));
    packet.build_bytes_vec().map_err(wrong)
}

fn is_cut(answer: &[u8]) -> bool {
    Packet::parse(answer).is_ok_and(|packet| packet.has_flags(PacketFlag::TRUNCATION))
}

/// What an answer says.
fn read(id: u16, name: &str, answer: &[u8]) -> Result<Vec<SrvRecord>, String> {
    let packet = Packet::parse(answer).map_err(|error| format!("the answer is none: {error}"))?;
    let is_ours = |question: &Question<'_>| {
        question.qtype == QTYPE::TYPE(TYPE::SRV) && question.qname.to_string().eq_ignore_ascii_case(name.trim_end_matches('.'))
    };
    if packet.id() != id || !packet.has_flags(PacketFlag::RESPONSE) || !packet.questions.iter().all(is_ours) {
        return Err("the answer is to something else".to_owned());
    }
    match packet.rcode() {
        RCODE::NoError => {}
        RCODE::NameError => return Ok(Vec::new()),
        other => return Err(format!("it answers {other:?}")),
    }
    let record = |data: &RData<'_>| match data {
        RData::SRV(srv) => {
            Some(SrvRecord { priority: srv.priority, weight: srv.weight, port: srv.port, target: srv.target.to_string() })
        }
        _ => None,
    };
    Ok(packet.answers.iter().filter_map(|answer| record(&answer.rdata)).collect())
}

#[cfg(test)]
mod tests {
    use simple_dns::ResourceRecord;
    use simple_dns::rdata::SRV;

    use super::*;

    const NAME: &str = "_couchbase._tcp.db.example";

    fn answer(id: u16, change: impl FnOnce(&mut Packet<'_>)) -> Vec<u8> {
        let asked = query(id, NAME).unwrap();
        let mut packet = Packet::parse(&asked).unwrap().into_reply();
        let srv = SRV { priority: 1, weight: 2, port: 3, target: Name::new("a.example").unwrap() };
        packet.answers.push(ResourceRecord::new(Name::new(NAME).unwrap(), CLASS::IN, 60, RData::SRV(srv)));
        change(&mut packet);
        packet.build_bytes_vec_compressed().unwrap()
    }

    #[test]
    fn an_answer_counts_only_if_it_is_to_the_question() {
        let expected = SrvRecord { priority: 1, weight: 2, port: 3, target: "a.example".to_owned() };
        assert_eq!(read(7, NAME, &answer(7, |_| ())).unwrap(), [expected]);
        assert!(read(8, NAME, &answer(7, |_| ())).is_err());
        assert!(read(7, "_couchbase._tcp.other.example", &answer(7, |_| ())).is_err());
        assert!(read(7, NAME, &query(7, NAME).unwrap()).is_err(), "a question is no answer");
        assert_eq!(read(7, NAME, &answer(7, |packet| *packet.rcode_mut() = RCODE::NameError)).unwrap(), []);
        let refused = read(7, NAME, &answer(7, |packet| *packet.rcode_mut() = RCODE::Refused)).unwrap_err();
        assert!(refused.contains("Refused"), "{refused}");
        assert!(is_cut(&answer(7, |packet| packet.set_flags(PacketFlag::TRUNCATION))) && !is_cut(&answer(7, |_| ())));
    }

    #[test]
    fn damaged_answers_never_panic() {
        let good = answer(7, |_| ());
        for len in 0..good.len() {
            let _ = read(7, NAME, &good[..len]);
        }
        for place in 0..good.len() {
            for byte in [0, 1, 0x3f, 0xc0, 0xff] {
                let mut bytes = good.clone();
                bytes[place] = byte;
                let _ = (read(7, NAME, &bytes), is_cut(&bytes));
            }
        }
    }

    #[test]
    fn what_can_be_no_name_is_told() {
        assert!(query(1, &format!("{}.example", "a".repeat(64))).is_err());
    }
}
