//! What the headers of answers say.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderMap;

/// A header's text.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    text(headers, "content-length")?.parse().ok()
}

/// `Content-Range: bytes 0-9/10`: which bytes, and of how many, if the server knows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ContentRange {
    pub(crate) range: Option<Range<u64>>,
    pub(crate) size: Option<u64>,
}

pub(crate) fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    let mut all = headers.get_all("content-range").iter();
    let value = all.next()?.to_str().ok()?;
    if all.next().is_some() {
        return None;
    }
    let (range, size) = value.trim().strip_prefix("bytes ")?.trim().split_once('/')?;
    let number = |text: &str| match text.bytes().all(|b| b.is_ascii_digit()) {
        true => text.parse::<u64>().ok(),
        false => None,
    };
    let size = if size == "*" { None } else { Some(number(size)?) };
    let range = match range {
        "*" => None,
        range => {
            let (start, last) = range.split_once('-')?;
            let (start, end) = (number(start)?, number(last)?.checked_add(1)?);
            (start < end && size.is_none_or(|size| end <= size)).then_some(())?;
            Some(start..end)
        }
    };
    Some(ContentRange { range, size })
}

/// How long the server asks to be left alone, by `Retry-After` or by `RateLimit` with nothing left.
pub(crate) fn server_wait(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    rate_limit(headers).filter(|limit| limit.left == 0).map(|limit| limit.resets).or_else(|| {
        let text = text(headers, "retry-after")?;
        match text.parse::<u64>() {
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => Some(http_date(text)?.duration_since(now).unwrap_or_default()),
        }
    })
}

/// `RateLimit: "resolvers";r=0;t=55` and `RateLimit-Policy: "fixed window";"resolvers";q=5000;w=300`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RateLimit {
    pub(crate) name: String,
    pub(crate) left: u64,
    pub(crate) resets: Duration,
    pub(crate) quota: Option<u64>,
}

pub(crate) fn rate_limit(headers: &HeaderMap) -> Option<RateLimit> {
    let number = |text: &str, key: &str| -> Option<u64> {
        text.split(';').find_map(|part| part.trim().strip_prefix(key)?.strip_prefix('=')?.trim().parse().ok())
    };
    let limit = text(headers, "ratelimit")?;
    let name = limit.split(';').next()?.trim().trim_matches('"');
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_ ".contains(c);
    Some(RateLimit {
        name: name.chars().filter(|c| plain(*c)).take(40).collect(),
        left: number(limit, "r")?,
        resets: Duration::from_secs(number(limit, "t")?),
        quota: text(headers, "ratelimit-policy").and_then(|policy| number(policy, "q")),
    })
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that servers may still send.
pub(crate) fn http_date(text: &str) -> Option<SystemTime> {
    let mut parts = text.split_ascii_whitespace().skip(1);
    let day: i64 = parts.next()?.parse().ok()?;
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let name = parts.next()?;
    let month = months.iter().zip(1_i64..).find_map(|(month, number)| (*month == name).then_some(number))?;
    let year: i64 = parts.next()?.parse().ok()?;
    let mut clock = parts.next()?.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if !(1..=31).contains(&day) || !(1970..10_000).contains(&year) || hour > 23 || minute > 59 || second > 60
    {
        return None;
    }
    let days = u64::try_from(days_since_epoch(year, month, day)).ok()?;
    Some(UNIX_EPOCH + Duration::from_secs(days * 86_400 + hour * 3600 + minute * 60 + second))
}

/// The days from 1970-01-01 to a date of the Gregorian calendar, whose years are taken to begin in March.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// `2026-11-28T11:30:00.000Z`, as listings of stores have it; fractions of seconds are left out.
#[cfg(feature = "stores")]
pub(crate) fn dashed_date(text: &str) -> Option<SystemTime> {
    let (seconds, _) = text.strip_suffix('Z')?.split_once('.').unwrap_or((text.strip_suffix('Z')?, ""));
    let plain: String = seconds.chars().filter(|c| !matches!(c, '-' | ':')).collect();
    compact_date(&format!("{plain}Z"))
}

/// `20261128T113000Z`, as `X-Amz-Date` has it.
pub(crate) fn compact_date(text: &str) -> Option<SystemTime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let digits = |text: &str, range: Range<usize>| -> Option<i64> {
        text.get(range).filter(|part| part.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
    };
    if date.len() != 8 || time.len() != 6 {
        return None;
    }
    let (year, month, day) = (digits(date, 0..4)?, digits(date, 4..6)?, digits(date, 6..8)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let of_day = digits(time, 0..2)? * 3600 + digits(time, 2..4)? * 60 + digits(time, 4..6)?;
    let seconds = u64::try_from(days_since_epoch(year, month, day) * 86_400 + of_day).ok()?;
    Some(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// An entity tag without its quotes and without the mark of a weak one.
pub(crate) fn bare_tag(tag: &str) -> &str {
    let tag = tag.trim();
    tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn content_ranges() {
        let parse = |text| content_range(&headers(&[("content-range", text)]));
        assert_eq!(parse("bytes 0-9/10"), Some(ContentRange { range: Some(0..10), size: Some(10) }));
        assert_eq!(parse("bytes */0"), Some(ContentRange { range: None, size: Some(0) }));
        assert_eq!(parse("bytes 5-9/*"), Some(ContentRange { range: Some(5..10), size: None }));
        for bad in [
            "bytes 9-5/10",
            "bytes 0-10/10",
            "items 0-9/10",
            "bytes 0-9",
            "bytes -1-3/9",
            "bytes +1-3/9",
            "bytes 0-18446744073709551615/*",
            "bytes 99999999999999999999-1/2",
            "",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn waits() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        let wait = |pairs: &[(&'static str, &'static str)]| server_wait(&headers(pairs), now);
        assert_eq!(wait(&[("retry-after", "7")]), Some(Duration::from_secs(7)));
        assert_eq!(wait(&[("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT")]), Some(Duration::from_secs(60)));
        assert_eq!(wait(&[("retry-after", "Sun, 06 Nov 1994 08:40:37 GMT")]), Some(Duration::ZERO));
        assert_eq!(wait(&[("retry-after", "soon")]), None);
        assert_eq!(
            wait(&[("ratelimit", "\"resolvers\";r=0;t=55"), ("retry-after", "7")]),
            Some(Duration::from_secs(55))
        );
        assert_eq!(wait(&[("ratelimit", "\"api\";r=3;t=55")]), None);
        let limit = rate_limit(&headers(&[
            ("ratelimit", "\"resolvers\";r=0;t=55"),
            ("ratelimit-policy", "\"fixed window\";\"resolvers\";q=5000;w=300"),
        ]));
        assert_eq!(limit.unwrap().quota, Some(5000));
        assert_eq!(compact_date("19941106T084937Z"), Some(now));
        #[cfg(feature = "stores")]
        {
            assert_eq!(dashed_date("1994-11-06T08:49:37.000Z"), Some(now));
            assert_eq!(dashed_date("1994-11-06T08:49:37Z"), Some(now));
            assert_eq!(dashed_date("1994-11-06"), None);
        }
        assert_eq!(compact_date("19941306T084937Z"), None);
        assert_eq!(compact_date("1994é106T08493Z"), None);
    }

    #[test]
    fn tags() {
        assert_eq!(bare_tag("W/\"ab\""), "ab");
        assert_eq!(bare_tag(" \"ab\" "), "ab");
        assert_eq!(bare_tag("ab"), "ab");
    }
}
