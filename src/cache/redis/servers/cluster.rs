//! The masters of a Redis Cluster, from the answers of its nodes (CLUSTER NODES). Several are asked
//! at once. For each slot the claim with the highest configuration epoch counts, as in the cluster
//! itself. So the claim of a replaced master counts only if no other node can be reached.

use std::{collections::HashMap, sync::Arc};

use deadpool_redis::redis::{Pipeline, Value};
use futures_util::future::join_all;
use rand::seq::SliceRandom as _;
use tokio::time::{Instant, timeout_at};

use super::{Layout, Servers, Slots, WORD, down, slots::SLOTS};
use crate::cache::{
    CacheError,
    redis::{
        config::Address,
        connections::{Connections, Kinds, Lane, unavailable},
    },
};

/// The most masters that are asked.
const ASKED: usize = 5;
/// The most other nodes that are asked if no master answers.
const OTHERS: usize = 20;

/// A node, as one line of CLUSTER NODES describes it.
#[derive(Debug, PartialEq)]
struct Told {
    id: Arc<str>,
    address: Address,
    alias: Option<Address>,
    is_master: bool,
    is_failing: bool,
    configuration: u64,
    slots: Vec<(u16, u16)>,
}

impl Servers {
    pub(super) async fn look_at_cluster(&self, known: &Layout, seeds: &[Address]) -> Result<Layout, CacheError> {
        let mut masters: Vec<_> = known.masters.iter().collect();
        masters.shuffle(&mut rand::rng());
        masters.truncate(ASKED);
        let asked = masters.iter().map(|master| nodes(&master.connections, &master.address));
        let mut answers = join_all(asked).await;
        if answers.iter().all(Result::is_err) {
            let asked = seeds.iter().chain(&known.others).take(OTHERS).map(async |address| {
                let connections =
                    Connections::new(self.config.server_at(address), 1, Kinds { waiting: false, readers: false });
                nodes(&connections.map_err(|e| down(e.to_string()))?, address).await
            });
            answers = join_all(asked).await;
        }
        if let Some(Err(error)) = answers.first()
            && answers.iter().all(Result::is_err)
        {
            return Err(down(format!("no node of the Redis Cluster answers with the list of nodes: {error}")));
        }
        let views = answers.into_iter().flatten().collect();
        let (owners, told) = merge(views);
        // A master without slots may be about to get some, unless it fails.
        let has_slots = |id: &Arc<str>| owners.iter().flatten().any(|(_, owner)| owner == id);
        let mut places = HashMap::new();
        let mut masters = Vec::new();
        let mut others = Vec::new();
        for node in told.into_values() {
            if node.is_master && (!node.is_failing || has_slots(&node.id)) {
                places.insert(node.id, masters.len());
                let (address, alias) = match node.alias {
                    // Certificates have host names.
                    Some(hostname) if self.config.is_tls() => (hostname, Some(node.address)),
                    alias => (node.address, alias),
                };
                masters.push(self.master(known, address, alias)?);
            } else {
                others.push(node.address);
            }
        }
        let owner = |slot| owners[usize::from(slot)].as_ref().and_then(|(_, id)| places.get(id).copied());
        let slots = Slots::new(owner);
        match slots.unowned() {
            0 => Ok(Layout { masters, slots: Some(slots), others }),
            unowned => Err(down(format!("{unowned} slots of the Redis Cluster have no master"))),
        }
    }
}

/// All nodes, as one node lists them.
async fn nodes(connections: &Connections, address: &Address) -> Result<Vec<Told>, CacheError> {
    let deadline = Instant::now() + WORD;
    let late = |_| CacheError::Timeout;
    let shared = match connections.verified() {
        Some(shared) => shared,
        None => Arc::new(timeout_at(deadline, connections.connect()).await.map_err(late)??),
    };
    let mut pipeline = Pipeline::new();
    pipeline.cmd("CLUSTER").arg("NODES");
    let replies = timeout_at(deadline, shared.send(pipeline, Lane::Swift)).await.map_err(late)?;
    match replies.map_err(|e| unavailable(&e))?.into_iter().next() {
        Some(Value::BulkString(text)) => Ok(parse(&String::from_utf8_lossy(&text), address)),
        Some(Value::VerbatimString { text, .. }) => Ok(parse(&text, address)),
        Some(Value::ServerError(e)) => Err(unavailable(&e)),
        _ => Err(down("the reply to CLUSTER NODES cannot be read")),
    }
}

/// Reads `<id> <ip:port@bus[,hostname]> <flags> <master> <ping> <pong> <epoch> <link> <slot> ...`.
/// Slots that are moving are in brackets and are skipped; the answers of other nodes name their
/// owner.
fn parse(text: &str, answering: &Address) -> Vec<Told> {
    text.lines().filter_map(|line| parse_line(line, answering)).collect()
}

