//! Dates as stores write them.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
/// The first of January 1970 was a Thursday.
const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];

/// `2026-11-28T11:30:00.000Z`.
pub(super) fn dashed(time: SystemTime) -> String {
    let (days, clock) = days_and_clock(time);
    let (year, month, day) = date(days);
    format!("{year}-{:02}-{day:02}T{clock}.000Z", month + 1)
}

/// `Sat, 28 Nov 2026 11:30:00 GMT`.
pub(super) fn of_headers(time: SystemTime) -> String {
    let (days, clock) = days_and_clock(time);
    let (year, month, day) = date(days);
    format!("{}, {day:02} {} {year} {clock} GMT", DAYS[days % 7], MONTHS[month])
}

fn days_and_clock(time: SystemTime) -> (usize, String) {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60);
    (usize::try_from(days).unwrap_or(0), clock)
}

/// Year, month and day, the month counted from 0 and the day from 1.
fn date(mut days: usize) -> (usize, usize, usize) {
    let mut year = 1970;
    let is_leap =
        |year: usize| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while days >= 365 + usize::from(is_leap(year)) {
        days -= 365 + usize::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + usize::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(dashed(at(1_795_865_400)), "2026-11-28T11:30:00.000Z");
        assert_eq!(of_headers(at(1_795_865_400)), "Sat, 28 Nov 2026 11:30:00 GMT");
        assert_eq!(dashed(at(951_782_399)), "2000-02-28T23:59:59.000Z");
        assert_eq!(dashed(at(951_782_400)), "2000-02-29T00:00:00.000Z");
    }
}
