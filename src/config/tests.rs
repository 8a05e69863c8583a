//! Sources, bounds and contradictions.

use super::*;

fn load(environment: &[(&str, &str)]) -> Result<Config, String> {
    load_with(&Flags::default(), environment)
}

fn load_with(flags: &Flags, environment: &[(&str, &str)]) -> Result<Config, String> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::load(flags, environment).map(|(config, _)| config).map_err(|errors| errors.to_string())
}

#[test]
fn the_default_file_is_a_whole_configuration_for_the_embedded_pair() {
    let config = load(&[]).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:50051");
    assert_eq!(config.limits.max_record_bytes, 1 << 20);
    assert_eq!(config.default_ttl, Duration::from_secs(7 * 24 * 3600));
    assert!(config.redis.is_none() && config.mongodb.is_none());
}

#[test]
fn names_that_deployments_already_have_work_as_they_are() {
    let config = load(&[
        ("REDIS_HOST", "cache"),
        ("REDIS_PORT", "6380"),
        ("REDIS_DB", "2"),
        ("REDIS_PASSWORD", "p@ss/word"),
        ("REDIS_TTL", "90"),
        ("MONGO_URI", "mongodb://db"),
        ("MONGO_DB", "risk"),
        ("RUST_LOG", "debug"),
    ]);
    let config = config.unwrap();
    let redis = config.redis.unwrap();
    assert_eq!((redis.url.as_str(), redis.username, redis.database), ("redis://cache:6380", None, Some(2)));
    assert_eq!(redis.password.unwrap(), "p@ss/word");
    assert_eq!(config.l1_ttl, Duration::from_secs(90));
    assert_eq!(config.mongodb.unwrap().database.unwrap(), "risk");
    assert_eq!(config.log_filter, "debug");
    let both = [("REDIS_URL", "redis://there"), ("REDIS_HOST", "cache")];
    assert_eq!(load(&both).unwrap().redis.unwrap().url, "redis://there");
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("featurestore.toml");
    std::fs::write(&file, "listen = \"127.0.0.1:1\"\n[limits]\nmax_entities = 5\nmax_features = 6\n").unwrap();
    let set = vec!["limits.max_features=8".to_owned()];
    let flags = Flags { config: Some(file), set, ..Flags::default() };
    let environment = [("FEATURESTORE_LIMITS_MAX_FEATURES", "7"), ("FEATURESTORE_LISTEN", "127.0.0.1:2")];
    let config = load_with(&flags, &environment).unwrap();
    assert_eq!((config.limits.max_entities, config.limits.max_features), (5, 8));
    assert_eq!(config.listen.port(), 2);
}

#[test]
fn every_error_is_told_at_once_with_the_keys_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("featurestore.toml");
    std::fs::write(&file, "lisen = \"x\"\n[l1]\ntimeout = 50\n").unwrap();
    let flags = Flags { config: Some(file), ..Flags::default() };
    let environment = [("FEATURESTORE_LIMITS_MAX_ENTITIES", "0"), ("FEATURESTORE_LISTEN", "0.0.0.0:1")];
    let errors = load_with(&flags, &environment).unwrap_err();
    for part in ["lisen", "l1.timeout", "50ms", "limits.max_entities", "listen", "--insecure-bind"] {
        assert!(errors.contains(part), "{part} in {errors}");
    }
}

fn load_file(text: &str) -> Result<(Config, Effective), String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("featurestore.toml");
    std::fs::write(&file, text).unwrap();
    Config::load(&Flags { config: Some(file), ..Flags::default() }, []).map_err(|errors| errors.to_string())
}

#[test]
fn a_file_that_is_no_toml_is_refused_by_its_line_and_without_its_text() {
    let told = load_file("[redis]\npassword = \"canary\nport = 1\n").unwrap_err();
    assert!(told.contains("featurestore.toml: line 2, column ") && !told.contains("canary"), "{told}");
}

#[test]
fn a_section_without_keys_must_be_one_of_ours_too() {
    assert!(load_file("[limits]\n[l1]\n").is_ok());
    let told = load_file("listen = {}\n[limit]\n").unwrap_err();
    assert!(told.contains("listen: must not be empty") && told.contains("limit: there is no such key"), "{told}");
}

