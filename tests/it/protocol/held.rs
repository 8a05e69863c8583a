//! What a write holds (its request's part of the bytes in flight), it holds until it ends, whoever
//! left meanwhile. What a read brings is counted before it comes, and until its answer is dropped.

use std::sync::Arc;

use featurestore::{
    in_flight::{ByteBudget, ConnectionBytes, Holding},
    proto::value::Kind,
    record::encoding::{Corrupt, StoredRecord},
    store::READ_BYTES,
    tiered::{Keep, ReadAnswer, Refused},
};

use super::*;
use crate::harness::faulty::Op;

/// Of a large record. The rules of the tests allow no more than a few KiB more.
const BYTES: usize = 60 << 10;

/// A server that counts bytes, and one of its connections.
struct Counted {
    server: Server,
    all: Arc<ByteBudget>,
    connection: Arc<ConnectionBytes>,
}

/// Keeps records whole, or nothing of their features, counted as a connection's bytes.
struct Counting {
    whole: bool,
    connection: Arc<ConnectionBytes>,
}

impl Keep for Counting {
    fn keep(&mut self, record: &StoredRecord) -> Result<StoredRecord, Corrupt> {
        Ok(if self.whole { record.detached() } else { record.without_features() })
    }

    fn most(&self) -> usize {
        usize::MAX
    }

    fn holding(&self) -> Holding {
        Holding::of(self.connection.clone())
    }
}

impl Counted {
    /// At most so many bytes, and a quarter of them for the connection.
    async fn new(world: &World, bytes: usize) -> Self {
        let (server, all) = (world.server().await, Arc::new(ByteBudget::new(bytes)));
        server.tiered.count_bytes(all.clone());
        let connection = Arc::new(ConnectionBytes::new(all.clone()));
        Self { server, all, connection }
    }

    fn begin_read(&self, ids: &[String], consistency: Consistency) -> JoinHandle<ReadAnswer> {
        self.begin_read_keeping(true, ids, consistency)
    }

    fn begin_read_keeping(&self, whole: bool, ids: &[String], consistency: Consistency) -> JoinHandle<ReadAnswer> {
        let (tiered, connection) = (self.server.tiered.clone(), self.connection.clone());
        let keys = ids.iter().map(|id| key(id)).collect();
        let deadline = Instant::now() + Duration::from_secs(600);
        let request = ReadRequest { keys, consistency, min_revisions: HashMap::new(), deadline };
        tokio::spawn(async move { tiered.read_keeping(&request, &mut Counting { whole, connection }).await })
    }

    /// The answer counts so many large records of this tier, until it is dropped.
    fn counts(&self, answer: ReadAnswer, records: usize, tier: Tier) {
        assert_eq!(answer.refused, None);
        assert!(answer.rows.iter().all(|row| row.as_ref().unwrap().tier == tier));
        assert_eq!(answer.rows.len(), records);
        assert!(answer.held.bytes() >= records * BYTES, "{tier:?}: {}", answer.held.bytes());
        assert_eq!(self.all.held(), answer.held.bytes());
        drop(answer);
        assert_eq!(self.all.held(), 0);
    }
}

async fn write_large(server: &Server, id: &str) {
    let write = fixture::put(&key(id)).kind("text", Kind::StringVal("x".repeat(BYTES))).0;
    assert!(server.try_write(write).await.unwrap().cached);
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|id| format!("L{id}")).collect()
}

#[tokio::test(start_paused = true)]
async fn what_a_read_brings_is_counted_before_it_comes_and_until_its_answer_is_let_go() {
    const FEW: usize = 20;
    const MANY: usize = 100;
    const { assert!(FEW * BYTES < READ_BYTES && READ_BYTES < MANY * BYTES) };
    let world = World::exclusive();
    let counted = Counted::new(&world, 64 << 20).await;
    let (a, all) = (&counted.server, &counted.all);
    for id in ids(MANY) {
        write_large(a, &id).await;
    }
    assert_eq!(all.held(), 0);

    let look = a.faults.hold(Op::Get);
    let reading = counted.begin_read(&ids(FEW), Consistency::Cached);
    look.arrived().await;
    assert!(all.held() >= FEW * BYTES, "{}", all.held());
    look.let_go();
    counted.counts(reading.await.unwrap(), FEW, Tier::L1);

    // Of L2 as its reply and as records, and of those for as long as L1 is told.
    for id in ids(FEW) {
        world.evict(&id).await;
    }
    let (query, settling) = (a.faults.hold(Op::Read), a.faults.hold(Op::Settle));
    let reading = counted.begin_read(&ids(FEW), Consistency::Cached);
    query.arrived().await;
    assert!(all.held() >= 2 * FEW * BYTES, "{}", all.held());
    query.let_go();
    settling.arrived().await;
    assert!(all.held() >= FEW * BYTES, "{}", all.held());
    settling.let_go();
    let answer = reading.await.unwrap();
    a.tiered.settled().await;
    counted.counts(answer, FEW, Tier::L2);

    let answer = counted.begin_read(&ids(FEW), Consistency::Strong).await.unwrap();
    counted.counts(answer, FEW, Tier::L2);
    // In parts, of which all is kept.
    let answer = counted.begin_read(&ids(MANY), Consistency::Cached).await.unwrap();
    counted.counts(answer, MANY, Tier::L1);
}

