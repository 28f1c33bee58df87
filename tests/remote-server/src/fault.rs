//! What goes wrong, how often.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::server::{Reply, Request, Trick};

/// One thing that goes wrong with a reply that has a part of a file.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Sent wrongly.
    Send(Trick),
    /// Another status, with headers and a text.
    Status(u16, Vec<(&'static str, String)>, &'static str),
    /// 200 with the whole file, whatever was asked for.
    Whole,
    /// The bytes, and what `Content-Range` says of them, are so many further on.
    Shifted(u64),
    /// `Content-Range` is of the bytes asked for, the bytes are others.
    Mislabelled,
    /// `Content-Range` says another size.
    Size(u64),
    /// 206 without a `Content-Range`.
    NoRange,
    /// Says that it is compressed.
    Gzip,
    /// Sends elsewhere.
    Redirect(u16, String),
    /// Another entity tag.
    Tag(String),
    /// Waits before it answers.
    Late(Duration),
}

/// The faults of a server. Clones are the same.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    /// Cuts one of so many replies at any byte.
    cuts: Option<(u64, u64)>,
    random: u64,
    done: u64,
}

struct Rule {
    part: String,
    skip: usize,
    times: usize,
    fault: Fault,
}

impl Faults {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next `times` replies to requests with `part` in their target go wrong.
    pub fn add(&self, part: &str, times: usize, fault: Fault) {
        self.add_after(part, 0, times, fault);
    }

    /// The same, after `skip` replies that are right.
    pub fn add_after(&self, part: &str, skip: usize, times: usize, fault: Fault) {
        self.lock().rules.push(Rule { part: part.to_owned(), skip, times, fault });
    }

    /// All that follow go wrong.
    pub fn always(&self, part: &str, fault: Fault) {
        self.add(part, usize::MAX, fault);
    }

    /// Cuts one of `one_of` replies at a random byte, `most` times.
    pub fn cut_randomly(&self, seed: u64, one_of: u64, most: u64) {
        let mut state = self.lock();
        state.cuts = Some((one_of, most));
        state.random = seed | 1;
    }

    /// How many replies went wrong.
    pub fn done(&self) -> u64 {
        self.lock().done
    }

    /// No more of them.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.rules.clear();
        state.cuts = None;
    }

    /// The fault of the reply to this request.
    pub(crate) fn next(&self, request: &Request, length: u64) -> Option<Fault> {
        let mut state = self.lock();
        for rule in &mut state.rules {
            if rule.times > 0 && request.target.contains(&rule.part) {
                if rule.skip > 0 {
                    rule.skip -= 1;
                    continue;
                }
                rule.times -= usize::from(rule.times != usize::MAX);
                let fault = rule.fault.clone();
                state.done += 1;
                return Some(fault);
            }
        }
        let (one_of, most) = state.cuts.filter(|(_, most)| *most > 0)?;
        let mut random = || {
            state.random ^= state.random << 13;
            state.random ^= state.random >> 7;
            state.random ^= state.random << 17;
            state.random
        };
        if random() % one_of != 0 {
            return None;
        }
        let fault = match random() % 16 {
            0 => Fault::Send(Trick::CutHead(usize::try_from(random() % 200).unwrap_or(0))),
            _ => Fault::Send(Trick::Cut(random() % length.max(1))),
        };
        state.cuts = Some((one_of, most - 1));
        state.done += 1;
        Some(fault)
    }

    /// The reply as it goes wrong, if it does.
    pub(crate) fn apply(&self, request: &Request, mut reply: Reply) -> Reply {
        let part = reply.part.clone().unwrap_or(0..reply.content.len());
        let Some(fault) = self.next(request, part.len() as u64) else { return reply };
        let size = reply.content.len();
        let mut range = |value: Option<String>| {
            reply.headers.retain(|(name, _)| name != "Content-Range");
            reply.headers.extend(value.map(|value| ("Content-Range".to_owned(), value)));
        };
        match fault {
            Fault::Send(trick) => reply.tricks.push(trick),
            Fault::Status(status, headers, text) => {
                let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
                reply = Reply { headers: headers.collect(), ..Reply::text(status, text) };
            }
            Fault::Whole => {
                range(None);
                (reply.status, reply.part) = (200, None);
            }
            Fault::Shifted(by) => {
                let by = usize::try_from(by).unwrap_or(0);
                let part = part.start + by..(part.end + by).min(size);
                range(Some(format!("bytes {}-{}/{size}", part.start, part.end - 1)));
                reply.part = Some(part);
            }
            Fault::Mislabelled => {
                let length = part.len();
                reply.part = Some(size - length..size);
            }
            Fault::Size(size) => range(Some(format!("bytes {}-{}/{size}", part.start, part.end - 1))),
            Fault::NoRange => range(None),
            Fault::Gzip => reply.headers.push(("Content-Encoding".into(), "gzip".into())),
            Fault::Redirect(status, to) => {
                reply = Reply::text(status, "elsewhere").with("Location", to);
            }
            Fault::Tag(tag) => {
                reply.headers.retain(|(name, _)| name != "ETag");
                reply.headers.push(("ETag".into(), tag));
            }
            Fault::Late(time) => std::thread::sleep(time),
        }
        reply
    }
}