#[test]
fn what_is_in_effect_is_shown_as_toml_that_gives_the_same() {
    let (config, effective) = load_file("data_dir = \" a\\\"b\\n\"\n[l1]\nttl = \"2h\"\n").unwrap();
    let (again, _) = load_file(&effective.to_string()).unwrap();
    assert_eq!(format!("{again:?}"), format!("{config:?}"));
}

#[test]
fn what_no_clock_counts_and_no_filter_are_told_with_the_rest() {
    let told = load(&[("FEATURESTORE_DEADLINES_READ", "1000000000years"), ("RUST_LOG", "a=b=c"), ("REDIS_PORT", "x")]);
    let told = told.unwrap_err();
    for key in ["deadlines.read: must be at most 1h", "log.filter: \"a=b=c\"", "redis.port"] {
        assert!(told.contains(key), "{key} in {told}");
    }
}

#[test]
fn secrets_come_from_files_and_are_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("uri");
    std::fs::write(&file, "mongodb://me:canary@db\n").unwrap();
    let environment = [
        ("MONGO_URI_FILE".to_owned(), file.display().to_string()),
        ("REDIS_URL".to_owned(), "redis://:canary@cache".to_owned()),
    ];
    let (config, effective) = Config::load(&Flags::default(), environment).unwrap();
    assert_eq!(config.mongodb.clone().unwrap().uri, "mongodb://me:canary@db");
    assert!(!effective.to_string().contains("canary") && !format!("{config:?}").contains("canary"));
    let set = vec!["redis.url=redis://:canary@cache".to_owned()];
    let refused = load_with(&Flags { set, ..Flags::default() }, &[]).unwrap_err();
    assert!(refused.contains("REDIS_URL") && !refused.contains("canary"), "{refused}");
}

/// The variables that Kubernetes sets for a Service of this name.
fn links_of(service: &str) -> Vec<(String, String)> {
    let values = [
        ("SERVICE_HOST", "10.96.0.12"),
        ("SERVICE_PORT", "6379"),
        ("SERVICE_PORT_REDIS", "6379"),
        ("PORT", "tcp://10.96.0.12:6379"),
        ("PORT_6379_TCP", "tcp://10.96.0.12:6379"),
        ("PORT_6379_TCP_PROTO", "tcp"),
        ("PORT_6379_TCP_PORT", "6379"),
        ("PORT_6379_TCP_ADDR", "10.96.0.12"),
    ];
    values.map(|(end, value)| (format!("{service}_{end}"), value.to_owned())).into()
}

#[test]
fn service_links_of_kubernetes_are_passed_over_in_one_line() {
    for service in ["FEATURESTORE_REDIS", "FEATURESTORE", "FEATURESTORE_L1", "REDIS", "MONGO", "MONGODB"] {
        let mut environment = links_of(service);
        environment.push(("REDIS_HOST".to_owned(), "cache".to_owned()));
        let (config, effective) = Config::load(&Flags::default(), environment).unwrap();
        assert!(effective.warnings.is_empty(), "{service}: {:?}", effective.warnings);
        assert!(effective.notices.len() <= 1, "{service}: {:?}", effective.notices);
        assert_eq!(config.redis.unwrap().url, "redis://cache:6379", "{service}");
        if service.starts_with("FEATURESTORE") {
            let notice = &effective.notices[0];
            assert!(links_of(service).iter().all(|(name, _)| notice.contains(name.as_str())), "{notice}");
        }
    }
    // Only the form decides: this is a setting.
    let own = [("REDIS_HOST", "cache"), ("FEATURESTORE_REDIS_PORT", "6380")];
    assert_eq!(load(&own).unwrap().redis.unwrap().url, "redis://cache:6380");
    assert!(load(&[("REDIS_HOST", "cache"), ("REDIS_PORT", "tcp://redis:6379")]).unwrap_err().contains("redis.port"));
}

