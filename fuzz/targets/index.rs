//! Any text as an index: what is read is what `serde_json` reads, and is written and read again as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weighbridge::index::Index;

fuzz_target!(|text: &str| {
    let ours = Index::parse(text);
    let theirs: Option<serde_json::Value> = serde_json::from_str(text).ok();
    let map = theirs.as_ref().and_then(|index| index.get("weight_map")?.as_object());
    let Ok(index) = ours else {
        // What is refused is no JSON, lists nothing or no strings, or leads outside.
        let harmless = |name: &str| !name.is_empty() && !name.contains(['/', '\\', ':', '\0']) && name != "..";
        let plain = |map: &serde_json::Map<_, serde_json::Value>| {
            !map.is_empty() && map.values().all(|shard| shard.as_str().is_some_and(harmless))
        };
        // A weight_map that a later one replaces is read all the same.
        assert!(!map.is_some_and(plain) || text.matches('{').count() > 2, "{:?}", ours.err());
        return;
    };
    let map = map.expect("serde_json reads it too");
    assert_eq!(index.weights().len(), map.len());
    for (tensor, shard) in index.weights() {
        assert_eq!(map.get(tensor).and_then(|shard| shard.as_str()), Some(shard));
        assert!(index.shards().any(|other| other == shard));
    }
    assert_eq!(Index::parse(&index.to_json()).unwrap(), index);
});