fn parse_line(line: &str, answering: &Address) -> Option<Told> {
    let words: Vec<&str> = line.split(' ').collect();
    let [id, place, flags, _, _, _, configuration, _, slots @ ..] = &words[..] else { return None };
    let flags: Vec<&str> = flags.split(',').collect();
    if flags.contains(&"noaddr") || flags.contains(&"handshake") {
        return None;
    }
    let mut names = place.split(',');
    let (ip, port) = names.next()?.split('@').next()?.rsplit_once(':')?;
    let port = port.parse().ok()?;
    // A node that has not met others does not know its own address.
    let ip = if ip.is_empty() { answering.host.as_str() } else { ip };
    // After the host name there may be other fields, with their names.
    let hostname = names.next().filter(|name| !name.is_empty() && !name.contains('='));
    let range = |word: &&str| {
        let (from, to) = word.split_once('-').unwrap_or((word, word));
        let (from, to) = (from.parse().ok()?, to.parse().ok()?);
        (from <= to && to < SLOTS).then_some((from, to))
    };
    Some(Told {
        id: (*id).into(),
        address: Address { host: ip.to_owned(), port },
        alias: hostname.map(|host| Address { host: host.to_owned(), port }),
        is_master: flags.contains(&"master"),
        is_failing: flags.iter().any(|flag| flag.starts_with("fail")),
        configuration: configuration.parse().ok()?,
        slots: slots.iter().filter_map(range).collect(),
    })
}

/// The owner of each slot with the epoch of its claim, and the nodes by id.
type Merged = (Vec<Option<(u64, Arc<str>)>>, HashMap<Arc<str>, Told>);

fn merge(views: Vec<Vec<Told>>) -> Merged {
    let mut owners: Vec<Option<(u64, Arc<str>)>> = vec![None; usize::from(SLOTS)];
    let mut nodes: HashMap<Arc<str>, Told> = HashMap::new();
    for node in views.into_iter().flatten() {
        for slot in node.slots.iter().flat_map(|(from, to)| *from..=*to).filter(|_| node.is_master) {
            let owner = &mut owners[usize::from(slot)];
            if owner.as_ref().is_none_or(|(configuration, _)| *configuration < node.configuration) {
                *owner = Some((node.configuration, node.id.clone()));
            }
        }
        // The newest description of each.
        if nodes.get(&node.id).is_none_or(|known| known.configuration < node.configuration) {
            nodes.insert(node.id.clone(), node);
        }
    }
    (owners, nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: &str, port: u16) -> Address {
        Address { host: host.to_owned(), port }
    }

    #[test]
    fn nodes_are_read_as_every_version_writes_them() {
        let text = "\
            aa 10.0.0.1:7000@17000 myself,master - 0 0 3 connected 0-5460 9 [93->-bb] [94-<-bb]\n\
            bb 10.0.0.2:7000@17000,two.example master,fail? - 0 1 2 connected 5461-16383\n\
            cc :7001@17001,,tls-port=0,shard-id=x slave aa 0 1 3 connected\n\
            dd :0@0 master,noaddr - 0 0 0 disconnected\n";
        let nodes = parse(text, &at("seed", 1));
        assert_eq!(nodes.len(), 3);
        assert_eq!((&nodes[0].address, &nodes[0].slots), (&at("10.0.0.1", 7000), &vec![(0, 5460), (9, 9)]));
        assert!(nodes[0].is_master && !nodes[0].is_failing && nodes[1].is_failing && !nodes[2].is_master);
        assert_eq!(nodes[1].alias, Some(at("two.example", 7000)));
        assert_eq!((&nodes[2].address, &nodes[2].alias), (&at("seed", 7001), &None));
    }

    #[test]
    fn of_two_claims_the_newer_one_counts_in_any_order() {
        let told = |id: &str, configuration, is_master: bool| Told {
            id: id.into(),
            address: at(id, 1),
            alias: None,
            is_master,
            is_failing: false,
            configuration,
            slots: if is_master { vec![(0, 99)] } else { Vec::new() },
        };
        let old = || vec![told("a", 1, true), told("b", 1, false)];
        let new = || vec![told("b", 2, true), told("a", 2, false)];
        for views in [vec![old(), new()], vec![new(), old()]] {
            let (owners, nodes) = merge(views);
            assert_eq!(owners[50], Some((2, "b".into())));
            assert_eq!(owners[100], None);
            assert!(nodes["b"].is_master && !nodes["a"].is_master);
        }
    }
}