#[test]
fn blanks_and_line_ends_around_a_value_are_no_part_of_it_wherever_it_comes_from() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "\u{feff} redis://h:1 \r\n\n").unwrap();
    let path = format!(" {}\n", secret.display());
    for around in ["{}\n", " {}", "\t{} \r\n"] {
        let put = |text: &str| around.replace("{}", text);
        let environment = [
            ("MONGO_URI", put("mongodb://u:p@h")),
            ("MONGO_DB", put("risk")),
            ("REDIS_URL_FILE", path.clone()),
            ("REDIS_USERNAME", put("me")),
            ("REDIS_PASSWORD", put("p")),
            ("REDIS_DB", put("3")),
            ("REDIS_TTL", put("90")),
            ("FEATURESTORE_LISTEN", put("127.0.0.1:7")),
            ("FEATURESTORE_DATA_DIR", put("/data")),
            ("FEATURESTORE_REFLECTION", put("false")),
            ("FEATURESTORE_L1_ON_LOSS", put("reject")),
            ("FEATURESTORE_LIMITS_MAX_ENTITIES", put("5")),
            ("FEATURESTORE_L1_TIMEOUT", put("70ms")),
            ("RUST_LOG", put("warn")),
            ("FEATURESTORE_LOG_FORMAT", put("json")),
        ];
        let file = folder.path().join("file.toml");
        std::fs::write(&file, format!("[auth]\ntokens_file = {:?}\n", put("/tokens"))).unwrap();
        let config = Some(put(file.to_str().unwrap()).into());
        let set = vec![put("limits.max_features=6"), format!("l1.slow={}", put("30ms"))];
        let admin_listen = Some(put("127.0.0.1:8"));
        let flags = Flags { config, set, admin_listen, ..Flags::default() };
        let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let config = load_with(&flags, &environment).unwrap();
        let (redis, mongodb) = (config.redis.unwrap(), config.mongodb.unwrap());
        assert_eq!((redis.url.as_str(), redis.database), ("redis://h:1", Some(3)));
        assert_eq!((redis.username.as_deref(), redis.password.as_deref()), (Some("me"), Some("p")));
        assert_eq!((mongodb.uri.as_str(), mongodb.database.as_deref()), ("mongodb://u:p@h", Some("risk")));
        assert_eq!((config.listen.port(), config.admin_listen.port()), (7, 8));
        assert_eq!((config.data_dir, config.tokens_file), ("/data".into(), Some("/tokens".into())));
        assert_eq!((config.l1_ttl, config.l1_timeout, config.l1_slow), (90 * SECOND, 70 * MS, 30 * MS));
        assert_eq!((config.limits.max_entities, config.limits.max_features), (5, 6));
        assert!(config.json_log && !config.reflection && config.on_l1_loss == OnL1Loss::Reject);
        assert_eq!(config.log_filter, "warn");
    }
}

#[test]
fn a_control_character_inside_a_value_is_refused_by_its_key_and_without_the_value() {
    for (name, value, key) in [
        ("MONGO_URI", "mongodb://u:canary@h\n/x", "mongodb.uri"),
        ("REDIS_URL", "redis://:canary\0@h", "redis.url"),
        ("REDIS_PASSWORD", "canary\nsecond", "redis.password"),
        ("MONGO_DB", "a\nb", "mongodb.database"),
        ("FEATURESTORE_DATA_DIR", "/a\u{1b}b", "data_dir"),
    ] {
        let told = load(&[(name, value)]).unwrap_err();
        assert!(told.contains(&format!("{key}: must not hold a control character")), "{told}");
        assert!(told.contains(name) && !told.contains("canary"), "{told}");
    }
}

#[test]
fn an_empty_value_is_refused_by_its_key_and_where_it_comes_from() {
    for (name, key) in [
        ("REDIS_URL", "redis.url"),
        ("REDIS_HOST", "redis.host"),
        ("MONGO_URI", "mongodb.uri"),
        ("MONGO_DB", "mongodb.database"),
        ("FEATURESTORE_AUTH_TOKENS_FILE", "auth.tokens_file"),
        ("FEATURESTORE_TLS_CERT_FILE", "tls.cert_file"),
        ("FEATURESTORE_LISTEN", "listen"),
    ] {
        for empty in ["", " \n"] {
            let told = load(&[(name, empty)]).unwrap_err();
            assert!(told.lines().any(|line| line.starts_with(&format!("{key}: ")) && line.contains(name)), "{told}");
            assert!(told.contains("empty"), "{told}");
        }
    }
    let redis = load(&[("REDIS_HOST", "h"), ("REDIS_PASSWORD", ""), ("REDIS_USERNAME", "")]).unwrap().redis.unwrap();
    assert_eq!((redis.username, redis.password), (None, None));
}

