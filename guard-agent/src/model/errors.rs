//! Formats an error with its causes, for one line of a log or a message.

use std::error::Error;
use std::iter;

/// An error and every cause below it, separated by ": ".
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = iter::successors(Some(error), |error| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn an_error_is_followed_by_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("read the policy")]
        struct Outer(#[source] io::Error);

        let inner = || io::Error::other("no such disk");
        assert_eq!(chain(&Outer(inner())), "read the policy: no such disk");
        assert_eq!(chain(&inner()), "no such disk");
    }
}