#[tokio::test(start_paused = true)]
async fn what_l1_brings_when_a_flight_asks_it_for_a_lease_is_counted_too() {
    let world = World::shared();
    let (counted, b) = (Counted::new(&world, 64 << 20).await, world.server().await);
    let a = &counted.server;
    for id in ids(2) {
        write_large(a, &id).await;
        world.evict(&id).await;
    }
    let (acquire, query) = (a.faults.hold(Op::Acquire), a.faults.hold(Op::Read));
    let reading = counted.begin_read(&ids(2), Consistency::Cached);
    acquire.arrived().await;
    write_large(&b, "L0").await;
    acquire.let_go();
    query.arrived().await;
    // What came, and twice what is expected of the other one.
    assert!(counted.all.held() >= 3 * BYTES, "{}", counted.all.held());
    query.let_go();
    assert!(reading.await.unwrap().rows.iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn a_read_that_brings_more_than_there_is_room_for_is_refused_as_a_whole() {
    const RECORDS: usize = 20;
    let world = World::exclusive();
    // Less than these records for a connection.
    let counted = Counted::new(&world, 2 * RECORDS * BYTES).await;
    for id in ids(RECORDS) {
        write_large(&counted.server, &id).await;
    }
    for (is_there, consistency) in
        [(true, Consistency::Cached), (false, Consistency::Cached), (false, Consistency::Strong)]
    {
        for id in ids(RECORDS).into_iter().filter(|_| !is_there) {
            world.evict(&id).await;
        }
        let answer = counted.begin_read(&ids(RECORDS), consistency).await.unwrap();
        assert_eq!(answer.refused, Some(Refused::NoRoom), "{is_there} {consistency:?}");
        drop(answer);
        assert_eq!(counted.begin_read(&ids(2), consistency).await.unwrap().refused, None);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_write_holds_is_given_back_when_the_write_ends_and_not_with_its_call() {
    for sort in 0..3 {
        let world = World::exclusive();
        let a = world.with_settings(|_| ());
        a.look().await;
        // Each is one write, and so one of the same to the store.
        let slow = a.faults.hold(Op::Write);
        let (held, tiered) = (Arc::new(()), a.tiered.clone());
        let share = held.clone();
        let call = tokio::spawn(async move {
            match sort {
                0 => _ = tiered.upsert_holding(share, write("x")).await,
                1 => _ = tiered.delete_holding(share, vec![delete("x")]).await,
                _ => _ = tiered.write_bulk_holding(share, vec![write("x")], false).await,
            }
        });
        slow.arrived().await;
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        assert_eq!(Arc::strong_count(&held), 2, "{sort}");
        slow.let_go();
        a.tiered.settled().await;
        assert_eq!(Arc::strong_count(&held), 1, "{sort}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_of_much_of_which_little_is_kept_needs_room_for_a_part_only() {
    const RECORDS: usize = 150;
    // One and a half parts for a connection, and the records have more than two.
    const ROOM: usize = 3 * READ_BYTES / 2;
    const { assert!(RECORDS * BYTES > 2 * READ_BYTES) };
    let world = World::exclusive();
    let counted = Counted::new(&world, 4 * ROOM).await;
    for id in ids(RECORDS) {
        write_large(&counted.server, &id).await;
    }
    for consistency in [Consistency::Cached, Consistency::Strong] {
        let answer = counted.begin_read_keeping(false, &ids(RECORDS), consistency).await.unwrap();
        assert!(answer.refused.is_none() && answer.rows.iter().all(Result::is_ok), "{consistency:?}");
        assert!(answer.held.bytes() < RECORDS << 10, "{}", answer.held.bytes());
        let answer = counted.begin_read(&ids(RECORDS), consistency).await.unwrap();
        assert_eq!(answer.refused, Some(Refused::NoRoom), "{consistency:?}");
    }
}