#[test]
fn settings_of_a_backend_that_nothing_names_are_refused() {
    for (name, value, key) in [
        ("REDIS_PASSWORD", "canary", "redis.password"),
        ("REDIS_USERNAME", "me", "redis.username"),
        ("REDIS_DB", "3", "redis.db"),
        ("REDIS_PORT", "6380", "redis.port"),
        ("FEATURESTORE_REDIS_CA_FILE", "/ca.pem", "redis.ca_file"),
        ("FEATURESTORE_REDIS_CONNECTIONS", "4", "redis.connections"),
        ("MONGO_DB", "risk", "mongodb.database"),
        ("FEATURESTORE_MONGODB_MAX_POOL_SIZE", "8", "mongodb.max_pool_size"),
        ("FEATURESTORE_MONGODB_MAX_CONNECTING", "4", "mongodb.max_connecting"),
        ("FEATURESTORE_MONGODB_SERVER_SELECTION_TIMEOUT", "3s", "mongodb.server_selection_timeout"),
        ("FEATURESTORE_TLS_RELOAD_INTERVAL", "1s", "tls.reload_interval"),
    ] {
        let told = load(&[(name, value)]).unwrap_err();
        assert!(told.starts_with(&format!("{key}: is set, but")) && !told.contains("canary"), "{told}");
    }
    load(&[("REDIS_PORT", "6379"), ("REDIS_DB", "0"), ("MONGO_DB", "featurestore")]).unwrap();
    load(&[("FEATURESTORE_MONGODB_MAX_POOL_SIZE", "64"), ("FEATURESTORE_TLS_RELOAD_INTERVAL", "30s")]).unwrap();
}

#[test]
fn settings_of_a_tier_in_the_process_are_refused_where_the_tier_is_elsewhere() {
    let (redis, mongodb) = (("REDIS_URL", "redis://h"), ("MONGO_URI", "mongodb://h"));
    let (memory, cache) = (("FEATURESTORE_L1_MEMORY", "1MiB"), ("FEATURESTORE_L2_CACHE", "1MiB"));
    load(&[memory, cache]).unwrap();
    load(&[redis, cache]).unwrap();
    load(&[mongodb, memory]).unwrap();
    load(&[redis, mongodb, ("FEATURESTORE_L1_MEMORY", "256MiB"), ("FEATURESTORE_L2_CACHE", "256MiB")]).unwrap();
    for (there, setting, key) in [(redis, memory, "l1.memory"), (mongodb, cache, "l2.cache")] {
        let told = load(&[there, setting]).unwrap_err();
        assert!(told.starts_with(&format!("{key}: is set, but")), "{told}");
    }
}

#[test]
fn what_has_no_effect_and_is_set_all_the_same_is_a_line_at_the_start() {
    let notices = |environment: &[(&str, &str)]| {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load(&Flags::default(), environment).unwrap().1.notices.join("\n")
    };
    let (mongodb, folder) = (("MONGO_URI", "mongodb://h"), ("FEATURESTORE_DATA_DIR", "/data"));
    assert_eq!(notices(&[mongodb]) + &notices(&[folder]), "");
    assert!(notices(&[mongodb, folder]).contains("data_dir is not used"));
    let told = notices(&[("FEATURESTORE_L1_TIMEOUT", "20ms")]);
    assert!(told.contains("l1.slow") && told.contains("l1.timeout"), "{told}");
    assert_eq!(notices(&[("FEATURESTORE_L1_TIMEOUT", "21ms")]), "");
}

