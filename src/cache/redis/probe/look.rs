//! Connects to a master, and reads what it says of itself and our marker and id.

use super::{
    Arc, CacheError, Epoch, Lane, Layout, MARKER_SLOTS, Master, Pipeline, Place, RedisCache, Shared, Subject, UNKNOWN,
    Value,
    marker::{Identity, Present},
    refusal, scratch_keys, slots, unavailable,
};

/// A connected master, not yet in use.
pub(super) struct Met {
    pub(super) shared: Arc<Shared>,
    pub(super) present: Present,
    /// Whether the connections are new.
    pub(super) is_new: bool,
    /// The keys of our marker and id. None: it has no slots.
    pub(super) place: Option<Place>,
    /// The values of its marker and id; empty: none.
    pub(super) marker: String,
    pub(super) id: String,
}

impl RedisCache {
    /// Connects if necessary. None: it has no slots, and cannot be used either.
    pub(super) async fn meet(&self, layout: &Layout, place: usize, epoch: Epoch) -> Result<Option<Met>, CacheError> {
        let master = &layout.masters[place];
        let places: Vec<Place> = match &layout.slots {
            None => vec![Place { marker: format!("{{}}fs:{epoch}"), id: "{}fs:id".to_owned() }],
            Some(slots) => {
                let in_slot = |slot| Place {
                    marker: slots::key_in(&format!("{{}}fs:{epoch}#"), slot),
                    id: slots::key_in("{}fs:id#", slot),
                };
                slots.first_of(place, MARKER_SLOTS).into_iter().map(in_slot).collect()
            }
        };
        let has_slots = !places.is_empty();
        let scratch = scratch_keys(layout, place);
        match self.meet_at(master, places, &scratch, layout.slots.is_some()).await {
            Err(error) if !has_slots => {
                tracing::debug!(%error, address = %master.address, "a master without slots cannot be used");
                master.connections.lose();
                Ok(None)
            }
            // A server may accept a connection and close it only at the first command.
            Err(error) => Err(master.connections.explained(error).await),
            Ok(met) => Ok(Some(met)),
        }
    }

    async fn meet_at(
        &self,
        master: &Master,
        places: Vec<Place>,
        scratch: &[String],
        in_cluster: bool,
    ) -> Result<Met, CacheError> {
        let (shared, is_new) = match master.connections.known() {
            Some(shared) if shared.ping().await.is_ok() => (shared, false),
            _ => {
                master.connections.lose();
                (Arc::new(master.connections.connect().await?), true)
            }
        };
        let mut pipeline = Pipeline::new();
        pipeline.cmd("ROLE").cmd("INFO").arg("server").cmd("INFO").arg("replication").cmd("TIME").cmd("DBSIZE");
        let replies = shared.send(pipeline, Lane::Swift).await.map_err(|e| unavailable(&e))?;
        let [role, server, replication, time, size] = &replies[..] else {
            return Err(CacheError::Refused("not one reply a command".into()));
        };
        // Some of these may be denied for good. But a temporary refusal must not count as unknown:
        // a server without its names would look like another one.
        if let Some(error) = refusal::hindrance(&replies) {
            return Err(error);
        }
        let by_role = if let Value::Array(role) = role { role.first().and_then(text) } else { None };
        if by_role.or(field(replication, "role")).is_some_and(|role| role != "master") {
            let why = "it is a replica now: redis.url must name the master, or the sentinels (redis-sentinel://)";
            return Err(CacheError::Unavailable(why.into()));
        }
        if is_new
            && let Some(run) = field(server, "run_id")
            && !shared.are_all_of(run).await?
        {
            return Err(CacheError::Unavailable("another server answers at the same address".into()));
        }
        let address = &self.shown(master);
        if !places.is_empty() && self.abilities.is_due(address, is_new) {
            let (scripts, waits) = (&self.scripts, self.wait_replicas > 0);
            Subject { address, shared: &shared, scripts, in_cluster, waits }.try_all(scratch).await?;
        }
        self.settings.look(&shared, address, is_new).await?;
        let word = |info, name| field(info, name).unwrap_or(UNKNOWN).to_owned();
        let has_previous = |id: &&str| id.bytes().any(|byte| byte != b'0');
        let (place, marker, id) = match places.is_empty() {
            true => (None, String::new(), String::new()),
            false => {
                let (place, marker, id) = held(&shared, places).await?;
                (Some(place), marker, id)
            }
        };
        let present = Present {
            identity: Identity { run: word(server, "run_id"), history: word(replication, "master_replid") },
            previous: field(replication, "master_replid2").filter(has_previous).map(str::to_owned),
            now: milliseconds(time).unwrap_or(0),
            uptime: field(server, "uptime_in_seconds").and_then(|s| s.parse::<i64>().ok()).unwrap_or(0) * 1000,
            // Keys beside the id, which says nothing of entries.
            holds_keys: *size != Value::Int(i64::from(!id.is_empty())) && *size != Value::Int(0),
        };
        Ok(Met { shared, present, is_new, place, marker, id })
    }
}

