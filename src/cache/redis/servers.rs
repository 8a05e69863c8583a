//! The servers of L1, and which of them holds a key: one server, the master that sentinels name, or
//! the masters of a Redis Cluster. Each has connections of its own.
//!
//! The slots are handled here and not by the cluster client of the library. That client reconnects
//! by itself, so it would read from a node that came back with old data before it was verified. It
//! also repeats commands that a broken connection may have executed.
//!
//! Not here: whether a server may be used (`probe`), and what is sent to it (`send`).

mod cluster;
mod sentinel;
pub(super) mod slots;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;

use self::{sentinel::Sentinels, slots::Slots};
use super::{
    config::{Address, InvalidRedisConfig, Place, RedisConfig},
    connections::{Connections, Kinds},
};
use crate::cache::CacheError;

/// How long one server may take to say where the others are.
const WORD: Duration = Duration::from_millis(300);

/// All servers in use, and how they are found.
#[derive(Debug)]
pub(super) struct Servers {
    config: RedisConfig,
    sentinels: Option<Sentinels>,
    layout: ArcSwap<Layout>,
}

/// The masters and their slots.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) masters: Vec<Arc<Master>>,
    /// None: there is at most one master, and it has every slot.
    pub(super) slots: Option<Slots>,
    /// Other nodes that can be asked for the masters.
    others: Vec<Address>,
}

/// One master.
#[derive(Debug)]
pub(super) struct Master {
    pub(super) address: Address,
    /// A second address that other nodes may use for it.
    alias: Option<Address>,
    pub(super) connections: Connections,
}

impl Servers {
    /// Does not connect.
    pub(super) fn new(config: &RedisConfig) -> Result<Self, InvalidRedisConfig> {
        let mut layout = Layout { masters: Vec::new(), slots: None, others: Vec::new() };
        let mut sentinels = None;
        match &config.place {
            Place::One => {
                let address = Address { host: config.server.addr().to_string(), port: 0 };
                let connections = Self::connections(config, config.server.clone())?;
                layout.masters.push(Arc::new(Master { address, alias: None, connections }));
            }
            Place::Sentinel { master, sentinels: addresses } => {
                sentinels = Some(Sentinels::new(master, addresses)?);
            }
            Place::Cluster { seeds } => layout.others.clone_from(seeds),
        }
        Ok(Self { config: config.clone(), sentinels, layout: ArcSwap::from_pointee(layout) })
    }

    /// The masters as last found.
    pub(super) fn layout(&self) -> Arc<Layout> {
        self.layout.load_full()
    }

    /// Finds the masters. Connections to servers that are no longer masters are closed.
    pub(super) async fn look(&self) -> Result<Arc<Layout>, CacheError> {
        let known = self.layout();
        let found = match (&self.config.place, &self.sentinels) {
            (Place::Cluster { seeds }, _) => self.look_at_cluster(&known, seeds).await?,
            (_, Some(sentinels)) => {
                // Open connections prove nothing: they may lead to a former master.
                let master = self.master(&known, sentinels.master().await?, None)?;
                Layout { masters: vec![master], slots: None, others: Vec::new() }
            }
            (_, None) => return Ok(known),
        };
        let found = Arc::new(found);
        self.layout.store(found.clone());
        Ok(found)
    }

    /// Closes all connections.
    pub(super) fn lose(&self) {
        self.layout().masters.iter().for_each(|master| master.connections.lose());
    }

    /// The master at an address: the known one with its connections, or a new one.
    fn master(&self, known: &Layout, address: Address, alias: Option<Address>) -> Result<Arc<Master>, CacheError> {
        if let Some(master) = known.masters.iter().find(|master| master.address == address && master.alias == alias) {
            return Ok(master.clone());
        }
        let connections = Self::connections(&self.config, self.config.server_at(&address));
        let connections = connections.map_err(|e| CacheError::Unavailable(e.to_string().into()))?;
        Ok(Arc::new(Master { address, alias, connections }))
    }

    fn connections(
        config: &RedisConfig,
        server: deadpool_redis::redis::ConnectionInfo,
    ) -> Result<Connections, InvalidRedisConfig> {
        // In a cluster a batch is not an MGET (`send`).
        let readers = !matches!(config.place, Place::Cluster { .. });
        Connections::new(server, config.connections.get(), Kinds { waiting: config.wait_replicas > 0, readers })
    }
}

impl Layout {
    /// The index of a key's master. None: no master has its slot.
    pub(super) fn place_of(&self, key: &[u8]) -> Option<usize> {
        match &self.slots {
            None => (!self.masters.is_empty()).then_some(0),
            Some(slots) => slots.owner(slots::slot_of(key)),
        }
    }

    /// The index of the master that a redirection names, as `host:port`. Without a host it is that
    /// of the answering server.
    pub(super) fn place_named(&self, name: &str, answering: usize) -> Option<usize> {
        let (host, port) = name.rsplit_once(':')?;
        let host = if host.is_empty() { self.masters[answering].address.host.as_str() } else { host };
        let port: u16 = port.parse().ok()?;
        let is_named = |address: &Address| address.port == port && address.host == host;
        self.masters.iter().position(|master| is_named(&master.address) || master.alias.as_ref().is_some_and(is_named))
    }
}

fn down(why: impl Into<Arc<str>>) -> CacheError {
    CacheError::Unavailable(why.into())
}