#[test]
fn a_redis_host_is_a_host_and_what_a_url_overrides_is_a_warning() {
    let url = |host| load(&[("REDIS_HOST", host)]).map(|config| config.redis.unwrap().url);
    assert_eq!(url("::1").unwrap(), "redis://[::1]:6379");
    assert_eq!(url("[::1]").unwrap(), "redis://[::1]:6379");
    for host in ["redis://:canary@h", "h:6379", "canary@h", "h/1"] {
        let told = url(host).unwrap_err();
        assert!(told.contains("redis.host") && !told.contains("canary"), "{told}");
    }
    let environment = [("REDIS_URL", "redis://there"), ("REDIS_HOST", "here"), ("REDIS_PORT", "1")];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let (config, effective) = Config::load(&Flags::default(), environment).unwrap();
    assert_eq!(config.redis.unwrap().url, "redis://there");
    let warnings = effective.warnings.join("\n");
    assert!(warnings.contains("redis.host") && warnings.contains("redis.port"), "{warnings}");
}

#[test]
fn names_that_only_look_like_settings_are_a_warning() {
    let environment = ["MONGO_PASSWORD", "MONGODB_URI", "REDIS_TLS", "FEATURESTORE_PORT"];
    let environment = environment.map(|name| (name.to_owned(), "x".to_owned()));
    let (_, effective) = Config::load(&Flags::default(), environment.clone()).unwrap();
    let warnings = effective.warnings.join("\n");
    assert!(environment.iter().all(|(name, _)| warnings.contains(name.as_str())), "{warnings}");
    assert_eq!(effective.warnings.len(), 2, "{warnings}");
}

/// Every setting with a bound: its key, what is just too little, the least and the most that is
/// taken, which may need others, and what is just too much.
const BOUNDS: [(&str, &str, &str, &str, &str); 30] = [
    ("redis.port", "0", "1", "65535", "65536"),
    ("redis.db", "-1", "0", "65535", "65536"),
    ("redis.connections", "0", "1", "1000", "1001"),
    ("tls.reload_interval", "9ms", "10ms", "30days", "30days 1ms"),
    ("mongodb.max_pool_size", "0", "1", "10000", "10001"),
    ("mongodb.max_connecting", "0", "1", "1000", "1001"),
    ("mongodb.server_selection_timeout", "9ms", "10ms", "1min", "60001ms"),
    ("l1.ttl", "999ms", "1s", "6days", "6days 1ms"),
    ("l1.timeout", "999us", "1ms", "1min", "60001ms"),
    ("l1.slow", "999us", "1ms", "1min", "60001ms"),
    ("l1.wait_replicas", "-1", "0", "100", "101"),
    ("l1.memory", "65535", "64KiB", "1TiB", "1099511627777"),
    ("l2.tombstone_ttl", "999ms", "1s", "1000years", "1000years 1ms"),
    ("l2.max_reads", "0", "1", "100000", "100001"),
    ("l2.cache", "65535", "64KiB", "1TiB", "1099511627777"),
    ("ttl.default", "999ms", "1s", "1000years", "1000years 1ms"),
    ("limits.max_entities", "0", "1", "20000", "20001"),
    ("limits.max_bulk_records", "0", "1", "100000", "100001"),
    ("limits.max_features", "0", "1", "100000", "100001"),
    ("limits.max_record_bytes", "0", "1", "64MiB", "67108865"),
    ("limits.max_request_bytes", "1023", "1KiB", "1GiB", "1073741825"),
    ("limits.max_response_bytes", "1023", "1KiB", "1GiB", "1073741825"),
    ("limits.max_in_flight", "0", "1", "1000000", "1000001"),
    ("limits.max_bytes_in_flight", "4095", "4KiB", "1TiB", "1099511627777"),
    ("limits.max_connections", "0", "1", "1000000", "1000001"),
    ("limits.max_ttl", "999ms", "1s", "1000years", "1000years 1ms"),
    ("deadlines.read", "9ms", "10ms", "1h", "3600001ms"),
    ("deadlines.strong", "9ms", "10ms", "1h", "3600001ms"),
    ("deadlines.write", "9ms", "10ms", "1h", "3600001ms"),
    ("drain.timeout", "0s", "1ms", "1day", "1day 1ms"),
];

/// Settings without such bounds; other tests list what they may be.
const OTHERS: [&str; 9] = [
    "listen",
    "admin_listen",
    "data_dir",
    "insecure_bind",
    "reflection",
    "mongodb.database",
    "l1.on_loss",
    "log.format",
    "log.filter",
];