/// What is stored under the first of the keys whose slot is not moving.
async fn held(shared: &Shared, places: Vec<Place>) -> Result<(Place, String, String), CacheError> {
    for place in places {
        let mut get = Pipeline::new();
        get.cmd("GET").arg(&place.marker).cmd("GET").arg(&place.id);
        let mut replies = ask(shared, get, Lane::Swift).await?;
        let (id, marker) = (replies.pop().map(text_of), replies.pop().map(text_of));
        match (marker.unwrap_or(Ok(String::new())), id.unwrap_or(Ok(String::new()))) {
            (Ok(marker), Ok(id)) => return Ok((place, marker, id)),
            (Err(CacheError::Refused(why)), _) | (_, Err(CacheError::Refused(why)))
                if why.starts_with("MOVED") || why.starts_with("ASK") => {}
            (Err(error), _) | (_, Err(error)) => return Err(error),
        }
    }
    Err(CacheError::Unavailable(
        "its slots are moving, or it belongs to a Redis Cluster: then set redis.url to redis-cluster://host1,host2"
            .into(),
    ))
}

/// One reply for each command.
pub(super) async fn ask(shared: &Shared, pipeline: Pipeline, lane: Lane) -> Result<Vec<Value>, CacheError> {
    let sent = pipeline.len();
    let replies = shared.send(pipeline, lane).await.map_err(|e| unavailable(&e))?;
    if replies.len() == sent { Ok(replies) } else { Err(CacheError::Refused("not one reply a command".into())) }
}

/// The text of a reply; empty if there is no value.
pub(super) fn text_of(reply: Value) -> Result<String, CacheError> {
    match &reply {
        Value::Nil => Ok(String::new()),
        Value::Okay => Ok("OK".to_owned()),
        // Not a string, so another program wrote it.
        Value::ServerError(e) if e.code() == "WRONGTYPE" => Ok("?".to_owned()),
        Value::ServerError(e) => Err(CacheError::Refused(refusal::text_of(e).into())),
        // It cannot be a marker, but it is not empty either.
        other => Ok(text(other).unwrap_or("?").to_owned()),
    }
}

pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(text) => std::str::from_utf8(text).ok(),
        Value::VerbatimString { text, .. } | Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

pub(super) fn field<'a>(info: &'a Value, name: &str) -> Option<&'a str> {
    text(info)?.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

/// The time in a reply to TIME, in ms.
fn milliseconds(time: &Value) -> Option<i64> {
    let Value::Array(time) = time else { return None };
    let [seconds, micros] = &time[..] else { return None };
    Some(text(seconds)?.parse::<i64>().ok()? * 1000 + text(micros)?.parse::<i64>().ok()? / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_from_info() {
        let info = Value::BulkString(b"# Server\r\nredis_version:7.0.15\r\nrun_id:ab12\r\n".to_vec());
        assert_eq!(field(&info, "run_id"), Some("ab12"));
        assert_eq!(field(&info, "run"), None);
    }
}
