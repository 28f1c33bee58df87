//! Segments of speech, of how likely each frame is speech; the rules, and their defaults, are those of the Python package.

use crate::model::{FRAME, RATE};

/// What is speech, and what is too short to be said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// A frame this likely begins a segment; one that is less likely by 0.15 may end it.
    pub(crate) threshold: f32,
    /// Milliseconds.
    pub(crate) min_speech: u32,
    pub(crate) min_silence: u32,
    pub(crate) pad: u32,
    /// Seconds.
    pub(crate) max_speech: Option<u32>,
}

/// Samples from `start` up to `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// A silence in a segment that is cut there if it gets too long, in samples.
const SILENCE_TO_CUT: usize = samples(98);

const fn samples(milliseconds: u32) -> usize {
    RATE * milliseconds as usize / 1000
}

/// The segments of a recording of `len` samples.
pub(crate) fn segments(probabilities: &[f32], len: usize, rules: &Rules) -> Vec<Segment> {
    let mut segments = found(probabilities, len, rules);
    pad(&mut segments, len, samples(rules.pad));
    segments
}

fn found(probabilities: &[f32], len: usize, rules: &Rules) -> Vec<Segment> {
    let (min_speech, min_silence) = (samples(rules.min_speech), samples(rules.min_silence));
    let leaves = (rules.threshold - 0.15).max(0.01);
    let most = rules.max_speech.map_or(usize::MAX, |seconds| {
        (RATE * seconds as usize).saturating_sub(FRAME + 2 * samples(rules.pad))
    });

    let mut segments = Vec::new();
    // Where the segment began that is not over, where a silence began that may end it, and longer silences in it:
    // where, and how long.
    let (mut begun, mut quiet, mut silences) = (None, None, Vec::new());
    for (frame, probability) in probabilities.iter().enumerate() {
        let now = frame * FRAME;
        let is_speech = *probability >= rules.threshold;
        if is_speech
            && let Some(since) = quiet.take()
            && now - since > SILENCE_TO_CUT
        {
            silences.push((since, now - since));
        }
        let Some(start) = begun else {
            begun = is_speech.then_some(now);
            continue;
        };
        let mut start = start;
        if now - start > most {
            quiet = None;
            // The longest; of equal ones the first.
            let Some((end, lasts)) = silences.drain(..).reduce(|a, b| if b.1 > a.1 { b } else { a }) else {
                segments.push(Segment { start, end: now });
                begun = None;
                continue;
            };
            segments.push(Segment { start, end });
            start = end + lasts;
            begun = Some(start);
        }
        if *probability < leaves {
            let end = *quiet.get_or_insert(now);
            if now - end >= min_silence {
                if end - start > min_speech {
                    segments.push(Segment { start, end });
                }
                (begun, quiet) = (None, None);
                silences.clear();
            }
        }
    }
    if let Some(start) = begun.filter(|start| len.saturating_sub(*start) > min_speech) {
        segments.push(Segment { start, end: len });
    }
    segments
}

/// Makes segments longer at both ends, and has neighbours share what is between them where it is not enough for both.
fn pad(segments: &mut [Segment], len: usize, pad: usize) {
    let Some(first) = segments.first_mut() else { return };
    first.start = first.start.saturating_sub(pad);
    for at in 1..segments.len() {
        let between = segments[at].start.saturating_sub(segments[at - 1].end);
        let each = if between < 2 * pad { between / 2 } else { pad };
        segments[at - 1].end = len.min(segments[at - 1].end + each);
        segments[at].start = segments[at].start.saturating_sub(each);
    }
    if let Some(last) = segments.last_mut() {
        last.end = len.min(last.end + pad);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules =
        Rules { threshold: 0.5, min_speech: 250, min_silence: 100, pad: 30, max_speech: None };

    /// Frames as signs: `#` speech, `-` neither, ` ` silence.
    fn of(frames: &str, rules: &Rules) -> Vec<(usize, usize)> {
        let probability = |sign| match sign {
            '#' => 0.9,
            '-' => 0.4,
            _ => 0.1,
        };
        let probabilities: Vec<f32> = frames.chars().map(probability).collect();
        let segments = segments(&probabilities, probabilities.len() * FRAME, rules);
        segments.iter().map(|segment| (segment.start, segment.end)).collect()
    }

    // The expected numbers are what `get_speech_timestamps_from_probs` of silero-vad 6.2.3 answers.
    #[test]
    fn segments_begin_and_end_as_in_python() {
        assert_eq!(of("", &RULES), []);
        assert_eq!(of("   ##########      ", &RULES), [(1056, 7136)]);
        assert_eq!(of("   ####      ", &RULES), [], "too short");
        assert_eq!(of("##########  ##########", &RULES), [(0, 11264)], "a short silence");
        assert_eq!(of("##########-----##########", &RULES), [(0, 12800)], "nothing that ends it");
        assert_eq!(of("  ##########", &RULES), [(544, 6144)], "up to the end");
    }

    #[test]
    fn neighbours_share_what_is_between_them() {
        let wide = Rules { pad: 200, ..RULES };
        assert_eq!(of("##########      ##########   ", &wide), [(0, 6656), (6656, 14848)]);
    }

    #[test]
    fn what_is_too_long_is_cut_where_it_is_quiet() {
        let frames = format!("{}    {}   {}", "#".repeat(20), "#".repeat(20), "#".repeat(20));
        let rules = Rules { min_silence: 400, max_speech: Some(1), ..RULES };
        assert_eq!(of(&frames, &rules), [(0, 10720), (11808, 27392), (27392, 34304)]);
    }
}