#[test]
fn every_setting_has_bounds_and_what_is_beyond_is_refused_by_its_key() {
    // Without the backend that it is for, a setting would be refused for that.
    let for_key = |key: &str| match key.split_once('.') {
        Some(("redis", _)) | Some(("l1", "wait_replicas")) => &[("REDIS_HOST", "h")][..],
        Some(("mongodb", _)) => &[("MONGO_URI", "mongodb://h")],
        Some(("tls", _)) => &[("FEATURESTORE_TLS_CERT_FILE", "/c"), ("FEATURESTORE_TLS_KEY_FILE", "/k")],
        _ => &[],
    };
    let set = |key: &str, text: &str| {
        let flags = Flags { set: vec![format!("{key}={text}")], ..Flags::default() };
        load_with(&flags, for_key(key)).map_or_else(|errors| errors, |_| String::new())
    };
    let about =
        |told: &str, key: &str| told.lines().find(|line| line.starts_with(&format!("{key}: "))).map(str::to_owned);
    for (key, below, least, most, above) in BOUNDS {
        let told = about(&set(key, above), key).unwrap_or_default();
        assert!(told.contains("must be at most"), "{key}={above}: {told:?}");
        let absurd = [below, "", " ", "-1", "1e9", "NaN", "999999999999999999999", "99999999999years", "99999EiB", "x"];
        for text in absurd {
            let told = set(key, text);
            assert!(about(&told, key).is_some(), "{key}={text} is not refused by its key: {told:?}");
        }
        for text in [least, most] {
            // Other settings may contradict it, but it is within its own bounds.
            let line = about(&set(key, text), key).unwrap_or_default();
            assert!(!line.contains("must be at least") || line.contains("times") || line.contains("below"), "{line}");
            assert!(!line.contains("must be at most") && !line.contains("is not"), "{line}");
        }
    }
    // A new key must be listed here too.
    let (_, effective) = Config::load(&Flags::default(), []).unwrap();
    let keys = effective.to_string();
    let keys = keys.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key);
    for key in keys {
        let is_here = BOUNDS.iter().any(|(of, ..)| *of == key) || OTHERS.contains(&key) || key == "drain.delay";
        assert!(is_here, "{key} has no bounds in this test");
    }
    assert!(set("drain.delay", "25h").contains("drain.delay: must be at most 1day"), "{}", set("drain.delay", "25h"));
    assert_eq!(set("drain.delay", "0s"), "");
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let cases: [(&[(&str, &str)], &str); 10] = [
        (&[("FEATURESTORE_LISTEN", "127.0.0.1:7"), ("FEATURESTORE_ADMIN_LISTEN", "127.0.0.1:7")], "admin_listen"),
        (&[("FEATURESTORE_LIMITS_MAX_RECORD_BYTES", "4MiB")], "limits.max_record_bytes"),
        (&[("FEATURESTORE_LIMITS_MAX_REQUEST_BYTES", "1MiB")], "limits.max_record_bytes"),
        (&[("FEATURESTORE_LIMITS_MAX_RESPONSE_BYTES", "1MiB")], "limits.max_record_bytes"),
        (&[("FEATURESTORE_TTL_DEFAULT", "8days"), ("FEATURESTORE_LIMITS_MAX_TTL", "7days")], "ttl.default"),
        (&[("FEATURESTORE_L1_TTL", "1h"), ("FEATURESTORE_L2_TOMBSTONE_TTL", "2h")], "l1.ttl"),
        (&[("MONGO_URI", "mongodb://h"), ("MONGO_DB", "config")], "mongodb.database"),
        (&[("MONGO_URI", "mongodb://h"), ("MONGO_DB", "local")], "mongodb.database"),
        (&[("MONGO_URI", "mongodb://h"), ("MONGO_DB", "admin")], "mongodb.database"),
        (&[("MONGO_URI", "mongodb://h"), ("MONGO_DB", "a.b")], "mongodb.database"),
    ];
    for (settings, key) in cases {
        let told = load(settings).unwrap_err();
        assert!(told.starts_with(key), "{settings:?}: {told}");
    }
}

