//! Requests that say something, signed anew for each attempt, whose answers are read whole.

use http::{HeaderMap, Method, StatusCode};

use super::failure::{Failure, Trouble};
use super::stop::Stop;
use super::{Asked, Http};
use crate::retry::{Budget, Patience};
use crate::{Error, Result};

/// Who asks, and knows what the answers mean.
pub(crate) trait Asker {
    /// The request, signed and valid now.
    fn ask(&self) -> Result<Asked>;

    /// It was refused with the signature of this version: whether there is, or will be, another one.
    fn renew(&self, version: u64) -> bool;

    /// The error that an answer is.
    fn explain(&self, answer: &Exchanged) -> Error;

    /// Whether the same request may fare better later, though the status does not say so.
    fn may_pass(&self, answer: &Exchanged) -> bool;
}

/// An answer.
pub(crate) struct Exchanged {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    /// An attempt before this one came to no answer, so that what was asked for may have been done already.
    pub(crate) unsure: bool,
}

/// The longest answer that is read.
const MOST: u64 = 100 << 20;

impl Http {
    /// Sends it until there is an answer that is neither an overload nor broken.
    pub(crate) fn exchange(
        &self,
        asker: &dyn Asker,
        body: Option<&[u8]>,
        patience: Option<Patience>,
        stop: &Stop,
    ) -> Result<Exchanged> {
        let mut budget = patience
            .map_or_else(|| self.budget(body.is_some()), |patience| Budget::new(patience, self.now()));
        let (mut renewed, mut unsure) = (false, false);
        loop {
            stop.check()?;
            let asked = asker.ask()?;
            let version = asked.version;
            match self.try_exchange(asker, asked, body, stop) {
                Ok(answer) if matches!(answer.status.as_u16(), 400 | 401 | 403) && !renewed => {
                    if !asker.renew(version) {
                        return Ok(Exchanged { unsure, ..answer });
                    }
                    renewed = true;
                }
                Ok(answer) => return Ok(Exchanged { unsure, ..answer }),
                Err(failure) => {
                    unsure = true;
                    self.after(failure, &mut budget, stop)?;
                }
            }
        }
    }

    fn try_exchange(
        &self,
        asker: &dyn Asker,
        asked: Asked,
        body: Option<&[u8]>,
        stop: &Stop,
    ) -> std::result::Result<Exchanged, Failure> {
        let head = asked.request.method() == Method::HEAD;
        let mut answer = self.send_with(asked, body, stop)?;
        let (status, headers) = (answer.status, answer.headers.clone());
        let body = match status.is_success() && !head {
            true => answer.whole(self, MOST, stop)?,
            false => answer.excerpt(self, stop),
        };
        let exchanged = Exchanged { status, headers, body, unsure: false };
        if let Some(failure) = answer.overload(|| asker.explain(&exchanged)) {
            return Err(failure);
        }
        if asker.may_pass(&exchanged) {
            return Err(Failure { trouble: Trouble::Passing, error: asker.explain(&exchanged) });
        }
        answer.accepted();
        Ok(exchanged)
    }
}
