//! Folding loses nothing, whatever the names.

use proptest::prelude::*;
use weighbridge::{Checkpoint, TensorRef};

use super::{Node, Sort, by_path, ranges};
use crate::Shown;

/// A checkpoint of bytes, all tensors of that name and length.
fn checkpoint(tensors: &[(String, usize)]) -> Checkpoint {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, len) in tensors {
        let entry = serde_json::json!({"dtype": "U8", "shape": [len], "data_offsets": [end, end + len]});
        header.insert(name.clone(), entry);
        end += len;
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + end, 0);
    Checkpoint::from_bytes(file).unwrap()
}

fn sorted(checkpoint: &Checkpoint) -> Vec<TensorRef<'_>> {
    let mut tensors: Vec<_> = checkpoint.tensors().collect();
    tensors.sort_by(|a, b| by_path(a.name(), b.name()));
    tensors
}

/// Names of the tensors of a node, made of its labels alone, and how many bytes each has.
fn expand(node: &Node<'_, '_>, prefixes: &[String], sort: Sort, found: &mut Vec<(String, u64)>) {
    let mut bytes = 0;
    for child in node.children(sort) {
        let numbers: Vec<String> = match child.numbers() {
            [] => vec![child.label()],
            numbers => numbers.iter().map(u64::to_string).collect(),
        };
        let dot = if node.is_root() { "" } else { "." };
        let names =
            prefixes.iter().flat_map(|prefix| numbers.iter().map(move |n| format!("{prefix}{dot}{n}")));
        let names: Vec<String> = names.collect();
        bytes += child.bytes();
        match child.tensor() {
            Some(tensor) => found.extend(names.iter().map(|name| (name.clone(), tensor.byte_len()))),
            None => expand(&child, &names, sort, found),
        }
    }
    assert_eq!(bytes, node.bytes());
}

fn parts() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => (0..12_u32).prop_map(|n| n.to_string()),
        1 => prop::sample::select(vec!["", "01", "00", "a", "ab", "a-b", "[0-1]", "18446744073709551615", "ü"])
            .prop_map(str::to_owned),
    ]
}

fn tensors() -> impl Strategy<Value = Vec<(String, usize)>> {
    let name = prop::collection::vec(parts(), 1..5).prop_map(|parts| parts.join("."));
    prop::collection::btree_map(name, 0..3_usize, 0..60).prop_map(|map| map.into_iter().collect())
}

proptest! {
    #[test]
    fn expanding_the_tree_gives_all_tensors(
        given in tensors(),
        sort in prop::sample::select(vec![Sort::Name, Sort::Size, Sort::Offset]),
    ) {
        let checkpoint = checkpoint(&given);
        let tensors = sorted(&checkpoint);
        let root = Node::root(&tensors, Shown::Stored);
        let mut found = Vec::new();
        expand(&root, &[String::new()], sort, &mut found);
        found.sort();
        let given: Vec<_> = given.into_iter().map(|(name, len)| (name, len as u64)).collect();
        prop_assert_eq!(found, given);
    }

    #[test]
    fn places_are_those_of_the_names(given in tensors()) {
        let checkpoint = checkpoint(&given);
        let tensors = sorted(&checkpoint);
        let mut nodes = Node::root(&tensors, Shown::Stored).children(Sort::Name);
        let mut seen = Vec::new();
        while let Some(node) = nodes.pop() {
            if let Some(tensor) = node.tensor() {
                for place in node.places() {
                    prop_assert_eq!(tensors[place].shape(), tensor.shape());
                    seen.push(place);
                }
            }
            nodes.extend(node.children(Sort::Name));
        }
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..tensors.len()).collect::<Vec<_>>());
    }

    #[test]
    fn paths_are_in_a_total_order(mut names in prop::collection::vec(
        prop::collection::vec(parts(), 1..4).prop_map(|parts| parts.join(".")), 0..12,
    )) {
        // The order of the parts, each compared for itself.
        let slowly = |a: &String, b: &String| {
            let (a, b): (Vec<_>, Vec<_>) = (a.split('.').collect(), b.split('.').collect());
            let parts = a.iter().zip(&b).map(|(a, b)| weighbridge::natural_order(a, b));
            parts.fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then).then(a.len().cmp(&b.len()))
        };
        let mut expected = names.clone();
        expected.sort_by(slowly);
        names.sort_by(|a, b| by_path(a, b));
        prop_assert_eq!(names, expected);
    }
}

#[test]
fn equal_layers_are_one() {
    let layers = |numbers: &[u32], len| {
        numbers.iter().map(move |n| (format!("layers.{n}.w"), len)).collect::<Vec<_>>()
    };
    let given = [layers(&[0, 1, 2, 3, 5, 7, 8, 9], 4), layers(&[4, 6], 2)].concat();
    let checkpoint = checkpoint(&given);
    let tensors = sorted(&checkpoint);
    let module = Node::root(&tensors, Shown::Stored).children(Sort::Name).remove(0);
    let labels: Vec<_> = module.children(Sort::Name).iter().map(|n| (n.label(), n.bytes())).collect();
    assert_eq!(labels, [("[0-3,5,7-9]".to_owned(), 32), ("[4,6]".to_owned(), 4)]);
}

#[test]
fn numbers_are_short() {
    assert_eq!(ranges(&[0, 1, 2]), "[0-2]");
    assert_eq!(ranges(&[0, 2, 3]), "[0,2-3]");
}

#[test]
fn deep_names_end() {
    let deep = ".".repeat(100_000);
    let checkpoint = checkpoint(&[(deep.clone(), 1), (format!("{deep}x"), 2)]);
    let tensors = sorted(&checkpoint);
    let mut found = Vec::new();
    expand(&Node::root(&tensors, Shown::Stored), &[String::new()], Sort::Name, &mut found);
    assert_eq!(found, [(deep.clone(), 1), (format!("{deep}x"), 2)]);
}