#[test]
fn a_record_may_be_as_large_as_l2_can_hold() {
    let settings = |record: &'static str| {
        [
            ("FEATURESTORE_LIMITS_MAX_RECORD_BYTES", record),
            ("FEATURESTORE_LIMITS_MAX_REQUEST_BYTES", "32MiB"),
            ("FEATURESTORE_LIMITS_MAX_RESPONSE_BYTES", "32MiB"),
        ]
    };
    let over_mongodb = |record| load(&[&settings(record)[..], &[("MONGO_URI", "mongodb://h")]].concat());
    over_mongodb("8MiB").unwrap();
    // A document of MongoDB cannot hold it; the embedded store can.
    let told = over_mongodb("8388609").unwrap_err();
    assert!(told.starts_with("limits.max_record_bytes: may be 8MiB at most with MongoDB"), "{told}");
    load(&settings("8388609")).unwrap();
}

#[test]
fn a_misspelt_name_is_told() {
    let environment = [("FEATURESTORE_L1_TIMEOT".to_owned(), "1ms".to_owned())];
    let (_, effective) = Config::load(&Flags::default(), environment).unwrap();
    assert!(effective.warnings[0].contains("FEATURESTORE_L1_TIMEOT"), "{:?}", effective.warnings);
}

#[test]
fn waiting_for_replicas_needs_a_redis() {
    let wait = ("FEATURESTORE_L1_WAIT_REPLICAS", "2");
    assert_eq!(load(&[wait, ("REDIS_URL", "redis://there")]).unwrap().l1_wait_replicas, 2);
    let told = load(&[wait]).unwrap_err();
    assert!(told.contains("l1.wait_replicas") && told.contains("redis.url"), "{told}");
    assert_eq!(load(&[]).unwrap().l1_wait_replicas, 0);
}

#[test]
fn tls_needs_both_files() {
    let (cert, key) = (("FEATURESTORE_TLS_CERT_FILE", "/c"), ("FEATURESTORE_TLS_KEY_FILE", "/k"));
    let ca = ("FEATURESTORE_TLS_CLIENT_CA_FILE", "/a");
    let tls = load(&[cert, key, ca]).unwrap().tls.unwrap();
    assert_eq!((tls.cert_file, tls.client_ca_file), ("/c".into(), Some("/a".into())));
    for (given, missing) in [(cert, "tls.key_file"), (key, "tls.cert_file"), (ca, "tls.cert_file")] {
        let told = load(&[given]).unwrap_err();
        assert!(told.contains(missing), "{told}");
    }
}

#[test]
fn beyond_loopback_it_listens_with_tls_and_tokens_or_when_it_is_told_to() {
    let open = ("FEATURESTORE_LISTEN", "0.0.0.0:1");
    let told = load(&[open]).unwrap_err();
    assert!(told.contains("tls.cert_file") && told.contains("--insecure-bind"), "{told}");
    load(&[open, ("FEATURESTORE_INSECURE_BIND", "true")]).unwrap();
    let (cert, key) = (("FEATURESTORE_TLS_CERT_FILE", "/c"), ("FEATURESTORE_TLS_KEY_FILE", "/k"));
    let told = load(&[open, cert, key]).unwrap_err();
    assert!(told.contains("auth.tokens_file") && !told.contains("tls.cert_file"), "{told}");
    load(&[open, cert, key, ("FEATURESTORE_AUTH_TOKENS_FILE", "/t")]).unwrap();
}

#[test]
fn a_connections_part_of_the_bytes_in_flight_holds_the_largest_answer() {
    let told = load(&[("FEATURESTORE_LIMITS_MAX_BYTES_IN_FLIGHT", "63MiB")]).unwrap_err();
    assert!(told.contains("limits.max_bytes_in_flight"), "{told}");
    load(&[("FEATURESTORE_LIMITS_MAX_BYTES_IN_FLIGHT", "64MiB")]).unwrap();
}

#[test]
fn seconds_are_whole_seconds() {
    for wrong in ["5m", "abc", ""] {
        let told = load(&[("REDIS_TTL", wrong)]).unwrap_err();
        assert!(told.contains("l1.ttl") && told.contains("REDIS_TTL"), "{told}");
    }
}
