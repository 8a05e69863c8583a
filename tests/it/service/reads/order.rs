//! rows[i] answers entity_ids[i], and which features it holds.

use std::collections::{BTreeMap, HashMap};

use proptest::{prelude::*, test_runner::TestRunner};

use crate::harness::{client::*, server::Pair};

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_500_ids_with_duplicates_and_gaps_comes_back_in_order() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        // Every third id is a gap, every record is asked for more than once, and half of them are cold.
        let records = (0..150).filter(|i| i % 3 != 0).map(|i| record(&format!("E{i}"), [("i", double(f64::from(i)))]));
        let (answers, ended) = bulk(&mut client, [chunk(1, records)]).await;
        assert!(ended.is_none() && answers[0].written == 100, "{answers:?}");
        let warm: Vec<_> = (0..75).map(|i| format!("E{i}")).collect();
        rows(&mut client, get(warm)).await;
        let ids: Vec<String> = (0..500).map(|i| format!("E{}", (i * 7919) % 150)).collect();
        for request in [get(ids.clone()), get(ids.clone()), strong(ids.clone())] {
            let found = rows(&mut client, request).await;
            assert_eq!(found.len(), 500);
            let mut first: HashMap<&str, &FeatureRow> = HashMap::new();
            for (id, row) in ids.iter().zip(&found) {
                let i: u32 = id[1..].parse().unwrap();
                assert_eq!(&row.entity_id, id, "{}", pair.name());
                let wanted =
                    if i.is_multiple_of(3) { BTreeMap::new() } else { features([("i", double(f64::from(i)))]) };
                assert_eq!(row.features, wanted, "{} {id}", pair.name());
                assert_eq!(row.status() == RowStatus::NotFound, i.is_multiple_of(3), "{} {id}", pair.name());
                assert_eq!(*first.entry(id).or_insert(row), row, "{} {id}", pair.name());
            }
        }
        server.stop().await;
    }
}

#[test]
fn whatever_ids_are_asked_for_each_row_answers_its_own_and_equal_ids_get_equal_rows() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let pair = Pair::real();
    let (server, client) = runtime.block_on(async {
        let server = pair.serve().await;
        let client = server.client().await;
        (server, client)
    });
    // E0 to E19 exist unless the case before deleted them; E20 to E29 never do.
    let op = prop_oneof![Just(None), (0..20_u8).prop_map(Some)];
    let case = (op, prop::collection::vec(0..30_u8, 1..60), any::<bool>(), 0..4_usize);
    let mut written: HashMap<String, (i64, f64)> = HashMap::new();
    let mut runner = TestRunner::new(ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() });
    let written = std::cell::RefCell::new(&mut written);
    let outcome = runner.run(&case, |(write, ids, is_strong, evicted)| {
        let (mut client, mut written) = (client.clone(), written.borrow_mut());
        runtime.block_on(async {
            if let Some(i) = write {
                let id = format!("E{i}");
                let number = f64::from(i) + ids.len() as f64 / 100.0;
                if ids.len() % 5 == 0 {
                    let deleted = client.delete_features(delete([&id])).await.unwrap().into_inner();
                    written.insert(id, (deleted.results[0].revision, f64::NAN));
                } else {
                    let revision = put(&mut client, record(&id, [("n", double(number))])).await.revision;
                    written.insert(id, (revision, number));
                }
            }
            let ids: Vec<String> = ids.iter().map(|i| format!("E{i}")).collect();
            ids.iter().take(evicted).for_each(|id| pair.evict(id));
            let request = if is_strong { strong(ids.clone()) } else { get(ids.clone()) };
            let rows = rows(&mut client, request).await;
            prop_assert_eq!(rows.len(), ids.len());
            let mut first: HashMap<&str, &FeatureRow> = HashMap::new();
            for (id, row) in ids.iter().zip(&rows) {
                prop_assert_eq!(id, &row.entity_id);
                let (revision, number) = written.get(id).copied().unwrap_or((0, f64::NAN));
                prop_assert_eq!(row.revision, revision, "{}", id);
                let wanted = if number.is_nan() { BTreeMap::new() } else { features([("n", double(number))]) };
                prop_assert_eq!(&row.features, &wanted, "{}", id);
                prop_assert_eq!(*first.entry(id).or_insert(row), row);
            }
            Ok(())
        })
    });
    runtime.block_on(server.stop());
    outcome.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn named_features_are_given_and_those_that_the_record_lacks_are_named_in_the_order_asked_for() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let null = value(value::Kind::NullVal(0));
        let all = [("a", double(1.0)), ("b", null.clone()), ("c", double(3.0)), ("e", double(5.0))];
        put(&mut client, record("R", all.clone())).await;
        put(&mut client, record("EMPTY", [])).await;
        // Names asked for, features given, features missing.
        type Case<'a> = (&'a [&'a str], Vec<(&'a str, Value)>, &'a [&'a str]);
        let cases: [Case<'_>; 7] = [
            (&[], all.to_vec(), &[]),
            (&["c"], vec![("c", double(3.0))], &[]),
            (&["e", "a", "e"], vec![("a", double(1.0)), ("e", double(5.0))], &[]),
            // A stored null is not missing.
            (&["b"], vec![("b", null)], &[]),
            (&["z", "d", "_", "d", "B", "z"], vec![], &["z", "d", "_", "B"]),
            (&["f", "a", "a-", "d", "c", "a"], vec![("a", double(1.0)), ("c", double(3.0))], &["f", "a-", "d"]),
            (&["e:", "aa", "Z"], vec![], &["e:", "aa", "Z"]),
        ];
        for (asked, given, missing) in cases {
            for request in [get(["R", "GONE", "EMPTY"]), strong(["R", "GONE", "EMPTY"])] {
                let rows = rows(&mut client, GetFeaturesRequest { feature_names: names(asked), ..request }).await;
                let what = format!("{} {asked:?}", pair.name());
                let given: BTreeMap<_, _> = given.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect();
                assert_eq!((&rows[0].features, &rows[0].missing_features), (&given, &names(missing)), "{what}");
                assert_eq!(rows[0].status(), RowStatus::Found, "{what}");
                // Only rows that are FOUND lack something.
                assert_eq!((rows[1].status(), rows[1].missing_features.len()), (RowStatus::NotFound, 0), "{what}");
                let mut distinct = names(asked);
                let mut seen = std::collections::HashSet::new();
                distinct.retain(|name| seen.insert(name.clone()));
                assert_eq!(rows[2].missing_features, distinct, "{what}");
                assert!(rows[2].features.is_empty() && rows[2].status() == RowStatus::Found, "{what}");
            }
        }
        server.stop().await;
    }
}
